//! One task: its content's facts, its peers, and the bookkeeping that keeps both in step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use damselfly_core::download::Learned;
use damselfly_core::{Geometry, HostId, PeerId, PieceSet, TaskKey, Tick};

use super::Cx;
use super::costs::Costs;
use super::event::{About, Answer, Effect, Ending};
use super::keep::Keep;
use super::leases::Coverage;
use super::ledger::Ledger;
use super::peers::{Peer, PeerState, Step};
use super::seeding::Seeding;
use super::timers::Timer;

/// Where a task stands, in Dragonfly's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskState {
    /// Known, nobody has asked for it.
    Pending,
    /// Somebody downloads it.
    Running,
    /// Somebody got all of it from the origin.
    Succeeded,
    /// The origin failed the last who asked.
    Failed,
}

impl TaskState {
    /// The name that StatTask shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// One task.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) key: TaskKey,
    pub(super) about: About,
    /// Of a persistent cache task: what is to be kept of it.
    pub(super) keep: Option<Box<Keep>>,
    /// Where private content comes from, as a host that holds it says: counts while nobody has said what the task is about.
    pub(super) place: Option<String>,
    pub(super) state: TaskState,
    pub(super) learned: Option<Learned>,
    pub(super) geometry: Option<Geometry>,
    /// The origin has said that it does not tell the length.
    pub(super) knew_no_length: bool,
    /// Counts the versions of the content.
    pub(super) generation: u64,
    /// When the present version was discovered, and by whom.
    pub(super) changed: Option<(Tick, PeerId)>,
    pub(super) ledger: Ledger,
    pub(super) coverage: Coverage,
    /// Dragonfly peers with leave to fetch the whole task from the origin, and when their silence is over.
    pub(super) whole: BTreeMap<PeerId, Tick>,
    /// The origin gives no length or no ranges: this peer fetches alone.
    pub(super) solo: Option<PeerId>,
    pub(super) peers: BTreeMap<PeerId, Peer>,
    /// How many of them are Dragonfly's.
    pub(super) dragonfly: usize,
    /// Times of pieces from the origin.
    pub(super) origin_costs: Costs,
    pub(super) seeding: Option<Seeding>,
    pub(super) seed_failed: Option<Tick>,
    /// Nothing is granted before: leases of another scheduler are being restated.
    pub(super) grace_until: Tick,
    pub(super) created: Tick,
    pub(super) updated: Tick,
}

impl Task {
    pub(super) fn new(key: TaskKey, now: Tick) -> Self {
        Self {
            key,
            about: About::default(),
            keep: None,
            place: None,
            state: TaskState::Pending,
            learned: None,
            geometry: None,
            knew_no_length: false,
            generation: 0,
            changed: None,
            ledger: Ledger::default(),
            coverage: Coverage::default(),
            whole: BTreeMap::new(),
            solo: None,
            peers: BTreeMap::new(),
            dragonfly: 0,
            origin_costs: Costs::default(),
            seeding: None,
            seed_failed: None,
            grace_until: Tick(0),
            created: now,
            updated: now,
        }
    }

    /// Whether anything says that the content is empty.
    pub(super) fn is_empty_content(&self) -> bool {
        self.geometry.is_some_and(|geometry| geometry.piece_count() == 0)
    }

    /// How long a lease lives without a word: three times the mean piece time, at least the configured silence.
    ///
    /// Before the first piece was measured, a piece is assumed to take as long as the configured silence allows for
    /// one of 4 MiB, in proportion to its length: large pieces from a slow origin are not given to a second host.
    pub(super) fn silence(&self, least: Duration) -> Duration {
        let triple = match self.origin_costs.mean() {
            Some(mean) => mean.saturating_mul(3),
            None => {
                let pieces = self.geometry.map_or(1.0, |geometry| {
                    geometry.piece_length() as f64 / damselfly_core::geometry::MIN_PIECE_LENGTH as f64
                });
                least.mul_f64(pieces.clamp(1.0, 16.0))
            }
        };
        least.max(triple)
    }

    /// The peer whose lease has no silence: it fetches content of unknown length, which it reports only at the end.
    /// Its stream and its host's life end that lease.
    pub(super) fn silent_fetcher(&self) -> Option<&PeerId> {
        if self.geometry.is_none() { self.solo.as_ref() } else { None }
    }

    /// Whether the origin has told that it serves no ranges.
    pub(super) fn without_ranges(&self) -> bool {
        self.learned.as_ref().is_some_and(|learned| learned.ranges == Some(false))
    }

    /// Whether somebody else than `peer` fetches from the origin or is about to.
    pub(super) fn is_fetched_by_other(&self, peer: &PeerId) -> bool {
        self.coverage.any_other(peer)
            || self.whole.keys().any(|holder| holder != peer)
            || self.seeding.is_some()
    }

    /// Moves a peer's state; says whether the dialogue allows it.
    pub(super) fn advance(&mut self, id: &PeerId, step: Step, now: Tick) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        peer.updated = now;
        match peer.state.after(step) {
            Some(state) => {
                peer.state = state;
                true
            }
            None => false,
        }
    }

    /// Every list has to be looked at again.
    pub(super) fn lists_dirty(&mut self) {
        for peer in self.peers.values_mut().filter(|peer| peer.ours && peer.is_active()) {
            peer.list_dirty = true;
        }
    }

    /// Re-establishes after any change to a peer or its host: whether its pieces count as held, and whether it may be
    /// offered.
    pub(super) fn refresh(&mut self, id: &PeerId, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let host = cx.hosts.get(&peer.host);
        let serves = host.is_some_and(|host| host.alive && !host.info.disable_shared)
            && !peer.suspect
            && self.geometry.is_some()
            && peer.state != PeerState::Leave
            && (peer.ours
                || matches!(peer.state, PeerState::Running | PeerState::BackToSource | PeerState::Succeeded));
        let counted = serves && !peer.pieces.is_empty();
        let fetches = self.coverage.has_lease(id) || self.whole.contains_key(id);
        let potential = serves && (counted || fetches);
        if counted != peer.counted {
            peer.counted = counted;
            for piece in peer.pieces.iter() {
                if counted {
                    self.coverage.held(piece);
                } else {
                    self.coverage.lost(piece);
                }
            }
        }
        if potential == peer.potential {
            return;
        }
        peer.potential = potential;
        if potential {
            self.lists_dirty();
            return;
        }
        // A parent that is gone is told of at once, whatever was sent a moment ago.
        for peer in self.peers.values_mut().filter(|peer| peer.ours && peer.is_active()) {
            peer.list_dirty = true;
            if peer.pushed.contains(id) {
                peer.next_push = cx.now;
            }
        }
    }

    /// The peer holds `piece` now; says whether that is news.
    pub(super) fn add_piece(&mut self, id: &PeerId, piece: u32, cx: &mut Cx<'_>) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        if !peer.pieces.insert(piece) {
            return false;
        }
        peer.list_dirty |= peer.uncovered;
        if peer.counted {
            if self.coverage.held(piece) {
                for peer in self.peers.values_mut().filter(|peer| peer.truncated) {
                    peer.list_dirty = true;
                }
            }
        } else {
            self.refresh(id, cx);
        }
        true
    }

    /// The peer does not hold `piece` after all.
    pub(super) fn remove_piece(&mut self, id: &PeerId, piece: u32, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.pieces.remove(piece) && peer.counted {
            self.coverage.lost(piece);
        }
        self.refresh(id, cx);
    }

    /// Replaces what the peer holds.
    pub(super) fn set_pieces(&mut self, id: &PeerId, pieces: PieceSet, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if std::mem::take(&mut peer.counted) {
            for piece in peer.pieces.iter() {
                self.coverage.lost(piece);
            }
        }
        peer.pieces = pieces;
        peer.list_dirty = true;
        self.refresh(id, cx);
    }

    /// The peer's host lists what it holds. While the peer downloads, its reports and the host's list come over different
    /// streams, and an older list does not take back what was reported since.
    pub(super) fn held(&mut self, id: &PeerId, mut pieces: PieceSet, cx: &mut Cx<'_>) {
        if let Some(peer) = self.peers.get(id).filter(|peer| peer.is_active()) {
            for piece in peer.pieces.iter() {
                pieces.insert(piece);
            }
        }
        self.set_pieces(id, pieces, cx);
    }

    /// Makes `parents` the child's parents in the peer graph, and their hosts' load accordingly.
    pub(super) fn set_parents(&mut self, child: &PeerId, parents: BTreeSet<PeerId>, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(child) else { return };
        let former = std::mem::replace(&mut peer.parents, parents.clone());
        let mut freed = false;
        for gone in former.difference(&parents) {
            freed = true;
            if let Some(parent) = self.peers.get_mut(gone) {
                parent.children.remove(child);
                cx.hosts.child_removed(&parent.host, cx.config);
            }
        }
        for new in parents.difference(&former) {
            if let Some(parent) = self.peers.get_mut(new) {
                parent.children.insert(child.clone());
                cx.hosts.child_added(&parent.host);
            }
        }
        if freed && self.dragonfly > 0 {
            // What would have closed a cycle may be allowed now.
            self.lists_dirty();
        }
    }

    /// Ends whatever leave the peer has to ask the origin.
    pub(super) fn end_leases(&mut self, id: &PeerId, cx: &mut Cx<'_>) {
        self.coverage.end_all(id);
        self.whole.remove(id);
        if self.solo.as_ref() == Some(id) {
            self.solo = None;
        }
        self.refresh(id, cx);
    }

    /// The peer fetches no longer: by success, failure or the end of its stream.
    pub(super) fn retire(&mut self, id: &PeerId, cx: &mut Cx<'_>) {
        self.set_parents(id, BTreeSet::new(), cx);
        self.release_seeding(id);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.waiting = None;
            peer.pushed.clear();
            peer.truncated = false;
            peer.uncovered = false;
            peer.stranded.clear();
        }
        self.end_leases(id, cx);
    }

    /// Closes the peer's stream.
    pub(super) fn close(&mut self, id: &PeerId, ending: Ending, cx: &mut Cx<'_>) {
        if let Some(stream) = self.peers.get_mut(id).and_then(|peer| peer.stream.take()) {
            cx.streams.remove(&stream);
            cx.out.push(Effect::Close(stream, ending));
        }
    }

    /// Forgets the peer; its stream, if open, ends with `ending`.
    pub(super) fn remove(&mut self, id: &PeerId, ending: Ending, cx: &mut Cx<'_>) {
        self.retire(id, cx);
        self.close(id, ending, cx);
        self.advance(id, Step::Leave, cx.now);
        self.refresh(id, cx);
        let Some(peer) = self.peers.remove(id) else { return };
        self.dragonfly -= usize::from(!peer.ours);
        for child in &peer.children {
            if let Some(child) = self.peers.get_mut(child) {
                child.parents.remove(id);
                cx.hosts.child_removed(&peer.host, cx.config);
            }
        }
        if let Some(host) = cx.hosts.get_mut(&peer.host) {
            host.peers.remove(&(self.key.clone(), id.clone()));
        }
        self.updated = cx.now;
    }

    /// Adds a peer to the task and to its host.
    pub(super) fn insert(&mut self, mut peer: Peer, cx: &mut Cx<'_>) {
        if let Some(geometry) = self.geometry {
            peer.pieces = PieceSet::new(geometry.piece_count());
        }
        self.dragonfly += usize::from(!peer.ours);
        if let Some(host) = cx.hosts.get_mut(&peer.host) {
            host.peers.insert((self.key.clone(), peer.id.clone()));
            let at = host.rearm(cx.config, cx.now);
            cx.timers.set(Timer::Host(peer.host.clone()), at);
        }
        self.peers.insert(peer.id.clone(), peer);
        self.updated = cx.now;
    }

    /// The peer that stands for what a host has.
    pub(super) fn peer_of(&mut self, host: &HostId, peer: PeerId, cx: &mut Cx<'_>) -> PeerId {
        let there = self.peers.values().filter(|peer| peer.host == *host).max_by_key(|peer| peer.is_active());
        if let Some(there) = there {
            return there.id.clone();
        }
        let ours = cx.hosts.get(host).is_some_and(|host| host.is_ours());
        let mut new = Peer::new(peer.clone(), host.clone(), ours, cx.now);
        new.state = PeerState::Succeeded;
        self.insert(new, cx);
        peer
    }

    /// Takes the content's length over: pieces can be counted from here on.
    pub(super) fn set_geometry(&mut self, geometry: Geometry, cx: &mut Cx<'_>) {
        self.geometry = Some(geometry);
        self.coverage.set_count(geometry.piece_count());
        let ids: Vec<PeerId> = self.peers.keys().cloned().collect();
        for id in ids {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.pieces =
                    PieceSet::from_bytes(&peer.early.take().unwrap_or_default(), geometry.piece_count());
                peer.counted = false;
            }
            self.refresh(&id, cx);
        }
        self.lists_dirty();
    }

    /// Sends an answer, counting it.
    pub(super) fn answer(&mut self, id: &PeerId, answer: Answer, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(stream) = peer.stream else { return };
        peer.answers += 1;
        cx.counters.answers += 1;
        cx.out.push(Effect::Answer(stream, self.key.clone(), answer));
    }
}

/// Whether two accounts of a content speak of different versions.
pub(super) fn contradicts(known: &Learned, told: &Learned) -> bool {
    let lengths = known.content_length.zip(told.content_length).is_some_and(|(left, right)| left != right);
    lengths || known.validator.differs(&told.validator)
}
