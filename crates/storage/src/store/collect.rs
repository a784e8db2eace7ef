//! Making room: by time, and by need.

use std::sync::Arc;
use std::time::Duration;

use damselfly_core::TaskKey;

use super::{Store, remove_files};
use crate::clock::Moment;
use crate::error::StoreError;
use crate::policy::{Fact, Reason, plan, pressure};
use crate::task::TaskContent;

/// The most tasks one pass removes, and the most sidecars it brings up to date: a pass stays short.
const BATCH: usize = 128;

/// What a pass removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Tasks whose TTL ended.
    pub expired: Vec<TaskKey>,
    /// The least recently used tasks, removed because room was needed.
    pub evicted: Vec<TaskKey>,
    /// Bytes that were freed.
    pub freed: u64,
    /// There is more to do: come again soon.
    pub more: bool,
}

impl Store {
    /// One short pass: removes tasks whose TTL ended, then the least recently used ones while the store is above its
    /// high mark; writes back uses that were only kept in memory. What is pinned, being written or being served stays,
    /// and so does, but for its TTL, what is persistent. Leaves no tombstones: other hosts keep theirs.
    ///
    /// `now` comes from [`Store::now`], or from a virtual clock.
    pub fn collect(&self, now: Moment) -> Collected {
        let space = self.shared.system.space(self.shared.layout.root()).unwrap_or_default();
        let totals = self.shared.ledger.totals();
        let (total, used) = match self.shared.ledger.capacity() {
            Some(capacity) => (capacity, totals.charged),
            None => (space.total, space.total.saturating_sub(space.free).saturating_add(totals.pending)),
        };
        let needed = pressure(total, used, self.options.high_percent, self.options.low_percent);
        let mut collected = self.remove_by_plan(&now, needed, BATCH);
        let mut unflushed = self.list();
        unflushed.retain(|task| task.is_unflushed());
        for task in unflushed.iter().take(BATCH) {
            if let Err(error) = task.flush() {
                tracing::warn!(task = %task.key(), %error, "cannot record the last use of a task");
            }
        }
        collected.more |= unflushed.len() > BATCH;
        let mut tombstones = self.changing.lock();
        if let Err(error) = tombstones.expire(&self.shared.layout, &*self.shared.system) {
            tracing::warn!(%error, "cannot drop expired tombstones");
        }
        collected
    }

    /// Removes least recently used tasks until `bytes` more can be admitted. What cannot be freed is not removed in
    /// vain: if all that may go is not enough, nothing goes but what expired.
    pub fn make_room(&self, bytes: u64) -> Collected {
        let Ok(space) = self.shared.system.space(self.shared.layout.root()) else {
            return Collected::default();
        };
        let needed = self.shared.ledger.missing_room(bytes, space);
        if needed == 0 {
            return Collected::default();
        }
        let now = self.now();
        let may_go: u64 = self
            .list()
            .iter()
            .map(|task| task.fact(&now))
            .filter(|fact| !fact.in_use && (!fact.persistent || fact.ttl_left == Duration::ZERO))
            .map(|fact| fact.freeable)
            .sum();
        self.remove_by_plan(&now, if may_go < needed { 0 } else { needed }, usize::MAX)
    }

    fn remove_by_plan(&self, now: &Moment, needed: u64, limit: usize) -> Collected {
        let tasks = self.list();
        let facts: Vec<Fact> = tasks.iter().map(|task| task.fact(now)).collect();
        let plan = plan(&facts, needed);
        let mut collected = Collected { more: plan.len() > limit, ..Collected::default() };
        for (index, reason) in plan.into_iter().take(limit) {
            let task = &tasks[index];
            match self.remove(task) {
                Ok(bytes) => {
                    collected.freed += bytes.min(facts[index].freeable);
                    let list = match reason {
                        Reason::Expired => &mut collected.expired,
                        Reason::Evicted => &mut collected.evicted,
                    };
                    list.push(task.key().clone());
                    tracing::info!(task = %task.key(), ?reason, bytes, "removed a task");
                }
                // Somebody began to use it just now.
                Err(StoreError::InUse { .. } | StoreError::Gone(_)) => {}
                Err(error) => tracing::warn!(task = %task.key(), %error, "cannot remove a task"),
            }
        }
        collected
    }

    fn remove(&self, task: &Arc<TaskContent>) -> Result<u64, StoreError> {
        let _changing = self.changing.lock();
        let bytes = task.end(false)?;
        let mut tasks = self.tasks.lock();
        if tasks.get(task.key()).is_some_and(|known| Arc::ptr_eq(known, task)) {
            tasks.remove(task.key());
        }
        drop(tasks);
        remove_files(&*self.shared.system, task.paths())?;
        Ok(bytes)
    }
}
