//! What is known of a content: learning it, telling it, and noticing that it became another.

use std::collections::BTreeSet;

use damselfly_core::download::Learned;
use damselfly_core::{Crc, Geometry, PeerId, PieceSet};

use super::Cx;
use super::event::{Answer, Ending, PieceReport};
use super::ledger::Ledger;
use super::peers::{Peer, PeerState};
use super::privacy::ELSEWHERE;
use super::tasks::{Task, contradicts};

/// The geometry that `learned` speaks of, when it does and one can exist.
pub(super) fn geometry_of(content_length: Option<u64>, piece_length: u64) -> Option<Geometry> {
    Geometry::told(content_length?, piece_length).ok()
}

impl Task {
    /// A peer of ours tells what the origin answered.
    pub(super) fn learn(&mut self, id: &PeerId, told: Learned, cx: &mut Cx<'_>) {
        if told.private && self.is_elsewhere(id) {
            // Its private content is no part of this task.
            return self.refuse(id, ELSEWHERE, cx);
        }
        let was_private = self.is_private();
        let told = Learned { piece_length: self.piece_length_of(&told), ..told };
        match &self.learned {
            None => self.adopt(id, told, cx),
            Some(known) if contradicts(known, &told) => {
                // An answer that was under way when the version changed must not change it back: only whoever
                // fetches under a lease of the present version speaks for the origin.
                if self.coverage.has_lease(id) || !self.coverage.any() {
                    self.begin_generation(id, told, cx);
                } else if let Some(peer) = self.peers.get_mut(id) {
                    // The verdict has to outweigh what the peer believes, which the facts it has heard before must not.
                    peer.ahead += 1;
                    peer.facts_seen = None;
                    peer.next_push = cx.now;
                }
            }
            Some(known) => {
                let merged = merge(known, told);
                if *known != merged {
                    self.adopt(id, merged, cx);
                }
            }
        }
        if self.is_private() && !was_private {
            self.refuse_elsewhere(cx);
        }
    }

    fn piece_length_of(&self, told: &Learned) -> u64 {
        geometry_of(told.content_length, told.piece_length).map_or(0, |geometry| geometry.piece_length())
    }

    /// Takes facts over, and what follows from them for whoever fetches.
    fn adopt(&mut self, id: &PeerId, learned: Learned, cx: &mut Cx<'_>) {
        let geometry = geometry_of(learned.content_length, learned.piece_length);
        let fetches = self.coverage.has_lease(id);
        let by_ranges = geometry.is_some() && learned.ranges != Some(false);
        self.learned = Some(learned);
        if by_ranges {
            self.solo = None;
        } else if fetches {
            self.solo = Some(id.clone());
        }
        if let Some(geometry) = geometry.filter(|geometry| self.geometry != Some(*geometry)) {
            let alone = fetches && self.knew_no_length;
            self.set_geometry(geometry, cx);
            if alone {
                // Whoever fetched without knowing the length has read it to the end; the reports follow.
                let (lease, until) = (cx.new_lease(), cx.now + self.silence(cx.config.lease_silence));
                self.coverage.grant(lease, id, 0..geometry.piece_count(), until);
                self.coverage.renew(id, until);
            }
        }
        self.knew_no_length = geometry.is_none();
        for peer in self.peers.values_mut().filter(|peer| peer.ours) {
            peer.facts_seen = None;
            // The first facts end a wait; they do not wait for the next push themselves.
            peer.next_push = cx.now;
        }
        self.refresh(id, cx);
    }

    /// The origin's content is another version now: nothing known of the old one holds any longer.
    fn begin_generation(&mut self, id: &PeerId, learned: Learned, cx: &mut Cx<'_>) {
        cx.counters.generations += 1;
        self.generation += 1;
        self.changed = Some((cx.now, id.clone()));
        self.ledger = Ledger::default();
        self.coverage.end_others(id);
        self.whole.clear();
        self.solo = None;
        let ids: Vec<PeerId> = self.peers.keys().cloned().collect();
        for other in ids {
            let Some(peer) = self.peers.get_mut(&other) else { continue };
            let idle = peer.stream.is_none();
            let foreign = !peer.ours;
            peer.facts_seen = None;
            peer.stranded.clear();
            // Its daemon forgets its parents together with the old version.
            peer.pushed.clear();
            self.set_pieces(&other, PieceSet::default(), cx);
            self.set_parents(&other, BTreeSet::new(), cx);
            if idle || foreign {
                // Whoever cannot be told of the new version goes on with the old one, alone.
                self.remove(&other, Ending::Refused("the content changed at its origin".to_owned()), cx);
            }
        }
        self.coverage.reset();
        self.geometry = None;
        self.adopt(id, learned, cx);
    }

    /// A registering peer knows the content's length: Dragonfly's ask the origin first.
    pub(super) fn learn_length(
        &mut self,
        id: &PeerId,
        length: u64,
        piece_length: Option<u64>,
        cx: &mut Cx<'_>,
    ) {
        let Some(geometry) = geometry_of(Some(length), piece_length.unwrap_or(0)) else { return };
        match self.geometry {
            Some(known) if known == geometry => {}
            Some(_) => {
                // It cannot swap pieces with the others.
                if let Some(peer) = self.peers.get_mut(id).filter(|peer| !peer.ours) {
                    peer.suspect = true;
                }
            }
            None => {
                let learned = Learned {
                    content_length: Some(length),
                    piece_length: geometry.piece_length(),
                    ..self.learned.clone().unwrap_or_default()
                };
                self.adopt(id, learned, cx);
            }
        }
    }

    /// A peer has a piece, or says so.
    pub(super) fn piece_finished(
        &mut self,
        id: &PeerId,
        report: &PieceReport,
        origin: bool,
        cx: &mut Cx<'_>,
    ) {
        self.updated = cx.now;
        let silence = self.silence(cx.config.lease_silence);
        let Some(geometry) = self.geometry else { return };
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.updated = cx.now;
        let late = self.changed.as_ref().is_some_and(|(at, by)| by != id && cx.now - report.cost < *at);
        if report.number >= geometry.piece_count() || late {
            cx.counters.ignored_reports += 1;
            return;
        }
        if peer.state == PeerState::ReceivedNormal {
            peer.state = if origin { PeerState::BackToSource } else { PeerState::Running };
        }
        peer.hold_off = cx.now;
        peer.setbacks = 0;
        self.coverage.renew(id, cx.now + silence);
        if let Some(until) = self.whole.get_mut(id) {
            *until = cx.now + silence;
        }
        if let Some(crc) = report.crc {
            let standing = if origin {
                Some(self.ledger.enter(report.number, crc))
            } else {
                self.ledger.get(report.number)
            };
            if let Some(standing) = standing.filter(|standing| *standing != crc) {
                self.contradicted(id, report, standing, cx);
                return;
            }
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.costs.add(report.cost);
        }
        if origin {
            cx.counters.origin_pieces += 1;
            self.origin_costs.add(report.cost);
        } else {
            cx.counters.peer_pieces += 1;
            if let Some(parent) = report.parent.as_ref().and_then(|parent| self.peers.get_mut(parent)) {
                parent.updated = cx.now;
                if let Some(host) = cx.hosts.get_mut(&parent.host) {
                    host.served(report.length, report.cost);
                }
            }
        }
        self.coverage.finish(report.number, id);
        self.add_piece(id, report.number, cx);
        self.refresh(id, cx);
    }

    /// The ledger says otherwise: the reporter and the parent it names have not got this piece.
    fn contradicted(&mut self, id: &PeerId, report: &PieceReport, standing: Crc, cx: &mut Cx<'_>) {
        cx.counters.ledger_conflicts += 1;
        for failed in [Some(id), report.parent.as_ref()].into_iter().flatten() {
            self.refuted(failed, report.number, standing, cx);
            // A Dragonfly peer will not fetch the piece anew, and its children could not tell.
            self.suspect_if(failed, |peer| !peer.ours, cx);
        }
        if let (Some(parent), Some(peer)) = (&report.parent, self.peers.get_mut(id)) {
            peer.blocked.insert(parent.clone(), None);
            peer.list_dirty = true;
        }
    }

    /// A host says with which CRCs it holds what it holds: those that the ledger does not know enter it, and a piece
    /// that differs is none.
    pub(super) fn restated(&mut self, id: &PeerId, crcs: Vec<(u32, Crc)>, cx: &mut Cx<'_>) {
        for (piece, crc) in crcs {
            let standing = self.ledger.enter(piece, crc);
            if standing != crc {
                cx.counters.ledger_conflicts += 1;
                self.refuted(id, piece, standing, cx);
                // Where nothing runs nobody fetches the piece anew, and it would be offered again with the next change.
                self.suspect_if(id, |peer| !peer.is_active(), cx);
            }
        }
    }

    /// The peer has not got this piece after all; one of ours is told with which CRC it would be right.
    fn refuted(&mut self, id: &PeerId, piece: u32, standing: Crc, cx: &mut Cx<'_>) {
        self.remove_piece(id, piece, cx);
        if self.peers.get(id).is_some_and(|peer| peer.ours) {
            self.tell_facts(id, false, piece, vec![standing], cx);
        }
    }

    /// Every message names the version that its CRCs belong to: what the peer holds may be of another by now.
    fn tell_facts(&mut self, id: &PeerId, headers: bool, first: u32, crcs: Vec<Crc>, cx: &mut Cx<'_>) {
        let mut learned = self.learned.clone();
        if let Some(learned) = learned.as_mut().filter(|_| !headers) {
            learned.headers.clear();
        }
        let facts = Answer::Facts { generation: self.generation_for(id), learned, first, crcs };
        self.answer(id, facts, cx);
    }

    /// The present version's number as counted for this peer.
    pub(super) fn generation_for(&self, id: &PeerId) -> u64 {
        self.generation.saturating_add(self.peers.get(id).map_or(0, |peer| peer.ahead))
    }

    fn suspect_if(&mut self, id: &PeerId, doubtful: impl FnOnce(&Peer) -> bool, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(id).filter(|peer| doubtful(peer)) else { return };
        peer.suspect = true;
        self.refresh(id, cx);
    }

    /// Tells a peer of ours what it does not know yet; says whether there was anything.
    pub(super) fn push_facts(&mut self, id: &PeerId, cx: &mut Cx<'_>) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        let known = self.ledger.len();
        let first_time = peer.facts_seen.is_none();
        let seen = peer.facts_seen.unwrap_or(0);
        if self.learned.is_none() || (!first_time && seen == known) {
            return false;
        }
        peer.facts_seen = Some(known);
        let mut runs = self.ledger.since(seen);
        if !first_time {
            // What it holds was judged when it reported it.
            runs.retain(|(first, crcs)| (*first..).zip(crcs).any(|(piece, _)| !peer.pieces.contains(piece)));
        } else if runs.is_empty() {
            runs.push((0, Vec::new()));
        }
        let any = !runs.is_empty();
        let mut headers = first_time;
        for (first, crcs) in runs {
            self.tell_facts(id, std::mem::take(&mut headers), first, crcs, cx);
        }
        any
    }
}

/// What is known together with what was told, where the two do not contradict.
fn merge(known: &Learned, told: Learned) -> Learned {
    Learned {
        content_length: known.content_length.or(told.content_length),
        piece_length: if known.piece_length > 0 { known.piece_length } else { told.piece_length },
        validator: damselfly_core::download::Validator {
            etag: known.validator.etag.clone().or(told.validator.etag),
            last_modified: known.validator.last_modified.clone().or(told.validator.last_modified),
        },
        headers: if known.headers.is_empty() { told.headers } else { known.headers.clone() },
        ranges: known.ranges.or(told.ranges),
        private: known.private || told.private,
    }
}
