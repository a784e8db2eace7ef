//! What peers say on their announce streams.

use std::collections::BTreeSet;

use damselfly_core::{PeerId, PieceSet, Tick};

use super::event::{Effect, Ending, PeerEvent, PeerMessage, StreamId};
use super::leases::Coverage;
use super::peers::{Peer, Step};
use super::tasks::{Task, TaskState};
use super::{Cx, Scheduler, Seat};

impl Scheduler {
    /// A message on an announce stream.
    pub(super) fn peer_event(&mut self, event: PeerEvent, now: Tick, out: &mut Vec<Effect>) {
        let seat = match self.streams.get(&event.stream) {
            Some(Seat::Held { .. }) => return self.hold_back(event, out),
            Some(Seat::Peer(task, peer)) => Some((task.clone(), peer.clone())),
            None => None,
        };
        let Some((task, peer)) = seat else {
            if matches!(event.message, Some(PeerMessage::Register(_))) {
                return self.first_message(event, now, out);
            }
            let why = format!("peer {} not found: a peer registers first", event.peer);
            out.push(Effect::Close(event.stream, Ending::NotFound(why)));
            return;
        };
        if task != event.task || peer != event.peer {
            let why = format!("this stream belongs to peer {peer}, not to {}", event.peer);
            self.stream_closed(event.stream, now, out);
            out.push(Effect::Close(event.stream, Ending::Invalid(why)));
            return;
        }
        let seed = self.hosts.get(&event.host).is_some_and(|host| host.info.seed);
        let failed =
            matches!(event.message, Some(PeerMessage::Failed(_) | PeerMessage::BackToSourceFailed(_)));
        self.with(&task, now, out, |task, cx| {
            let ours = task.peers.get(&peer).is_some_and(|peer| peer.ours);
            if let Some(learned) = event.learned.filter(|_| ours) {
                task.learn(&peer, learned, cx);
            }
            if let Some(lease) = event.released {
                task.released(&peer, lease, cx);
            }
            if seed && failed {
                task.seed_failed(&event.host, cx.now);
            }
            if let Some(message) = event.message {
                task.message(&peer, message, cx);
            }
        });
    }

    /// The peer's side of a stream ended, or its host is someone else now.
    pub(super) fn stream_closed(&mut self, stream: StreamId, now: Tick, out: &mut Vec<Effect>) {
        let (key, id) = match self.streams.remove(&stream) {
            Some(Seat::Peer(task, peer)) => (task, peer),
            Some(Seat::Held { .. }) => {
                self.timers.set(super::Timer::Held(stream), None);
                return;
            }
            None => return,
        };
        let host = self.with(&key, now, out, |task, cx| {
            let peer = task.peers.get_mut(&id)?;
            peer.stream = None;
            let (host, ours, empty) = (peer.host.clone(), peer.ours, peer.pieces.is_empty());
            task.retire(&id, cx);
            if cx.hosts.get(&host).is_some_and(|host| host.info.seed) {
                task.seed_failed(&host, cx.now);
            }
            if ours && empty {
                task.remove(&id, Ending::Done, cx);
            }
            Some((host, ours))
        });
        // A Dragonfly daemon that drops a stream half-way may be dead; ours has its Hold to tell.
        if let Some((host, false)) = host.flatten() {
            self.probe(&host, now, out);
        }
    }
}

impl Task {
    /// The peer has no use for a lease: its pieces go to others, and it comes last for a while.
    fn released(&mut self, id: &PeerId, lease: u64, cx: &mut Cx<'_>) {
        if !self.coverage.end(id, lease) {
            return;
        }
        self.set_back(id, cx.now);
        if self.solo.as_ref() == Some(id) && !self.coverage.has_lease(id) {
            self.solo = None;
        }
        self.refresh(id, cx);
    }

    fn message(&mut self, id: &PeerId, message: PeerMessage, cx: &mut Cx<'_>) {
        self.updated = cx.now;
        match message {
            PeerMessage::Register(register) => self.register_again(id, &register, cx),
            PeerMessage::Started => self.go(id, Step::Download, "DownloadPeerStarted", cx),
            PeerMessage::BackToSourceStarted => {
                self.go(id, Step::DownloadBackToSource, "DownloadPeerBackToSourceStarted", cx);
            }
            PeerMessage::Reschedule(parents) => self.reschedule(id, parents, cx),
            PeerMessage::Finished => self.finished(id, false, cx),
            PeerMessage::BackToSourceFinished => self.finished(id, true, cx),
            PeerMessage::Failed(_) => self.failed(id, false, cx),
            PeerMessage::BackToSourceFailed(_) => self.failed(id, true, cx),
            PeerMessage::PieceFinished(report) => self.piece_finished(id, &report, false, cx),
            PeerMessage::PieceBackToSourceFinished(report) => self.piece_finished(id, &report, true, cx),
            PeerMessage::PieceFailed { parent } => {
                if let Some(peer) = self.peers.get_mut(id) {
                    peer.blocked.insert(parent, None);
                    peer.list_dirty = true;
                    peer.next_push = cx.now;
                }
            }
            PeerMessage::PieceBackToSourceFailed => self.set_back(id, cx.now),
        }
    }

    /// Moves the peer's state, or ends a dialogue that leaves the rules.
    fn go(&mut self, id: &PeerId, step: Step, said: &str, cx: &mut Cx<'_>) {
        if self.advance(id, step, cx.now) {
            self.refresh(id, cx);
            return;
        }
        let state = self.peers.get(id).map_or("unknown", |peer| peer.state.name());
        let why = format!("{said} does not follow in state {state}");
        self.advance(id, Step::Fail, cx.now);
        self.retire(id, cx);
        self.close(id, Ending::Invalid(why), cx);
    }

    fn reschedule(&mut self, id: &PeerId, parents: Vec<PeerId>, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get(id) else { return };
        // Dragonfly's daemon names those it is done with. Ours names all when it is stuck: to blame, for a while, are
        // those that have what it misses, and not those that wait for the origin like itself.
        let until = peer.ours.then(|| cx.now + cx.config.reschedule_block);
        let missing = |parent: &Peer| parent.pieces.iter().any(|piece| !peer.pieces.contains(piece));
        let to_blame: Vec<PeerId> = parents
            .into_iter()
            .filter(|parent| !peer.ours || self.peers.get(parent).is_some_and(missing))
            .collect();
        let Some(peer) = self.peers.get_mut(id) else { return };
        for parent in to_blame {
            let block = peer.blocked.entry(parent).or_insert(until);
            *block = if block.is_none() { None } else { until };
        }
        peer.list_dirty = true;
        peer.asked = true;
        peer.next_push = cx.now;
        if !peer.ours {
            peer.waiting = Some(cx.now);
            self.set_parents(id, BTreeSet::new(), cx);
        }
    }

    fn finished(&mut self, id: &PeerId, origin: bool, cx: &mut Cx<'_>) {
        let said = if origin { "DownloadPeerBackToSourceFinished" } else { "DownloadPeerFinished" };
        self.go(id, Step::Succeed, said, cx);
        let Some(peer) = self.peers.get(id).filter(|peer| peer.stream.is_some()) else { return };
        let (host, ours) = (peer.host.clone(), peer.ours);
        // One of ours has said what it holds, piece by piece or when it registered; what it wanted in the end may have
        // been less than what it registered for.
        let succeeds = if ours { peer.is_complete() } else { peer.range.is_none() };
        if let (true, Some(geometry)) = (succeeds, self.geometry) {
            // What a Dragonfly daemon held before it registered it need not have reported.
            if !peer.pieces.is_full() && !peer.suspect {
                self.set_pieces(id, PieceSet::full(geometry.piece_count()), cx);
            }
        }
        self.retire(id, cx);
        if succeeds && (origin || ours) {
            self.state = TaskState::Succeeded;
        }
        self.seed_done(&host);
        self.close(id, Ending::Done, cx);
    }

    fn failed(&mut self, id: &PeerId, origin: bool, cx: &mut Cx<'_>) {
        self.advance(id, Step::Fail, cx.now);
        self.retire(id, cx);
        self.close(id, Ending::Done, cx);
        let alone = !self.coverage.any()
            && self.whole.is_empty()
            && !self.peers.values().any(|peer| peer.potential || peer.is_active());
        if origin && alone {
            // The next one asks the origin afresh, even for the length.
            self.state = TaskState::Failed;
            self.learned = None;
            self.geometry = None;
            self.coverage = Coverage::default();
            self.ledger = super::ledger::Ledger::default();
            for peer in self.peers.values_mut() {
                peer.pieces = PieceSet::default();
                peer.counted = false;
            }
        }
    }
}
