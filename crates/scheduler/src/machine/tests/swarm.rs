//! Whole swarms under a virtual clock: whatever happens, everybody who may be served is served, and the origin is asked
//! for each piece once, except for what dies with a host.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use damselfly_core::Crc;
use proptest::prelude::*;

use super::kit::{Lab, key, learned, of_length};
use crate::machine::event::*;

/// What may happen while the swarm works.
#[derive(Clone, Debug)]
enum Act {
    /// Peer `n` registers, if it has not.
    Join(usize),
    /// Peer `n` fetches up to that many pieces, each from wherever it may.
    Work(usize, u8),
    /// The host of peer `n` dies: its Hold breaks.
    Die(usize),
    /// The stream of peer `n` breaks; it registers anew with what it has.
    Reconnect(usize),
    /// Peer `n` gives its leases back.
    Release(usize),
    /// Peer `n` finds its first parent useless.
    Ban(usize),
    /// So many milliseconds pass.
    Pass(u16),
}

fn act(peers: usize) -> impl Strategy<Value = Act> {
    let peer = 0..peers;
    prop_oneof![
        3 => peer.clone().prop_map(Act::Join),
        12 => (peer.clone(), 1u8..6).prop_map(|(peer, pieces)| Act::Work(peer, pieces)),
        1 => peer.clone().prop_map(Act::Die),
        1 => peer.clone().prop_map(Act::Reconnect),
        1 => peer.clone().prop_map(Act::Release),
        1 => peer.prop_map(Act::Ban),
        2 => (1u16..3000).prop_map(Act::Pass),
    ]
}

/// One simulated peer: it fetches what it is told it may, from whom it is told.
#[derive(Debug, Default)]
struct Node {
    ours: bool,
    may_use_origin: bool,
    registered: bool,
    dead: bool,
    done: bool,
    held: BTreeSet<u32>,
    /// Ours: leases by id. Dragonfly's: none.
    leases: BTreeMap<u64, BTreeSet<u32>>,
    whole: bool,
    parents: Vec<String>,
    banned: BTreeSet<String>,
    ledger: BTreeMap<u32, Crc>,
    learned: bool,
    knows_length: bool,
}

struct Swarm {
    lab: Lab,
    count: u32,
    nodes: Vec<Node>,
    /// How often each piece was fetched from the origin.
    fetched: Vec<u32>,
}

fn name(index: usize) -> String {
    format!("h{index}/p")
}

impl Swarm {
    fn new(count: u32, nodes: Vec<Node>) -> Self {
        let mut lab = Lab::new(|_| {});
        for (index, node) in nodes.iter().enumerate() {
            if node.ours {
                lab.hello(&format!("h{index}"), index as u64 + 1, 1);
            } else {
                lab.host(&format!("h{index}"), None);
            }
        }
        Self { lab, count, fetched: vec![0; count as usize], nodes }
    }

    fn register(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.registered = true;
        node.leases.clear();
        node.parents.clear();
        node.whole = false;
        let mut register = if node.ours { Register::default() } else { of_length(self.count) };
        register.disable_back_to_source = !node.may_use_origin;
        if node.ours && !node.held.is_empty() {
            let mut pieces = damselfly_core::PieceSet::new(self.count);
            for &piece in &node.held {
                pieces.insert(piece);
            }
            register.restate = Some(Restate {
                bitmap: pieces.to_bytes(),
                validator: learned(self.count, "v").validator,
                ..Restate::default()
            });
        }
        let facts = (node.ours && node.learned).then(|| learned(self.count, "v"));
        self.lab.register_with(&name(index), register, facts);
    }

    /// Takes in what every peer was told.
    fn listen(&mut self) {
        for index in 0..self.nodes.len() {
            if !self.nodes[index].registered {
                continue;
            }
            for answer in self.lab.told(&name(index)) {
                let node = &mut self.nodes[index];
                match answer {
                    Answer::Facts { learned, first, crcs, .. } => {
                        assert!(node.ours);
                        node.knows_length |= learned.is_some_and(|learned| learned.content_length.is_some());
                        node.ledger.extend((first..).zip(crcs));
                    }
                    Answer::BackToSource { lease: Some(lease), .. } => {
                        assert!(node.ours && node.may_use_origin);
                        let pieces = lease.ranges.into_iter().flatten().collect();
                        node.leases.insert(lease.id, pieces);
                    }
                    Answer::BackToSource { lease: None, .. } => {
                        assert!(!node.ours && node.may_use_origin);
                        node.whole = true;
                        self.lab.say(&name(index), PeerMessage::BackToSourceStarted);
                    }
                    Answer::Parents(parents) => {
                        let ids = parents.iter().map(|parent| parent.peer.to_string());
                        assert!(parents.iter().all(|parent| parent.host.as_str() != format!("h{index}")));
                        assert!(node.ours || (1..=3).contains(&parents.len()));
                        node.parents = ids.collect();
                        if !node.ours {
                            self.lab.say(&name(index), PeerMessage::Started);
                        }
                    }
                    Answer::Empty | Answer::MetadataOnly => panic!("there is content"),
                }
            }
        }
    }

    fn is_live(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        node.registered && !node.dead && !node.done
    }

    fn index_of(peer: &str) -> usize {
        peer.trim_start_matches('h').split('/').next().unwrap().parse().unwrap()
    }

    /// One piece, from a parent if one has something, else from the origin if that is allowed; says whether there was
    /// anything to do.
    fn fetch(&mut self, index: usize) -> bool {
        let node = &self.nodes[index];
        let from_parent = node.parents.iter().find_map(|parent| {
            let other = &self.nodes[Self::index_of(parent)];
            if other.dead || node.banned.contains(parent) {
                return None;
            }
            other.held.difference(&node.held).next().map(|piece| (parent.clone(), *piece))
        });
        let leased = node.leases.values().flatten().copied().find(|piece| !node.held.contains(piece));
        let anything = node.whole.then(|| (0..self.count).find(|piece| !node.held.contains(piece))).flatten();
        let origin = leased.filter(|piece| *piece < self.count).or(anything);
        let me = name(index);
        // The origin first while leased: others wait for it.
        if let Some(piece) = origin {
            if self.nodes[index].ours && !self.nodes[index].learned {
                self.nodes[index].learned = true;
                self.lab.learned(&me, learned(self.count, "v"));
            }
            self.fetched[piece as usize] += 1;
            self.nodes[index].held.insert(piece);
            self.lab.origin(&me, [piece]);
        } else if let Some((parent, piece)) = from_parent {
            self.nodes[index].held.insert(piece);
            self.lab.from(&me, &parent, [piece]);
        } else {
            return false;
        }
        self.finish(index);
        true
    }

    fn finish(&mut self, index: usize) {
        if self.nodes[index].held.len() == self.count as usize {
            self.nodes[index].done = true;
            self.lab.say(&name(index), PeerMessage::Finished);
            assert_eq!(self.lab.ending(&name(index)), Some(&Ending::Done));
        }
    }

    /// A Dragonfly peer whose parents have nothing more asks for others.
    fn reschedule(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if !node.ours && !node.parents.is_empty() {
            let parents = std::mem::take(&mut node.parents);
            let ids = parents.iter().map(|parent| Lab::id(parent)).collect();
            self.lab.say(&name(index), PeerMessage::Reschedule(ids));
        }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Join(index) => {
                if !self.nodes[index].registered && !self.nodes[index].dead {
                    self.register(index);
                }
            }
            Act::Work(index, pieces) => {
                for _ in 0..pieces {
                    if !self.is_live(index) || !self.fetch(index) {
                        break;
                    }
                    self.listen();
                }
            }
            Act::Die(index) => {
                let node = &mut self.nodes[index];
                if std::mem::replace(&mut node.dead, true) {
                    return;
                }
                if node.ours {
                    self.lab.step(Event::HoldClosed(HoldId(index as u64 + 1)));
                } else {
                    self.lab.step(Event::HostLeft(format!("h{index}").into()));
                }
                if self.is_registered(index) {
                    self.lab.close_stream(&name(index));
                }
            }
            Act::Reconnect(index) => {
                if self.is_live(index) && self.nodes[index].ours {
                    self.lab.close_stream(&name(index));
                    self.register(index);
                }
            }
            Act::Release(index) => {
                if self.is_live(index) {
                    for lease in std::mem::take(&mut self.nodes[index].leases).into_keys() {
                        self.lab.release(&name(index), lease);
                    }
                }
            }
            Act::Ban(index) => {
                let parent = self.nodes[index].parents.first().cloned();
                if let Some(parent) = parent.filter(|_| self.is_live(index) && self.nodes[index].ours) {
                    self.nodes[index].banned.insert(parent.clone());
                    self.lab.say(&name(index), PeerMessage::PieceFailed { parent: Lab::id(&parent) });
                }
            }
            Act::Pass(millis) => self.pass(Duration::from_millis(millis.into())),
        }
        self.listen();
        self.check();
    }

    fn is_registered(&self, index: usize) -> bool {
        self.nodes[index].registered && !self.nodes[index].done
    }

    /// Time passes, and the Holds of the living beat.
    fn pass(&mut self, time: Duration) {
        self.lab.pass(time);
        for (index, node) in self.nodes.iter().enumerate() {
            if node.ours && !node.dead {
                self.lab.step(Event::Hold(HoldId(index as u64 + 1), HoldMessage::Beat));
            }
        }
    }

    /// The invariant between our peers: nobody who may ask the origin lacks a piece that nobody takes care of, unless it
    /// has a lease, at whose end it gets more, or waits out a pause.
    fn check(&mut self) {
        let Some(task) = self.lab.machine.tasks.get(&key()) else { return };
        let Some(geometry) = task.geometry else { return };
        if !task.whole.is_empty() {
            return;
        }
        for peer in task.peers.values().filter(|peer| peer.ours && peer.is_active()) {
            let busy = task.coverage.has_lease(&peer.id);
            let alive = self.lab.machine.hosts.get(&peer.host).is_some_and(|host| host.alive);
            if busy || !alive || !peer.may_use_origin || peer.hold_off > self.lab.now {
                continue;
            }
            for piece in peer.missing(&geometry) {
                assert!(
                    task.coverage.holders(piece) > 0 || task.coverage.leased_to(piece).is_some(),
                    "nobody takes care of piece {piece}, and {} could",
                    peer.id
                );
            }
        }
    }

    /// Lets everybody work until nothing moves any more.
    fn run_out(&mut self) {
        for index in 0..self.nodes.len() {
            if !self.nodes[index].registered && !self.nodes[index].dead {
                self.register(index);
            }
        }
        self.listen();
        let mut idle = 0;
        while idle < 40 {
            let mut moved = false;
            for index in 0..self.nodes.len() {
                if self.is_live(index) {
                    if self.fetch(index) {
                        moved = true;
                    } else {
                        self.reschedule(index);
                    }
                }
                self.listen();
            }
            self.check();
            self.pass(Duration::from_millis(if moved { 50 } else { 1000 }));
            self.listen();
            idle = if moved { 0 } else { idle + 1 };
        }
    }
}

fn nodes(kinds: &[(bool, bool)]) -> Vec<Node> {
    let node = |&(ours, may_use_origin)| Node { ours, may_use_origin, ..Node::default() };
    kinds.iter().map(node).collect()
}

proptest! {
    /// Ours alone: whatever happens, all who live complete while one of them may ask the origin.
    #[test]
    fn ours_complete_and_the_origin_is_asked_once(
        count in 1u32..70,
        origin in prop::collection::vec(prop::bool::weighted(0.8), 2..9),
        acts in prop::collection::vec(act(8), 0..120),
    ) {
        let kinds: Vec<(bool, bool)> = origin.iter().map(|origin| (true, *origin)).collect();
        let mut swarm = Swarm::new(count, nodes(&kinds));
        let peers = swarm.nodes.len();
        let mut disturbed = false;
        for act in &acts {
            let (Act::Join(peer) | Act::Work(peer, _) | Act::Die(peer) | Act::Reconnect(peer) | Act::Release(peer)
                | Act::Ban(peer)) = act else { swarm.act(act); continue };
            if *peer >= peers {
                continue;
            }
            disturbed |= matches!(act, Act::Die(_) | Act::Ban(_) | Act::Reconnect(_));
            swarm.act(act);
        }
        swarm.run_out();
        let permitted = swarm.nodes.iter().any(|node| node.may_use_origin && !node.dead);
        for (index, node) in swarm.nodes.iter().enumerate() {
            if permitted && !node.dead && node.banned.is_empty() {
                prop_assert!(node.done, "peer {index} of {:?} has {}/{count}", swarm.nodes, node.held.len());
            }
        }
        // These nodes keep no clock: a daemon knows when its lease has ended by silence, and fetches no more.
        if !disturbed && swarm.lab.counters().leases_expired == 0 {
            prop_assert!(swarm.fetched.iter().all(|times| *times <= 1), "{:?}", swarm.fetched);
        }
        prop_assert_eq!(swarm.lab.counters().ledger_conflicts, 0);
    }

    /// Deaths cost what the dead had fetched and not passed on, and nothing else.
    #[test]
    fn the_origin_pays_only_for_what_died(
        count in 1u32..70,
        peers in 2usize..8,
        acts in prop::collection::vec((0usize..8, 1u8..6, 0u8..20), 0..80),
    ) {
        let mut swarm = Swarm::new(count, nodes(&vec![(true, true); peers]));
        for index in 0..peers {
            swarm.act(&Act::Join(index));
        }
        let mut died = 0;
        for (peer, pieces, chance) in acts {
            let peer = peer % peers;
            swarm.act(&Act::Work(peer, pieces));
            if chance == 0 {
                // What only this one holds is lost with it.
                let alone = |piece: &&u32| {
                    !swarm.nodes.iter().enumerate().any(|(other, node)| {
                        other != peer && !node.dead && node.held.contains(*piece)
                    })
                };
                if !swarm.nodes[peer].dead {
                    died += swarm.nodes[peer].held.iter().filter(alone).count() as u32;
                }
                swarm.act(&Act::Die(peer));
            }
        }
        swarm.run_out();
        let total: u32 = swarm.fetched.iter().sum();
        prop_assert!(total <= count + died, "{total} of {count}, {died} died: {:?}", swarm.fetched);
        let done = swarm.nodes.iter().filter(|node| !node.dead).all(|node| node.done);
        prop_assert!(done, "{:?}", swarm.nodes);
    }

    /// Among Dragonfly's peers, too, everybody ends, and the graph that they are part of stays acyclic.
    #[test]
    fn mixed_swarms_complete(
        count in 1u32..40,
        kinds in prop::collection::vec(any::<bool>(), 2..7),
        acts in prop::collection::vec((0usize..6, 1u8..6), 0..80),
    ) {
        let kinds: Vec<(bool, bool)> = kinds.iter().map(|ours| (*ours, true)).collect();
        let peers = kinds.len();
        let mut swarm = Swarm::new(count, nodes(&kinds));
        for (peer, pieces) in acts {
            swarm.act(&Act::Join(peer % peers));
            swarm.act(&Act::Work(peer % peers, pieces));
            assert_acyclic(&swarm.lab);
        }
        swarm.run_out();
        assert_acyclic(&swarm.lab);
        for (index, node) in swarm.nodes.iter().enumerate() {
            let refused = swarm.lab.ending(&name(index)).is_some_and(|ending| *ending != Ending::Done);
            // Dragonfly's daemon goes to the origin by itself when it was answered five times.
            prop_assert!(node.done || (refused && !node.ours), "peer {index} of {:?}", swarm.nodes);
        }
    }
}

/// No Dragonfly peer lies on a cycle of the peer graph.
fn assert_acyclic(lab: &Lab) {
    let Some(task) = lab.machine.tasks.get(&key()) else { return };
    for start in task.peers.values().filter(|peer| !peer.ours) {
        let mut seen = BTreeSet::new();
        let mut queue: Vec<_> = start.children.iter().collect();
        while let Some(id) = queue.pop() {
            assert_ne!(*id, start.id, "a cycle through a Dragonfly peer");
            if seen.insert(id) {
                queue.extend(task.peers.get(id).into_iter().flat_map(|peer| &peer.children));
            }
        }
    }
}

#[test]
fn eight_cold_hosts_share_the_origin() {
    let mut swarm = Swarm::new(256, nodes(&[(true, true); 8]));
    for index in 0..8 {
        swarm.act(&Act::Join(index));
    }
    swarm.run_out();
    assert!(swarm.fetched.iter().all(|times| *times == 1));
    assert!(swarm.nodes.iter().all(|node| node.done));
    assert_eq!(swarm.lab.counters().peer_pieces, 7 * 256);
}

#[test]
fn a_swarm_larger_than_a_list_completes() {
    let mut swarm = Swarm::new(64, nodes(&[(true, true); 40]));
    for index in 0..40 {
        swarm.act(&Act::Join(index));
    }
    swarm.run_out();
    assert!(swarm.nodes.iter().all(|node| node.done));
    assert!(swarm.fetched.iter().all(|times| *times == 1), "{:?}", swarm.fetched);
}
