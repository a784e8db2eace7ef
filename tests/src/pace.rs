//! A limit on bytes per second that several senders share.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{self, Instant};

/// Hands out time: each stretch of bytes gets the next free slot.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Waits until `count` bytes have gone by at `rate` bytes per second, after those that were asked for earlier.
    pub(crate) async fn pass(&self, count: usize, rate: u64) {
        let took = Duration::from_secs_f64(count as f64 / rate.max(1) as f64);
        let free = {
            let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let free = next.map_or(now, |next| next.max(now)) + took;
            *next = Some(free);
            free
        };
        time::sleep_until(free).await;
    }
}

/// Bytes to send at a time, so that a limited sender moves smoothly: about a fiftieth of a second's worth.
pub(crate) fn step(rate: Option<u64>, at_most: usize) -> usize {
    rate.map_or(at_most, |rate| usize::try_from(rate / 50).unwrap_or(at_most).clamp(1, at_most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn senders_share_the_rate() {
        let start = Instant::now();
        let pace = Pace::default();
        tokio::join!(
            async {
                for _ in 0..10 {
                    pace.pass(100, 1000).await
                }
            },
            async {
                for _ in 0..5 {
                    pace.pass(200, 1000).await
                }
            },
        );
        assert_eq!(start.elapsed().as_millis(), 2000);
        time::sleep(Duration::from_secs(5)).await;
        pace.pass(100, 1000).await;
        assert_eq!(start.elapsed().as_millis(), 7100, "idle time is not saved up");
    }

    #[test]
    fn steps_are_small_but_never_nothing() {
        assert_eq!(step(None, 65_536), 65_536);
        assert_eq!(step(Some(100_000), 65_536), 2000);
        assert_eq!(step(Some(3), 65_536), 1);
        assert_eq!(step(Some(u64::MAX), 65_536), 65_536);
    }
}
