//! Which scheduler owns a task: Dragonfly's consistent ring.
//!
//! One point per scheduler, hashed like the keys with SipHash-2-4 and zero keys over Rust's `Hash` encodings. A task
//! belongs to the first scheduler whose point is not below the hash of the first five characters of its id, and
//! wraps around. All daemons of a cluster must agree, Dragonfly's included, so nothing here is ours to choose.

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;

use damselfly_core::TaskId;
use siphasher::sip::SipHasher24;

/// Characters of a task id that decide its owner.
const KEY_LENGTH: usize = 5;

/// What a scheduler's point is hashed from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RingKey {
    /// Dragonfly's: the resolved socket address, in the standard library's encoding.
    Resolved(SocketAddr),
    /// Ours: the address it states in `Hold`, however it was reached.
    Stated(String),
}

/// The ring.
#[derive(Clone, Debug)]
pub struct Ring<T> {
    points: Vec<(u64, RingKey, T)>,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self { points: Vec::new() }
    }
}

impl<T> Ring<T> {
    /// A ring of these schedulers. Of two with the same key the first stays.
    pub fn new(schedulers: impl IntoIterator<Item = (RingKey, T)>) -> Self {
        let mut points: Vec<_> =
            schedulers.into_iter().map(|(key, scheduler)| (point(&key), key, scheduler)).collect();
        points.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        points.dedup_by(|later, earlier| later.1 == earlier.1);
        Self { points }
    }

    /// The schedulers in the order in which they are asked for `task`: its owner, then clockwise.
    pub fn clockwise(&self, task: &TaskId) -> impl Iterator<Item = &T> {
        let hash = key_hash(task);
        let start = self.points.partition_point(|(point, ..)| *point < hash);
        let (before, from) = self.points.split_at(start);
        from.iter().chain(before).map(|(_, _, scheduler)| scheduler)
    }
}

fn hash(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = SipHasher24::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn point(key: &RingKey) -> u64 {
    match key {
        RingKey::Resolved(address) => hash(address),
        RingKey::Stated(address) => hash(address.as_str()),
    }
}

fn key_hash(task: &TaskId) -> u64 {
    // Ids are hex of at least five digits.
    hash(task.as_str().get(..KEY_LENGTH).unwrap_or(task.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str) -> TaskId {
        TaskId::parse(id).unwrap()
    }

    #[test]
    fn siphash_is_the_reference_one() {
        let key: [u8; 16] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let message: [u8; 15] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        assert_eq!(SipHasher24::new_with_key(&key).hash(&message), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn keys_hash_as_dragonfly_hashes_them() {
        assert_eq!(key_hash(&task("e2d0fe1585a63ec6")), 0x5c00_fcf3_2062_0345);
        assert_eq!(key_hash(&task("e2d0f")), 0x5c00_fcf3_2062_0345);
    }

    #[test]
    fn clockwise_starts_at_the_owner_and_visits_everyone_once() {
        let keys: Vec<RingKey> = (1..=7)
            .map(|n| RingKey::Resolved(SocketAddr::from(([10, 0, 0, n], 8002))))
            .chain((1..=3).map(|n| RingKey::Stated(format!("10.1.0.{n}:8002"))))
            .collect();
        let ring = Ring::new(keys.iter().cloned().map(|key| (key.clone(), key)));
        for n in 0..500u32 {
            let task = task(&format!("{n:05x}"));
            let order: Vec<&RingKey> = ring.clockwise(&task).collect();
            assert_eq!(order.len(), keys.len());
            let hash = key_hash(&task);
            let mut expected: Vec<(u64, &RingKey)> = keys.iter().map(|key| (point(key), key)).collect();
            expected.sort();
            let owner = expected.iter().find(|(point, _)| *point >= hash).unwrap_or(&expected[0]);
            assert_eq!(order[0], owner.1);
        }
    }

    #[test]
    fn a_scheduler_that_goes_moves_only_its_own_tasks() {
        let member = |n: u8| (RingKey::Resolved(SocketAddr::from(([10, 0, 0, n], 8002))), n);
        let all = Ring::new((1..=5).map(member));
        let without = Ring::new((1..=5).filter(|&n| n != 3).map(member));
        let mut moved = 0;
        for n in 0..2000u32 {
            let task = task(&format!("{:05x}", n * 517));
            let (before, after) = (all.clockwise(&task).next(), without.clockwise(&task).next());
            if before == Some(&3) {
                moved += 1;
                assert_eq!(after, all.clockwise(&task).nth(1));
            } else {
                assert_eq!(before, after);
            }
        }
        assert!(moved > 0);
    }

    #[test]
    fn twins_count_once_and_the_empty_ring_has_no_owner() {
        let key = RingKey::Stated("10.0.0.1:8002".to_owned());
        let ring = Ring::new([(key.clone(), 1), (key, 2)]);
        assert_eq!(ring.clockwise(&task("00000")).copied().collect::<Vec<_>>(), [1]);
        assert!(Ring::<u8>::default().clockwise(&task("00000")).next().is_none());
    }
}
