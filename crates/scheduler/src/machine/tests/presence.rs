//! Hosts that come, fall silent, go and return.

use std::collections::BTreeMap;
use std::time::Duration;

use damselfly_core::{Crc, PieceSet, TaskKey};

use super::kit::{Lab, MIB, key, learned, of_length, spans};
use crate::machine::event::*;

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn holding(pieces: u32, held: &[u32]) -> Holding {
    let mut set = PieceSet::new(pieces);
    for &piece in held {
        set.insert(piece);
    }
    Holding {
        task: key(),
        generation: 1,
        content_length: Some(u64::from(pieces) * 4 * MIB),
        piece_length: 4 * MIB,
        bitmap: if held.is_empty() { Vec::new() } else { set.to_bytes() },
        crcs_from: 0,
        crcs: Vec::new(),
        validator: learned(pieces, "v1").validator,
        private: false,
        url: String::new(),
        persistent: false,
        replica_target: 0,
        ttl_left: Duration::from_secs(3600),
        tag: None,
        application: None,
    }
}

/// The same with the CRCs that [`Lab::report`] would report.
fn with_crcs(pieces: u32, held: &[u32]) -> Holding {
    let holding = holding(pieces, held);
    let all: Vec<u32> = if held.is_empty() { (0..pieces).collect() } else { held.to_vec() };
    Holding { crcs: all.into_iter().map(Crc).collect(), ..holding }
}

/// The ledger as the peer was told of it since it was last asked about.
fn ledger_told(lab: &mut Lab, peer: &str) -> BTreeMap<u32, Crc> {
    let facts = lab.told(peer).into_iter().filter_map(|answer| match answer {
        Answer::Facts { first, crcs, .. } => Some((first..).zip(crcs)),
        _ => None,
    });
    facts.flatten().collect()
}

/// That the host deleted its copy.
pub(super) fn tombstone(task: TaskKey, generation: u64) -> Tombstone {
    Tombstone { task, generation, everywhere: false, ttl_left: Duration::from_secs(1800) }
}

pub(super) fn holdings(lab: &mut Lab, hold: u64, holdings: Vec<Holding>, last: bool) {
    lab.step(Event::Hold(HoldId(hold), HoldMessage::Holdings { holdings, last }));
}

#[test]
fn a_silent_hold_is_a_dead_host() {
    let mut lab = Lab::new(|_| {});
    lab.hello("a", 1, 1);
    lab.host("b", Some(1));
    lab.register_with("a/1", Register::default(), Some(learned(8, "v1")));
    lab.origin("a/1", 0..2);
    lab.register("b/1", Register::default());
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
    for _ in 0..5 {
        lab.pass(5 * SECOND);
        lab.step(Event::Hold(HoldId(1), HoldMessage::Beat));
        lab.origin("a/1", [2]);
    }
    assert_eq!(lab.counters().hosts_lost, 0);
    lab.pass(6 * SECOND);
    assert_eq!(lab.counters().hosts_lost, 1);
    let told = lab.told("b/1");
    assert!(told.contains(&Answer::Parents(vec![])), "{told:?}");
    assert!(told.iter().any(|answer| matches!(answer, Answer::BackToSource { lease: Some(lease), .. }
        if spans(lease, 0, 8))));
    // It was only the network: the next beat brings the host back.
    lab.step(Event::Hold(HoldId(1), HoldMessage::Beat));
    lab.pass(SECOND);
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
}

#[test]
fn a_broken_hold_is_a_dead_host_at_once_until_its_return() {
    let mut lab = Lab::new(|_| {});
    lab.hello("a", 1, 1);
    lab.host("b", Some(1));
    lab.complete("a/1", 8);
    lab.register("b/1", Register::default());
    lab.told("b/1");
    lab.step(Event::HoldClosed(HoldId(1)));
    let told = lab.told("b/1");
    assert!(told.contains(&Answer::Parents(vec![])), "{told:?}");
    lab.hello("a", 2, 1);
    lab.pass(SECOND);
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
    lab.hello("a", 3, 2);
    lab.pass(SECOND);
    assert_eq!(lab.parents("b/1").unwrap(), Vec::<String>::new(), "a new incarnation holds what it says");
    assert!(
        lab.others.contains(&Effect::CloseHold(HoldId(2), "another Hold of the same host took its place"))
    );
}

#[test]
fn holdings_bring_holders_back() {
    let mut lab = Lab::new(|config| config.fresh = false);
    lab.hello("a", 1, 1);
    lab.hello("c", 2, 1);
    holdings(&mut lab, 1, vec![holding(8, &[0, 1, 2, 3])], true);
    holdings(&mut lab, 2, vec![holding(8, &[])], true);
    lab.host("b", Some(1));
    lab.register("b/1", Register::default());
    let parents = lab.parents("b/1").unwrap();
    assert_eq!(parents, ["c-abcdef01-held", "a-abcdef01-held"]);
    lab.pass(3 * SECOND);
    assert!(lab.leased("b/1").is_empty(), "everything is held");
    lab.step(Event::Hold(HoldId(2), HoldMessage::Tombstones(vec![tombstone(key(), 1)])));
    assert_eq!(lab.leased("b/1"), [4, 5, 6, 7]);
}

#[test]
fn holdings_with_crcs_bring_the_ledger_back() {
    let mut lab = Lab::new(|config| config.fresh = false);
    lab.hello("a", 1, 1);
    lab.hello("c", 2, 1);
    holdings(&mut lab, 1, vec![with_crcs(8, &[1, 2, 6])], true);
    assert_eq!(lab.machine.task(&key()).unwrap().ledger, 3);
    lab.host("b", Some(1));
    lab.register("b/1", Register::default());
    let crcs = |pieces: &[u32]| pieces.iter().map(|&piece| (piece, Crc(piece))).collect::<BTreeMap<_, _>>();
    assert_eq!(ledger_told(&mut lab, "b/1"), crcs(&[1, 2, 6]));
    // In two parts, of which the second does not say anew what is held.
    let whole = with_crcs(8, &[]);
    let first = Holding { crcs: whole.crcs[..5].to_vec(), ..whole.clone() };
    let second = Holding { crcs_from: 5, crcs: whole.crcs[5..].to_vec(), ..whole };
    holdings(&mut lab, 2, vec![first, second], true);
    lab.pass(SECOND);
    assert_eq!(ledger_told(&mut lab, "b/1"), crcs(&[0, 3, 4, 5, 7]));
    assert_eq!(lab.counters().ledger_conflicts, 0);
    // From here on the ledger judges: what the origin gives now is another content.
    lab.step(Event::HoldClosed(HoldId(1)));
    lab.step(Event::HoldClosed(HoldId(2)));
    lab.say(
        "b/1",
        PeerMessage::PieceBackToSourceFinished(PieceReport { crc: Some(Crc(99)), ..Lab::report(4, None) }),
    );
    assert_eq!(lab.counters().ledger_conflicts, 1);
    assert!(lab.machine.peer(&key(), &Lab::id("b/1")).unwrap().pieces.is_empty());
}

#[test]
fn a_host_that_holds_other_bytes_than_the_first_is_not_offered() {
    let mut lab = Lab::new(|_| {});
    lab.hello("a", 1, 1);
    lab.hello("c", 2, 1);
    holdings(&mut lab, 1, vec![with_crcs(8, &[0, 1, 2, 3])], true);
    let other = Holding { crcs: vec![Crc(0), Crc(77)], ..with_crcs(8, &[0, 1]) };
    holdings(&mut lab, 2, vec![other], true);
    assert_eq!(lab.counters().ledger_conflicts, 1);
    lab.host("b", Some(1));
    lab.register("b/1", Register::default());
    assert_eq!(lab.parents("b/1").unwrap(), ["a-abcdef01-held"]);
    holdings(&mut lab, 2, vec![holding(8, &[0, 1, 4])], false);
    lab.pass(SECOND);
    assert_eq!(lab.parents("b/1"), None, "a change without CRCs proves nothing");
    // Its next stream lists what has become of it.
    lab.hello("c", 3, 1);
    holdings(&mut lab, 3, vec![with_crcs(8, &[0, 4])], true);
    lab.pass(SECOND);
    let mut parents = lab.parents("b/1").unwrap();
    parents.sort();
    assert_eq!(parents, ["a-abcdef01-held", "c-abcdef01-held"]);
}

#[test]
fn a_running_peer_whose_host_holds_other_bytes_is_told_and_fetches_the_piece_anew() {
    let mut lab = Lab::new(|_| {});
    lab.hello("a", 1, 1);
    lab.hello("c", 2, 1);
    holdings(&mut lab, 1, vec![with_crcs(8, &[0, 1])], true);
    lab.register("c/1", Register::default());
    lab.from("c/1", "a-abcdef01-held", [0]);
    lab.told("c/1");
    let other = Holding { crcs: vec![Crc(0), Crc(77)], ..with_crcs(8, &[0, 1]) };
    holdings(&mut lab, 2, vec![other], true);
    let told = lab.told("c/1");
    let verdict =
        |answer: &Answer| matches!(answer, Answer::Facts { first: 1, crcs, .. } if *crcs == [Crc(1)]);
    assert!(told.iter().any(verdict), "{told:?}");
    assert_eq!(lab.machine.peer(&key(), &Lab::id("c/1")).unwrap().pieces, [0]);
    lab.host("b", Some(1));
    lab.register("b/1", Register::default());
    assert!(lab.parents("b/1").unwrap().contains(&"c/1".to_owned()), "what else it has counts");
}

#[test]
fn what_the_full_list_does_not_name_is_gone() {
    let mut lab = Lab::new(|_| {});
    lab.hello("a", 1, 1);
    lab.complete("a/1", 8);
    lab.pass(SECOND);
    lab.step(Event::HoldClosed(HoldId(1)));
    lab.hello("a", 2, 1);
    holdings(&mut lab, 2, vec![], true);
    assert!(lab.machine.peers(&key()).is_empty());
    // Later messages only add.
    holdings(&mut lab, 2, vec![holding(8, &[])], false);
    holdings(&mut lab, 2, vec![], false);
    assert_eq!(lab.machine.peers(&key()).len(), 1);
}

#[test]
fn another_version_is_not_held() {
    let mut lab = Lab::new(|_| {});
    lab.hello("a", 1, 1);
    lab.hello("b", 2, 1);
    holdings(&mut lab, 1, vec![holding(8, &[])], true);
    let other = Holding { validator: learned(8, "v2").validator, ..holding(8, &[]) };
    holdings(&mut lab, 2, vec![other], true);
    assert_eq!(lab.machine.peers(&key()).len(), 1);
}

#[test]
fn a_host_that_leaves_takes_its_peers_along() {
    let mut lab = Lab::new(|_| {});
    lab.hello("a", 1, 1);
    lab.register("a/1", Register::default());
    lab.step(Event::Hold(HoldId(1), HoldMessage::Leaving { restarting: false }));
    assert!(matches!(lab.ending("a/1"), Some(Ending::Superseded(_))));
    assert!(lab.others.contains(&Effect::Forget("a".into())));
    assert!(lab.machine.snapshot().hosts.is_empty());
    lab.hello("b", 2, 1);
    lab.complete("b/1", 4);
    lab.step(Event::Hold(HoldId(2), HoldMessage::Leaving { restarting: true }));
    assert!(!lab.machine.task(&key()).unwrap().has_available_peer);
    assert_eq!(lab.machine.peers(&key()).len(), 1, "it comes back with its content");
}

#[test]
fn a_hold_begins_with_hello() {
    let mut lab = Lab::new(|_| {});
    lab.step(Event::Hold(HoldId(1), HoldMessage::Beat));
    assert_eq!(lab.others, [Effect::CloseHold(HoldId(1), "hello comes first")]);
}

#[test]
fn two_missed_probes_make_a_dragonfly_host_dead_and_one_answer_brings_it_back() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["b"], &["a"]);
    lab.register("a/1", of_length(2));
    lab.say("a/1", PeerMessage::BackToSourceStarted);
    lab.origin("a/1", 0..2);
    lab.say("a/1", PeerMessage::BackToSourceFinished);
    lab.register("b/1", Register::default());
    lab.told("b/1");
    let probes = |lab: &Lab| {
        let of_a = |effect: &&Effect| matches!(effect, Effect::Probe { host, .. } if host.as_str() == "a");
        lab.others.iter().filter(of_a).count()
    };
    lab.pass(31 * SECOND);
    assert_eq!(probes(&lab), 1);
    let miss = || Event::Probed { host: "a".into(), alive: false };
    lab.step(miss());
    assert!(lab.machine.task(&key()).unwrap().has_available_peer);
    lab.pass(2 * SECOND);
    assert_eq!(probes(&lab), 2, "asked again soon");
    lab.step(miss());
    assert!(lab.told("b/1").contains(&Answer::Parents(vec![])));
    lab.step(Event::Probed { host: "a".into(), alive: true });
    lab.pass(SECOND);
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
}

#[test]
fn a_dropped_stream_of_dragonflys_is_a_reason_to_ask() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&[], &["a"]);
    lab.register("a/1", of_length(2));
    lab.close_stream("a/1");
    assert!(matches!(&lab.others[..], [Effect::Probe { .. }]));
    assert_eq!(lab.machine.task(&key()).unwrap().leases, 0);
}

#[test]
fn registrations_wait_for_their_host_in_order() {
    let mut lab = Lab::new(|_| {});
    lab.register_with("a/1", Register::default(), None);
    lab.learned("a/1", learned(8, "v1"));
    lab.origin("a/1", [0]);
    assert!(lab.told("a/1").is_empty());
    lab.host("a", Some(1));
    assert_eq!(lab.leased("a/1"), (1..8).collect::<Vec<_>>());
    assert_eq!(lab.machine.peer(&key(), &Lab::id("a/1")).unwrap().pieces, [0]);
    lab.register_with("x/1", Register::default(), None);
    lab.pass(3 * SECOND);
    assert!(matches!(lab.ending("x/1"), Some(Ending::NotFound(_))));
    lab.register_with("y/1", Register::default(), None);
    for _ in 0..300 {
        if lab.ending("y/1").is_none() {
            lab.origin("y/1", [0]);
        }
    }
    assert!(matches!(lab.ending("y/1"), Some(Ending::Exhausted(_))));
}

#[test]
fn deleting_a_task_on_a_host_forgets_its_peers() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &[]);
    lab.complete("a/1", 4);
    lab.register("a/2", Register::default());
    lab.step(Event::TaskDeleted { host: "a".into(), task: key() });
    assert!(lab.machine.peers(&key()).is_empty());
    assert!(matches!(lab.ending("a/2"), Some(Ending::Refused(_))));
    lab.register("a/3", Register::default());
    lab.step(Event::PeerDeleted { task: key(), peer: Lab::id("a/3") });
    lab.step(Event::PeerDeleted { task: key(), peer: Lab::id("a/3") });
    assert!(lab.machine.peers(&key()).is_empty());
}
