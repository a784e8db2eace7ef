//! Deletions, and what keeps deleted content from coming back with hosts that were away.
//!
//! A scheduler that deletes a task remembers who had it. One that starts after that learns it again: the hosts that deleted
//! their copies keep tombstones and tell them. A tombstone names the import it is about, by a number that all copies of one
//! import have; what was imported later under the same id has another, and lives.

use std::collections::{BTreeMap, BTreeSet};

use damselfly_core::{HostId, Kind, TaskKey, Tick};

use super::super::Scheduler;
use super::super::event::{Copy, Effect, Ending, Order, Tombstone};
use super::KeepError;

/// Of a host that has not said what it has: all of it goes.
const UNKNOWN: u64 = u64::MAX;

/// A deleted persistent cache task.
#[derive(Debug, Default)]
pub(in crate::machine) struct Grave {
    /// When its time would have been over anyway.
    until: Tick,
    /// It was deleted here: every import since then was announced here too.
    own: bool,
    /// The imports that were deleted.
    deleted: BTreeSet<u64>,
    /// Up to which generation each host's copies were.
    hosts: BTreeMap<HostId, u64>,
}

impl Grave {
    pub(super) fn is_kept(&self, now: Tick) -> bool {
        self.until > now
    }

    fn deleted_on(&mut self, host: &HostId, generation: u64) {
        let deleted = self.hosts.entry(host.clone()).or_insert(generation);
        let known = Some(*deleted).filter(|deleted| *deleted != UNKNOWN);
        *deleted = known.map_or(generation, |known| known.max(generation));
    }

    /// Whether what the host lists is what was deleted.
    fn holds(&self, host: &HostId, generation: u64, lives: bool) -> bool {
        self.deleted.contains(&generation)
            || match self.hosts.get(host) {
                Some(deleted) => generation <= *deleted,
                // A host that nobody remembered has what was deleted, unless somebody imported it again.
                None => self.own && !lives,
            }
    }
}

impl Scheduler {
    /// Deletes a task and its copies: now where hosts live, and elsewhere when they come back.
    ///
    /// # Errors
    /// [`KeepError::Unknown`].
    pub fn delete_kept(&mut self, key: &TaskKey, now: Tick, out: &mut Vec<Effect>) -> Result<(), KeepError> {
        let Some(task) = self.live(key, now) else { return Err(KeepError::Unknown(key.clone())) };
        let keep = task.keep.as_ref();
        let (until, import) = keep.map_or((now, 0), |keep| (keep.expires(), keep.generation));
        let copies: Vec<(HostId, Option<u64>)> =
            task.peers.values().map(|peer| (peer.host.clone(), peer.generation)).collect();
        let grave = self.graves.entry(key.clone()).or_default();
        (grave.until, grave.own) = (grave.until.max(until), true);
        let named = copies.iter().filter_map(|(_, generation)| *generation);
        grave.deleted.extend(named.chain([import]).filter(|generation| *generation > 0));
        for (host, generation) in &copies {
            grave.deleted_on(host, generation.unwrap_or(UNKNOWN));
        }
        for (host, generation) in copies {
            self.drop_copy(&host, key, generation.unwrap_or(UNKNOWN), out);
        }
        self.forget(key, "the task was deleted", now, out);
        self.settle(now, out);
        Ok(())
    }

    fn drop_copy(&mut self, host: &HostId, key: &TaskKey, generation: u64, out: &mut Vec<Effect>) {
        self.next_lease += 1;
        let Some(place) = self.hosts.get(host).filter(|place| place.alive) else { return };
        match place.hold {
            Some(hold) => {
                out.push(Effect::Order(hold, self.next_lease, Order::Drop(key.clone(), generation)));
            }
            None if !place.is_ours() => out.push(Effect::Copy {
                order: self.next_lease,
                task: key.clone(),
                host: host.clone(),
                address: place.info.address,
                copy: Copy::Delete,
            }),
            None => {}
        }
    }

    /// A host tells that a task was deleted everywhere: other copies of that import go, whoever lists them.
    pub(in crate::machine) fn bury(
        &mut self,
        host: &HostId,
        stone: &Tombstone,
        now: Tick,
        out: &mut Vec<Effect>,
    ) {
        let Tombstone { task: key, generation, everywhere, ttl_left } = stone;
        if !everywhere || key.kind != Kind::PersistentCache || *generation == 0 {
            return;
        }
        let grave = self.graves.entry(key.clone()).or_default();
        grave.until = grave.until.max(now + *ttl_left);
        grave.deleted.insert(*generation);
        grave.deleted_on(host, *generation);
        let copies = self.with(key, now, out, |task, cx| {
            let same = task.peers.values().filter(|peer| peer.generation == Some(*generation));
            let same: Vec<_> = same.map(|peer| (peer.id.clone(), peer.host.clone())).collect();
            for (peer, _) in &same {
                task.remove(peer, Ending::NotFound("the task was deleted".to_owned()), cx);
            }
            // Copies of another import may be there as well: that one lives.
            let left = task.peers.values().filter_map(|peer| peer.generation).max();
            let keep = task.keep.as_mut().filter(|keep| keep.generation == *generation);
            let is_deleted = keep.is_some_and(|keep| {
                keep.generation = left.unwrap_or(*generation);
                left.is_none()
            });
            (same, is_deleted)
        });
        let Some((copies, is_deleted)) = copies else { return };
        for (_, host) in copies {
            self.drop_copy(&host, key, *generation, out);
        }
        if is_deleted {
            self.forget(key, "the task was deleted", now, out);
        }
    }

    /// What a host lists of deleted content goes; says whether it does.
    pub(in crate::machine) fn is_buried(
        &mut self,
        host: &HostId,
        key: &TaskKey,
        generation: u64,
        now: Tick,
        out: &mut Vec<Effect>,
    ) -> bool {
        let lives = self.live(key, now).is_some();
        let grave = self.graves.get(key).filter(|grave| grave.is_kept(now));
        let buried = grave.is_some_and(|grave| grave.holds(host, generation, lives));
        if buried {
            self.drop_copy(host, key, generation, out);
        }
        buried
    }

    /// What the host has of the task from now on is not what was deleted.
    pub(in crate::machine) fn unearth(&mut self, key: &TaskKey, host: &HostId) {
        if let Some(grave) = self.graves.get_mut(key) {
            grave.hosts.remove(host);
        }
    }
}
