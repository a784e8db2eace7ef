//! Clients: ranges, deadlines, pause, cancel, the end.

use damselfly_core::download::{
    AttemptId, Client, ClientId, Config, Effect, Event, FailureKind, FromParent, FromScheduler, Held,
    Learned, LostClient, Outcome, ToScheduler,
};
use damselfly_core::{ByteRange, Crc, RangeSpec};
use std::time::Duration;

use super::{connected, deliver_all, fresh, held, lost};
use crate::checker::Checker;
use crate::script::{PIECE, client, crc_of, lease, told};

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
    let [earlier @ .., last] = &running[..] else { panic!("nothing runs") };
    for (id, _) in earlier {
        t.deliver(*id);
    }
    assert_eq!(t.finished, None);
    let effects = t.deliver(last.0);
    assert!(matches!(told(&effects).last(), Some(ToScheduler::Failed { .. })));
    assert_eq!(t.finished, Some(Outcome::Parked));
    assert_eq!(t.held.len(), running.len());
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
fn unknown_and_late_messages_change_nothing() {
    let mut t = connected(4);
    t.parents(&[("a", true)]);
    let ids = t.at("a");
    let ghost = AttemptId(999);
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
