//! The daemon's clock: where [`Tick`]s come from.

use damselfly_core::Tick;
use tokio::time::Instant;

/// Turns instants into ticks and back. One per daemon; copies agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock whose tick 0 is now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The present tick.
    #[must_use]
    pub fn now(&self) -> Tick {
        Tick(u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// When a tick is.
    #[must_use]
    pub fn instant(&self, tick: Tick) -> Instant {
        self.0 + std::time::Duration::from_micros(tick.0)
    }
}
