//! Words that nobody should have to believe.

use std::time::Duration;

use super::kit::{Lab, key, learned, of_length};
use super::presence::{holding, holdings};
use crate::machine::event::*;
use crate::machine::hosts::tests::info;

const AGES: Duration = Duration::from_secs(u64::MAX / 2);

#[test]
fn a_piece_that_took_for_ages_does_not_stop_the_machine() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(20, "v1")));
    lab.leases("a/1");
    let report = PieceReport { cost: AGES, ..Lab::report(0, None) };
    lab.say("a/1", PeerMessage::PieceBackToSourceFinished(report));
    lab.origin("a/1", 1..8);
    assert_eq!(lab.leased("a/1").len(), 8);
}

#[test]
fn a_host_that_announces_itself_hardly_ever_does_not_stop_the_collection() {
    let mut lab = Lab::new(|_| {});
    lab.step(Event::HostAnnounced(Box::new(info("a", Some(1))), Duration::MAX));
    lab.pass(Duration::from_secs(60));
    assert_eq!(lab.machine.snapshot().hosts.len(), 1);
}

#[test]
fn content_of_more_pieces_than_anybody_keeps_has_none_here() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["b"], &["d"]);
    lab.hello("a", 1, 1);
    let tiny = Holding { content_length: Some(1 << 31), piece_length: 1, ..holding(8, &[]) };
    holdings(&mut lab, 1, vec![tiny], true);
    assert!(lab.machine.peers(&key()).is_empty());
    lab.register("d/1", Register { content_length: Some(1 << 60), piece_length: None, ..of_length(1) });
    assert_eq!(lab.machine.task(&key()).unwrap().geometry, None);
    lab.register_with("b/1", Register::default(), Some(learned(u32::MAX, "v1")));
    assert_eq!(lab.machine.task(&key()).unwrap().geometry, None);
}
