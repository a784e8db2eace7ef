//! Time as pure code sees it.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// Microseconds since an origin that the caller chose and keeps (a process start, a simulation's zero).
///
/// Pure machines never read a clock; the shell around them passes `now` in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

impl Tick {
    /// The time since `earlier`; zero when `earlier` lies in the future.
    #[must_use]
    pub fn since(self, earlier: Tick) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Tick {
    type Output = Tick;

    fn add(self, rhs: Duration) -> Tick {
        Tick(self.0.saturating_add(micros(rhs)))
    }
}

impl AddAssign<Duration> for Tick {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub<Duration> for Tick {
    type Output = Tick;

    fn sub(self, rhs: Duration) -> Tick {
        Tick(self.0.saturating_sub(micros(rhs)))
    }
}
