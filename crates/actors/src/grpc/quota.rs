//! Not more than a share of a bounded good for each who asks.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts who has how much, and refuses what is more than one's share. Only who has something is remembered.
#[derive(Clone, Debug)]
pub(crate) struct Quota<K: Eq + Hash> {
    most: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

/// One taken place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash> {
    who: K,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Copy> Quota<K> {
    /// At most `most` places for each.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// A place for `who`, unless the share is used up.
    pub(crate) fn enter(&self, who: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock();
        let count = taken.entry(who).or_insert(0);
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place { who, taken: Arc::clone(&self.taken) })
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        if let Some(count) = taken.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_share_and_gives_it_back() {
        let quota = Quota::new(2);
        let places: Vec<_> = (0..3).map(|_| quota.enter('a')).collect();
        assert_eq!(places.iter().flatten().count(), 2);
        assert!(quota.enter('b').is_some(), "another one's share is its own");
        drop(places);
        assert!(quota.taken.lock().is_empty());
        assert!(quota.enter('a').is_some());
    }
}
