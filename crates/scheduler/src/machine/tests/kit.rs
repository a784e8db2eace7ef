//! A machine with a clock, and what it has said.

use std::collections::BTreeMap;
use std::time::Duration;

use damselfly_core::download::{Learned, Lease, Validator};
use damselfly_core::{Crc, HostId, Kind, PeerId, TaskId, TaskKey, Tick};

use crate::machine::event::*;
use crate::machine::hosts::tests::info;
use crate::machine::{Config, Counters, Scheduler};

pub(super) const MIB: u64 = 1 << 20;

pub(in crate::machine) fn key() -> TaskKey {
    TaskKey { kind: Kind::Standard, id: TaskId::parse("abcdef0123456789").unwrap() }
}

pub(super) fn learned(pieces: u32, version: &str) -> Learned {
    Learned {
        content_length: Some(u64::from(pieces) * 4 * MIB),
        piece_length: 4 * MIB,
        validator: Validator { etag: Some(version.to_owned()), last_modified: None },
        ranges: Some(true),
        ..Learned::default()
    }
}

/// A machine, its clock, and everything it has said and not been asked about yet, per stream.
pub(super) struct Lab {
    pub(super) machine: Scheduler,
    pub(super) now: Tick,
    pub(super) said: BTreeMap<StreamId, Vec<Answer>>,
    pub(super) closed: BTreeMap<StreamId, Ending>,
    pub(super) others: Vec<Effect>,
    streams: u64,
    seats: BTreeMap<String, (StreamId, String)>,
}

impl Lab {
    pub(super) fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { fresh: true, ..Config::default() };
        change(&mut config);
        Self {
            machine: Scheduler::new(config, 7),
            now: Tick(0),
            said: BTreeMap::new(),
            closed: BTreeMap::new(),
            others: Vec::new(),
            streams: 0,
            seats: BTreeMap::new(),
        }
    }

    pub(super) fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.machine.step(event, self.now, &mut effects);
        for effect in effects {
            match effect {
                Effect::Answer(stream, _, answer) => self.said.entry(stream).or_default().push(answer),
                Effect::Close(stream, ending) => {
                    assert!(self.closed.insert(stream, ending).is_none(), "a stream is closed once");
                }
                other => self.others.push(other),
            }
        }
        for task in self.machine.tasks.values() {
            task.coverage.assert_consistent(|piece| {
                task.peers.values().filter(|peer| peer.counted && peer.pieces.contains(piece)).count() as u32
            });
        }
    }

    /// Lets time pass, deadline by deadline.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.machine.deadline().filter(|at| *at <= end) {
            assert!(at >= self.now || self.machine.deadline() != Some(at), "a deadline in the past");
            self.now = self.now.max(at);
            self.step(Event::Tick);
            assert!(
                self.machine.deadline().is_none_or(|next| next > self.now),
                "a deadline does not move on"
            );
        }
        self.now = end;
    }

    pub(super) fn host(&mut self, name: &str, incarnation: Option<u64>) {
        let info = info(name, incarnation);
        self.step(Event::HostAnnounced(Box::new(info), Duration::from_secs(300)));
    }

    pub(super) fn hosts(&mut self, ours: &[&str], dragonflys: &[&str]) {
        for name in ours {
            self.host(name, Some(1));
        }
        for name in dragonflys {
            self.host(name, None);
        }
    }

    pub(super) fn hello(&mut self, name: &str, hold: u64, incarnation: u64) {
        let info = info(name, Some(incarnation));
        self.step(Event::Hold(HoldId(hold), HoldMessage::Hello(Box::new(info))));
    }

    /// The stream of a peer. Peers are named `<host>/<anything>`.
    pub(super) fn stream(&self, peer: &str) -> StreamId {
        self.seats[peer].0
    }

    pub(super) fn id(peer: &str) -> PeerId {
        PeerId::from(peer)
    }

    fn event(&self, peer: &str) -> PeerEvent {
        let (stream, host) = self.seats[peer].clone();
        PeerEvent {
            stream,
            host: HostId::from(host),
            task: key(),
            peer: Self::id(peer),
            learned: None,
            released: None,
            message: None,
        }
    }

    pub(super) fn register(&mut self, peer: &str, register: Register) {
        self.register_with(peer, register, None);
    }

    pub(super) fn register_with(&mut self, peer: &str, register: Register, learned: Option<Learned>) {
        self.streams += 1;
        let host = peer.split('/').next().unwrap().to_owned();
        self.seats.insert(peer.to_owned(), (StreamId(self.streams), host));
        let message = Some(PeerMessage::Register(Box::new(register)));
        self.step(Event::Peer(Box::new(PeerEvent { learned, message, ..self.event(peer) })));
    }

    pub(super) fn say(&mut self, peer: &str, message: PeerMessage) {
        self.step(Event::Peer(Box::new(PeerEvent { message: Some(message), ..self.event(peer) })));
    }

    pub(super) fn learned(&mut self, peer: &str, learned: Learned) {
        self.step(Event::Peer(Box::new(PeerEvent { learned: Some(learned), ..self.event(peer) })));
    }

    pub(super) fn release(&mut self, peer: &str, lease: u64) {
        self.step(Event::Peer(Box::new(PeerEvent { released: Some(lease), ..self.event(peer) })));
    }

    pub(super) fn report(number: u32, parent: Option<&str>) -> PieceReport {
        PieceReport {
            number,
            length: 4 * MIB,
            crc: Some(Crc(number)),
            parent: parent.map(PeerId::from),
            cost: Duration::from_millis(10),
        }
    }

    pub(super) fn origin(&mut self, peer: &str, pieces: impl IntoIterator<Item = u32>) {
        for number in pieces {
            self.say(peer, PeerMessage::PieceBackToSourceFinished(Self::report(number, None)));
        }
    }

    pub(super) fn from(&mut self, peer: &str, parent: &str, pieces: impl IntoIterator<Item = u32>) {
        for number in pieces {
            self.say(peer, PeerMessage::PieceFinished(Self::report(number, Some(parent))));
        }
    }

    pub(super) fn close_stream(&mut self, peer: &str) {
        self.step(Event::StreamClosed(self.stream(peer)));
    }

    /// What the peer was told since it was last asked about.
    pub(super) fn told(&mut self, peer: &str) -> Vec<Answer> {
        self.said.remove(&self.stream(peer)).unwrap_or_default()
    }

    /// The leases among it; the rest is forgotten.
    pub(super) fn leases(&mut self, peer: &str) -> Vec<Lease> {
        self.told(peer)
            .into_iter()
            .filter_map(|answer| match answer {
                Answer::BackToSource { lease, .. } => lease,
                _ => None,
            })
            .collect()
    }

    /// The pieces leased to it.
    pub(super) fn leased(&mut self, peer: &str) -> Vec<u32> {
        self.leases(peer).into_iter().flat_map(|lease| lease.ranges).flatten().collect()
    }

    /// The last list of parents among it; the rest is forgotten.
    pub(super) fn parents(&mut self, peer: &str) -> Option<Vec<String>> {
        self.told(peer).into_iter().rev().find_map(|answer| match answer {
            Answer::Parents(parents) => Some(parents.iter().map(|parent| parent.peer.to_string()).collect()),
            _ => None,
        })
    }

    pub(super) fn ending(&self, peer: &str) -> Option<&Ending> {
        self.closed.get(&self.stream(peer))
    }

    pub(super) fn counters(&self) -> Counters {
        self.machine.counters()
    }

    /// A peer of ours that learned, got everything from the origin, and finished.
    pub(super) fn complete(&mut self, peer: &str, pieces: u32) {
        self.register_with(peer, Register::default(), Some(learned(pieces, "v1")));
        self.origin(peer, 0..pieces);
        self.say(peer, PeerMessage::Finished);
        assert_eq!(self.ending(peer), Some(&Ending::Done));
    }
}

/// A Dragonfly peer's registration.
pub(super) fn of_length(pieces: u32) -> Register {
    Register {
        content_length: Some(u64::from(pieces) * 4 * MIB),
        piece_length: Some(4 * MIB),
        ..Register::default()
    }
}

/// Whether the lease is for the pieces from `first` to before `end`, and for no others.
pub(super) fn spans(lease: &Lease, first: u32, end: u32) -> bool {
    lease.ranges.iter().cloned().flatten().eq(first..end)
}
