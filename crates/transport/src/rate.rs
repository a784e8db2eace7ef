//! Bandwidth limits.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How much may pass at once after a pause, as a share of a second's worth.
const BURST: f64 = 0.05;

/// A token bucket in bytes per second.
///
/// Charged per buffer before the buffer moves. An acquisition may drive the bucket into debt, which the next one
/// waits for, so that buffers larger than the burst pass too and the average is still exact. Waiters are served in
/// the order they came; giving up while waiting costs nothing.
#[derive(Debug)]
pub struct TokenBucket {
    state: Mutex<State>,
    /// Held by the waiter whose turn it is; tokio's mutex queues fairly.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Bytes per second; `None` lets everything pass.
    rate: Option<u64>,
    /// Bytes that may pass now; negative while in debt.
    tokens: f64,
    /// When `tokens` was right.
    at: Instant,
}

impl State {
    #[expect(clippy::cast_precision_loss, reason = "rates are far below 2^53")]
    fn refill(&mut self, now: Instant) {
        if let Some(rate) = self.rate {
            let rate = rate as f64;
            let earned = now.saturating_duration_since(self.at).as_secs_f64() * rate;
            self.tokens = (self.tokens + earned).min(rate * BURST);
        }
        self.at = now;
    }

    /// Takes `bytes`, or says how long to wait before trying again.
    #[expect(clippy::cast_precision_loss, reason = "buffers and rates are far below 2^53")]
    fn take(&mut self, bytes: u64, now: Instant) -> Option<Duration> {
        let rate = self.rate?;
        self.refill(now);
        if self.tokens < 0.0 {
            // Rounded up, so that a wait never ends a nanosecond short and spins.
            return Some(Duration::from_secs_f64(-self.tokens / rate as f64) + Duration::from_nanos(1));
        }
        self.tokens -= bytes as f64;
        None
    }
}

impl TokenBucket {
    /// A bucket of `rate` bytes per second; `None` and 0 limit nothing.
    #[must_use]
    pub fn new(rate: Option<u64>) -> Self {
        let rate = rate.filter(|rate| *rate > 0);
        Self {
            state: Mutex::new(State { rate, tokens: 0.0, at: Instant::now() }),
            turn: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
        }
    }

    /// A bucket that limits nothing until told otherwise.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(None)
    }

    /// Bytes per second, if limited.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        self.state.lock().rate
    }

    /// Changes the rate at once, for those who wait already too; `None` and 0 limit nothing.
    pub fn set_rate(&self, rate: Option<u64>) {
        {
            let mut state = self.state.lock();
            state.refill(Instant::now());
            state.rate = rate.filter(|rate| *rate > 0);
            if state.rate.is_none() {
                state.tokens = 0.0;
            }
        }
        self.changed.notify_waiters();
    }

    /// Waits until `bytes` may pass. How long depends on the rate and on who waits before; callers that need a
    /// deadline put one around it.
    pub async fn acquire(&self, bytes: u64) {
        if self.state.lock().rate.is_none() {
            return;
        }
        let _turn = self.turn.lock().await;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before the state is read, so that no change in between is missed.
            changed.as_mut().enable();
            let Some(wait) = self.state.lock().take(bytes, Instant::now()) else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
            }
        }
    }
}

impl Default for TokenBucket {
    fn default() -> Self {
        Self::unlimited()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn the_average_is_the_rate() {
        let bucket = TokenBucket::new(Some(10 * MIB));
        let start = Instant::now();
        for _ in 0..400 {
            bucket.acquire(MIB / 4).await;
        }
        let took = start.elapsed().as_secs_f64();
        // 100 MiB at 10 MiB/s; the last buffer's debt is not waited for, and timers have a grain of 1 ms.
        assert!((9.9..10.2).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_earns_no_more_than_the_burst() {
        let bucket = TokenBucket::new(Some(MIB));
        tokio::time::advance(Duration::from_secs(3600)).await;
        let start = Instant::now();
        for _ in 0..20 {
            bucket.acquire(MIB / 10).await;
        }
        assert!(start.elapsed() > Duration::from_millis(1800), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn unlimited_never_waits() {
        for bucket in [TokenBucket::unlimited(), TokenBucket::new(Some(0))] {
            let start = Instant::now();
            bucket.acquire(u64::MAX).await;
            bucket.acquire(u64::MAX).await;
            assert_eq!(start.elapsed(), Duration::ZERO);
            assert_eq!(bucket.rate(), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_rate_reaches_those_who_wait() {
        let bucket = Arc::new(TokenBucket::new(Some(1)));
        bucket.acquire(MIB).await; // debt for twelve days
        let start = Instant::now();
        let waiting = tokio::spawn({
            let bucket = bucket.clone();
            async move { bucket.acquire(1).await }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!waiting.is_finished());
        bucket.set_rate(Some(MIB));
        waiting.await.expect("no panic");
        let took = start.elapsed();
        assert!(took >= Duration::from_secs(5) && took < Duration::from_millis(6100), "{took:?}");

        bucket.set_rate(Some(1));
        bucket.acquire(MIB).await;
        bucket.set_rate(None);
        let start = Instant::now();
        bucket.acquire(MIB).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_share_evenly() {
        let bucket = Arc::new(TokenBucket::new(Some(10 * MIB)));
        let counts: Vec<_> = (0..4).map(|_| Arc::new(std::sync::atomic::AtomicU64::new(0))).collect();
        let tasks: Vec<_> = counts
            .iter()
            .map(|count| {
                let (bucket, count) = (bucket.clone(), count.clone());
                tokio::spawn(async move {
                    loop {
                        bucket.acquire(MIB / 4).await;
                        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(10)).await;
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        let counts: Vec<u64> =
            counts.iter().map(|count| count.load(std::sync::atomic::Ordering::Relaxed)).collect();
        assert!(counts.iter().all(|count| (98..=104).contains(count)), "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn giving_up_costs_nothing() {
        let bucket = TokenBucket::new(Some(MIB));
        bucket.acquire(MIB).await;
        for _ in 0..5 {
            let waited = tokio::time::timeout(Duration::from_millis(10), bucket.acquire(100 * MIB)).await;
            assert!(waited.is_err());
        }
        let start = Instant::now();
        bucket.acquire(1).await;
        assert!(start.elapsed() <= Duration::from_secs(1));
    }
}
