//! Peers of ours: leases, facts, lists.

use std::ops::Range;
use std::time::Duration;

use damselfly_core::download::{Learned, Lease};
use damselfly_core::{ByteRange, Crc, PieceSet};

use super::kit::{Lab, MIB, key, learned, of_length, spans};
use crate::machine::event::*;
use crate::machine::{PeerState, TaskState};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_first_peer_asks_and_the_others_learn_from_it() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register("a/1", Register::default());
    lab.register("b/1", Register::default());
    assert_eq!(lab.leased("a/1"), [0, 1]);
    assert_eq!(lab.told("b/1"), [Answer::Parents(vec![])], "nobody yet, but the scheduler lives");
    lab.learned("a/1", learned(64, "v1"));
    let told = lab.told("b/1");
    let facts = Answer::Facts { generation: 0, learned: Some(learned(64, "v1")), first: 0, crcs: vec![] };
    assert_eq!(told[0], facts, "facts come first");
    assert!(matches!(&told[1], Answer::BackToSource { lease: Some(lease), .. } if spans(lease, 2, 10)));
    assert!(matches!(&told[2], Answer::Parents(parents) if parents.len() == 1 && !parents[0].complete));
    assert!(lab.told("a/1").contains(&facts));
}

#[test]
fn a_lease_is_topped_up_before_it_ends() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(64, "v1")));
    assert_eq!(lab.leased("a/1").len(), 8);
    lab.origin("a/1", 0..3);
    assert!(lab.leased("a/1").is_empty(), "four at a time, and the next one");
    lab.origin("a/1", 3..4);
    assert_eq!(lab.leased("a/1"), (8..16).collect::<Vec<_>>());
}

#[test]
fn few_pieces_are_shared_out_a_few_at_a_time() {
    let mut lab = Lab::new(|_| {});
    let peers = ["a/1", "b/1", "c/1", "d/1"];
    lab.hosts(&["a", "b", "c", "d"], &[]);
    for peer in peers {
        lab.register(peer, Register::default());
    }
    assert_eq!(lab.leased("a/1"), [0, 1]);
    lab.learned("a/1", learned(26, "v1"));
    assert_eq!(peers.map(|peer| lab.leased(peer).len()), [0, 3, 3, 3], "half a share of what is left");
    lab.origin("a/1", 0..1);
    assert_eq!(lab.leased("a/1"), [11], "the next one before the one at hand is done");
    lab.origin("b/1", 2..5);
    lab.origin("c/1", 5..8);
    lab.origin("d/1", 8..11);
    let more = peers.map(|peer| lab.leased(peer));
    assert!(more.iter().all(|pieces| pieces.len() <= 4), "{more:?}");
    // In the end everybody has one, and the next when that is done.
    let mut mine: Vec<Vec<u32>> = more.to_vec();
    mine[0].extend([1, 11]);
    let mut rounds = 0;
    while mine.iter().any(|pieces| !pieces.is_empty()) {
        rounds += 1;
        for (peer, pieces) in peers.iter().zip(&mut mine) {
            if pieces.is_empty() {
                continue;
            }
            let piece = pieces.remove(0);
            lab.origin(peer, piece..piece + 1);
        }
        for (peer, pieces) in peers.iter().zip(&mut mine) {
            pieces.extend(lab.leased(peer));
        }
        let most = mine.iter().map(Vec::len).max().unwrap_or(0);
        assert!(rounds < 3 || most <= 1, "round {rounds}: {mine:?}");
    }
    assert_eq!(lab.machine.tasks[&key()].coverage.free().len(), 0);
}

#[test]
fn silence_ends_a_lease_and_another_gets_it() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(8, "v1")));
    lab.register("b/1", Register::default());
    assert_eq!(lab.leases("a/1")[0].silence, 10 * SECOND);
    assert!(lab.leased("b/1").is_empty());
    lab.pass(9 * SECOND);
    lab.origin("a/1", [0]);
    lab.pass(9 * SECOND);
    assert!(lab.leased("b/1").is_empty(), "a piece keeps the lease alive");
    lab.pass(2 * SECOND);
    assert_eq!(lab.leased("b/1"), (1..8).collect::<Vec<_>>());
    assert_eq!(lab.counters().leases_expired, 1);
}

#[test]
fn a_lone_silent_peer_gets_its_lease_again() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(8, "v1")));
    lab.leases("a/1");
    lab.pass(12 * SECOND);
    assert_eq!(lab.leased("a/1").len(), 8);
}

#[test]
fn slow_pieces_make_patient_leases() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &[]);
    let large = Learned { content_length: Some(6400 * MIB), piece_length: 64 * MIB, ..learned(1, "v1") };
    lab.register_with("a/1", Register::default(), Some(large));
    lab.origin("a/1", []);
    let report = PieceReport { cost: 20 * SECOND, ..Lab::report(0, None) };
    lab.leases("a/1");
    for number in 0..5 {
        lab.say("a/1", PeerMessage::PieceBackToSourceFinished(PieceReport { number, ..report.clone() }));
    }
    assert_eq!(lab.leases("a/1")[0].silence, 60 * SECOND);
}

#[test]
fn what_is_released_goes_to_others_first() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(8, "v1")));
    lab.register("b/1", Register::default());
    let lease = lab.leases("a/1").remove(0);
    lab.release("a/1", lease.id);
    assert!(lab.leased("a/1").is_empty());
    let lease = lab.leases("b/1").remove(0);
    assert!(spans(&lease, 0, 8));
    // When nobody wants it, it comes back after a pause.
    lab.release("b/1", lease.id);
    assert!(lab.leased("b/1").is_empty() && lab.leased("a/1").is_empty());
    lab.pass(2 * SECOND);
    assert_eq!(
        ["a/1", "b/1"].map(|peer| lab.leased(peer).len()),
        [2, 2],
        "both begin, and get the rest later"
    );
}

#[test]
fn a_range_is_all_that_is_leased() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &[]);
    let range = Some(ByteRange { start: 41 * MIB, length: 2 * MIB });
    lab.register_with("a/1", Register { range, ..Register::default() }, Some(learned(64, "v1")));
    assert_eq!(lab.leased("a/1"), [10]);
}

#[test]
fn an_origin_without_length_is_followed_by_one_peer_alone() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register("a/1", Register::default());
    lab.register("b/1", Register::default());
    lab.leases("a/1");
    lab.learned("a/1", Learned { content_length: None, piece_length: 0, ..learned(0, "v1") });
    lab.pass(60 * SECOND);
    assert!(lab.leased("b/1").is_empty(), "silence does not end this lease");
    lab.learned("a/1", learned(20, "v1"));
    assert!(lab.leased("b/1").is_empty(), "a has all of it and is about to say so");
    lab.pass(SECOND);
    lab.learned("a/1", learned(20, "v1"));
    lab.origin("a/1", 0..20);
    lab.say("a/1", PeerMessage::Finished);
    lab.pass(SECOND);
    assert_eq!(lab.machine.task(&key()).unwrap().free, 0);
    assert_eq!(lab.machine.peer(&key(), &Lab::id("b/1")).unwrap().parents, 1);
}

#[test]
fn when_the_lonely_follower_dies_the_next_begins() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register("a/1", Register::default());
    lab.register("b/1", Register::default());
    lab.learned("a/1", Learned { content_length: None, piece_length: 0, ..learned(0, "v1") });
    lab.close_stream("a/1");
    assert_eq!(lab.leased("b/1"), [0, 1]);
}

#[test]
fn an_origin_without_ranges_is_read_by_one_peer_and_shared() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register("a/1", Register::default());
    lab.register("b/1", Register::default());
    lab.learned("a/1", Learned { ranges: Some(false), ..learned(20, "v1") });
    assert_eq!(lab.leased("a/1").len(), 20, "all of it");
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
    lab.origin("a/1", 0..15);
    lab.pass(SECOND);
    assert!(lab.leased("b/1").is_empty());
    lab.close_stream("a/1");
    assert_eq!(lab.leased("b/1"), (15..20).collect::<Vec<_>>());
}

#[test]
fn the_ledger_stands_and_judges() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(8, "v1")));
    lab.register("b/1", Register::default());
    lab.origin("a/1", 0..4);
    lab.pass(SECOND);
    lab.told("b/1");
    let wrong = PieceReport { crc: Some(Crc(99)), ..Lab::report(3, Some("a/1")) };
    lab.say("b/1", PeerMessage::PieceFinished(wrong));
    let v1 = Some(learned(8, "v1"));
    let verdict = Answer::Facts { generation: 0, learned: v1, first: 3, crcs: vec![Crc(3)] };
    assert_eq!(lab.told("b/1")[0], verdict);
    assert!(lab.told("a/1").contains(&verdict), "the parent hears of it too");
    let pieces = |lab: &Lab, peer: &str| lab.machine.peer(&key(), &Lab::id(peer)).unwrap().pieces;
    assert_eq!(pieces(&lab, "a/1"), [0, 1, 2]);
    assert!(pieces(&lab, "b/1").is_empty());
    assert_eq!(lab.counters().ledger_conflicts, 1);
    // An equal one is fine, and one without a CRC says nothing.
    lab.from("b/1", "a/1", [2]);
    lab.say("b/1", PeerMessage::PieceFinished(PieceReport { crc: None, ..Lab::report(1, Some("a/1")) }));
    assert_eq!(pieces(&lab, "b/1"), [1, 2]);
}

#[test]
fn the_ledger_reaches_whoever_registers_later() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.complete("a/1", 8);
    lab.register("b/1", Register::default());
    let crcs: Vec<Crc> = (0..8).map(Crc).collect();
    let told = lab.told("b/1");
    let v1 = Some(learned(8, "v1"));
    assert_eq!(told[0], Answer::Facts { generation: 0, learned: v1, first: 0, crcs });
    assert!(matches!(&told[1], Answer::Parents(parents) if parents[0].complete));
    assert_eq!(told.len(), 2, "no lease: everything is held");
}

#[test]
fn a_new_version_voids_the_old() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b", "c"], &[]);
    lab.complete("c/1", 8);
    lab.register("a/1", Register { restate: None, ..Register::default() });
    lab.register("b/1", Register::default());
    lab.step(Event::HostLeft("c".into()));
    assert_eq!(lab.leased("a/1").len() + lab.leased("b/1").len(), 4);
    lab.pass(5 * SECOND);
    lab.learned("a/1", learned(10, "v2"));
    assert_eq!(lab.counters().generations, 1);
    let task = lab.machine.task(&key()).unwrap();
    assert_eq!((task.ledger, task.geometry.unwrap().piece_count()), (0, 10));
    lab.pass(SECOND);
    let told = lab.told("b/1");
    let v2 = Some(learned(10, "v2"));
    assert!(told.contains(&Answer::Facts { generation: 1, learned: v2, first: 0, crcs: vec![] }));
    // What b began before it knew does not count.
    lab.now += SECOND;
    let late = PieceReport { cost: 3 * SECOND, ..Lab::report(0, None) };
    lab.say("b/1", PeerMessage::PieceBackToSourceFinished(late));
    assert_eq!(lab.counters().ignored_reports, 1);
    // Nor does an old answer from somebody without a lease change it back.
    lab.host("d", Some(1));
    lab.register("d/1", Register { disable_back_to_source: true, ..Register::default() });
    lab.learned("d/1", learned(8, "v1"));
    assert_eq!(lab.counters().generations, 1);
}

#[test]
fn after_a_restart_leases_are_restated_before_any_is_granted() {
    let mut lab = Lab::new(|config| config.fresh = false);
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("b/1", Register::default(), Some(learned(20, "v1")));
    assert!(lab.leased("b/1").is_empty());
    let lease =
        Lease { id: 77, ranges: Vec::from([Range { start: 4, end: 8 }]), silence: SECOND, generation: 3 };
    let restate = Restate {
        leases: vec![lease],
        bitmap: PieceSet::full(4).to_bytes(),
        generation: 3,
        validator: learned(20, "v1").validator,
    };
    lab.register_with(
        "a/1",
        Register { restate: Some(restate), ..Register::default() },
        Some(learned(20, "v1")),
    );
    lab.pass(SECOND);
    assert!(lab.leased("b/1").is_empty(), "the grace is two seconds");
    assert_eq!(lab.parents("b/1"), None, "it was told above that there is nobody");
    lab.pass(2 * SECOND);
    let (b, a) = (lab.leased("b/1"), lab.leases("a/1"));
    assert!(b.iter().all(|piece| *piece >= 8), "{b:?}");
    // Counting as its daemon counts, so that the daemon does not take it for an old one.
    assert!(a.iter().all(|lease| lease.generation == 3 && lease.id > 77));
    assert_eq!(lab.machine.peer(&key(), &Lab::id("a/1")).unwrap().pieces, [0, 1, 2, 3]);
}

#[test]
fn a_restated_lease_does_not_take_what_others_have_by_now() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(8, "v1")));
    let lease = lab.leases("a/1").remove(0);
    lab.register("b/1", Register::default());
    lab.close_stream("a/1");
    assert_eq!(lab.leased("b/1").len(), 8, "alone by now");
    let restate =
        Restate { leases: vec![lease], validator: learned(8, "v1").validator, ..Restate::default() };
    lab.register("a/1", Register { restate: Some(restate), ..Register::default() });
    assert_eq!(lab.machine.peer(&key(), &Lab::id("a/1")).unwrap().leased, 0);
}

#[test]
fn pieces_restated_before_the_length_is_known_count_once_it_is() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &[]);
    let restate = Restate { bitmap: PieceSet::full(4).to_bytes(), ..Restate::default() };
    lab.register("a/1", Register { restate: Some(restate), ..Register::default() });
    lab.learned("a/1", learned(8, "v1"));
    assert_eq!(lab.machine.peer(&key(), &Lab::id("a/1")).unwrap().pieces, [0, 1, 2, 3]);
}

#[test]
fn a_peer_without_a_source_is_refused_in_the_end() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &[]);
    lab.register("a/1", Register { disable_back_to_source: true, ..of_length(4) });
    lab.pass(29 * SECOND);
    assert_eq!(lab.ending("a/1"), None);
    lab.pass(2 * SECOND);
    assert!(matches!(lab.ending("a/1"), Some(Ending::Refused(_))));
}

#[test]
fn used_up_parents_come_back_after_a_while() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.complete("a/1", 8);
    lab.register("b/1", Register::default());
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
    lab.say("b/1", PeerMessage::Reschedule(vec![Lab::id("a/1")]));
    let told = lab.told("b/1");
    assert!(told.contains(&Answer::Parents(vec![])));
    let lease = |answer: &Answer| matches!(answer, Answer::BackToSource { .. });
    assert!(told.iter().any(lease), "what only a blocked parent holds may be fetched: {told:?}");
    lab.pass(6 * SECOND);
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
    lab.say("b/1", PeerMessage::PieceFailed { parent: Lab::id("a/1") });
    lab.pass(60 * SECOND);
    assert_eq!(lab.parents("b/1").unwrap(), Vec::<String>::new(), "a banned one does not");
}

#[test]
fn parents_that_wait_like_their_child_are_not_to_blame() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(8, "v1")));
    lab.register("b/1", Register::default());
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
    lab.say("b/1", PeerMessage::Reschedule(vec![Lab::id("a/1")]));
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"], "it is still the one to wait for");
}

#[test]
fn states_follow_the_dialogue() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &[]);
    let state = |lab: &Lab| lab.machine.peer(&key(), &Lab::id("a/1")).unwrap().state;
    lab.register_with("a/1", Register::default(), Some(learned(2, "v1")));
    assert_eq!(state(&lab), PeerState::ReceivedNormal);
    lab.say("a/1", PeerMessage::Started);
    assert_eq!(state(&lab), PeerState::Running);
    lab.say("a/1", PeerMessage::BackToSourceStarted);
    assert_eq!(state(&lab), PeerState::BackToSource);
    lab.say("a/1", PeerMessage::Started);
    lab.origin("a/1", 0..2);
    lab.say("a/1", PeerMessage::BackToSourceFinished);
    assert_eq!(state(&lab), PeerState::Succeeded);
    assert_eq!(lab.machine.task(&key()).unwrap().state, TaskState::Succeeded);
    assert_eq!(lab.ending("a/1"), Some(&Ending::Done));
}

#[test]
fn a_second_registration_takes_over_what_the_host_holds() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(16, "v1")));
    lab.origin("a/1", 0..3);
    lab.close_stream("a/1");
    lab.register("a/2", Register::default());
    let peers = lab.machine.peers(&key());
    assert_eq!(peers.len(), 1);
    assert_eq!((peers[0].id.as_str(), peers[0].pieces.len()), ("a/2", 3));
    assert_eq!(lab.leased("a/2")[0], 3);
}
