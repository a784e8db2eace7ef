//! What a host says it holds, and that it holds no longer.

use std::time::Duration;

use super::kit::{Lab, key, learned};
use super::presence::{holding, holdings, tombstone};
use crate::machine::event::*;

const SECOND: Duration = Duration::from_secs(1);

/// As a daemon tells that a task has gone: a holding of nothing, and of no known length.
fn gone() -> Holding {
    Holding { content_length: None, piece_length: 0, bitmap: vec![0], ..holding(8, &[0]) }
}

#[test]
fn an_evicted_task_is_not_on_offer() {
    let mut lab = Lab::new(|_| {});
    lab.hello("a", 1, 1);
    lab.host("b", Some(1));
    lab.complete("a/1", 8);
    holdings(&mut lab, 1, vec![holding(8, &[])], true);
    lab.register("b/1", Register::default());
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
    holdings(&mut lab, 1, vec![gone()], false);
    let told = lab.told("b/1");
    assert!(told.contains(&Answer::Parents(vec![])), "{told:?}");
    assert!(lab.machine.peer(&key(), &Lab::id("a/1")).is_none());
    assert!(told.iter().any(|answer| matches!(answer, Answer::BackToSource { .. })), "it is fetched anew");
    // Somebody who is just downloading it there is not affected.
    lab.register("a/2", Register::default());
    holdings(&mut lab, 1, vec![gone()], false);
    assert!(lab.machine.peer(&key(), &Lab::id("a/2")).unwrap().connected);
}

#[test]
fn an_old_tombstone_does_not_remove_what_was_fetched_again() {
    let mut lab = Lab::new(|_| {});
    lab.hello("a", 1, 1);
    let second = Holding { generation: 2, ..holding(8, &[]) };
    holdings(&mut lab, 1, vec![second], true);
    let tombstone =
        |generation| Event::Hold(HoldId(1), HoldMessage::Tombstones(vec![tombstone(key(), generation)]));
    lab.step(tombstone(1));
    assert!(lab.machine.task(&key()).unwrap().has_available_peer);
    lab.step(tombstone(2));
    assert!(!lab.machine.task(&key()).unwrap().has_available_peer);
    // Of a finished download no version is known, and the tombstone is the newer word.
    lab.complete("a/1", 8);
    lab.step(tombstone(3));
    assert!(!lab.machine.task(&key()).unwrap().has_available_peer);
}

#[test]
fn an_older_list_does_not_take_back_what_a_download_has_reported() {
    let mut lab = Lab::new(|_| {});
    lab.hello("a", 1, 1);
    lab.host("b", Some(1));
    lab.register_with("a/1", Register::default(), Some(learned(8, "v1")));
    lab.register("b/1", Register::default());
    lab.origin("a/1", 0..6);
    holdings(&mut lab, 1, vec![holding(8, &[0, 7])], true);
    let pieces = |lab: &Lab| lab.machine.peer(&key(), &Lab::id("a/1")).unwrap().pieces;
    assert_eq!(pieces(&lab), [0, 1, 2, 3, 4, 5, 7]);
    lab.pass(SECOND);
    assert!(lab.leased("b/1").is_empty(), "what was fetched once is not leased again");
    // Once the download is over the list is the truth.
    lab.close_stream("a/1");
    holdings(&mut lab, 1, vec![holding(8, &[0, 7])], false);
    assert_eq!(pieces(&lab), [0, 7]);
}
