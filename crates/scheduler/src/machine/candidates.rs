//! Whom a peer may be sent to, and whom it is sent to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use damselfly_core::{HostId, PeerId};

use super::Cx;
use super::event::Parent;
use super::peers::{Peer, PeerState};
use super::scoring::{self, Terms};
use super::tasks::Task;

/// Missing pieces looked at when a list is made to cover them; further ones come into view as pieces arrive.
const COVER_WINDOW: usize = 256;

/// A peer that may be offered.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) id: PeerId,
    pub(super) score: f64,
    /// Its host takes another child, or this child is one of its children already.
    pub(super) room: bool,
    /// It has all pieces, or is fetching what it lacks.
    promising: bool,
}

/// A list for a peer of ours.
#[derive(Debug, Default)]
pub(super) struct List {
    /// Best first.
    pub(super) parents: Vec<PeerId>,
    /// Candidates were left out.
    pub(super) truncated: bool,
    /// Candidates that were left out have pieces that nobody on the list has.
    pub(super) uncovered: bool,
}

impl Task {
    /// Everybody who may be offered to `child`, best first, at most one per host.
    pub(super) fn candidates(&self, child: &Peer, cx: &Cx<'_>) -> Vec<Candidate> {
        let forbidden = self.forbidden(child);
        let near = cx.hosts.get(&child.host).map(|host| &host.info);
        let mut fastest = 0.0_f64;
        let mut by_host: BTreeMap<&HostId, &Peer> = BTreeMap::new();
        for peer in self.peers.values() {
            let offered = peer.potential
                && peer.host != child.host
                && !child.blocks(&peer.id, cx.now)
                && !forbidden.contains(&peer.id)
                && (child.ours || self.suits_dragonfly(peer));
            if !offered {
                continue;
            }
            let standing = |peer: &Peer| (peer.pieces.len(), peer.is_active());
            let best = by_host.entry(&peer.host).or_insert(peer);
            if standing(peer) > standing(best) {
                *best = peer;
            }
            let speed = cx.hosts.get(&peer.host).and_then(|host| host.speed);
            fastest = fastest.max(speed.unwrap_or(0.0));
        }
        let mut candidates: Vec<Candidate> = by_host
            .into_values()
            .filter_map(|peer| {
                let host = cx.hosts.get(&peer.host)?;
                let terms = Terms {
                    idc: near.map_or(0.0, |near| scoring::idc(&near.idc, &host.info.idc)),
                    location: near.map_or(0.0, |near| scoring::location(&near.location, &host.info.location)),
                    load: scoring::load(host.children, host.upload_limit(cx.config)),
                    bandwidth: scoring::bandwidth(host.info.tx_bandwidth, host.info.max_tx_bandwidth),
                    speed: scoring::speed(host.speed, fastest),
                    host_type: scoring::host_type(host.info.seed, !peer.state.is_final()),
                };
                let score = if child.ours { terms.ours() } else { terms.dragonfly() };
                // A parent that has become slow comes last; whoever is a parent already stays in front of its equals.
                let slow = if peer.costs.is_bad() { 1.0 } else { 0.0 };
                let kept = child.parents.contains(&peer.id);
                Some(Candidate {
                    id: peer.id.clone(),
                    score: score - slow + if kept { 0.05 } else { 0.0 } + 1e-3 * cx.tie(&child.id, &peer.id),
                    room: kept || host.has_room(cx.config),
                    promising: peer.is_complete() || peer.is_active() || self.whole.contains_key(&peer.id),
                })
            })
            .collect();
        candidates.sort_by(|left, right| {
            (right.promising, right.score)
                .partial_cmp(&(left.promising, left.score))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        candidates
    }

    /// Dragonfly's child asks a parent once and waits: the parent has to have something, or be at the origin alone.
    fn suits_dragonfly(&self, peer: &Peer) -> bool {
        let has = !peer.pieces.is_empty() || (!peer.ours && peer.state == PeerState::BackToSource);
        has && !peer.costs.is_bad()
    }

    /// Peers that must not become parents of `child`: the edge would close a cycle that a Dragonfly peer is part of.
    ///
    /// Between our own peers cycles do no harm, because every missing piece has a holder or a lease. A Dragonfly peer
    /// waits for its parents whatever they have.
    fn forbidden(&self, child: &Peer) -> BTreeSet<PeerId> {
        let mut forbidden = BTreeSet::new();
        if self.dragonfly == 0 {
            return forbidden;
        }
        let mut seen: BTreeSet<(&PeerId, bool)> = BTreeSet::new();
        let mut queue: VecDeque<(&Peer, bool)> = VecDeque::from([(child, !child.ours)]);
        while let Some((peer, tainted)) = queue.pop_front() {
            for id in &peer.children {
                let Some(next) = self.peers.get(id) else { continue };
                let tainted = tainted || !next.ours;
                if !seen.insert((id, tainted)) {
                    continue;
                }
                if tainted {
                    forbidden.insert(id.clone());
                }
                queue.push_back((next, tainted));
            }
        }
        forbidden
    }

    /// The list for a peer of ours: everybody if they fit, else the best, after those that are needed so that the list
    /// as a whole has what the child misses.
    pub(super) fn choose(&self, child: &Peer, candidates: &[Candidate], limit: usize) -> List {
        let open: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.room).collect();
        if open.len() <= limit {
            let parents = open.into_iter().map(|candidate| candidate.id.clone()).collect();
            return List { parents, truncated: false, uncovered: false };
        }
        let Some(geometry) = self.geometry else { return List::default() };
        let mut missing: Vec<u32> = child.missing(&geometry).take(COVER_WINDOW).collect();
        let mut chosen: BTreeSet<&PeerId> = BTreeSet::new();
        let mut uncovered = false;
        while let Some(&piece) = missing.first() {
            let has = |id: &PeerId, piece: u32| {
                self.peers.get(id).is_some_and(|peer| peer.pieces.contains(piece))
                    || self.coverage.leased_to(piece) == Some(id)
            };
            match open.iter().find(|candidate| has(&candidate.id, piece)) {
                Some(_) if chosen.len() == limit => {
                    uncovered = true;
                    break;
                }
                Some(candidate) => {
                    chosen.insert(&candidate.id);
                    missing.retain(|piece| !has(&candidate.id, *piece));
                }
                None => missing.retain(|other| *other != piece),
            }
        }
        for candidate in &open {
            if chosen.len() == limit {
                break;
            }
            chosen.insert(&candidate.id);
        }
        let parents = open
            .iter()
            .filter(|candidate| chosen.contains(&candidate.id))
            .map(|candidate| candidate.id.clone());
        List { parents: parents.collect(), truncated: true, uncovered }
    }

    /// What is told of the chosen ones.
    pub(super) fn describe(&self, parents: &[PeerId]) -> Vec<Parent> {
        parents
            .iter()
            .filter_map(|id| self.peers.get(id))
            .map(|peer| Parent {
                peer: peer.id.clone(),
                host: peer.host.clone(),
                state: peer.state,
                complete: peer.is_complete(),
                created: peer.created,
                updated: peer.updated,
            })
            .collect()
    }
}
