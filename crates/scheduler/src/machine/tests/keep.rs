//! Imports, their replicas, and what becomes of them.

use std::time::Duration;

use damselfly_core::{Crc, Geometry, HostId, Kind, PeerId, TaskKey};

use super::kit::{Lab, MIB, key};
use super::presence::{holding, holdings};
use crate::machine::event::*;
use crate::machine::{KeepError, KeepView, Upload};

pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn task() -> TaskKey {
    TaskKey { kind: Kind::PersistentCache, ..key() }
}

pub(super) fn upload(host: &str, replicas: u64) -> Upload {
    Upload {
        task: task(),
        host: HostId::from(host),
        peer: PeerId::from(format!("{host}/import")),
        replicas,
        tag: Some("imported".to_owned()),
        application: None,
        geometry: Geometry::new(3 * 4 * MIB, 4 * MIB).unwrap(),
        ttl: HOUR,
    }
}

/// Hosts of ours with a Hold each: a has 1, b has 2 and so on.
pub(super) fn lab(hosts: &[&str]) -> Lab {
    let mut lab = Lab::new(|_| {});
    for (number, name) in (1..).zip(hosts) {
        lab.hello(name, number, 1);
        holdings(&mut lab, number, Vec::new(), true);
    }
    lab
}

impl Lab {
    pub(super) fn start(&mut self, upload: Upload) -> Result<(), KeepError> {
        let mut out = Vec::new();
        let started = self.machine.upload_started(upload, self.now, &mut out);
        self.others.extend(out);
        started
    }

    pub(super) fn finish(&mut self, host: &str) -> Result<(), KeepError> {
        self.finish_as(host, 1)
    }

    pub(super) fn finish_as(&mut self, host: &str, generation: u64) -> Result<(), KeepError> {
        let mut out = Vec::new();
        let crcs = vec![Crc(1), Crc(2), Crc(3)];
        let host = HostId::from(host);
        let finished = self.machine.upload_finished(&task(), &host, generation, crcs, self.now, &mut out);
        self.others.extend(out);
        finished
    }

    pub(super) fn import(&mut self, host: &str, replicas: u64) {
        self.start(upload(host, replicas)).unwrap();
        self.finish(host).unwrap();
    }

    pub(super) fn delete(&mut self) -> Result<(), KeepError> {
        let mut out = Vec::new();
        let deleted = self.machine.delete_kept(&task(), self.now, &mut out);
        self.others.extend(out);
        deleted
    }

    /// The orders given since it was last asked, as (Hold, number, what).
    pub(super) fn ordered(&mut self) -> Vec<(u64, u64, Order)> {
        let orders = self.others.drain(..).filter_map(|effect| match effect {
            Effect::Order(hold, order, what) => Some((hold.0, order, what)),
            _ => None,
        });
        orders.collect()
    }

    /// The same, as (Hold, number, whether to make a replica).
    pub(super) fn orders(&mut self) -> Vec<(u64, u64, bool)> {
        let orders = self.ordered().into_iter();
        orders.map(|(hold, order, what)| (hold, order, matches!(what, Order::Replicate(_)))).collect()
    }

    pub(super) fn done(&mut self, hold: u64, order: u64, error: Option<&str>) {
        let error = error.map(str::to_owned);
        self.step(Event::Hold(HoldId(hold), HoldMessage::Done { order, error }));
    }

    pub(super) fn beat(&mut self, holds: &[u64], time: Duration) {
        let end = self.now + time;
        while self.now < end {
            for hold in holds {
                self.step(Event::Hold(HoldId(*hold), HoldMessage::Beat));
            }
            self.pass(Duration::from_secs(2));
        }
    }

    pub(super) fn view(&self) -> KeepView {
        self.machine.kept(&task(), self.now).unwrap()
    }
}

pub(super) fn copy() -> Holding {
    Holding {
        task: task(),
        persistent: true,
        replica_target: 2,
        ttl_left: HOUR,
        validator: Default::default(),
        ..holding(3, &[])
    }
}

#[test]
fn replicas_are_ordered_until_there_are_enough() {
    let mut lab = lab(&["a", "b", "c", "d"]);
    lab.start(upload("a", 3)).unwrap();
    assert_eq!((lab.view().state, lab.view().replicas_now()), ("Uploading", 0));
    assert!(lab.orders().is_empty());
    lab.finish("a").unwrap();
    assert_eq!((lab.view().state, lab.view().replicas_now()), ("Succeeded", 1));
    let orders = lab.orders();
    assert!(
        orders.len() == 2 && orders.iter().all(|(hold, _, replicate)| *hold != 1 && *replicate),
        "{orders:?}"
    );
    // One host cannot: the one that is left is asked.
    lab.done(orders[0].0, orders[0].1, Some("disk full"));
    let again = lab.orders();
    assert_eq!(again.len(), 1);
    assert!(again[0].0 != orders[0].0 && again[0].0 != orders[1].0 && again[0].0 != 1, "{again:?}");
    for (hold, order, _) in [orders[1], again[0]] {
        lab.done(hold, order, None);
    }
    assert_eq!(lab.view().replicas_now(), 3);
    lab.beat(&[1, 2, 3, 4], Duration::from_secs(120));
    assert!(lab.orders().is_empty());
}

#[test]
fn a_copy_that_is_there_is_kept_before_another_is_made() {
    let mut lab = lab(&["a", "b", "c"]);
    lab.import("a", 1);
    holdings(&mut lab, 3, vec![Holding { persistent: false, ..copy() }], false);
    assert!(lab.orders().is_empty());
    lab.start(upload("a", 2)).unwrap();
    lab.finish("a").unwrap();
    let orders = lab.orders();
    assert_eq!(orders.iter().map(|order| order.0).collect::<Vec<_>>(), [3]);
}

#[test]
fn hosts_without_room_are_not_asked() {
    let mut lab = lab(&["a"]);
    for (hold, name, free) in [(2, "b", 5 * MIB), (3, "c", 500 * MIB)] {
        let mut info = crate::machine::hosts::tests::info(name, Some(1));
        info.disk_free = Some(free);
        lab.step(Event::Hold(HoldId(hold), HoldMessage::Hello(Box::new(info))));
    }
    lab.import("a", 3);
    assert_eq!(lab.orders().iter().map(|order| order.0).collect::<Vec<_>>(), [3]);
}

#[test]
fn a_dead_hosts_replica_is_made_good_after_a_while_and_not_sooner() {
    let mut lab = lab(&["a", "b", "c"]);
    lab.import("a", 2);
    let [(hold, order, _)] = lab.orders()[..] else { panic!() };
    lab.done(hold, order, None);
    lab.step(Event::HoldClosed(HoldId(hold)));
    assert_eq!(lab.view().replicas_now(), 1);
    let left: Vec<u64> = [1, 2, 3].into_iter().filter(|other| *other != hold).collect();
    lab.beat(&left, Duration::from_secs(50));
    assert!(lab.orders().is_empty(), "it may come back");
    lab.beat(&left, Duration::from_secs(20));
    let orders = lab.orders();
    assert!(orders.len() == 1 && orders[0].0 != hold && orders[0].0 != 1, "{orders:?}");
}

#[test]
fn a_host_that_comes_later_is_asked_too() {
    let mut lab = lab(&["a"]);
    lab.import("a", 3);
    assert!(lab.orders().is_empty());
    lab.beat(&[1], Duration::from_secs(10));
    for (hold, name) in [(2, "b"), (3, "c")] {
        lab.hello(name, hold, 1);
        let orders = lab.orders();
        assert_eq!(orders.iter().map(|order| order.0).collect::<Vec<_>>(), [hold]);
        lab.done(hold, orders[0].1, None);
    }
    assert_eq!(lab.view().replicas_now(), 3);
}

#[test]
fn an_order_that_its_host_did_not_live_to_carry_out_is_given_again() {
    let mut lab = lab(&["a", "b"]);
    lab.import("a", 2);
    let [(2, order, true)] = lab.orders()[..] else { panic!() };
    // The next process of that host knows nothing of it.
    lab.hello("b", 3, 2);
    lab.beat(&[1, 3], Duration::from_secs(6));
    let again = lab.orders();
    assert_eq!(again.iter().map(|order| order.0).collect::<Vec<_>>(), [3]);
    lab.done(3, order, None);
    assert_eq!(lab.view().replicas_now(), 1, "a former order's number says nothing");
    lab.done(3, again[0].1, None);
    assert_eq!(lab.view().replicas_now(), 2);
    // And of one whose Hold breaks.
    lab.start(upload("a", 3)).unwrap();
    lab.hello("c", 4, 1);
    let [(4, _, true)] = lab.orders()[..] else { panic!() };
    lab.step(Event::HoldClosed(HoldId(4)));
    lab.hello("c", 5, 1);
    assert_eq!(lab.orders().iter().map(|order| order.0).collect::<Vec<_>>(), [5]);
}

#[test]
fn a_restarted_host_says_what_it_has_before_anything_is_ordered() {
    let mut lab = lab(&["a", "b", "c"]);
    lab.import("a", 2);
    let [(hold, order, _)] = lab.orders()[..] else { panic!() };
    lab.done(hold, order, None);
    lab.step(Event::HoldClosed(HoldId(1)));
    lab.hello("a", 9, 2);
    holdings(&mut lab, 9, vec![copy()], true);
    assert_eq!(lab.view().replicas_now(), 2);
    lab.beat(&[9, 2, 3], Duration::from_secs(100));
    assert!(lab.orders().is_empty());
}

#[test]
fn an_id_is_taken_while_its_task_lives() {
    let mut lab = lab(&["a", "b"]);
    assert!(matches!(lab.start(upload("nobody", 1)), Err(KeepError::UnknownHost(_))));
    lab.start(upload("a", 1)).unwrap();
    assert!(matches!(lab.start(upload("b", 1)), Err(KeepError::Exists(_))));
    lab.start(upload("a", 1)).unwrap(); // anew
    assert!(matches!(lab.finish("b"), Err(KeepError::NotUploading(_))));
    lab.finish("a").unwrap();
    assert!(matches!(lab.start(upload("b", 1)), Err(KeepError::Exists(_))));
    lab.start(upload("a", 1)).unwrap(); // it has it, and says so again
    assert_eq!(lab.view().state, "Succeeded");
    lab.beat(&[1, 2], HOUR + Duration::from_secs(20));
    assert!(lab.machine.kept(&task(), lab.now).is_none(), "its time is over");
    assert!(lab.machine.task(&task()).is_none());
    lab.start(upload("b", 1)).unwrap();
}

#[test]
fn other_content_does_not_slip_in_under_an_id() {
    let mut lab = lab(&["a", "b"]);
    lab.import("a", 1);
    // b lists as its own what it is just importing under the same id.
    holdings(&mut lab, 2, vec![Holding { persistent: false, ..copy() }], false);
    lab.start(upload("b", 1)).unwrap();
    let (mut out, b) = (Vec::new(), HostId::from("b"));
    let crcs = vec![Crc(1), Crc(7), Crc(3)];
    let finished = lab.machine.upload_finished(&task(), &b, 1, crcs, lab.now, &mut out);
    assert!(matches!(finished, Err(KeepError::Exists(_))), "{finished:?}");
    let copies = lab.view().replicas;
    assert!(copies.iter().all(|copy| copy.complete == (copy.host != b)), "{copies:?}");
}

#[test]
fn a_failed_import_is_forgotten() {
    let mut lab = lab(&["a", "b"]);
    lab.start(upload("a", 1)).unwrap();
    let mut out = Vec::new();
    lab.machine.upload_failed(&task(), &HostId::from("a"), lab.now, &mut out).unwrap();
    assert!(lab.machine.kept(&task(), lab.now).is_none());
    lab.start(upload("b", 1)).unwrap();
    // Its host goes for good: others may.
    lab.step(Event::HostLeft(HostId::from("b")));
    lab.start(upload("a", 1)).unwrap();
}

#[test]
fn deletion_reaches_who_is_there_and_who_comes_back() {
    let mut lab = lab(&["a", "b"]);
    lab.import("a", 2);
    let [(hold, order, _)] = lab.orders()[..] else { panic!() };
    lab.done(hold, order, None);
    for hold in [1, 2] {
        holdings(&mut lab, hold, vec![copy()], false);
    }
    lab.step(Event::HoldClosed(HoldId(2)));
    lab.delete().unwrap();
    assert_eq!(lab.orders().iter().map(|order| (order.0, order.2)).collect::<Vec<_>>(), [(1, false)]);
    assert!(matches!(lab.delete(), Err(KeepError::Unknown(_))));
    // b was away. It has what was deleted, and later something newer.
    lab.hello("b", 3, 2);
    holdings(&mut lab, 3, vec![copy()], true);
    assert_eq!(lab.orders().iter().map(|order| (order.0, order.2)).collect::<Vec<_>>(), [(3, false)]);
    assert!(lab.machine.kept(&task(), lab.now).is_none());
    lab.import("a", 1);
    holdings(&mut lab, 3, vec![Holding { generation: 2, persistent: false, ..copy() }], false);
    assert!(lab.orders().is_empty());
    assert_eq!(lab.view().replicas.len(), 2);
}

#[test]
fn what_was_deleted_does_not_bury_what_is_imported_later() {
    let mut lab = lab(&["a", "b"]);
    lab.import("a", 2);
    let [(2, order, _)] = lab.orders()[..] else { panic!() };
    // Nobody else answers for it.
    lab.done(1, order, None);
    assert_eq!(lab.view().replicas_now(), 1);
    lab.done(2, order, None);
    // Deleted before anybody said which version it has.
    lab.delete().unwrap();
    assert_eq!(lab.orders().len(), 2);
    lab.import("a", 2);
    let [(2, order, true)] = lab.orders()[..] else { panic!() };
    lab.done(2, order, None);
    holdings(&mut lab, 2, vec![Holding { generation: 2, ..copy() }], false);
    assert!(lab.orders().is_empty());
    assert_eq!(lab.view().replicas_now(), 2);
}

#[test]
fn a_new_scheduler_learns_from_its_hosts() {
    let mut lab = lab(&["a", "b"]);
    holdings(&mut lab, 1, vec![copy()], false);
    let view = lab.view();
    assert_eq!((view.target, view.state, view.replicas_now(), view.ttl), (2, "Succeeded", 1, HOUR));
    assert!(lab.orders().is_empty(), "others are about to say what they have");
    lab.beat(&[1, 2], Duration::from_secs(70));
    assert_eq!(lab.orders().iter().map(|order| order.0).collect::<Vec<_>>(), [2]);
}

#[test]
fn peers_have_no_origin_and_an_unknown_task_is_not_found() {
    let mut lab = lab(&["a", "b"]);
    let register = |lab: &mut Lab, stream| {
        lab.step(Event::Peer(Box::new(PeerEvent {
            stream: StreamId(stream),
            host: HostId::from("b"),
            task: task(),
            peer: PeerId::from("b/1"),
            learned: None,
            released: None,
            message: Some(PeerMessage::Register(Box::new(Register {
                about: About { tag: Some(String::new()), ..About::default() },
                priority: Priority::Level3,
                disable_back_to_source: true,
                ..Register::default()
            }))),
        })));
    };
    register(&mut lab, 100);
    assert!(matches!(lab.closed[&StreamId(100)], Ending::NotFound(_)));
    lab.import("a", 1);
    register(&mut lab, 101);
    lab.beat(&[1, 2], Duration::from_secs(2));
    let said = &lab.said[&StreamId(101)];
    let mut parents = said.iter().filter_map(|answer| match answer {
        Answer::Parents(parents) => Some(parents.len()),
        _ => None,
    });
    assert_eq!(parents.next_back(), Some(1), "{said:?}");
    let crcs = said.iter().any(|answer| matches!(answer, Answer::Facts { crcs, .. } if crcs.len() == 3));
    assert!(crcs && !said.iter().any(|answer| matches!(answer, Answer::BackToSource { .. })), "{said:?}");
    assert_eq!(lab.view().tag.as_deref(), Some("imported"), "an exporter's tag is its own");
}

#[test]
fn dragonflys_hosts_are_called() {
    let mut lab = lab(&["a"]);
    lab.hosts(&[], &["d"]);
    lab.import("a", 2);
    let calls: Vec<Effect> = lab.others.drain(..).collect();
    let Some(Effect::Copy { order, host, copy: Copy::Fetch { .. }, .. }) =
        calls.iter().find(|call| matches!(call, Effect::Copy { .. }))
    else {
        panic!("{calls:?}")
    };
    assert_eq!(host, &HostId::from("d"));
    lab.step(Event::OrderEnded { order: *order, error: None });
    assert_eq!(lab.view().replicas_now(), 2);
    lab.delete().unwrap();
    assert!(lab.others.iter().any(|call| matches!(call, Effect::Copy { copy: Copy::Delete, .. })));
}

#[test]
fn a_host_that_fails_is_asked_ever_more_rarely() {
    let mut lab = lab(&["a", "b"]);
    lab.start(Upload { ttl: 24 * HOUR, ..upload("a", 2) }).unwrap();
    lab.finish("a").unwrap();
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let [(2, order, true)] = lab.orders()[..] else { panic!("{pauses:?}") };
        lab.done(2, order, Some("no room"));
        let since = lab.now;
        while lab.others.is_empty() && lab.now < since + HOUR {
            lab.beat(&[1, 2], Duration::from_secs(2));
        }
        pauses.push(lab.now.since(since).as_secs());
    }
    assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 1800, 1800, 1800]);
    // Another comes, and is asked at once.
    let [(2, order, true)] = lab.orders()[..] else { panic!() };
    lab.done(2, order, Some("no room"));
    lab.hello("c", 3, 1);
    let [(3, order, true)] = lab.orders()[..] else { panic!() };
    lab.done(3, order, Some("no room"));
    assert!(lab.orders().is_empty());
    // A new process is another host.
    lab.hello("b", 4, 2);
    holdings(&mut lab, 4, Vec::new(), true);
    lab.beat(&[1, 3, 4], Duration::from_secs(6));
    let [(4, order, true)] = lab.orders()[..] else { panic!() };
    lab.done(4, order, Some("no room"));
    lab.beat(&[1, 3, 4], Duration::from_secs(26));
    // c may be asked again now, and so could b soon: who failed less often comes first.
    assert_eq!(lab.orders().iter().map(|order| order.0).collect::<Vec<_>>(), [3]);
}

#[test]
fn a_host_that_has_room_now_is_asked_again_at_once() {
    let mut lab = lab(&["a"]);
    let free = |lab: &mut Lab, free| {
        let mut info = crate::machine::hosts::tests::info("b", Some(1));
        info.disk_free = Some(free);
        lab.step(Event::HostAnnounced(Box::new(info), Duration::from_secs(300)));
    };
    lab.hello("b", 2, 1);
    free(&mut lab, 20 * MIB);
    lab.import("a", 2);
    let [(2, order, true)] = lab.orders()[..] else { panic!() };
    lab.done(2, order, Some("no room"));
    free(&mut lab, 31 * MIB);
    assert!(lab.orders().is_empty(), "what came and went");
    free(&mut lab, 32 * MIB);
    let [(2, order, true)] = lab.orders()[..] else { panic!() };
    lab.done(2, order, None);
    assert_eq!(lab.view().replicas_now(), 2);
}
