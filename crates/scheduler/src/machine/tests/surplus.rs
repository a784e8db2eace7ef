//! More replicas than are wanted: hosts come back, and one of them too many keeps its copy no longer.

use std::time::Duration;

use proptest::prelude::*;

use super::keep::{HOUR, copy, lab, task, upload};
use super::kit::{Lab, MIB};
use super::presence::holdings;
use crate::machine::event::*;
use crate::machine::hosts::tests::info;

const SECOND: Duration = Duration::from_secs(1);

/// Of four hosts a and one other hold what was imported; the other dies and a third makes its replica good. Returns the Holds
/// of the two others.
fn repaired(lab: &mut Lab) -> (u64, u64) {
    lab.import("a", 2);
    let [(dead, order, true)] = lab.orders()[..] else { panic!() };
    lab.done(dead, order, None);
    lab.step(Event::HoldClosed(HoldId(dead)));
    let left: Vec<u64> = (1..=4).filter(|hold| *hold != dead).collect();
    lab.beat(&left, 70 * SECOND);
    let [(other, order, true)] = lab.orders()[..] else { panic!() };
    lab.done(other, order, None);
    assert_eq!(lab.view().replicas_now(), 2);
    (dead, other)
}

fn name(hold: u64) -> &'static str {
    ["a", "b", "c", "d"][hold as usize - 1]
}

#[test]
fn a_host_that_comes_back_makes_one_replica_too_many_once_it_has_said_what_it_holds() {
    let mut lab = lab(&["a", "b", "c", "d"]);
    let (dead, _) = repaired(&mut lab);
    lab.hello(name(dead), 9, 2);
    holdings(&mut lab, 9, vec![copy()], false);
    lab.beat(&[1, 2, 3, 4, 9], 60 * SECOND);
    assert!(lab.ordered().is_empty(), "its list has not ended");
    holdings(&mut lab, 9, Vec::new(), true);
    let orders = lab.ordered();
    let [(hold, order, Order::Demote(demoted))] = &orders[..] else { panic!("{orders:?}") };
    assert_eq!((demoted, lab.view().replicas_now()), (&task(), 3));
    lab.done(*hold, *order, None);
    assert_eq!((lab.view().replicas_now(), lab.view().replicas.len()), (2, 3), "the copy stays");
    lab.beat(&[1, 2, 3, 4, 9], 120 * SECOND);
    assert!(lab.ordered().is_empty());
}

#[test]
fn a_host_that_comes_back_with_the_same_process_counts_only_after_its_list() {
    let mut lab = lab(&["a", "b", "c", "d"]);
    let (dead, _) = repaired(&mut lab);
    // What it held is remembered, and may not be there any more.
    lab.hello(name(dead), 9, 1);
    assert!(lab.ordered().is_empty());
    holdings(&mut lab, 9, Vec::new(), true);
    assert!(lab.ordered().is_empty(), "it had lost its copy");
    assert_eq!(lab.view().replicas_now(), 2);
}

#[test]
fn nothing_is_taken_away_while_a_replica_is_being_made() {
    let mut lab = lab(&["a", "b", "c", "d"]);
    let (dead, other) = repaired(&mut lab);
    lab.step(Event::HoldClosed(HoldId(other)));
    let fourth = (2..=4).find(|hold| *hold != dead && *hold != other).unwrap();
    lab.beat(&[1, fourth], 70 * SECOND);
    let [(hold, order, true)] = lab.orders()[..] else { panic!() };
    assert_eq!(hold, fourth);
    // Both come back while the fourth still makes its own.
    for (hold, new) in [(dead, 8), (other, 9)] {
        lab.hello(name(hold), new, 2);
        holdings(&mut lab, new, vec![copy()], true);
    }
    lab.beat(&[1, fourth, 8, 9], 20 * SECOND);
    assert!(lab.ordered().is_empty());
    lab.done(fourth, order, None);
    let orders = lab.ordered();
    assert!(
        orders.len() == 2 && orders.iter().all(|(.., what)| matches!(what, Order::Demote(_))),
        "{orders:?}"
    );
}

#[test]
fn of_two_in_one_place_one_goes_and_dragonflys_is_deleted() {
    let mut lab = Lab::new(|_| {});
    for (hold, name, idc, free) in [(1, "a", "x", 100), (2, "b", "y", 100), (3, "c", "x", 900)] {
        let place = HostInfo { idc: idc.to_owned(), disk_free: Some(free << 30), ..info(name, Some(1)) };
        lab.step(Event::Hold(HoldId(hold), HoldMessage::Hello(Box::new(place))));
        holdings(&mut lab, hold, vec![copy()], true);
    }
    lab.beat(&[1, 2, 3], 70 * SECOND);
    let orders = lab.ordered();
    let [(1, order, Order::Demote(_))] = orders[..] else { panic!("{orders:?}") };
    lab.done(1, order, Some("disk failed"));
    // Another may go instead, but not once the first has.
    let orders = lab.ordered();
    let [(3, order, Order::Demote(_))] = orders[..] else { panic!("{orders:?}") };
    lab.done(3, order, None);
    lab.beat(&[1, 2, 3], 120 * SECOND);
    assert!(lab.ordered().is_empty());

    // One of Dragonfly's, in the same place as b.
    let place = HostInfo { idc: "y".to_owned(), ..info("d", None) };
    lab.step(Event::HostAnnounced(Box::new(place), Duration::ZERO));
    lab.start(upload("a", 3)).unwrap();
    lab.finish("a").unwrap();
    let [(3, order, true)] = lab.orders()[..] else { panic!("the copy that is there comes first") };
    lab.done(3, order, None);
    lab.start(upload("a", 4)).unwrap();
    let call = |lab: &mut Lab| {
        let calls = lab.others.drain(..).filter_map(|effect| match effect {
            Effect::Copy { order, copy, .. } => Some((order, copy)),
            _ => None,
        });
        calls.collect::<Vec<_>>()
    };
    let [(order, Copy::Fetch { .. })] = call(&mut lab)[..] else { panic!() };
    lab.step(Event::OrderEnded { order, error: None });
    assert_eq!(lab.view().replicas_now(), 4);
    lab.start(upload("a", 3)).unwrap();
    let [(order, Copy::Delete)] = call(&mut lab)[..] else { panic!() };
    lab.step(Event::OrderEnded { order, error: None });
    assert_eq!((lab.view().replicas_now(), lab.view().replicas.len()), (3, 3));
}

/// A host in the cluster of the property below.
#[derive(Clone, Debug)]
struct Node {
    name: String,
    /// No room for the content.
    full: bool,
    incarnation: u64,
    /// Its Hold, while it lives.
    hold: Option<u64>,
    /// It has said all that it holds.
    listed: bool,
    /// Its copy, and whether it keeps that.
    copy: Option<bool>,
    /// Orders it has not carried out.
    orders: Vec<(u64, Order)>,
}

#[derive(Clone, Debug)]
enum Act {
    /// The host's Hold breaks; says whether it still carries its orders out, which nobody hears of.
    Die(usize, bool),
    /// It is back: with another process, or with the same.
    Return(usize, bool),
    /// It says what it holds.
    List(usize),
    /// It carries out its oldest order, or fails to.
    Work(usize, bool),
    /// It evicts its copy, if that is an ordinary one.
    Evict(usize),
    /// So many seconds pass.
    Pass(u16),
}

fn act() -> impl Strategy<Value = Act> {
    let host = 0..7usize;
    prop_oneof![
        3 => (host.clone(), any::<bool>()).prop_map(|(host, works)| Act::Die(host, works)),
        4 => (host.clone(), any::<bool>()).prop_map(|(host, new)| Act::Return(host, new)),
        4 => host.clone().prop_map(Act::List),
        6 => (host.clone(), prop::bool::weighted(0.8)).prop_map(|(host, well)| Act::Work(host, well)),
        1 => host.prop_map(Act::Evict),
        4 => (1u16..150).prop_map(Act::Pass),
    ]
}

struct Cluster {
    lab: Lab,
    target: usize,
    nodes: Vec<Node>,
    holds: u64,
}

impl Cluster {
    fn new(target: usize, full: &[bool]) -> Self {
        let lab = Lab::new(|config| config.hold_silence = 100 * HOUR);
        let node = |(number, full): (usize, &bool)| Node {
            name: format!("h{number}"),
            full: *full,
            incarnation: 1,
            hold: None,
            listed: false,
            copy: None,
            orders: Vec::new(),
        };
        let nodes: Vec<Node> = full.iter().enumerate().map(node).collect();
        let mut cluster = Self { lab, target, nodes, holds: 0 };
        for index in 0..cluster.nodes.len() {
            cluster.act(&Act::Return(index, false));
            cluster.act(&Act::List(index));
        }
        let import = crate::machine::Upload { ttl: 1000 * HOUR, ..upload("h0", target as u64) };
        cluster.lab.start(import).unwrap();
        cluster.nodes[0].copy = Some(true);
        cluster.lab.finish("h0").unwrap();
        cluster.hear();
        cluster
    }

    /// Whole replicas on hosts that live and have listed them, but for those that are about to be none.
    fn safe(&self) -> usize {
        let demoted = |node: &Node| node.orders.iter().any(|(_, order)| matches!(order, Order::Demote(_)));
        let counts =
            |node: &&Node| node.hold.is_some() && node.listed && node.copy == Some(true) && !demoted(node);
        self.nodes.iter().filter(counts).count()
    }

    /// Hosts take their orders in. Whatever is ordered, enough replicas stay when all of it is done.
    fn hear(&mut self) {
        for (hold, order, what) in self.lab.ordered() {
            let demotes = matches!(what, Order::Demote(_));
            let node = self.nodes.iter_mut().find(|node| node.hold == Some(hold)).unwrap();
            assert!(node.orders.is_empty(), "nothing is ordered twice: {node:?}");
            node.orders.push((order, what));
            assert!(!demotes || self.safe() >= self.target, "{:?}", self.nodes);
        }
    }

    fn holding(node: &Node, target: usize) -> Option<Holding> {
        let ttl_left = 900 * HOUR;
        node.copy.map(|persistent| Holding { persistent, replica_target: target as u64, ttl_left, ..copy() })
    }

    /// Carries an order out.
    fn obey(node: &mut Node, order: &Order) {
        match order {
            Order::Replicate(_) => node.copy = Some(true),
            Order::Demote(_) => node.copy = node.copy.map(|_| false),
            Order::Drop(..) => node.copy = None,
        }
    }

    fn act(&mut self, act: &Act) {
        let target = self.target;
        match *act {
            Act::Pass(seconds) => {
                let end = self.lab.now + Duration::from_secs(seconds.into());
                while self.lab.now < end {
                    for hold in self.nodes.iter().filter_map(|node| node.hold).collect::<Vec<_>>() {
                        self.lab.step(Event::Hold(HoldId(hold), HoldMessage::Beat));
                    }
                    self.lab.pass(end.since(self.lab.now).min(100 * SECOND));
                }
            }
            Act::Die(index, works) => {
                let node = &mut self.nodes[index];
                let Some(hold) = node.hold.take() else { return };
                for (_, order) in std::mem::take(&mut node.orders) {
                    if works {
                        Self::obey(node, &order);
                    }
                }
                node.listed = false;
                self.lab.step(Event::HoldClosed(HoldId(hold)));
            }
            Act::Return(index, new) => {
                let node = &mut self.nodes[index];
                if node.hold.is_some() {
                    return;
                }
                self.holds += 1;
                (node.hold, node.incarnation) = (Some(self.holds), node.incarnation + u64::from(new));
                let free = if node.full { MIB } else { 100 << 30 };
                let info = HostInfo { disk_free: Some(free), ..info(&node.name, Some(node.incarnation)) };
                self.lab.step(Event::Hold(HoldId(self.holds), HoldMessage::Hello(Box::new(info))));
            }
            Act::List(index) => {
                let node = &mut self.nodes[index];
                let Some(hold) = node.hold.filter(|_| !node.listed) else { return };
                node.listed = true;
                let holding = Self::holding(node, target);
                holdings(&mut self.lab, hold, holding.into_iter().collect(), true);
            }
            Act::Work(index, well) => {
                let node = &mut self.nodes[index];
                let Some(hold) = node.hold.filter(|_| !node.orders.is_empty()) else { return };
                let (order, what) = node.orders.remove(0);
                // What is to be fetched has to be somewhere.
                let well = well || matches!(what, Order::Demote(_));
                if well {
                    Self::obey(node, &what);
                }
                let holding = Self::holding(node, target);
                self.lab.done(hold, order, (!well).then_some("no room"));
                if self.nodes[index].listed {
                    holdings(&mut self.lab, hold, holding.into_iter().collect(), false);
                }
            }
            Act::Evict(index) => {
                let node = &mut self.nodes[index];
                let Some(hold) = node.hold.filter(|_| node.copy == Some(false) && node.listed) else {
                    return;
                };
                node.copy = None;
                let gone = Holding { content_length: None, piece_length: 0, bitmap: vec![0], ..copy() };
                holdings(&mut self.lab, hold, vec![gone], false);
            }
        }
        self.hear();
    }

    /// Everybody says and does what is to be said and done, until nothing is.
    fn settle(&mut self) {
        // Long enough for whom has failed to be asked again.
        for seconds in [70, 70, 2000, 70, 2000, 70, 2000, 70, 70] {
            for index in 0..self.nodes.len() {
                self.act(&Act::List(index));
                while !self.nodes[index].orders.is_empty() {
                    self.act(&Act::Work(index, true));
                }
            }
            self.act(&Act::Pass(seconds));
        }
    }
}

proptest! {
    /// However hosts die and return: no order takes away what is needed, and in the end there are as many replicas as are
    /// wanted, or as hosts can have, wherever one copy is left.
    #[test]
    fn replicas_come_to_their_number(
        target in 1usize..5,
        full in prop::collection::vec(prop::bool::weighted(0.2), 1..7),
        acts in prop::collection::vec(act(), 0..80),
    ) {
        let mut cluster = Cluster::new(target, &full);
        for act in &acts {
            match act {
                Act::Die(host, _) | Act::Return(host, _) | Act::List(host) | Act::Work(host, _) | Act::Evict(host)
                    if *host >= full.len() => {}
                act => cluster.act(act),
            }
        }
        cluster.settle();
        let alive = || cluster.nodes.iter().filter(|node| node.hold.is_some());
        let replicas = alive().filter(|node| node.copy == Some(true)).count();
        let capable = alive().filter(|node| !node.full || node.copy.is_some()).count();
        if alive().any(|node| node.copy.is_some()) {
            prop_assert_eq!(replicas, target.min(capable), "{:?}", cluster.nodes);
            prop_assert!(cluster.nodes.iter().all(|node| node.orders.is_empty()));
        }
    }
}
