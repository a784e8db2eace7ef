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
use super::event::Holding;
use super::peers::{Peer, PeerState};
use super::tasks::{Task, TaskState};
use failures::Failure;
pub(super) use graves::Grave;
use orders::Given;

mod failures;
mod graves;
mod imports;
mod orders;
mod places;

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
    /// What tells this import from others under the same id; 0 while unknown.
    generation: u64,
    progress: Progress,
    importer: Option<HostId>,
    /// Hosts that are to make a copy, to make theirs a replica, or to make their replica an ordinary copy.
    orders: BTreeMap<HostId, Given>,
    /// Hosts that could not.
    failed: BTreeMap<HostId, Failure>,
    /// Nothing is ordered before.
    not_before: Tick,
}

impl Keep {
    fn expires(&self) -> Tick {
        self.created + self.ttl
    }
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
    /// What tells this import from others under the same id; 0 while unknown.
    pub generation: u64,
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
    pub(super) fn kept(&mut self, holding: &Holding, cx: &mut Cx<'_>) {
        let Holding { replica_target: target, ttl_left, generation, .. } = *holding;
        // After this scheduler's start nobody else can say them.
        self.about.tag = self.about.tag.take().or_else(|| holding.tag.clone());
        self.about.application = self.about.application.take().or_else(|| holding.application.clone());
        match &mut self.keep {
            Some(keep) => {
                if keep.importer.is_none() {
                    // Nobody knows whose word is the latest; a replica too many does no harm.
                    keep.target = keep.target.max(target);
                    keep.generation = keep.generation.max(generation);
                }
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
                    generation,
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
}
