//! The origin: refusals, retries, new versions, streams.

use damselfly_core::download::{
    Client, ClientId, Config, Effect, Event, Facts, FailureKind, Fetch, FromAttempt, FromScheduler,
    HeadersId, Held, Learned, LostClient, Outcome, ToScheduler, Validator,
};
use damselfly_core::{Geometry, RangeSpec};
use std::time::Duration;

use super::{connected, deliver_all, fresh, held, lost};
use crate::checker::Checker;
use crate::script::{PIECE, client, crc_of, facts, learned, lease, ms, sources, told};

#[test]
fn unauthorized_headers_fail_their_own_clients_only() {
    let mut t = fresh();
    t.join(1);
    t.step(Event::Join(Client { headers: HeadersId(2), ..client(2) }));
    t.step(Event::Join(Client { headers: HeadersId(2), range: RangeSpec::Last(1), ..client(3) }));
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(lease(1, 0..8));
    let (first, _) = t.at_origin()[0];
    t.fail(first, FailureKind::Unauthorized);
    assert!(matches!(lost(&t, 1), LostClient::Source(failure) if failure.kind == FailureKind::Unauthorized));
    assert_eq!(t.waiting.len(), 2);
    let (second, _) = t.at_origin()[0];
    assert!(matches!(t.running[&second].fetch, Fetch::OriginFirst { headers: HeadersId(2), .. }));
    t.learn(second, learned(2));
    deliver_all(&mut t);
    assert_eq!(t.ready.len(), 2);
}

#[test]
fn a_refusal_ends_what_nobody_else_knows_at_once() {
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(lease(1, 0..8));
    let (first, _) = t.at_origin()[0];
    let effects = t.fail(first, FailureKind::Refused);
    assert!(matches!(lost(&t, 1), LostClient::Source(failure) if failure.kind == FailureKind::Refused));
    assert!(matches!(
        told(&effects)[..],
        [ToScheduler::OriginFailed(_), ToScheduler::Release(1), ToScheduler::Failed { .. }]
    ));
    assert_eq!(t.finished, Some(Outcome::Parked));
}

#[test]
fn after_a_refusal_peers_may_still_help_for_a_while() {
    let mut t = connected(4);
    t.scheduler(lease(1, 0..4));
    let (first, _) = t.at_origin()[0];
    t.fail(first, FailureKind::Refused);
    t.reap();
    for (id, _) in t.at_origin() {
        t.fail(id, FailureKind::Refused);
    }
    assert_eq!(t.waiting.len(), 1);
    let effects = t.tick(Duration::from_secs(2), &[]);
    assert!(matches!(told(&effects)[..], [ToScheduler::Reschedule { .. }]), "{effects:?}");
    t.parents(&[("a", true)]);
    deliver_all(&mut t);
    assert_eq!(t.finished, Some(Outcome::Done));

    let mut t = connected(4);
    t.scheduler(lease(1, 0..1));
    let (first, _) = t.at_origin()[0];
    t.fail(first, FailureKind::Refused);
    t.tick(Duration::from_secs(9), &[]);
    assert_eq!(t.waiting.len(), 1);
    t.tick(Duration::from_secs(2), &[]);
    assert!(matches!(lost(&t, 1), LostClient::Source(_)));
}

#[test]
fn a_failing_origin_is_tried_six_times_with_growing_pauses() {
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Absent);
    let mut waits = Vec::new();
    for attempt in 0..6 {
        let (id, _) = t.at_origin()[0];
        let after = (attempt == 3).then_some(Duration::from_secs(9));
        t.fail(id, FailureKind::Retry { after });
        if let Some(at) = t.machine.deadline() {
            let wait = at.since(t.now);
            waits.push(wait.as_millis());
            t.tick(wait, &[]);
        }
    }
    assert_eq!(waits, [500, 1000, 2000, 9000, 8000]);
    assert!(matches!(lost(&t, 1), LostClient::Source(_)), "{:?}", t.failed);
}

#[test]
fn four_broken_requests_at_once_are_one_failure() {
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Absent);
    let (first, _) = t.at_origin()[0];
    t.learn(first, learned(20));
    for (id, _) in t.at_origin() {
        t.fail(id, FailureKind::Retry { after: None });
    }
    assert_eq!(t.machine.deadline().unwrap().since(t.now), ms(500));
}

#[test]
fn changed_content_begins_anew_at_most_twice() {
    let version = |n: u32| Validator { etag: Some(format!("\"{n}\"")), last_modified: None };
    let answer = |n| Learned { validator: version(n), ..learned(4) };
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Absent);
    for generation in 0..3u64 {
        let (first, _) = t.at_origin()[0];
        t.learn(first, answer(u32::try_from(generation).unwrap()));
        t.deliver(first);
        let (next, _) = t.at_origin()[0];
        let after = version(u32::try_from(generation).unwrap() + 1);
        t.fail(next, FailureKind::Changed(after));
        let effects = t.reap();
        if generation < 2 {
            assert!(effects.contains(&Effect::NewGeneration(generation + 1)));
        }
    }
    assert_eq!(*lost(&t, 1), LostClient::Changed { before: version(2), after: version(3) });
    assert_eq!(t.finished, Some(Outcome::Parked));
}

#[test]
fn newer_facts_of_the_scheduler_replace_what_was_held() {
    let version = |tag: &str| Validator { etag: Some(tag.into()), last_modified: None };
    let mut t = Checker::new(Config::default(), Held { validator: version("old"), ..held(4, &[0, 1]) });
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    let news = Learned { validator: version("new"), ..learned(5) };
    let effects = t.scheduler(FromScheduler::Facts(Facts { learned: Some(news), ..Facts::default() }));
    assert!(effects.contains(&Effect::NewGeneration(1)));
    assert_eq!(t.geometry.unwrap().piece_count(), 5);
    assert!(t.held.is_empty());
}

#[test]
fn the_schedulers_later_word_outweighs_what_was_seen_at_the_origin() {
    let answer = |tag: &str| Learned {
        validator: Validator { etag: Some(tag.into()), last_modified: None },
        ..learned(4)
    };
    let facts = |generation, tag| {
        FromScheduler::Facts(Facts { generation, learned: Some(answer(tag)), ..Facts::default() })
    };
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(facts(3, "new"));
    t.scheduler(lease(1, 0..4));
    // The request was under way when the content changed.
    let (id, _) = t.at_origin()[0];
    t.fail(id, FailureKind::Changed(answer("old").validator));
    t.reap();
    let (first, _) = t.at_origin()[0];
    t.learn(first, answer("old"));
    assert_eq!(t.generation, 1);
    t.scheduler(facts(3, "new"));
    assert_eq!((t.generation, t.at_origin().is_empty()), (1, false), "what it said before is no news");
    t.scheduler(facts(4, "new"));
    assert!(t.at_origin().is_empty());
    t.reap();
    assert_eq!((t.generation, t.geometry.map(|geometry| geometry.piece_count())), (2, Some(4)));

    // The first word on a new stream was said without having heard of ours.
    let mut t = connected(4);
    t.scheduler(lease(1, 0..4));
    let (id, _) = t.at_origin()[0];
    t.learn(id, answer("seen"));
    t.scheduler(FromScheduler::Lost("gone".into()));
    t.tick(ms(200), &[]);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(facts(9, "other"));
    t.reap();
    assert_eq!(t.generation, 0);
}

#[test]
fn unknown_length_is_read_to_the_end_by_one() {
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(lease(1, 0..8));
    let (first, _) = t.at_origin()[0];
    t.learn(first, Learned { ranges: Some(false), ..Learned::default() });
    for _ in 0..50 {
        t.tick(ms(100), &[]);
        assert_eq!(t.live().len(), 1);
    }
    let geometry = Geometry::derived(3 * PIECE).unwrap();
    let crcs = (0..3).map(crc_of).collect();
    let effects = t.step(Event::Attempt(first, FromAttempt::Ended { geometry, crcs }));
    assert_eq!(sources(&effects).len(), 3);
    assert!(told(&effects).iter().any(
        |message| matches!(message, ToScheduler::Learned(learned) if learned.content_length == Some(3 * PIECE))
    ));
    t.over(first);
    assert_eq!(t.finished, Some(Outcome::Done));
}

#[test]
fn siblings_of_unknown_length_wait_for_the_holder() {
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(FromScheduler::Facts(Facts { learned: Some(Learned::default()), ..Facts::default() }));
    for _ in 0..120 {
        t.tick(Duration::from_secs(1), &[]);
    }
    assert!(t.live().is_empty() && t.waiting.len() == 1);
    t.scheduler(facts(2));
    t.parents(&[("holder", true)]);
    deliver_all(&mut t);
    assert_eq!(t.finished, Some(Outcome::Done));
}

#[test]
fn an_origin_without_ranges_is_streamed() {
    let mut t = fresh();
    t.step(Event::Join(Client { range: RangeSpec::Last(1), ..client(1) }));
    t.scheduler(FromScheduler::Absent);
    let (first, piece) = t.at_origin()[0];
    assert_eq!(piece, None, "the first piece is not wanted");
    t.learn(first, Learned { ranges: Some(false), ..learned(3) });
    t.over(first);
    let (stream, _) = t.at_origin()[0];
    assert!(matches!(t.running[&stream].fetch, Fetch::OriginStream { .. }));
    for piece in 0..3 {
        t.stored(stream, piece, crc_of(piece));
    }
    assert!(t.ready.contains(&ClientId(1)), "by then the rest is there as well");
}

#[test]
fn ignored_ranges_turn_into_a_stream_at_once() {
    let mut t = Checker::new(Config::default(), held(3, &[0]));
    t.join(1);
    t.scheduler(FromScheduler::Absent);
    let pieces = t.at_origin();
    assert_eq!(pieces.len(), 2);
    for (id, _) in pieces {
        t.learn(id, Learned { ranges: Some(false), ..learned(3) });
        t.fail(id, FailureKind::Retry { after: None });
    }
    assert!(matches!(t.running[&t.at_origin()[0].0].fetch, Fetch::OriginStream { .. }));
}

#[test]
fn content_of_unknown_length_is_read_again_however_late_it_broke() {
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(lease(1, 0..8));
    let (first, _) = t.at_origin()[0];
    t.learn(first, Learned { ranges: Some(false), ..Learned::default() });
    // Longer than the lease's silence: there is no piece to report before the end.
    for second in 1..=15 {
        t.tick(Duration::from_secs(1), &[(first, second << 20)]);
    }
    t.fail(first, FailureKind::Retry { after: Some(Duration::from_secs(12)) });
    for _ in 0..12 {
        assert!(t.live().is_empty());
        t.tick(Duration::from_secs(1), &[]);
    }
    assert!(matches!(t.running[&t.at_origin()[0].0].fetch, Fetch::OriginStream { .. }));
}
