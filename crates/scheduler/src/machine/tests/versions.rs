//! Content that changes while it is fetched, and downloads that end up wanting less.

use std::time::Duration;

use damselfly_core::download::Learned;
use damselfly_core::{ByteRange, Crc};

use super::kit::{Lab, MIB, key, learned};
use crate::machine::TaskState;
use crate::machine::event::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn two_hosts_get_each_other_again_after_a_new_version() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(32, "v1")));
    lab.register("b/1", Register::default());
    lab.origin("a/1", 0..3);
    lab.origin("b/1", 8..11);
    lab.pass(SECOND);
    assert_eq!(lab.parents("a/1").unwrap(), ["b/1"]);
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
    // Whoever begins anew forgets its parents. A still has a lease of before and goes on under it; B gets another.
    lab.learned("a/1", learned(32, "v2"));
    lab.pass(SECOND);
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
    assert_eq!(lab.parents("a/1").unwrap(), ["b/1"]);
}

#[test]
fn whoever_asks_for_its_list_gets_it_even_if_it_is_the_same() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(8, "v1")));
    lab.register("b/1", Register::default());
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
    lab.say("b/1", PeerMessage::Reschedule(vec![]));
    assert_eq!(lab.parents("b/1").unwrap(), ["a/1"]);
    lab.pass(SECOND);
    assert_eq!(lab.parents("b/1"), None, "once");
}

#[test]
fn who_finishes_a_part_after_it_wanted_everything_holds_the_part() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(16, "v1")));
    lab.origin("a/1", 0..3);
    // The client that wanted everything has left; the one that is served wanted the first pieces.
    lab.say("a/1", PeerMessage::Finished);
    assert_eq!(lab.ending("a/1"), Some(&Ending::Done));
    assert_eq!(lab.machine.peer(&key(), &Lab::id("a/1")).unwrap().pieces, [0, 1, 2]);
    assert_eq!(lab.machine.task(&key()).unwrap().state, TaskState::Running);
    lab.register("b/1", Register::default());
    let told = lab.told("b/1");
    assert!(told.iter().any(|answer| matches!(answer, Answer::Parents(parents) if !parents[0].complete)));
    assert!(told.iter().any(|answer| matches!(answer, Answer::BackToSource { .. })), "{told:?}");
    // The other way round: who wanted a part and holds everything is complete.
    let range = Some(ByteRange { start: 0, length: MIB });
    lab.register("a/2", Register { range, ..Register::default() });
    lab.origin("a/2", 3..16);
    lab.say("a/2", PeerMessage::Finished);
    assert_eq!(lab.machine.task(&key()).unwrap().state, TaskState::Succeeded);
}

/// What the facts it was told speak of: which version by which number, and of how many pieces; the rest is forgotten.
fn facts(lab: &mut Lab, peer: &str) -> Vec<(u64, String, usize)> {
    let facts = lab.told(peer).into_iter().filter_map(|answer| match answer {
        Answer::Facts { generation, learned, crcs, .. } => {
            Some((generation, learned.unwrap().validator.etag.unwrap(), crcs.len()))
        }
        _ => None,
    });
    facts.collect()
}

#[test]
fn all_facts_name_their_version_and_the_first_have_its_headers() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    let with_headers = Learned { headers: [("x".to_owned(), "y".to_owned())].into(), ..learned(32, "v1") };
    lab.register_with("a/1", Register::default(), Some(with_headers.clone()));
    lab.register("b/1", Register::default());
    let first = Answer::Facts { generation: 0, learned: Some(with_headers), first: 0, crcs: vec![] };
    assert!(lab.told("b/1").contains(&first));
    lab.origin("a/1", 0..3);
    lab.pass(SECOND);
    let later = Answer::Facts {
        generation: 0,
        learned: Some(learned(32, "v1")),
        first: 0,
        crcs: [0, 1, 2].map(Crc).to_vec(),
    };
    assert_eq!(lab.told("b/1").iter().filter(|answer| **answer == later).count(), 1);
    lab.learned("a/1", learned(32, "v2"));
    lab.origin("a/1", 3..5);
    lab.pass(SECOND);
    assert_eq!(facts(&mut lab, "b/1"), [(1, "v2".to_owned(), 0), (1, "v2".to_owned(), 2)]);
}

#[test]
fn the_verdict_against_an_older_answer_outweighs_it_at_once() {
    let mut lab = Lab::new(|_| {});
    lab.hosts(&["a", "b"], &[]);
    lab.register_with("a/1", Register::default(), Some(learned(8, "v2")));
    lab.register("b/1", Register::default());
    assert_eq!(facts(&mut lab, "b/1"), [(0, "v2".to_owned(), 0)]);
    // B's request was under way when the content changed, and A fetches the new one.
    lab.learned("b/1", learned(8, "v1"));
    assert_eq!(facts(&mut lab, "b/1"), [(1, "v2".to_owned(), 0)]);
    // What B may fetch from now on is counted like that, too.
    lab.close_stream("a/1");
    assert_eq!(lab.leases("b/1")[0].generation, 1);
    assert_eq!(lab.counters().generations, 0);
}
