//! One rule after the other, by example.

use std::time::Duration;

use damselfly_core::download::{
    Client, ClientId, Config, Effect, Event, Facts, FailureKind, Fetch, FromAttempt, FromParent,
    FromScheduler, HeadersId, Held, Learned, LostClient, Outcome, Source, ToScheduler, Validator,
};
use damselfly_core::{ByteRange, Crc, Geometry, PeerId, PieceSet, RangeSpec};

use crate::checker::*;

fn fresh() -> Checker {
    Checker::new(Config::default(), Held::default())
}

/// Registered with our scheduler, which knows the geometry.
fn connected(pieces: u32) -> Checker {
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(facts(pieces));
    t
}

fn held(pieces: u32, numbers: &[u32]) -> Held {
    let mut set = PieceSet::new(pieces);
    for &number in numbers {
        set.insert(number);
    }
    Held {
        geometry: Some(Geometry::new(u64::from(pieces) * PIECE, PIECE).unwrap()),
        pieces: set,
        ..Held::default()
    }
}

/// Delivers whatever is in flight until nothing is.
fn deliver_all(t: &mut Checker) -> Vec<Effect> {
    let mut effects = Vec::new();
    while let Some(&id) = t.live().first() {
        t.advance(ms(20));
        effects.extend(t.deliver(id));
        effects.extend(t.reap());
    }
    effects
}

fn lost(t: &Checker, id: u64) -> &LostClient {
    &t.failed[&ClientId(id)]
}

#[test]
fn a_lone_host_fetches_everything_under_leases() {
    let mut t = fresh();
    assert_eq!(t.join(1), [Effect::Register { restate: vec![] }]);
    t.scheduler(FromScheduler::Connected { ours: true });
    let effects = t.scheduler(lease(1, 0..8));
    assert_eq!(told(&effects), [ToScheduler::BackToSourceStarted]);
    let [(first, Some(0))] = t.at_origin()[..] else { panic!("{effects:?}") };
    let effects = t.learn(first, learned(12));
    assert!(effects.contains(&Effect::Learn(learned(12))));
    assert_eq!(told(&effects), [ToScheduler::Learned(learned(12))]);
    let pieces: Vec<_> = t.at_origin().iter().map(|(_, piece)| piece.unwrap()).collect();
    assert_eq!(pieces, [0, 1, 2, 3], "the rest of the window follows at once");
    deliver_all(&mut t);
    assert_eq!(t.held.len(), 8, "no piece beyond the lease");
    t.scheduler(lease(2, 8..12));
    let effects = deliver_all(&mut t);
    assert_eq!(t.finished, Some(Outcome::Done));
    assert_eq!(told(&effects).last(), Some(&ToScheduler::Finished { back_to_source: false }));
    assert_eq!(effects.last(), Some(&Effect::Finish(Outcome::Done)));
}

#[test]
fn held_content_needs_no_scheduler() {
    let mut t = Checker::new(Config::default(), held(3, &[0, 1, 2]));
    let effects = t.join(1);
    let range = ByteRange { start: 0, length: 3 * PIECE };
    assert_eq!(effects, [Effect::ClientReady(ClientId(1), range), Effect::Finish(Outcome::Done)]);
}

#[test]
fn a_resumed_task_registers_and_fetches_the_rest() {
    let mut t = Checker::new(Config::default(), held(3, &[1]));
    assert_eq!(t.join(1), [Effect::Register { restate: vec![] }]);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.parents(&[("a", true)]);
    let pieces: Vec<_> = t.at("a").iter().map(|(_, piece)| *piece).collect();
    assert_eq!(pieces, [0, 2]);
}

#[test]
fn empty_content_is_ready_at_once() {
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: false });
    let effects = t.scheduler(FromScheduler::Empty);
    assert!(effects.contains(&Effect::ClientReady(ClientId(1), ByteRange { start: 0, length: 0 })));
    assert_eq!(told(&effects), [ToScheduler::Started, ToScheduler::Finished { back_to_source: false }]);

    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Absent);
    let (first, _) = t.at_origin()[0];
    t.learn(first, Learned { content_length: Some(0), ..Learned::default() });
    t.reap();
    assert_eq!(t.finished, Some(Outcome::Done));
}

#[test]
fn rarest_pieces_go_first_and_windows_hold() {
    let mut t = connected(40);
    t.parents(&[("a", false), ("b", false), ("c", false)]);
    assert_eq!(t.watched.len(), 3);
    let all: Vec<u32> = (0..40).collect();
    t.has("b", &all[..39]);
    t.has("c", &all[..39]);
    t.has("a", &all);
    assert_eq!(t.at("a")[0].1, 39, "only a has it");
    for parent in ["a", "b", "c"] {
        assert_eq!(t.at(parent).len(), 4, "{parent}: the first window");
    }
    let mut pieces: Vec<_> =
        ["a", "b", "c"].iter().flat_map(|parent| t.at(parent)).map(|(_, piece)| piece).collect();
    pieces.sort_unstable();
    pieces.dedup();
    assert_eq!(pieces.len(), 12, "no piece is asked for twice");
}

#[test]
fn siblings_begin_at_different_pieces() {
    let firsts: Vec<u32> = (0..8)
        .map(|seed| {
            let mut t = Checker::new(Config { seed, ..Config::default() }, Held::default());
            t.join(1);
            t.scheduler(FromScheduler::Connected { ours: true });
            t.scheduler(facts(1000));
            t.parents(&[("seed", true), ("sibling", false)]);
            t.at("seed")[0].1
        })
        .collect();
    let mut different = firsts.clone();
    different.sort_unstable();
    different.dedup();
    assert!(different.len() >= 7, "{firsts:?}");
}

#[test]
fn wrong_bytes_ban_a_parent_for_good() {
    let mut t = connected(20);
    t.parents(&[("bad", true), ("good", true)]);
    let [(first, piece), (second, _), ..] = t.at("bad")[..] else { panic!() };
    let effects = t.fail(first, FailureKind::Wrong);
    assert!(told(&effects).contains(&ToScheduler::PieceFailed { piece, parent: "bad".into() }));
    assert!(effects.contains(&Effect::Cancel(second)));
    t.reap();
    t.parents(&[("bad", true), ("good", true)]);
    assert!(t.at("bad").is_empty(), "even when it is offered again");
    let effects = deliver_all(&mut t);
    assert_eq!(t.finished, Some(Outcome::Done));
    assert!(sources(&effects).iter().all(|(_, source)| *source == Source::Parent("good".into())));
}

#[test]
fn another_geometry_bans_a_parent() {
    let mut t = connected(20);
    t.parents(&[("bad", false)]);
    let effects = t.step(Event::Parent("bad".into(), FromParent::Mismatch("length".into())));
    assert!(effects.contains(&Effect::Unwatch("bad".into())));
    assert!(matches!(told(&effects)[..], [ToScheduler::PieceFailed { .. }]));
}

#[test]
fn a_failed_parent_rests_and_its_piece_goes_elsewhere_at_once() {
    let mut t = connected(3);
    t.parents(&[("a", true)]);
    let at_a = t.at("a");
    t.parents(&[("a", true), ("b", true)]);
    let effects = t.fail(at_a[0].0, FailureKind::Retry { after: None });
    assert!(told(&effects).is_empty(), "Dragonfly's scheduler would block it for good");
    assert_eq!(t.at("b")[0].1, at_a[0].1);
    let (at_b, _) = t.at("b")[0];
    t.fail(at_b, FailureKind::Missing);
    assert!(t.at("b").is_empty());
    assert!(t.watched.contains(&PeerId::from("b")), "it said it was complete; now it has to tell");
    t.advance(ms(251));
    t.step(Event::Tick { progress: vec![] });
    assert_eq!(t.at("a").len(), 3, "asked again after its backoff");
}

#[test]
fn a_stalled_parents_pieces_are_asked_elsewhere_within_a_second() {
    let mut t = connected(40);
    t.parents(&[("a", true), ("b", true)]);
    let stuck = t.at("a");
    for round in 1..=6u64 {
        let progress: Vec<_> = t.at("b").iter().map(|(id, _)| (*id, round * 100_000)).collect();
        t.tick(ms(100), &progress);
    }
    let now_at_b: Vec<u32> = t.at("b").iter().map(|(_, piece)| *piece).collect();
    assert!(stuck.iter().any(|(_, piece)| now_at_b.contains(piece)), "{stuck:?} {now_at_b:?}");
    let asked = t.at("a").len();
    // It moves again.
    let progress: Vec<_> = stuck.iter().map(|(id, _)| (*id, PIECE / 2)).collect();
    t.tick(ms(100), &progress);
    assert!(t.at("a").len() >= asked, "it is trusted again");
}

#[test]
fn the_origin_rescues_a_stalled_piece_only_with_leave() {
    let mut t = connected(2);
    t.parents(&[("a", true)]);
    for _ in 0..7 {
        t.tick(ms(100), &[]);
    }
    assert!(t.at_origin().is_empty());
    t.scheduler(lease(1, 0..1));
    let [(origin, Some(0))] = t.at_origin()[..] else { panic!() };
    assert!(matches!(t.running[&origin].fetch, Fetch::OriginPiece { hedge: true, .. }));
    let stalled = t.at("a")[0].0;
    let effects = t.stored(origin, 0, crc_of(0));
    assert!(effects.contains(&Effect::Cancel(stalled)), "the first good copy wins");
}

#[test]
fn late_pieces_are_asked_for_twice_at_the_end() {
    let mut t = connected(4);
    t.parents(&[("slow", true)]);
    let slow = t.at("slow");
    assert_eq!(slow.len(), 4);
    t.tick(ms(100), &[(slow[0].0, 1000)]);
    t.parents(&[("slow", true), ("fast", true)]);
    assert!(t.at("fast").is_empty(), "nothing is known of its speed yet");
    // It proves its speed with a piece that the slow one gave up.
    t.fail(slow[3].0, FailureKind::Missing);
    let (proof, _) = t.at("fast")[0];
    t.advance(ms(20));
    t.deliver(proof);
    let doubled: Vec<_> = t.at("fast").iter().map(|(_, piece)| *piece).collect();
    assert_eq!(doubled[0], slow[2].1, "the latest first");
    deliver_all(&mut t);
    assert_eq!(t.finished, Some(Outcome::Done));
}

#[test]
fn ledger_crcs_travel_with_the_request_and_bind() {
    let mut t = connected(3);
    t.tell_ledger(0, vec![crc_of(0), crc_of(1)]);
    t.parents(&[("a", true)]);
    let [(zero, 0), (one, 1), (two, 2)] = t.at("a")[..] else { panic!() };
    assert!(matches!(t.running[&zero].fetch, Fetch::Piece { crc: Some(crc), .. } if crc == crc_of(0)));
    assert!(matches!(t.running[&two].fetch, Fetch::Piece { crc: None, .. }));
    t.stored(two, 2, Crc(7));
    t.over(two);
    // The ledger learns of piece 2 only now.
    let effects = t.tell_ledger(2, vec![crc_of(2)]);
    assert!(effects.contains(&Effect::Invalidate(2)));
    assert!(told(&effects).contains(&ToScheduler::PieceFailed { piece: 2, parent: "a".into() }));
    // What the banned parent had on its way still arrives: right by the ledger, it counts.
    t.stored(zero, 0, crc_of(0));
    assert!(t.held.contains(&0));
    let effects = t.stored(one, 1, Crc(9));
    assert!(effects.contains(&Effect::Invalidate(1)) && !t.held.contains(&1));
}

#[test]
fn stored_crcs_meet_the_ledger_after_a_restart_of_the_daemon() {
    let mut stored = held(2, &[0]);
    stored.crcs.insert(0, Crc(1));
    let mut t = Checker::new(Config::default(), stored);
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    assert!(t.tell_ledger(0, vec![crc_of(0)]).contains(&Effect::Invalidate(0)));
}

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
fn ranges_want_their_pieces_only() {
    let mut t = Checker::new(Config::default(), held(10, &[]));
    let span = |start, length| RangeSpec::Span(ByteRange { start, length });
    t.step(Event::Join(Client { range: span(PIECE, 1), ..client(1) }));
    t.step(Event::Join(Client { range: span(3 * PIECE - 1, 2), ..client(2) }));
    let effects = t.step(Event::Join(Client { range: span(10 * PIECE, 2), ..client(3) }));
    assert!(matches!(effects[..], [Effect::ClientFailed(ClientId(3), LostClient::Range(_))]));
    t.scheduler(FromScheduler::Connected { ours: true });
    t.parents(&[("a", true)]);
    let at_a = t.at("a");
    assert_eq!(at_a.iter().map(|(_, piece)| *piece).collect::<Vec<_>>(), [1, 2, 3]);
    t.deliver(at_a[0].0);
    assert!(t.ready.contains(&ClientId(1)) && t.waiting.len() == 1);
    let effects = deliver_all(&mut t);
    assert_eq!(told(&effects).last(), Some(&ToScheduler::Finished { back_to_source: false }));
    assert_eq!(t.held.len(), 3);
}

#[test]
fn the_last_client_leaving_parks_the_task_after_its_pieces() {
    let mut t = connected(20);
    t.parents(&[("a", true)]);
    let running = t.at("a");
    let effects = t.step(Event::Leave(ClientId(1)));
    assert!(effects.is_empty(), "{effects:?}");
    t.join(2);
    t.step(Event::Leave(ClientId(2)));
    for (id, _) in &running[..3] {
        t.deliver(*id);
    }
    assert_eq!(t.finished, None);
    let effects = t.deliver(running[3].0);
    assert!(matches!(told(&effects).last(), Some(ToScheduler::Failed { .. })));
    assert_eq!(t.finished, Some(Outcome::Parked));
    assert_eq!(t.held.len(), 4);
}

#[test]
fn pause_stops_everything_and_resume_goes_on() {
    let mut t = connected(20);
    t.parents(&[("a", true)]);
    t.scheduler(lease(1, 0..8));
    let in_flight = t.live().len();
    let effects = t.step(Event::Pause);
    assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Cancel(_))).count(), in_flight);
    assert!(told(&effects).contains(&ToScheduler::Release(1)), "others go on with it");
    t.reap();
    t.scheduler(lease(2, 8..16));
    t.scheduler(FromScheduler::Lost("gone".into()));
    t.tick(Duration::from_secs(60), &[]);
    assert!(t.live().is_empty() && t.waiting.len() == 1);
    let effects = t.step(Event::Resume);
    assert!(effects.contains(&Effect::Register { restate: vec![] }));
    assert!(!t.at("a").is_empty());
}

#[test]
fn a_paused_task_stays_paused_over_a_restart_and_keeps_deadlines() {
    let mut t = Checker::new(Config::default(), Held { paused: true, ..Held::default() });
    let deadline = t.now + Duration::from_secs(3);
    assert!(t.step(Event::Join(Client { deadline: Some(deadline), ..client(1) })).is_empty());
    assert_eq!(t.machine.deadline(), Some(deadline));
    t.tick(Duration::from_secs(3), &[]);
    assert!(matches!(lost(&t, 1), LostClient::Deadline(why) if why.contains("paused")));
}

#[test]
fn cancel_fails_everybody() {
    let mut t = connected(20);
    t.join(2);
    t.parents(&[("a", true)]);
    t.step(Event::Cancel);
    assert_eq!((lost(&t, 1), lost(&t, 2)), (&LostClient::Cancelled, &LostClient::Cancelled));
    t.reap();
    assert_eq!(t.finished, Some(Outcome::Cancelled));
}

#[test]
fn a_full_disk_is_fatal_to_all() {
    let mut t = connected(20);
    t.join(2);
    t.parents(&[("a", true)]);
    let (id, _) = t.at("a")[0];
    t.fail(id, FailureKind::Storage);
    assert_eq!(t.failed.len(), 2);
    t.reap();
    assert_eq!(t.finished, Some(Outcome::Parked));
}

#[test]
fn a_lost_scheduler_is_sought_again_and_told_what_it_missed() {
    let mut t = connected(30);
    t.scheduler(lease(7, 0..4));
    let (first, _) = t.at_origin()[0];
    t.scheduler(FromScheduler::Lost("reset".into()));
    let effects = t.deliver(first);
    assert!(told(&effects).is_empty());
    let effects = t.tick(ms(200), &[]);
    let [Effect::Register { restate }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((restate[0].id, &restate[0].ranges[0]), (7, &(1..4)));
    let effects = t.scheduler(FromScheduler::Connected { ours: true });
    assert!(matches!(told(&effects)[..], [ToScheduler::PieceFinished { piece: 0, .. }]), "{effects:?}");
}

#[test]
fn silence_leads_to_the_origin_and_an_answer_back() {
    let mut t = fresh();
    t.join(1);
    t.tick(ms(4900), &[]);
    assert!(t.at_origin().is_empty());
    t.tick(ms(100), &[]);
    let (first, _) = t.at_origin()[0];
    t.learn(first, learned(20));
    t.scheduler(FromScheduler::Connected { ours: true });
    let effects = t.scheduler(FromScheduler::Facts(Facts::default()));
    assert!(told(&effects).is_empty());
    let running = t.at_origin().len();
    for (id, _) in t.at_origin() {
        t.deliver(id);
    }
    assert_eq!(t.held.len(), running, "no more without a lease");
}

#[test]
fn a_host_that_may_not_use_the_origin_names_what_was_tried() {
    let mut t = fresh();
    t.step(Event::Join(Client { may_use_origin: false, ..client(1) }));
    t.scheduler(FromScheduler::Absent);
    assert!(matches!(lost(&t, 1), LostClient::NoSource(why) if why.contains("no client allows the origin")));

    let mut t = fresh();
    t.step(Event::Join(Client { may_use_origin: false, ..client(1) }));
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(FromScheduler::Facts(Facts::default()));
    t.tick(Duration::from_secs(29), &[]);
    assert_eq!(t.waiting.len(), 1);
    t.tick(Duration::from_secs(2), &[]);
    assert!(matches!(lost(&t, 1), LostClient::NoSource(_)));
}

#[test]
fn dragonflys_scheduler_is_asked_with_the_length_and_not_too_often() {
    let config = Config { foreign_scheduler: true, ..Config::default() };
    let mut t = Checker::new(config, Held::default());
    let effects = t.join(1);
    let [Effect::Fetch(stat, Fetch::OriginFirst { first_piece: false, .. })] = effects[..] else {
        panic!("{effects:?}")
    };
    t.learn(stat, learned(4));
    let effects = t.over(stat);
    assert!(effects.is_empty(), "registered as soon as the length was known");
    t.scheduler(FromScheduler::Connected { ours: false });
    for answer in 1..=5 {
        let effects = t.scheduler(FromScheduler::Parents(vec![damselfly_core::download::ParentInfo {
            id: format!("p{answer}").into(),
            ours: false,
            complete: false,
        }]));
        assert!(told(&effects).contains(&ToScheduler::Started));
        let effects = t.step(Event::Parent(format!("p{answer}").into(), FromParent::Ended));
        if answer < 5 {
            assert!(matches!(told(&effects)[..], [ToScheduler::Reschedule { .. }]), "{effects:?}");
        }
    }
    assert_eq!(t.at_origin().len(), 2, "given up: the origin");
    let effects = deliver_all(&mut t);
    assert_eq!(told(&effects).last(), Some(&ToScheduler::Finished { back_to_source: false }));
}

#[test]
fn back_to_source_of_dragonflys_scheduler_is_for_everything() {
    let config = Config { foreign_scheduler: true, ..Config::default() };
    let mut t = Checker::new(config, held(4, &[]));
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: false });
    let effects = t.scheduler(FromScheduler::BackToSource(None));
    assert_eq!(told(&effects), [ToScheduler::BackToSourceStarted]);
    let effects = deliver_all(&mut t);
    assert_eq!(told(&effects).last(), Some(&ToScheduler::Finished { back_to_source: true }));
}

#[test]
fn tasks_without_an_origin_never_go_there() {
    let config = Config { uses_origin: false, ..Config::default() };
    let mut t = Checker::new(config, Held::default());
    t.join(1);
    t.tick(Duration::from_secs(10), &[]);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(FromScheduler::BackToSource(None));
    assert!(matches!(lost(&t, 1), LostClient::NoSource(why) if why.contains("no origin")));
}

#[test]
fn leases_of_no_use_are_given_back() {
    let mut t = Checker::new(Config::default(), held(20, &[]));
    let range = RangeSpec::Span(ByteRange { start: 0, length: 1 });
    t.step(Event::Join(Client { range, ..client(1) }));
    t.scheduler(FromScheduler::Connected { ours: true });
    let effects = t.scheduler(lease(1, 4..8));
    assert_eq!(told(&effects), [ToScheduler::BackToSourceStarted, ToScheduler::Release(1)]);
    t.scheduler(lease(2, 0..8));
    assert_eq!(t.at_origin().len(), 1, "one piece is wanted");
}

#[test]
fn a_silent_lease_ends() {
    let mut t = connected(20);
    t.scheduler(lease(1, 0..8));
    for (id, _) in t.at_origin() {
        t.fail(id, FailureKind::Retry { after: Some(Duration::from_secs(11)) });
    }
    t.tick(Duration::from_secs(11), &[]);
    assert!(t.at_origin().is_empty(), "others fetch its pieces by now");
}

#[test]
fn unknown_and_late_messages_change_nothing() {
    let mut t = connected(4);
    t.parents(&[("a", true)]);
    let ids = t.at("a");
    let ghost = damselfly_core::download::AttemptId(999);
    assert!(t.stored(ghost, 0, Crc(1)).is_empty());
    assert!(t.fail(ghost, FailureKind::Storage).is_empty());
    assert!(t.step(Event::Parent("nobody".into(), FromParent::Mismatch("x".into()))).is_empty());
    assert!(t.stored(ids[0].0, 77, Crc(1)).is_empty());
    t.stored(ids[0].0, 0, crc_of(0));
    assert!(t.stored(ids[0].0, 0, Crc(5)).is_empty(), "stored twice");
    t.over(ids[0].0);
    deliver_all(&mut t);
    assert_eq!(t.finished, Some(Outcome::Done));
    assert!(t.join(9).is_empty(), "a new machine is needed");
}

#[test]
fn a_crashing_fetch_does_not_spin() {
    let mut t = connected(1);
    t.parents(&[("a", true)]);
    let mut restarts = 0;
    while let [(id, _)] = t.at("a")[..] {
        t.fail(id, FailureKind::Cancelled);
        restarts += 1;
        assert!(restarts < 10);
    }
    assert_eq!(restarts, 4);
    assert!(t.machine.deadline().is_some());
}
