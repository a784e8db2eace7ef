//! Persistent cache tasks: what is to be kept of them, and where the copies are.
//!
//! A persistent cache task is a task like others, whose peers have no origin. Beside that the cluster is to keep a number
//! of replicas of it until its time is over. What a host of ours has it says itself, in its list of holdings; a replica
//! counts while its host lives, and for a while after that, because most hosts come back.
//!
//! ```text
//!   Started ──▶ Uploading ──▶ Finished ──▶ Succeeded ──▶ its time is over, or deleted
//!                   └────▶ Failed: forgotten              (a grave keeps copies of hosts that were away from coming back)
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use damselfly_core::download::Learned;
use damselfly_core::{Crc, Geometry, HostId, PeerId, PieceSet, TaskKey, Tick};
use thiserror::Error;

use super::event::{Copy, Effect, Ending, Order};
use super::hosts::Host;
use super::peers::{Peer, PeerState};
use super::tasks::{Task, TaskState};
use super::timers::Timer;
use super::{Cx, Scheduler};

/// Orders under way in the whole cluster: repair must not take all the bandwidth there is.
const MAX_ORDERS: usize = 32;
/// How long a host that failed to make a copy is not asked for another.
const RETRY: Duration = Duration::from_secs(30);
/// How long copies of a host that has just come back are waited for before they count as lost.
const LISTING: Duration = Duration::from_secs(5);

/// An import, as its daemon announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The task.
    pub task: TaskKey,
    /// The importing host.
    pub host: HostId,
    /// Its peer.
    pub peer: PeerId,
    /// Replicas to keep, the importer's included.
    pub replicas: u64,
    /// The tag.
    pub tag: Option<String>,
    /// The application.
    pub application: Option<String>,
    /// How the content is cut.
    pub geometry: Geometry,
    /// How long it is to be kept.
    pub ttl: Duration,
}

/// Why an import, or something asked of one, is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KeepError {
    /// The host has not been announced.
    #[error("host {0} not found: announce it before it imports")]
    UnknownHost(HostId),
    /// A live task has the id.
    #[error("persistent cache task {0} exists and lives: delete it first, or import under another id")]
    Exists(TaskKey),
    /// No such task.
    #[error("persistent cache task {0} not found")]
    Unknown(TaskKey),
    /// The import was not begun by this host, or is over.
    #[error("no import of {0} by this host is under way")]
    NotUploading(TaskKey),
}

/// Where an import stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Uploading,
    Succeeded,
}

/// What is to be kept of a task.
#[derive(Debug)]
pub(super) struct Keep {
    target: u64,
    ttl: Duration,
    created: Tick,
    progress: Progress,
    importer: Option<HostId>,
    /// Hosts that are to make a copy, or to make theirs a replica.
    orders: BTreeMap<HostId, u64>,
    /// Hosts that could not, and until when they are not asked again.
    failed: BTreeMap<HostId, Tick>,
    /// Nothing is ordered before.
    not_before: Tick,
}

impl Keep {
    fn expires(&self) -> Tick {
        self.created + self.ttl
    }
}

/// Deleted content that must not come back with hosts that were away.
#[derive(Debug)]
pub(super) struct Grave {
    /// When its time would have been over anyway.
    until: Tick,
    /// What each host had of it, as its daemon counts the versions.
    generations: BTreeMap<HostId, u64>,
}

/// One copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaView {
    /// Its host.
    pub host: HostId,
    /// It is kept.
    pub persistent: bool,
    /// Every piece is there.
    pub complete: bool,
    /// Its host lives.
    pub alive: bool,
}

/// A persistent cache task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepView {
    /// Replicas to keep.
    pub target: u64,
    /// Its state, in Dragonfly's words.
    pub state: &'static str,
    /// The tag.
    pub tag: Option<String>,
    /// The application.
    pub application: Option<String>,
    /// How the content is cut.
    pub geometry: Option<Geometry>,
    /// How long it is kept from `created` on.
    pub ttl: Duration,
    /// When it was imported, or first heard of.
    pub created: Tick,
    /// When it was heard of last.
    pub updated: Tick,
    /// Its copies.
    pub replicas: Vec<ReplicaView>,
}

impl KeepView {
    /// Whole replicas on hosts that live.
    #[must_use]
    pub fn replicas_now(&self) -> usize {
        self.replicas.iter().filter(|copy| copy.persistent && copy.complete && copy.alive).count()
    }
}

impl Task {
    /// Whether the peer has all of the content.
    fn is_copy(&self, peer: &Peer) -> bool {
        peer.is_complete() || (self.is_empty_content() && peer.persistent)
    }

    fn holds_all(&mut self, id: &PeerId, cx: &mut Cx<'_>) {
        let Some(count) = self.piece_count() else { return };
        if let Some(peer) = self.peers.get_mut(id) {
            (peer.persistent, peer.updated) = (true, cx.now);
            if !peer.is_active() {
                peer.state = PeerState::Succeeded;
            }
        }
        self.set_pieces(id, PieceSet::full(count), cx);
    }

    /// The peer that stands for what a host has.
    fn copy_on(&mut self, host: &HostId, peer: PeerId, cx: &mut Cx<'_>) -> PeerId {
        let there = self.peers.values().filter(|peer| peer.host == *host).max_by_key(|peer| peer.is_active());
        if let Some(there) = there {
            return there.id.clone();
        }
        let ours = cx.hosts.get(host).is_some_and(Host::is_ours);
        let mut new = Peer::new(peer.clone(), host.clone(), ours, cx.now);
        new.state = PeerState::Succeeded;
        self.insert(new, cx);
        peer
    }

    /// A host that holds a copy says what it was to be kept for: that makes a task of it again after this scheduler's start.
    pub(super) fn kept(&mut self, target: u64, ttl_left: Duration, cx: &mut Cx<'_>) {
        match &mut self.keep {
            Some(keep) => {
                // Imported again where it is: it lives on.
                let left = keep.expires().since(cx.now);
                if ttl_left > left + Duration::from_secs(60) {
                    keep.ttl = cx.now.since(keep.created) + ttl_left;
                }
            }
            None => {
                self.keep = Some(Box::new(Keep {
                    target,
                    ttl: ttl_left,
                    created: cx.now,
                    progress: Progress::Succeeded,
                    importer: None,
                    orders: BTreeMap::new(),
                    failed: BTreeMap::new(),
                    // The other hosts are about to say what they have.
                    not_before: cx.now + cx.config.repair_after,
                }));
                self.state = TaskState::Succeeded;
            }
        }
    }

    pub(super) fn is_expired(&self, now: Tick) -> bool {
        self.keep.as_ref().is_some_and(|keep| keep.expires() <= now)
    }

    /// Copies of a host are gone for the moment: it has restarted and is about to say what it has.
    pub(super) fn lists_anew(&mut self, cx: &Cx<'_>) {
        if let Some(keep) = &mut self.keep {
            keep.not_before = keep.not_before.max(cx.now + LISTING);
        }
    }

    /// Orders what is missing of the replicas.
    pub(super) fn replicate(&mut self, cx: &mut Cx<'_>) {
        let Some(mut keep) = self.keep.take() else { return };
        keep.failed.retain(|_, until| *until > cx.now);
        keep.orders.retain(|host, order| {
            let stays = cx.hosts.get(host).is_some_and(|host| host.alive);
            if !stays {
                cx.orders.remove(order);
            }
            stays
        });
        let due =
            keep.progress == Progress::Succeeded && cx.now >= keep.not_before && cx.now >= cx.grace_until;
        if due && keep.expires() > cx.now {
            self.order_missing(&mut keep, cx);
        }
        self.keep = Some(keep);
    }

    fn order_missing(&self, keep: &mut Keep, cx: &mut Cx<'_>) {
        let counts = |peer: &&Peer| {
            peer.persistent
                && self.is_copy(peer)
                && cx.hosts.get(&peer.host).is_some_and(|host| counts(host, cx))
        };
        let there = self.peers.values().filter(counts).count();
        let target = usize::try_from(keep.target).unwrap_or(usize::MAX);
        let mut missing = target.saturating_sub(there + keep.orders.len());
        // Somebody has to have it.
        if missing == 0
            || !self.peers.values().any(|peer| self.is_copy(peer) && peer.potential)
                && !self.is_empty_content()
        {
            return;
        }
        for (host, promote) in self.places(keep, cx) {
            if missing == 0 {
                return;
            }
            if cx.orders.len() >= MAX_ORDERS {
                cx.starved.insert(self.key.clone());
                return;
            }
            let id = cx.new_lease();
            let Some(place) = cx.hosts.get(&host) else { continue };
            let effect = match place.hold {
                Some(hold) => Effect::Order(hold, id, Order::Replicate(self.key.clone())),
                None => Effect::Copy {
                    order: id,
                    task: self.key.clone(),
                    host: host.clone(),
                    address: place.info.address,
                    copy: if promote { Copy::Promote } else { self.fetch_as_replica() },
                },
            };
            cx.out.push(effect);
            cx.orders.insert(id, (self.key.clone(), host.clone()));
            keep.orders.insert(host, id);
            missing -= 1;
        }
    }

    fn fetch_as_replica(&self) -> Copy {
        Copy::Fetch { tag: self.about.tag.clone(), application: self.about.application.clone() }
    }

    /// Where further replicas could be, best first, and whether a whole copy is there already: those first, then who has
    /// the most room; among equals by the task, so that tasks spread.
    fn places(&self, keep: &Keep, cx: &Cx<'_>) -> Vec<(HostId, bool)> {
        let length = self.geometry.map_or(0, |geometry| geometry.content_length());
        let mut places = Vec::new();
        for host in cx.hosts.iter() {
            let id = &host.info.id;
            let reachable =
                host.alive && !host.info.disable_shared && (!host.is_ours() || host.hold.is_some());
            if !reachable || keep.orders.contains_key(id) || keep.failed.contains_key(id) {
                continue;
            }
            let peer = self.peers.values().filter(|peer| peer.host == *id).max_by_key(|peer| peer.persistent);
            let copy = peer.is_some_and(|peer| self.is_copy(peer));
            if peer.is_some_and(|peer| peer.persistent && copy) {
                continue;
            }
            if !copy && host.info.disk_free.is_some_and(|free| free < length) {
                continue;
            }
            let free = host.info.disk_free.unwrap_or(0);
            places.push((copy, free / ROUGHLY, spread(&self.key, id), id.clone()));
        }
        places.sort_by(|left, right| right.cmp(left));
        places.into_iter().map(|(copy, _, _, id)| (id, copy)).collect()
    }

    /// When something about the replicas is due next.
    pub(super) fn keep_deadline(&self, cx: &Cx<'_>) -> Option<Tick> {
        let keep = self.keep.as_ref()?;
        let dying = self.peers.values().filter(|peer| peer.persistent).filter_map(|peer| {
            let host = cx.hosts.get(&peer.host).filter(|host| !host.alive)?;
            Some(host.updated + cx.config.repair_after)
        });
        let at = dying.chain(keep.failed.values().copied()).chain([keep.not_before, cx.grace_until]);
        at.chain([keep.expires()]).filter(|at| *at > cx.now).min()
    }
}

/// Room on two hosts is told apart in steps of this many bytes: a little more is no reason to send everything there.
const ROUGHLY: u64 = 64 << 30;

fn spread(task: &TaskKey, host: &HostId) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (task, host).hash(&mut hasher);
    hasher.finish()
}

/// Whether what a host has counts: it lives, or may come back.
fn counts(host: &Host, cx: &Cx<'_>) -> bool {
    host.alive || host.updated + cx.config.repair_after > cx.now
}

impl Scheduler {
    fn live(&self, key: &TaskKey, now: Tick) -> Option<&Task> {
        self.tasks.get(key).filter(|task| task.keep.is_some() && !task.is_expired(now))
    }

    /// A persistent cache task.
    #[must_use]
    pub fn kept(&self, key: &TaskKey, now: Tick) -> Option<KeepView> {
        let task = self.live(key, now)?;
        let keep = task.keep.as_ref()?;
        let mut replicas: BTreeMap<&HostId, ReplicaView> = BTreeMap::new();
        for peer in task.peers.values() {
            let copy = ReplicaView {
                host: peer.host.clone(),
                persistent: peer.persistent,
                complete: task.is_copy(peer),
                alive: self.hosts.get(&peer.host).is_some_and(|host| host.alive),
            };
            let best =
                |copy: &ReplicaView| (copy.persistent && copy.complete, copy.complete, copy.persistent);
            match replicas.get(&peer.host) {
                Some(there) if best(there) >= best(&copy) => {}
                _ => drop(replicas.insert(&peer.host, copy)),
            }
        }
        Some(KeepView {
            target: keep.target,
            state: match keep.progress {
                Progress::Uploading => "Uploading",
                Progress::Succeeded => "Succeeded",
            },
            tag: task.about.tag.clone(),
            application: task.about.application.clone(),
            geometry: task.geometry,
            ttl: keep.ttl,
            created: keep.created,
            updated: task.updated,
            replicas: replicas.into_values().collect(),
        })
    }

    /// Hosts that live.
    #[must_use]
    pub fn hosts_alive(&self) -> usize {
        self.hosts.iter().filter(|host| host.alive).count()
    }

    /// An import begins.
    ///
    /// # Errors
    /// [`KeepError::UnknownHost`]; [`KeepError::Exists`] when a live task has the id, unless it is the same host's: it
    /// begins its import anew, or imports again what it holds.
    pub fn upload_started(
        &mut self,
        upload: Upload,
        now: Tick,
        out: &mut Vec<Effect>,
    ) -> Result<(), KeepError> {
        let Upload { task: key, host, peer, replicas, tag, application, geometry, ttl } = upload;
        if self.hosts.get(&host).is_none() {
            return Err(KeepError::UnknownHost(host));
        }
        if let Some(task) = self.live(&key, now) {
            let keep = task.keep.as_ref();
            let uploading = keep.is_some_and(|keep| keep.progress == Progress::Uploading);
            let importer = keep.and_then(|keep| keep.importer.as_ref());
            let given_up = importer.is_none_or(|importer| {
                *importer == host || !self.hosts.get(importer).is_some_and(|host| host.alive)
            });
            let has_it = |peer: &&Peer| peer.host == host && task.is_copy(peer);
            let again = task.geometry == Some(geometry) && task.peers.values().any(|peer| has_it(&peer));
            if !(again || (uploading && given_up)) {
                return Err(KeepError::Exists(key));
            }
            if !again {
                self.forget(&key, "the import begins anew", now, out);
            }
        } else {
            self.forget(&key, "another import takes its id", now, out);
        }
        if let Some(grave) = self.graves.get_mut(&key) {
            grave.generations.remove(&host);
        }
        self.tasks.entry(key.clone()).or_insert_with(|| Task::new(key.clone(), now));
        self.with(&key, now, out, |task, cx| {
            (task.about.tag, task.about.application) = (tag, application);
            let progress = match &task.keep {
                Some(keep) => keep.progress,
                None => Progress::Uploading,
            };
            task.keep = Some(Box::new(Keep {
                target: replicas,
                ttl,
                created: cx.now,
                progress,
                importer: Some(host.clone()),
                orders: task.keep.take().map(|keep| keep.orders).unwrap_or_default(),
                failed: BTreeMap::new(),
                not_before: Tick(0),
            }));
            task.updated = cx.now;
            let peer = task.copy_on(&host, peer, cx);
            if task.geometry.is_none() {
                let learned = Learned {
                    content_length: Some(geometry.content_length()),
                    piece_length: geometry.piece_length(),
                    ..Learned::default()
                };
                task.learn(&peer, learned, cx);
            }
        });
        self.settle(now, out);
        Ok(())
    }

    /// An import is complete: its host has a replica, and the others are ordered.
    ///
    /// # Errors
    /// [`KeepError::NotUploading`].
    pub fn upload_finished(
        &mut self,
        key: &TaskKey,
        host: &HostId,
        crcs: Vec<Crc>,
        now: Tick,
        out: &mut Vec<Effect>,
    ) -> Result<(), KeepError> {
        self.importing(key, host, now)?;
        self.with(key, now, out, |task, cx| {
            let peer = task.copy_on(host, PeerId::held(host, &key.id), cx);
            task.holds_all(&peer, cx);
            task.restated(&peer, (0..).zip(crcs).collect(), cx);
            if let Some(keep) = &mut task.keep {
                keep.progress = Progress::Succeeded;
            }
            (task.state, task.updated) = (TaskState::Succeeded, cx.now);
        });
        self.settle(now, out);
        Ok(())
    }

    /// An import failed: it is forgotten.
    ///
    /// # Errors
    /// As [`Self::upload_finished`].
    pub fn upload_failed(
        &mut self,
        key: &TaskKey,
        host: &HostId,
        now: Tick,
        out: &mut Vec<Effect>,
    ) -> Result<(), KeepError> {
        self.importing(key, host, now)?;
        let uploading = |keep: &Keep| keep.progress == Progress::Uploading;
        if self.tasks.get(key).and_then(|task| task.keep.as_deref()).is_some_and(uploading) {
            self.forget(key, "the import failed", now, out);
        }
        self.settle(now, out);
        Ok(())
    }

    fn importing(&self, key: &TaskKey, host: &HostId, now: Tick) -> Result<(), KeepError> {
        let keep = self.live(key, now).and_then(|task| task.keep.as_ref());
        match keep {
            Some(keep) if keep.importer.as_ref() == Some(host) => Ok(()),
            _ => Err(KeepError::NotUploading(key.clone())),
        }
    }

    /// Deletes a task and its copies: now where hosts live, and elsewhere when they come back.
    ///
    /// # Errors
    /// [`KeepError::Unknown`].
    pub fn delete_kept(&mut self, key: &TaskKey, now: Tick, out: &mut Vec<Effect>) -> Result<(), KeepError> {
        let Some(task) = self.live(key, now) else { return Err(KeepError::Unknown(key.clone())) };
        let until = task.keep.as_ref().map_or(now, |keep| keep.expires());
        let copies: Vec<(HostId, Option<u64>)> =
            task.peers.values().map(|peer| (peer.host.clone(), peer.generation)).collect();
        let mut generations = BTreeMap::new();
        for (host, generation) in copies {
            let generation = generation.unwrap_or(u64::MAX);
            self.drop_copy(&host, key, generation, out);
            generations.insert(host, generation);
        }
        self.graves.insert(key.clone(), Grave { until, generations });
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

    /// Forgets a task; streams of its peers end.
    fn forget(&mut self, key: &TaskKey, why: &str, now: Tick, out: &mut Vec<Effect>) {
        self.with(key, now, out, |task, cx| {
            let peers: Vec<PeerId> = task.peers.keys().cloned().collect();
            for peer in peers {
                task.remove(&peer, Ending::NotFound(why.to_owned()), cx);
            }
            for order in task.keep.take().map(|keep| keep.orders).unwrap_or_default().into_values() {
                cx.orders.remove(&order);
            }
        });
        self.tasks.remove(key);
        self.dirty.remove(key);
        self.timers.set(Timer::Task(key.clone()), None);
    }

    /// What a host lists of deleted content goes; says whether it does.
    pub(super) fn is_buried(
        &mut self,
        host: &HostId,
        key: &TaskKey,
        generation: u64,
        now: Tick,
        out: &mut Vec<Effect>,
    ) -> bool {
        let Some(grave) = self.graves.get(key).filter(|grave| grave.until > now) else { return false };
        let lives = self.live(key, now).is_some();
        // A host that nobody remembered has what was deleted, unless somebody imported it again.
        let buried = grave.generations.get(host).map_or(!lives, |deleted| generation <= *deleted);
        if buried {
            self.drop_copy(host, key, generation, out);
        }
        buried
    }

    /// An order was carried out, or not.
    pub(super) fn order_done(&mut self, order: u64, error: Option<&str>, now: Tick, out: &mut Vec<Effect>) {
        let Some((key, host)) = self.orders.remove(&order) else { return };
        self.with(&key, now, out, |task, cx| {
            if let Some(keep) = &mut task.keep {
                keep.orders.remove(&host);
                if error.is_some() {
                    keep.failed.insert(host.clone(), cx.now + RETRY);
                }
            }
            if error.is_none() {
                let peer = task.copy_on(&host, PeerId::held(&host, &key.id), cx);
                task.holds_all(&peer, cx);
            }
        });
        let starved = std::mem::take(&mut self.starved);
        self.dirty.extend(starved);
    }

    /// Forgets what is over: tasks whose time has come, imports of hosts that are gone, and graves.
    pub(super) fn collect_kept(&mut self, now: Tick, out: &mut Vec<Effect>) {
        self.graves.retain(|_, grave| grave.until > now);
        let over: Vec<TaskKey> = self
            .tasks
            .values()
            .filter(|task| task.is_expired(now) || self.is_abandoned(task))
            .map(|task| task.key.clone())
            .collect();
        for key in over {
            self.forget(&key, "its time is over", now, out);
        }
    }

    fn is_abandoned(&self, task: &Task) -> bool {
        let importing = task.keep.as_ref().filter(|keep| keep.progress == Progress::Uploading);
        let importer = importing.and_then(|keep| keep.importer.as_ref());
        importer.is_some_and(|importer| self.hosts.get(importer).is_none())
    }
}
