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

use damselfly_core::{Geometry, HostId, PeerId, PieceSet, TaskKey, Tick};
use thiserror::Error;

use super::Cx;
use super::event::{Copy, Effect, Order};
use super::hosts::Host;
use super::peers::{Peer, PeerState};
use super::tasks::{Task, TaskState};

mod imports;

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
    #[error("persistent cache task {} exists and lives: delete it first, or import under another id", .0.id)]
    Exists(TaskKey),
    /// No such task.
    #[error("persistent cache task {} not found", .0.id)]
    Unknown(TaskKey),
    /// The import was not begun by this host, or is over.
    #[error("no import of {} by this host is under way", .0.id)]
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
        (peer.is_complete() && !peer.suspect) || (self.is_empty_content() && peer.persistent)
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
        let replicas = self.peers.values().filter(|peer| peer.persistent && self.is_copy(peer));
        let there =
            replicas.filter(|peer| cx.hosts.get(&peer.host).is_some_and(|host| counts(host, cx))).count();
        let target = usize::try_from(keep.target).unwrap_or(usize::MAX);
        let mut missing = target.saturating_sub(there + keep.orders.len());
        let somebody_has_it = self.peers.values().any(|peer| self.is_copy(peer) && peer.potential);
        if missing == 0 || !(somebody_has_it || self.is_empty_content()) {
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
        if missing > 0 {
            // Until another host comes.
            cx.starved.insert(self.key.clone());
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
