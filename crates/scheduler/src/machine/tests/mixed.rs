//! Dragonfly's peers, alone and among ours.

use std::time::Duration;

use super::kit::{Lab, key, learned, of_length};
use crate::machine::Config;
use crate::machine::event::*;
use crate::machine::hosts::tests::info;

const SECOND: Duration = Duration::from_secs(1);

fn is_origin(told: &[Answer]) -> bool {
    matches!(told, [Answer::BackToSource { lease: None, .. }])
}

#[test]
fn the_first_goes_to_the_origin_and_the_others_wait_for_its_first_piece() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&[], &["a", "b"]);
    lab.register("a/1", of_length(4));
    assert!(is_origin(&lab.told("a/1")));
    lab.register("b/1", of_length(4));
    assert!(lab.told("b/1").is_empty());
    lab.say("a/1", PeerMessage::BackToSourceStarted);
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"], "Dragonfly offers whoever is at the origin");
}

#[test]
fn one_of_ours_with_a_lease_keeps_a_dragonfly_peer_from_the_origin() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &["d"]);
    lab.register_with("a/1", Register::default(), Some(learned(4, "v1")));
    lab.register("d/1", of_length(4));
    assert!(lab.told("d/1").is_empty());
    lab.origin("a/1", [2]);
    assert_eq!(lab.parents("d/1").unwrap(), ["a/1"], "answered by the first piece");
}

#[test]
fn a_wait_for_parents_that_get_nowhere_ends_at_the_origin() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &["d"]);
    lab.register_with("a/1", Register::default(), Some(learned(4, "v1")));
    lab.register("d/1", of_length(4));
    lab.pass(11 * SECOND);
    let told = lab.told("d/1");
    assert!(is_origin(&told), "{told:?}");
}

#[test]
fn a_dragonfly_peer_at_the_origin_keeps_ours_from_it_while_it_moves() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &["d"]);
    lab.register("d/1", of_length(20));
    assert!(is_origin(&lab.told("d/1")));
    lab.say("d/1", PeerMessage::BackToSourceStarted);
    lab.register("a/1", Register::default());
    let told = lab.told("a/1");
    assert!(!told.iter().any(|answer| matches!(answer, Answer::BackToSource { .. })), "{told:?}");
    for number in 0..5 {
        lab.pass(9 * SECOND);
        lab.origin("d/1", [number]);
    }
    assert!(lab.leased("a/1").is_empty());
    lab.pass(31 * SECOND);
    assert!(!lab.leased("a/1").is_empty(), "it fell silent");
}

#[test]
fn no_cycle_is_closed_through_a_dragonfly_peer() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &["d"]);
    lab.register_with("a/1", Register::default(), Some(learned(20, "v1")));
    lab.origin("a/1", [0]);
    lab.register("d/1", of_length(20));
    lab.say("d/1", PeerMessage::Started);
    assert_eq!(lab.parents("d/1").unwrap(), ["a/1"]);
    lab.from("d/1", "a/1", [0]);
    lab.register("b/1", Register::default());
    lab.pass(SECOND);
    let parents = lab.parents("b/1").unwrap();
    assert!(parents.contains(&"a/1".to_owned()) && parents.contains(&"d/1".to_owned()));
    lab.origin("b/1", [8]);
    lab.pass(SECOND);
    // a → d → b: a must take from neither, b may take from a; between ours alone it would not matter.
    assert_eq!(lab.parents("a/1").unwrap_or_default(), Vec::<String>::new());
}

#[test]
fn lists_between_ours_may_be_mutual() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(20, "v1")));
    lab.register("b/1", Register::default());
    lab.pass(SECOND);
    assert_eq!(lab.parents("a/1").unwrap(), ["b/1"]);
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
}

#[test]
fn at_most_three_parents_and_never_the_same_host() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&[], &["a", "b", "c", "e", "z"]);
    for peer in ["a/1", "b/1", "c/1", "e/1", "z/1"] {
        lab.register(peer, Register { need_back_to_source: true, ..of_length(2) });
        lab.say(peer, PeerMessage::BackToSourceStarted);
        lab.origin(peer, 0..2);
        lab.say(peer, PeerMessage::BackToSourceFinished);
    }
    lab.register("z/2", of_length(2));
    let parents = lab.parents("z/2").unwrap();
    assert_eq!(parents.len(), 3);
    assert!(!parents.contains(&"z/1".to_owned()));
    lab.say("z/2", PeerMessage::Reschedule(parents.iter().map(|id| Lab::id(id)).collect()));
    let last = lab.parents("z/2").unwrap();
    assert_eq!(last.len(), 1);
    assert!(!parents.contains(&last[0]), "whoever was used up is not offered again");
}

#[test]
fn a_host_takes_no_more_children_than_its_limit() {
    let mut lab = Lab::new(|config: &mut Config| config.upload_limit = 2);
    lab.hosts(&["a", "b", "c", "d"], &[]);
    lab.complete("a/1", 8);
    for peer in ["b/1", "c/1", "d/1"] {
        let download = Register { disable_back_to_source: true, ..Register::default() };
        lab.register(peer, download);
    }
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
    assert_eq!(lab.parents("c/1").unwrap(), ["a/1"]);
    assert_eq!(lab.parents("d/1"), None);
    lab.from("b/1", "a/1", 0..8);
    lab.say("b/1", PeerMessage::Finished);
    lab.pass(SECOND);
    assert!(!lab.parents("d/1").unwrap().is_empty(), "room was made");
}

#[test]
fn hosts_that_share_nothing_are_not_offered() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["b"], &[]);
    let info = HostInfo { disable_shared: true, ..info("a", Some(1)) };
    lab.step(Event::HostAnnounced(Box::new(info), SECOND * 300));
    lab.complete("a/1", 8);
    lab.register("b/1", Register::default());
    assert_eq!(lab.leased("b/1").len(), 8);
}

#[test]
fn another_length_is_another_content() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&[], &["a", "b"]);
    lab.register("a/1", of_length(4));
    lab.say("a/1", PeerMessage::BackToSourceStarted);
    lab.origin("a/1", 0..4);
    lab.say("a/1", PeerMessage::BackToSourceFinished);
    lab.register("b/1", of_length(5));
    assert!(is_origin(&lab.told("b/1")), "it cannot swap pieces with the others");
}

#[test]
fn a_dragonfly_peer_that_contradicts_the_ledger_is_offered_to_nobody() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["b"], &["a", "d"]);
    lab.register("a/1", of_length(2));
    lab.say("a/1", PeerMessage::BackToSourceStarted);
    lab.origin("a/1", 0..2);
    lab.register("d/1", of_length(2));
    lab.say("d/1", PeerMessage::Started);
    lab.from("d/1", "a/1", [0]);
    let wrong = PieceReport { crc: Some(damselfly_core::Crc(9)), ..Lab::report(1, None) };
    lab.say("d/1", PeerMessage::PieceFinished(wrong));
    lab.register("b/1", Register::default());
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
}

#[test]
fn a_seed_goes_first_and_its_failure_opens_the_origin() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    let seed = HostInfo { seed: true, ..info("s", Some(1)) };
    lab.step(Event::HostAnnounced(Box::new(seed), SECOND * 300));
    lab.register("a/1", Register::default());
    assert!(matches!(&lab.others[..], [Effect::TriggerSeed { .. }]), "{:?}", lab.others);
    lab.register("b/1", Register::default());
    assert_eq!(lab.others.len(), 1, "one seed, once");
    assert_eq!(lab.told("a/1"), [Answer::Parents(vec![])]);
    lab.register("s/1", Register { need_back_to_source: true, ..Register::default() });
    assert_eq!(lab.leased("s/1"), [0, 1]);
    lab.learned("s/1", learned(30, "v1"));
    lab.pass(SECOND);
    assert!(lab.leased("a/1").is_empty(), "the seed fetches, the others take from it");
    lab.say("s/1", PeerMessage::Failed("out of disk".into()));
    assert!(!lab.leased("a/1").is_empty());
    // For a while no seed is asked again.
    lab.step(Event::HostLeft("a".into()));
    lab.step(Event::HostLeft("b".into()));
    lab.host("c", Some(1));
    lab.register("c/1", Register::default());
    assert_eq!(lab.counters().seeds_triggered, 1);
    assert!(!lab.leased("c/1").is_empty());
}

#[test]
fn a_seed_that_does_not_come_is_not_waited_for() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &[]);
    let seed = HostInfo { seed: true, ..info("s", Some(1)) };
    lab.step(Event::HostAnnounced(Box::new(seed), SECOND * 300));
    lab.register("a/1", Register::default());
    lab.pass(9 * SECOND);
    assert!(lab.leased("a/1").is_empty());
    lab.pass(2 * SECOND);
    assert_eq!(lab.leased("a/1"), [0, 1]);
}

#[test]
fn applications_have_priorities() {
    let mut lab = Lab::new(|config: &mut Config| {
        config.applications.insert("batch".into(), Priority::Level2);
    });
    lab.hosts(&["a"], &[]);
    let about = About { application: Some("batch".into()), ..About::default() };
    lab.register("a/1", Register { about: about.clone(), ..Register::default() });
    assert!(matches!(lab.ending("a/1"), Some(Ending::NotFound(_))));
    lab.register("a/2", Register { about, priority: Priority::Level3, ..Register::default() });
    assert_eq!(lab.leased("a/2"), [0, 1]);
}

#[test]
fn old_peers_are_forgotten_by_dragonflys_rules() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["b"], &["a"]);
    lab.register("a/1", of_length(2));
    lab.say("a/1", PeerMessage::BackToSourceStarted);
    lab.say("a/1", PeerMessage::BackToSourceFailed("no".into()));
    lab.register("a/2", of_length(2));
    lab.say("a/2", PeerMessage::BackToSourceStarted);
    lab.origin("a/2", [0]);
    assert!(lab.machine.peer(&key(), &Lab::id("a/1")).is_some());
    lab.pass(11 * SECOND);
    assert!(lab.machine.peer(&key(), &Lab::id("a/1")).is_none(), "failed");
    for _ in 0..31 {
        lab.pass(60 * SECOND);
        lab.host("a", None);
    }
    assert!(lab.machine.peer(&key(), &Lab::id("a/2")).is_none(), "no piece for half an hour");
    lab.pass(31 * 60 * SECOND);
    assert!(lab.machine.task(&key()).is_none(), "nobody is left");
    assert!(lab.machine.snapshot().hosts.is_empty(), "not announced again");
    assert_eq!(lab.machine.deadline(), None, "and nothing is left to wait for");
}
