//! The content changes: who is believed, and what of the old version counts no more.

use damselfly_core::Crc;
use damselfly_core::download::{
    ClientId, Effect, Event, Facts, FailureKind, Fetch, FromScheduler, Learned, Lease, ToScheduler, Validator,
};

use super::{connected, deliver_all, fresh};
use crate::script::{crc_of, learned, lease, ms, told};

fn version(tag: &str) -> Learned {
    Learned { validator: Validator { etag: Some(tag.into()), last_modified: None }, ..learned(4) }
}

fn facts(generation: u64, tag: &str, crcs: Vec<Crc>) -> FromScheduler {
    FromScheduler::Facts(Facts { generation, learned: Some(version(tag)), first: 0, crcs })
}

/// The CRC with which piece 0 is asked for.
fn asked_with(effects: &[Effect]) -> Option<Crc> {
    let of_first = |effect: &Effect| match effect {
        Effect::Fetch(_, Fetch::Piece { piece: 0, crc, .. }) => Some(*crc),
        _ => None,
    };
    effects.iter().find_map(of_first).expect("piece 0 is asked for")
}

#[test]
fn facts_about_an_older_version_count_for_nothing() {
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(facts(2, "new", vec![]));
    t.scheduler(facts(1, "old", vec![Crc(7)]));
    t.scheduler(FromScheduler::Facts(Facts { generation: 1, crcs: vec![Crc(7)], ..Facts::default() }));
    assert_eq!((t.generation, asked_with(&t.parents(&[("a", true)]))), (0, None));
}

#[test]
fn crcs_of_what_is_not_believed_are_not_believed_either() {
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(lease(1, 1..4));
    let (first, _) = t.at_origin()[0];
    t.learn(first, version("seen"));
    t.scheduler(facts(0, "other", vec![Crc(7)]));
    assert_eq!((t.generation, asked_with(&t.parents(&[("a", true)]))), (0, None));
    // Its later word is.
    t.tell_ledger(0, vec![]);
    t.scheduler(facts(1, "other", vec![]));
    t.tell_ledger(0, vec![Crc(7)]);
    t.reap();
    assert_eq!((t.generation, asked_with(&t.parents(&[("a", true)]))), (1, Some(Crc(7))));
}

#[test]
fn a_new_version_counts_for_whoever_joins_before_the_end() {
    let mut t = connected(4);
    t.scheduler(facts(0, "old", vec![]));
    t.parents(&[("a", true)]);
    t.step(Event::Leave(ClientId(1)));
    t.scheduler(facts(1, "new", vec![]));
    t.join(2);
    let effects = t.reap();
    assert!(effects.contains(&Effect::NewGeneration(1)), "{effects:?}");
}

#[test]
fn pieces_of_an_old_version_are_not_reported() {
    let mut t = connected(4);
    t.scheduler(lease(1, 0..4));
    let (first, _) = t.at_origin()[0];
    t.learn(first, version("old"));
    t.scheduler(FromScheduler::Lost("reset".into()));
    t.deliver(first);
    let (next, _) = t.at_origin()[0];
    t.fail(next, FailureKind::Changed(version("new").validator));
    t.reap();
    assert_eq!(t.generation, 1);
    t.tick(ms(200), &[]);
    let effects = t.scheduler(FromScheduler::Connected { ours: true });
    assert!(told(&effects).is_empty(), "{effects:?}");
}

#[test]
fn another_scheduler_may_count_versions_anew() {
    let mut t = connected(8);
    let of = |id, range, generation| {
        let FromScheduler::BackToSource(Some(one)) = lease(id, range) else { unreachable!() };
        FromScheduler::BackToSource(Some(Lease { generation, ..one }))
    };
    t.scheduler(of(1, 0..4, 5));
    deliver_all(&mut t);
    t.scheduler(FromScheduler::Lost("reset".into()));
    t.tick(ms(200), &[]);
    t.scheduler(FromScheduler::Connected { ours: true });
    let effects = t.scheduler(of(2, 4..8, 0));
    assert!(!told(&effects).contains(&ToScheduler::Release(2)), "{effects:?}");
    let (id, piece) = t.at_origin()[0];
    t.stored(id, piece.unwrap(), crc_of(4));
    assert_eq!(t.held.len(), 5);
}
