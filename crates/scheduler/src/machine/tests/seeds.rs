//! Seeds that were triggered, and how the wait for them ends.

use std::time::Duration;

use super::kit::{Lab, key, learned};
use crate::machine::event::*;
use crate::machine::hosts::tests::info;

const SECOND: Duration = Duration::from_secs(1);

/// Two hosts that wait for a seed, which has registered and fetches.
fn seeded() -> Lab {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    let seed = HostInfo { seed: true, ..info("s", Some(1)) };
    lab.step(Event::HostAnnounced(Box::new(seed), SECOND * 300));
    lab.register("a/1", Register::default());
    lab.register("s/1", Register { need_back_to_source: true, ..Register::default() });
    lab.learned("s/1", learned(30, "v1"));
    lab.pass(SECOND);
    assert!(lab.leased("a/1").is_empty(), "the seed fetches");
    lab
}

#[test]
fn nobody_waits_for_a_seed_whose_peer_was_deleted() {
    let mut lab = seeded();
    lab.step(Event::PeerDeleted { task: key(), peer: Lab::id("s/1") });
    assert!(!lab.leased("a/1").is_empty());
    let mut lab = seeded();
    lab.step(Event::TaskDeleted { host: "s".into(), task: key() });
    assert!(!lab.leased("a/1").is_empty());
}

#[test]
fn nobody_waits_for_a_seed_that_broke_the_dialogue() {
    let mut lab = seeded();
    lab.step(Event::Peer(Box::new(PeerEvent {
        stream: lab.stream("s/1"),
        host: "s".into(),
        task: key(),
        peer: Lab::id("a/1"),
        learned: None,
        released: None,
        message: Some(PeerMessage::Started),
    })));
    assert!(matches!(lab.ending("s/1"), Some(Ending::Invalid(_))));
    assert!(!lab.leased("a/1").is_empty());
}

#[test]
fn a_seed_that_registers_again_is_still_waited_for() {
    let mut lab = seeded();
    lab.register("s/1", Register { need_back_to_source: true, ..Register::default() });
    lab.pass(SECOND);
    assert!(lab.leased("a/1").is_empty());
    assert!(!lab.leased("s/1").is_empty());
}

#[test]
fn the_end_of_the_seeds_call_ends_the_wait() {
    for failed in [false, true] {
        let mut lab = seeded();
        lab.step(Event::SeedEnded { task: key(), host: "s".into(), failed });
        assert!(!lab.leased("a/1").is_empty(), "there is more than the seed has leased");
        // Only a failure keeps the seed from being asked again.
        lab.step(Event::TaskDeleted { host: "s".into(), task: key() });
        lab.step(Event::TaskDeleted { host: "a".into(), task: key() });
        lab.register("b/1", Register::default());
        assert_eq!(lab.counters().seeds_triggered, if failed { 1 } else { 2 });
    }
}
