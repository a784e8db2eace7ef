//! Which tasks go: pure functions of facts.

use std::time::Duration;

/// What the policy knows of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    /// Bytes that its removal would free; 0 for content that is linked to a caller's file.
    pub(crate) freeable: u64,
    /// Since it was last used.
    pub(crate) idle: Duration,
    /// Until its TTL ends.
    pub(crate) ttl_left: Duration,
    /// Pinned, being written or being served.
    pub(crate) in_use: bool,
    /// Disk pressure may not take it.
    pub(crate) persistent: bool,
}

/// Why a task goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Its TTL ended.
    Expired,
    /// The least recently used one while bytes were needed.
    Evicted,
}

/// Which of `facts` go, and why: everything that expired, then the least recently used until `needed` bytes are free.
/// What is in use never goes.
pub(crate) fn plan(facts: &[Fact], needed: u64) -> Vec<(usize, Reason)> {
    let idle = |(_, fact): &(usize, &Fact)| !fact.in_use;
    let expired = facts.iter().enumerate().filter(idle).filter(|(_, fact)| fact.ttl_left.is_zero());
    let mut victims: Vec<(usize, Reason)> = expired.map(|(index, _)| (index, Reason::Expired)).collect();
    let mut freed: u64 = victims.iter().fold(0, |sum, &(index, _)| sum.saturating_add(facts[index].freeable));
    let mut candidates: Vec<(usize, &Fact)> = facts.iter().enumerate().filter(idle).collect();
    candidates.retain(|(_, fact)| !fact.ttl_left.is_zero() && !fact.persistent && fact.freeable > 0);
    candidates.sort_by_key(|(_, fact)| std::cmp::Reverse(fact.idle));
    for (index, fact) in candidates {
        if freed >= needed {
            break;
        }
        freed = freed.saturating_add(fact.freeable);
        victims.push((index, Reason::Evicted));
    }
    victims
}

/// How many bytes must go to fall to `low` percent of `total`, if `used` reaches `high` percent of it; else 0.
pub(crate) fn pressure(total: u64, used: u64, high: u8, low: u8) -> u64 {
    let share = |percent: u8| {
        u64::try_from(u128::from(total) * u128::from(percent.min(100)) / 100).unwrap_or(u64::MAX)
    };
    if total == 0 || used < share(high) { 0 } else { used.saturating_sub(share(low.min(high))) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts() -> impl Strategy<Value = Vec<Fact>> {
        let fact = (0u64..100, 0u64..50, 0u64..4, any::<bool>(), any::<bool>());
        prop::collection::vec(
            fact.prop_map(|(freeable, idle, left, in_use, persistent)| Fact {
                freeable,
                idle: Duration::from_secs(idle),
                ttl_left: Duration::from_secs(left),
                in_use,
                persistent,
            }),
            0..40,
        )
    }

    proptest! {
        #[test]
        fn a_plan_spares_what_it_must_and_takes_no_more_than_it_needs(facts in facts(), needed in 0u64..1500) {
            let plan = plan(&facts, needed);
            let gone = |index: usize| plan.iter().any(|&(victim, _)| victim == index);
            let mut seen = std::collections::HashSet::new();
            for &(index, reason) in &plan {
                prop_assert!(seen.insert(index), "twice");
                prop_assert!(!facts[index].in_use);
                prop_assert_eq!(reason == Reason::Expired, facts[index].ttl_left.is_zero());
                prop_assert!(reason == Reason::Expired || !facts[index].persistent);
            }
            // All that expired and is idle goes.
            for (index, fact) in facts.iter().enumerate() {
                prop_assert!(fact.in_use || !fact.ttl_left.is_zero() || gone(index));
            }
            let evicted: Vec<usize> =
                plan.iter().filter(|(_, reason)| *reason == Reason::Evicted).map(|&(index, _)| index).collect();
            let evictable = |fact: &Fact| {
                !fact.in_use && !fact.persistent && !fact.ttl_left.is_zero() && fact.freeable > 0
            };
            // Nobody goes who was used later than an evictable task that stays.
            for &victim in &evicted {
                for (index, fact) in facts.iter().enumerate() {
                    prop_assert!(gone(index) || !evictable(fact) || fact.idle <= facts[victim].idle);
                }
            }
            let freed: u64 = plan.iter().map(|&(index, _)| facts[index].freeable).sum();
            // Enough goes, or everything that may.
            let all_gone = facts.iter().enumerate().all(|(index, fact)| gone(index) || !evictable(fact));
            prop_assert!(freed >= needed || all_gone);
            // And without the last one it would not have been enough.
            if let Some(&last) = evicted.last() {
                prop_assert!(freed - facts[last].freeable < needed);
            }
        }

        #[test]
        fn pressure_leads_below_the_low_mark(total in 0u64..10_000, used in 0u64..10_000, high in 0u8..=100, low in 0u8..=100) {
            let go = pressure(total, used, high, low);
            prop_assert!(go <= used);
            if go > 0 {
                prop_assert!(used >= total * u64::from(high) / 100);
                prop_assert!(used - go <= total * u64::from(low.min(high)) / 100);
            }
        }
    }

    #[test]
    fn nothing_goes_below_the_high_mark() {
        assert_eq!(pressure(1000, 799, 80, 60), 0);
        assert_eq!(pressure(1000, 800, 80, 60), 200);
        assert_eq!(pressure(u64::MAX, u64::MAX, 80, 60) / (u64::MAX / 100), 40);
    }
}
