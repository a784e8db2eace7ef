//! Making room: by time, and by need.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use damselfly_core::TaskKey;

use super::Store;
use crate::clock::Moment;
use crate::error::StoreError;
use crate::policy::{Fact, Reason, plan, pressure};
use crate::task::TaskContent;

/// The most tasks one pass removes, and the most sidecars it brings up to date: a pass stays short.
const BATCH: usize = 128;

/// What a pass removed, and what admission removed since the pass before.
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

impl Collected {
    fn add(&mut self, other: Self) {
        self.expired.extend(other.expired);
        self.evicted.extend(other.evicted);
        self.freed += other.freed;
        self.more |= other.more;
    }
}

impl Store {
    /// One short pass: removes tasks whose TTL ended and uploads that nobody went on with, then the least recently used ones while the store is above its
    /// high mark, and what is left of tasks that are gone; writes back uses that were only kept in memory. What is pinned, being written or being served stays,
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
        let on_disk = self.shared.ledger.capacity().is_none();
        let mut collected = self.remove_by_plan(&now, needed, on_disk, BATCH);
        collected.add(std::mem::take(&mut *self.unreported.lock()));
        self.sweep();
        let mut unflushed = self.all();
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

    /// For an admission that was refused: removes least recently used tasks until `bytes` more can be admitted. What
    /// cannot be freed is not removed in vain: if all that may go is not enough, nothing goes but what expired. The
    /// next pass reports it.
    pub(crate) fn make_room(&self, bytes: u64) {
        let collected = self.evict_for(bytes);
        self.unreported.lock().add(collected);
    }

    pub(crate) fn evict_for(&self, bytes: u64) -> Collected {
        let mut collected = Collected::default();
        // First for the file system, then for the store's own capacity: a linked file frees only the latter.
        for on_disk in [true, false] {
            let Ok(space) = self.shared.system.space(self.shared.layout.root()) else { break };
            let (disk, own) = self.shared.ledger.shortfall(bytes, space);
            let needed = if on_disk { disk } else { own };
            if needed == 0 {
                continue;
            }
            let now = self.now();
            let facts = self.all().iter().map(|task| task.fact(&now, on_disk)).collect::<Vec<_>>();
            let may_go =
                facts.iter().filter(|fact| !fact.in_use && (!fact.persistent || fact.ttl_left.is_zero()));
            let enough = may_go.map(|fact| fact.freeable).sum::<u64>() >= needed;
            let part = self.remove_by_plan(&now, if enough { needed } else { 0 }, on_disk, usize::MAX);
            collected.add(part);
        }
        collected
    }

    fn remove_by_plan(&self, now: &Moment, needed: u64, on_disk: bool, limit: usize) -> Collected {
        let tasks = self.all();
        let facts: Vec<Fact> = tasks.iter().map(|task| task.fact(now, on_disk)).collect();
        let plan = plan(&facts, needed);
        let mut collected = Collected { more: plan.len() > limit, ..Collected::default() };
        for (index, reason) in plan.into_iter().take(limit) {
            let task = &tasks[index];
            match self.remove(task) {
                Ok(bytes) => {
                    collected.freed += facts[index].freeable;
                    let list = match reason {
                        Reason::Expired => &mut collected.expired,
                        Reason::Evicted => &mut collected.evicted,
                    };
                    if task.is_upload() {
                        tracing::info!(?reason, bytes, "removed an upload that nobody went on with");
                    } else {
                        list.push(task.key().clone());
                        tracing::info!(task = %task.key(), ?reason, bytes, "removed a task");
                    }
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
        self.clear(task)?;
        Ok(bytes)
    }

    /// Removes a task whose content nothing became known of and which nobody uses: a download that failed at once leaves
    /// nothing behind. Says whether it did. What is paused or persistent stays. Leaves no tombstone.
    ///
    /// # Errors
    /// A failing disk; the next pass tries again.
    pub fn remove_blank(&self, task: &Arc<TaskContent>) -> Result<bool, StoreError> {
        let meta = task.meta();
        // Without a length no piece has a place yet.
        if meta.geometry.is_some() || meta.paused || meta.persistent {
            return Ok(false);
        }
        match self.remove(task) {
            Ok(_) => Ok(true),
            Err(StoreError::InUse { .. } | StoreError::Gone(_)) => Ok(false),
            Err(why) => Err(why),
        }
    }

    /// Removes what is left of tasks whose files could not be replaced, or not be removed when they were to go.
    fn sweep(&self) {
        let _changing = self.changing.lock();
        if self.shared.closed.load(Ordering::Acquire) {
            return; // the files may be another store's by now
        }
        self.trim_uploads();
        let tasks = self.tasks.lock();
        let gone: Vec<_> = tasks.values().filter(|task| task.is_gone()).cloned().collect();
        drop(tasks);
        for task in gone {
            match self.clear(&task) {
                Ok(()) => tracing::info!(task = %task.key(), "removed what was left of a task"),
                Err(error) => {
                    tracing::warn!(task = %task.key(), %error, "cannot remove what is left of a task")
                }
            }
        }
    }
}
