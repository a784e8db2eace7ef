//! How long a host that could not carry an order out is left alone.

use std::time::Duration;

use damselfly_core::Tick;

use super::super::event::HostInfo;

/// After the first failure; each further one in a row doubles it.
const FIRST: Duration = Duration::from_secs(30);
/// And no longer.
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// What a host failed at last, and under which circumstances.
#[derive(Debug)]
pub(super) struct Failure {
    /// It is not asked again before.
    pub(super) until: Tick,
    /// In a row.
    pub(super) times: u32,
    incarnation: Option<u64>,
    free: Option<u64>,
}

impl Failure {
    /// One more than `former`.
    pub(super) fn after(former: Option<&Self>, host: &HostInfo, now: Tick) -> Self {
        let times = former.map_or(0, |former| former.times).saturating_add(1);
        let pause = FIRST.saturating_mul(1 << (times - 1).min(16)).min(LONGEST);
        Self { until: now + pause, times, incarnation: host.incarnation, free: host.disk_free }
    }

    /// Whether what has failed may succeed now: the host's process is another, or it has room for the content that it had
    /// not. What frees less is the usual coming and going.
    pub(super) fn is_over(&self, host: &HostInfo, content_length: u64) -> bool {
        let grown = host.disk_free.zip(self.free).map_or(0, |(now, then)| now.saturating_sub(then));
        host.incarnation != self.incarnation || grown >= content_length.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::hosts::tests::info;

    #[test]
    fn the_pause_doubles_up_to_half_an_hour() {
        let host = info("a", Some(1));
        let mut failure = Failure::after(None, &host, Tick(0));
        let mut pauses = vec![failure.until.since(Tick(0)).as_secs()];
        for _ in 0..40 {
            failure = Failure::after(Some(&failure), &host, Tick(0));
            pauses.push(failure.until.since(Tick(0)).as_secs());
        }
        assert_eq!(pauses[..8], [30, 60, 120, 240, 480, 960, 1800, 1800]);
        assert_eq!(pauses[40], 1800);
    }

    #[test]
    fn another_process_or_more_room_makes_good() {
        let mut host = info("a", Some(1));
        host.disk_free = Some(100);
        let failure = Failure::after(None, &host, Tick(0));
        assert!(!failure.is_over(&host, 50));
        let free = |free| HostInfo { disk_free: Some(free), ..host.clone() };
        assert!(!failure.is_over(&free(149), 50) && failure.is_over(&free(150), 50));
        assert!(!failure.is_over(&free(10), 0), "less room is none the more");
        host.incarnation = Some(2);
        assert!(failure.is_over(&host, 50));
    }
}
