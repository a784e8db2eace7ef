//! Time that survives reboots.
//!
//! `CLOCK_BOOTTIME` counts suspended time and is never set back, but begins anew at each boot; the wall clock goes on
//! over reboots, but may be set. A [`Moment`] keeps both, and ages are the larger of what the two can prove.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Names one boot of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// The running boot. Where the kernel does not tell, every start counts as a boot of its own, so nothing is
    /// trusted that should not be.
    #[must_use]
    pub fn current() -> Self {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self::parse(&text).unwrap_or_else(|| {
            let unique = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            Self((unique ^ u128::from(std::process::id()) << 96).to_be_bytes())
        })
    }

    /// Reads the kernel's spelling: 32 hex digits and dashes.
    fn parse(text: &str) -> Option<Self> {
        let digits: String = text.trim().chars().filter(|&c| c != '-').collect();
        let id = (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok())??;
        Some(Self(id.to_be_bytes()))
    }
}

/// One point in time, on both clocks. Precision: microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The boot that `since_boot` counts from.
    pub boot: BootId,
    /// `CLOCK_BOOTTIME`.
    pub since_boot: Duration,
    /// Since the Unix epoch.
    pub wall: Duration,
}

impl Moment {
    /// Now, in the boot that the caller already knows.
    pub(crate) fn read(boot: BootId) -> Self {
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { boot, since_boot: truncated(Duration::new(seconds, nanos)), wall: truncated(wall) }
    }

    /// How much time passed from here to `now`.
    ///
    /// Within one boot `CLOCK_BOOTTIME` decides. Across a reboot both clocks give a lower bound (the wall clock may
    /// have been set back; the new boot has lasted this long), and the larger one counts.
    #[must_use]
    pub fn age(&self, now: &Moment) -> Duration {
        if self.boot == now.boot {
            return now.since_boot.saturating_sub(self.since_boot);
        }
        now.wall.saturating_sub(self.wall).max(now.since_boot)
    }
}

/// Micros are what the sidecar keeps; so that a moment equals what is read back.
fn truncated(time: Duration) -> Duration {
    Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// How long a task may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// This long after its last use: standard tasks.
    Unused(Duration),
    /// This long after the moment, used or not: tasks whose owner set the end.
    Fixed(Moment, Duration),
}

impl Lifetime {
    /// What is left of it; zero when it is over.
    pub(crate) fn left(&self, used: &Moment, now: &Moment) -> Duration {
        match self {
            Self::Unused(length) => length.saturating_sub(used.age(now)),
            Self::Fixed(from, length) => length.saturating_sub(from.age(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THIS: BootId = BootId([1; 16]);
    const NEXT: BootId = BootId([2; 16]);

    fn at(boot: BootId, since_boot: u64, wall: u64) -> Moment {
        Moment { boot, since_boot: Duration::from_secs(since_boot), wall: Duration::from_secs(wall) }
    }

    #[test]
    fn boot_ids_are_read_as_the_kernel_spells_them() {
        let id = BootId::parse("8ea956b0-162b-4c9a-aecb-25aaf7fa8d62\n").unwrap();
        assert_eq!(id.0[..4], [0x8e, 0xa9, 0x56, 0xb0]);
        assert_eq!(BootId::parse(""), None);
        assert_eq!(BootId::parse("8ea956b0-162b"), None);
        assert_eq!(BootId::current(), BootId::current());
    }

    #[test]
    fn within_a_boot_the_wall_clock_may_jump() {
        let from = at(THIS, 100, 1_000_000);
        assert_eq!(from.age(&at(THIS, 160, 5)), Duration::from_secs(60));
        assert_eq!(from.age(&at(THIS, 160, 9_000_000)), Duration::from_secs(60));
    }

    #[test]
    fn after_a_reboot_the_smaller_remainder_counts() {
        let life = |now: Moment| {
            Lifetime::Fixed(at(THIS, 100, 1_000), Duration::from_secs(600)).left(&now, &now).as_secs()
        };
        assert_eq!(life(at(NEXT, 10, 1_200)), 400, "the wall clock says 200 s passed");
        assert_eq!(life(at(NEXT, 50, 900)), 550, "the wall clock was set back, but this boot lasted 50 s");
        assert_eq!(life(at(NEXT, 10, 5_000)), 0);
    }

    proptest! {
        #[test]
        fn what_is_left_never_grows_while_nobody_uses_the_task(
            length in 0u64..1000, steps in prop::collection::vec((0u64..100, -500i64..500, any::<bool>()), 0..20),
        ) {
            let start = at(THIS, 50, 10_000);
            let life = Lifetime::Fixed(start, Duration::from_secs(length));
            let mut now = start;
            let mut last = life.left(&now, &now);
            prop_assert_eq!(last.as_secs(), length);
            for (passed, jump, reboot) in steps {
                if reboot && now.boot == THIS {
                    // A reboot may show a remainder larger than before only if the wall clock was set back.
                    now = at(NEXT, 0, now.wall.as_secs());
                    last = life.left(&now, &now);
                }
                now.since_boot += Duration::from_secs(passed);
                let jump = if now.boot == THIS { jump } else { jump.abs() };
                now.wall = Duration::from_secs((now.wall.as_secs() + passed).saturating_add_signed(jump));
                let left = life.left(&now, &now);
                prop_assert!(left <= last);
                last = left;
            }
        }
    }
}
