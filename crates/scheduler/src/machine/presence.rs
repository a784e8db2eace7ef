//! Which hosts are there, and what they hold.

use std::collections::BTreeSet;
use std::time::Duration;

use damselfly_core::download::Learned;
use damselfly_core::{Crc, HostId, Kind, PeerId, PieceSet, TaskKey, Tick};

use super::Scheduler;
use super::event::{Effect, Ending, HoldId, HoldMessage, Holding, HostInfo};
use super::facts::geometry_of;
use super::hosts::Announced;
use super::peers::Peer;
use super::tasks::{Task, contradicts};
use super::timers::Timer;

/// When a host that announced itself by Hold alone is expected to announce itself again.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(300);

impl Scheduler {
    pub(super) fn host_announced(
        &mut self,
        info: HostInfo,
        interval: Duration,
        now: Tick,
        out: &mut Vec<Effect>,
    ) {
        let id = info.id.clone();
        match self.hosts.announce(info, interval, &self.config, now) {
            Announced::Same => {}
            // What had no place may have one now.
            Announced::Emptier => self.feed_starved(),
            Announced::Changed => {
                self.refresh_host(&id, now, out);
                self.feed_starved();
            }
            Announced::Restarted => {
                self.void_peers(&id, "its host has restarted", now, out);
                if let Some(host) = self.hosts.get_mut(&id) {
                    host.speed = None;
                }
                self.feed_starved();
            }
        }
        self.arm(&id, now);
        self.release_held(&id, now, out);
    }

    /// Sets the host's deadline anew.
    fn arm(&mut self, id: &HostId, now: Tick) {
        let at = self.hosts.get_mut(id).and_then(|host| host.rearm(&self.config, now));
        self.timers.set(Timer::Host(id.clone()), at);
    }

    fn peers_of(&self, id: &HostId) -> Vec<(TaskKey, PeerId)> {
        self.hosts.get(id).map(|host| host.peers.iter().cloned().collect()).unwrap_or_default()
    }

    /// The host's standing changed: its peers may be offered now, or no longer.
    fn refresh_host(&mut self, id: &HostId, now: Tick, out: &mut Vec<Effect>) {
        for (key, peer) in self.peers_of(id) {
            self.with(&key, now, out, |task, cx| {
                task.refresh(&peer, cx);
                if let Some(peer) = task.peers.get_mut(&peer) {
                    peer.list_dirty = true;
                }
            });
        }
    }

    fn void_peers(&mut self, id: &HostId, why: &str, now: Tick, out: &mut Vec<Effect>) {
        self.orders_lost(id, now, out);
        for (key, peer) in self.peers_of(id) {
            self.with(&key, now, out, |task, cx| {
                task.seed_failed(id, cx.now);
                task.remove(&peer, Ending::Superseded(format!("the peer is gone: {why}")), cx);
                task.lists_anew(cx);
            });
        }
    }

    /// The host is dead: its peers are not offered, and what it had leave to fetch others may.
    fn host_dead(&mut self, id: &HostId, now: Tick, out: &mut Vec<Effect>) {
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.alive) else { return };
        host.alive = false;
        self.counters.hosts_lost += 1;
        self.orders_lost(id, now, out);
        for (key, peer) in self.peers_of(id) {
            self.with(&key, now, out, |task, cx| {
                task.seed_failed(id, cx.now);
                let waiting = task.peers.get(&peer).and_then(|peer| peer.waiting);
                task.retire(&peer, cx);
                if let Some(peer) = task.peers.get_mut(&peer) {
                    peer.waiting = waiting;
                    peer.list_dirty = true;
                }
            });
        }
        self.arm(id, now);
    }

    pub(super) fn host_left(&mut self, id: &HostId, now: Tick, out: &mut Vec<Effect>) {
        self.void_peers(id, "its host has left", now, out);
        if let Some(host) = self.hosts.remove(id) {
            if let Some(hold) = host.hold {
                out.push(Effect::CloseHold(hold, "the host has left"));
            }
            out.push(Effect::Forget(id.clone()));
        }
        self.timers.set(Timer::Host(id.clone()), None);
    }

    /// A host's deadline has come: its Hold was silent for too long, or it is to be probed.
    pub(super) fn host_due(&mut self, id: &HostId, now: Tick, out: &mut Vec<Effect>) {
        let Some(host) = self.hosts.get(id) else { return };
        if host.hold.is_none() {
            self.probe(id, now, out);
        } else if now >= host.heard + self.config.hold_silence {
            self.host_dead(id, now, out);
        } else {
            self.arm(id, now);
        }
    }

    /// Asks a host without a Hold whether it lives.
    pub(super) fn probe(&mut self, id: &HostId, now: Tick, out: &mut Vec<Effect>) {
        let interval = self.config.probe_interval;
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.hold.is_none()) else { return };
        host.next_probe = now + interval;
        out.push(Effect::Probe { host: id.clone(), address: host.info.address });
        self.arm(id, now);
    }

    pub(super) fn probed(&mut self, id: &HostId, alive: bool, now: Tick, out: &mut Vec<Effect>) {
        let (retry, limit) = (self.config.probe_retry, self.config.probe_misses);
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.hold.is_none()) else { return };
        if alive {
            host.misses = 0;
            host.updated = now;
            // One of ours says itself when it is back; who answers may be its next process.
            let back = !host.alive && !host.is_ours();
            host.alive |= back;
            if back {
                self.refresh_host(id, now, out);
            }
            return;
        }
        host.misses += 1;
        if host.misses >= limit {
            self.host_dead(id, now, out);
        } else {
            host.next_probe = now + retry;
            self.arm(id, now);
        }
    }

    pub(super) fn hold_event(
        &mut self,
        hold: HoldId,
        message: HoldMessage,
        now: Tick,
        out: &mut Vec<Effect>,
    ) {
        if let HoldMessage::Hello(info) = message {
            let id = info.id.clone();
            self.host_announced(*info, DEFAULT_INTERVAL, now, out);
            if let Some(former) = self.hosts.bind(&id, hold, now) {
                out.push(Effect::CloseHold(former, "another Hold of the same host took its place"));
            }
            // Orders go over it.
            self.feed_starved();
            self.arm(&id, now);
            return;
        }
        let Some(id) = self.hosts.by_hold(hold).cloned() else {
            out.push(Effect::CloseHold(hold, "hello comes first"));
            return;
        };
        if let Some(host) = self.hosts.get_mut(&id) {
            host.heard = now;
            host.updated = now;
            if !std::mem::replace(&mut host.alive, true) {
                self.refresh_host(&id, now, out);
            }
        }
        match message {
            HoldMessage::Hello(_) | HoldMessage::Beat => {}
            HoldMessage::Holdings { holdings, last } => {
                for holding in holdings {
                    self.holding(&id, holding, now, out);
                }
                if last {
                    self.end_of_listing(&id, now, out);
                }
            }
            HoldMessage::Done { order, error } => {
                if self.is_ordered(order, &id) {
                    self.order_done(order, error.as_deref(), now, out);
                }
            }
            HoldMessage::Tombstones(tasks) => {
                for stone in tasks {
                    self.task_deleted(&id, &stone.task, stone.generation, false, now, out);
                    self.bury(&id, &stone, now, out);
                }
            }
            HoldMessage::Leaving { restarting: true } => self.host_dead(&id, now, out),
            HoldMessage::Leaving { restarting: false } => return self.host_left(&id, now, out),
        }
        self.arm(&id, now);
    }

    pub(super) fn hold_closed(&mut self, hold: HoldId, now: Tick, out: &mut Vec<Effect>) {
        if let Some(id) = self.hosts.unbind(hold) {
            self.host_dead(&id, now, out);
            self.arm(&id, now);
        }
    }

    /// A host has what it says: an idle peer of it stands for that, as a parent of others.
    fn holding(&mut self, id: &HostId, holding: Holding, now: Tick, out: &mut Vec<Effect>) {
        let key = holding.task.clone();
        if let Some((_, listed)) = self.hosts.get_mut(id).and_then(|host| host.listing.as_mut()) {
            listed.insert(key.clone());
        }
        if !holding.bitmap.is_empty() && holding.bitmap.iter().all(|byte| *byte == 0) {
            // That is how a daemon says that a task has gone: deleted or evicted, whatever its version.
            return self.task_deleted(id, &key, u64::MAX, false, now, out);
        }
        let Some(geometry) = geometry_of(holding.content_length, holding.piece_length) else { return };
        let cache = key.kind == Kind::PersistentCache;
        if geometry.piece_count() == 0 && !cache {
            return;
        }
        if cache && (holding.ttl_left.is_zero() || self.is_buried(id, &key, holding.generation, now, out)) {
            return;
        }
        self.tasks.entry(key.clone()).or_insert_with(|| Task::new(key.clone(), now));
        self.with(&key, now, out, |task, cx| {
            let told = Learned {
                content_length: holding.content_length,
                piece_length: geometry.piece_length(),
                validator: holding.validator.clone(),
                private: holding.private,
                ..Learned::default()
            };
            if task.learned.as_ref().is_some_and(|known| contradicts(known, &told)) {
                // Another version than the cluster's: nobody could use it. Should it be the newer one, its host will
                // tell when it asks the origin.
                return;
            }
            let peer = task.peer_of(id, PeerId::held(id, &key.id), cx);
            if told.private {
                task.comes_from(&holding.url);
            }
            if cache {
                task.kept(&holding, cx);
            }
            task.learn(&peer, told, cx);
            let Some(count) = task.geometry.map(|geometry| geometry.piece_count()) else { return };
            let pieces = if holding.bitmap.is_empty() {
                PieceSet::full(count)
            } else {
                PieceSet::from_bytes(&holding.bitmap, count)
            };
            let crcs: Vec<(u32, Crc)> =
                pieces.iter().skip(holding.crcs_from as usize).zip(holding.crcs).collect();
            if let Some(peer) = task.peers.get_mut(&peer) {
                (peer.updated, peer.persistent) = (cx.now, holding.persistent);
                // One of ours is judged by its CRCs alone, each time it lists them.
                peer.suspect &= crcs.is_empty() || holding.crcs_from > 0;
                peer.generation = Some(holding.generation);
            }
            if holding.crcs_from == 0 {
                task.held(&peer, pieces, cx);
            }
            task.restated(&peer, crcs, cx);
        });
    }

    /// The first full list is complete: what it did not name, and was there before it began, is there no longer.
    fn end_of_listing(&mut self, id: &HostId, now: Tick, out: &mut Vec<Effect>) {
        let listing = self.hosts.get_mut(id).and_then(|host| host.listing.take());
        let Some((since, listed)) = listing else { return };
        // What the host keeps counts fully from now on.
        let is_kept = |key: &&TaskKey| self.tasks.get(*key).is_some_and(|task| task.keep.is_some());
        self.dirty.extend(listed.iter().filter(is_kept).cloned());
        let unlisted: BTreeSet<(TaskKey, PeerId)> =
            self.peers_of(id).into_iter().filter(|(key, _)| !listed.contains(key)).collect();
        for (key, peer) in unlisted {
            self.with(&key, now, out, |task, cx| {
                let old = |peer: &Peer| !peer.is_active() && peer.updated < since;
                if task.peers.get(&peer).is_some_and(old) {
                    task.remove(&peer, Ending::Done, cx);
                }
            });
        }
    }

    /// The host has the task no longer, in versions up to `generation` as its daemon counts them: it may have fetched
    /// it again since. Peers that still download are spared unless `active` says otherwise.
    pub(super) fn task_deleted(
        &mut self,
        id: &HostId,
        key: &TaskKey,
        generation: u64,
        active: bool,
        now: Tick,
        out: &mut Vec<Effect>,
    ) {
        let peers = self.peers_of(id).into_iter().filter(|(task, _)| task == key);
        for (_, peer) in peers.collect::<Vec<_>>() {
            self.with(key, now, out, |task, cx| {
                let newer = |peer: &Peer| peer.generation.is_some_and(|held| held > generation);
                let spared = |peer: &Peer| peer.is_active() || newer(peer);
                if active || !task.peers.get(&peer).is_some_and(spared) {
                    let why = "the task was deleted on this host";
                    task.remove(&peer, Ending::Refused(why.to_owned()), cx);
                }
            });
        }
    }
}
