//! Deleted content, and the ways in which it might come back.

use std::time::Duration;

use proptest::prelude::*;

use super::keep::{HOUR, copy, lab, task, upload};
use super::kit::Lab;
use super::presence::{holdings, tombstone};
use crate::machine::event::*;

fn deleted(lab: &mut Lab, hold: u64, generation: u64) {
    let stone = Tombstone { everywhere: true, ..tombstone(task(), generation) };
    lab.step(Event::Hold(HoldId(hold), HoldMessage::Tombstones(vec![stone])));
}

fn of(generation: u64) -> Holding {
    Holding { generation, ..copy() }
}

fn drops(lab: &mut Lab) -> Vec<(u64, u64)> {
    let orders = lab.ordered().into_iter().filter_map(|(hold, _, what)| match what {
        Order::Drop(_, generation) => Some((hold, generation)),
        _ => None,
    });
    orders.collect()
}

fn lives(lab: &Lab) -> bool {
    lab.machine.kept(&task(), lab.now).is_some()
}

#[test]
fn a_new_scheduler_learns_from_the_hosts_what_was_deleted() {
    let mut lab = lab(&["a", "b", "c"]);
    deleted(&mut lab, 1, 7);
    holdings(&mut lab, 2, vec![of(7)], false);
    assert!(!lives(&lab));
    assert_eq!(drops(&mut lab), [(2, 7)]);
    // And when the host that was away is back first.
    holdings(&mut lab, 3, vec![of(8)], false);
    assert!(lives(&lab));
    deleted(&mut lab, 1, 8);
    assert!(!lives(&lab));
    assert_eq!(drops(&mut lab), [(3, 8)]);
}

#[test]
fn a_later_import_is_not_what_was_deleted_wherever_it_is() {
    let mut lab = lab(&["a", "b", "c"]);
    deleted(&mut lab, 1, 7);
    // By another host, whose clock is behind; and by the one that deleted its copy.
    holdings(&mut lab, 2, vec![of(6)], false);
    holdings(&mut lab, 1, vec![of(9)], false);
    assert_eq!((drops(&mut lab), lab.view().replicas_now()), (vec![], 2));
    deleted(&mut lab, 1, 7);
    deleted(&mut lab, 3, 7);
    assert_eq!((drops(&mut lab), lab.view().replicas_now()), (vec![], 2));
    // What is under way with it is not disturbed by an old copy that turns up.
    lab.hello("d", 4, 1);
    holdings(&mut lab, 4, vec![of(7)], true);
    assert_eq!((drops(&mut lab), lab.view().replicas_now()), (vec![(4, 7)], 2));
}

#[test]
fn a_copy_that_one_host_gave_up_is_no_deletion() {
    let mut lab = lab(&["a", "b"]);
    lab.step(Event::Hold(HoldId(1), HoldMessage::Tombstones(vec![tombstone(task(), 7)])));
    holdings(&mut lab, 2, vec![of(7)], false);
    assert!(lives(&lab) && drops(&mut lab).is_empty());
}

#[test]
fn what_is_deleted_here_is_told_by_its_import_too() {
    let mut lab = lab(&["a", "b"]);
    lab.start(upload("a", 1)).unwrap();
    lab.finish_as("a", 5).unwrap();
    assert_eq!(lab.view().generation, 5);
    lab.delete().unwrap();
    assert_eq!(drops(&mut lab), [(1, u64::MAX)], "nobody has said what it has");
    // a imports anew, and says of the former what it was. A copy of that turns up.
    lab.start(upload("b", 2)).unwrap();
    lab.finish_as("b", 6).unwrap();
    deleted(&mut lab, 1, 5);
    assert!(lives(&lab));
    holdings(&mut lab, 1, vec![Holding { persistent: false, ..of(6) }], false);
    assert!(drops(&mut lab).is_empty(), "fetched since");
    lab.hello("c", 3, 1);
    holdings(&mut lab, 3, vec![of(5)], true);
    assert_eq!(drops(&mut lab), [(3, 5)]);
}

#[test]
fn a_grave_is_forgotten_when_the_time_of_the_deleted_would_have_ended() {
    let mut lab = lab(&["a", "b"]);
    deleted(&mut lab, 1, 7);
    lab.beat(&[1, 2], HOUR);
    holdings(&mut lab, 2, vec![of(7)], false);
    assert!(lives(&lab) && lab.machine.graves.is_empty());
}

#[test]
fn tag_and_application_come_back_with_a_copy() {
    let mut lab = lab(&["a", "b", "c"]);
    let named =
        |tag: &str| Holding { tag: Some(tag.to_owned()), application: Some("app".to_owned()), ..of(7) };
    holdings(&mut lab, 1, vec![of(7)], false);
    assert_eq!(lab.view().tag, None);
    holdings(&mut lab, 2, vec![named("models")], false);
    holdings(&mut lab, 3, vec![named("others")], false);
    let view = lab.view();
    assert_eq!((view.tag.as_deref(), view.application.as_deref()), (Some("models"), Some("app")));
}

#[derive(Clone, Debug)]
enum Word {
    /// Host `n` lists a copy of that import.
    Lists(usize, u64),
    /// Host `n` tells that it deleted its copy of that import with the whole task.
    Buries(usize, u64),
}

proptest! {
    /// A scheduler that has just started comes to the same end in whatever order the hosts speak: copies of deleted imports
    /// are dropped, each exactly on its host, and all others live.
    #[test]
    fn the_order_in_which_hosts_speak_does_not_matter(
        words in prop::collection::vec(
            prop_oneof![
                (0..5usize, 1..4u64).prop_map(|(host, import)| Word::Lists(host, import)),
                (0..5usize, 1..4u64).prop_map(|(host, import)| Word::Buries(host, import)),
            ],
            0..12,
        ),
    ) {
        // A host lists one copy, later than any of which it keeps a tombstone; it deletes no others.
        let mut listed = std::collections::BTreeMap::new();
        let mut buried = std::collections::BTreeSet::new();
        for word in &words {
            if let Word::Lists(host, import) = word {
                listed.entry(*host).or_insert(*import);
            }
        }
        let mut lab = lab(&["h0", "h1", "h2", "h3", "h4"]);
        let mut dropped = std::collections::BTreeSet::new();
        for word in &words {
            match *word {
                Word::Lists(host, import) if listed[&host] == import => {
                    holdings(&mut lab, host as u64 + 1, vec![of(import)], false);
                }
                Word::Buries(host, import) if listed.get(&host).is_none_or(|held| *held > import) => {
                    buried.insert(import);
                    deleted(&mut lab, host as u64 + 1, import);
                }
                Word::Lists(..) | Word::Buries(..) => {}
            }
            dropped.extend(drops(&mut lab).into_iter().map(|(hold, _)| hold as usize - 1));
        }
        let gone: std::collections::BTreeSet<usize> =
            listed.iter().filter(|(_, import)| buried.contains(import)).map(|(host, _)| *host).collect();
        prop_assert_eq!(&dropped, &gone);
        let left = listed.len() - gone.len();
        let view = lab.machine.kept(&task(), lab.now);
        prop_assert_eq!(view.map_or(0, |view| view.replicas_now()), left);
    }
}

/// Beyond a list's end nobody is waited for.
#[test]
fn what_was_deleted_is_not_made_good() {
    let mut lab = lab(&["a", "b", "c"]);
    holdings(&mut lab, 1, vec![of(7)], false);
    deleted(&mut lab, 2, 7);
    lab.beat(&[1, 2, 3], Duration::from_secs(90));
    let orders = lab.ordered();
    assert!(orders.iter().all(|(.., what)| matches!(what, Order::Drop(..))), "{orders:?}");
}
