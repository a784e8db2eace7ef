//! Parents: picking, failing, stalling, hedging, lying.

use damselfly_core::download::{
    Config, Effect, Event, FailureKind, Fetch, FromParent, FromScheduler, Held, Outcome, Source, ToScheduler,
};
use damselfly_core::{Crc, PeerId};

use super::{connected, deliver_all, held};
use crate::checker::Checker;
use crate::script::{PIECE, crc_of, facts, lease, ms, sources, told};

#[test]
fn rarest_pieces_go_first_and_windows_hold() {
    // While siblings swap, one piece is asked for at a time where there are others to fill the gap.
    for (parents, window) in [(&["a", "b"][..], 4), (&["a", "b", "c"], 1)] {
        let mut t = connected(40);
        t.parents(&parents.iter().map(|&parent| (parent, false)).collect::<Vec<_>>());
        assert_eq!(t.watched.len(), parents.len());
        let all: Vec<u32> = (0..40).collect();
        for other in &parents[1..] {
            t.has(other, &all[..39]);
        }
        t.has("a", &all);
        assert_eq!(t.at("a")[0].1, 39, "only a has it");
        for parent in parents {
            assert_eq!(t.at(parent).len(), window, "{parent}: the first window");
        }
        let mut pieces: Vec<_> =
            parents.iter().flat_map(|parent| t.at(parent)).map(|(_, piece)| piece).collect();
        pieces.sort_unstable();
        pieces.dedup();
        assert_eq!(pieces.len(), parents.len() * window, "no piece is asked for twice");
    }
}

#[test]
fn what_only_one_sibling_has_goes_first() {
    let config = Config { max_in_flight: 3, ..Config::default() };
    let mut t = Checker::new(config, Held::default());
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(facts(40));
    t.parents(&[("a", false), ("b", false), ("c", false), ("burdened", false)]);
    // The three others have the same twenty pieces, and are asked for three of them.
    let shared: Vec<u32> = (0..20).collect();
    for parent in ["a", "b", "c"] {
        t.has(parent, &shared);
    }
    let asked: usize = ["a", "b", "c"].iter().map(|parent| t.at(parent).len()).sum();
    assert_eq!(asked, 3, "as many as may be in flight");
    t.has("burdened", &(20..40).collect::<Vec<_>>());
    let (first, _) = t.at("a")[0];
    t.deliver(first);
    assert_eq!(t.at("burdened").len(), 1, "before any other");
    assert!(t.at("burdened")[0].1 >= 20);
}

#[test]
fn a_piece_that_lags_on_its_connection_is_asked_for_over_another() {
    let mut t = connected(8);
    t.parents(&[("a", true)]);
    let all = t.at("a");
    assert_eq!(all.len(), 8);
    let (last, piece) = all[7];
    let progress: Vec<_> = all[..7].iter().map(|&(id, _)| (id, PIECE / 2)).collect();
    t.tick(ms(100), &progress);
    t.tick(ms(100), &[(last, PIECE / 64)]);
    for &(id, _) in &all[..4] {
        t.deliver(id);
    }
    t.tick(ms(100), &[(last, PIECE / 32)]);
    assert_eq!(t.at("a").len(), 4, "no connection rests");
    for &(id, _) in &all[4..7] {
        t.deliver(id);
    }
    t.tick(ms(100), &[(last, PIECE / 20)]);
    let [(_, first), (second, again)] = t.at("a")[..] else { panic!("{:?}", t.at("a")) };
    assert_eq!((first, again), (piece, piece));
    t.tick(ms(100), &[]);
    assert_eq!(t.at("a").len(), 2, "once");
    let effects = t.deliver(second);
    assert!(effects.contains(&Effect::Cancel(last)));
    assert_eq!(t.held.len(), 8);
}

#[test]
fn a_piece_that_keeps_up_is_asked_for_once() {
    let mut t = connected(3);
    t.parents(&[("a", true)]);
    let all = t.at("a");
    for step in 1..8 {
        let progress: Vec<_> = all.iter().map(|&(id, _)| (id, PIECE * step / 8)).collect();
        t.tick(ms(100), &progress);
        assert_eq!(t.at("a").len(), 3, "step {step}");
    }
}

#[test]
fn siblings_begin_at_different_pieces() {
    let firsts: Vec<u32> = (0..8)
        .map(|fingerprint| {
            let mut t = Checker::new(Config { fingerprint, ..Config::default() }, Held::default());
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
fn each_sibling_takes_its_own_share_of_what_one_has_first() {
    let swarm = ["a", "b", "c", "d"];
    let order = |own: &str| -> Vec<u32> {
        let config = Config { fingerprint: PeerId::from(own).fingerprint(), ..Config::default() };
        let mut t = Checker::new(config, Held::default());
        t.join(1);
        t.scheduler(FromScheduler::Connected { ours: true });
        t.scheduler(facts(24));
        let others = swarm.iter().filter(|&&other| other != own).map(|&other| (other, false));
        t.parents(&others.chain([("holder", false)]).collect::<Vec<_>>());
        t.has("holder", &(0..24).collect::<Vec<_>>());
        let mut order = Vec::new();
        while let Some(&(id, piece)) = t.at("holder").first() {
            order.push(piece);
            t.deliver(id);
        }
        assert_eq!(order.len(), 24, "in the end everybody takes everything");
        order
    };
    let orders = swarm.map(order);
    let mut firsts: Vec<u32> = orders.iter().flat_map(|order| &order[..3]).copied().collect();
    firsts.sort_unstable();
    firsts.dedup();
    assert_eq!(firsts.len(), 12, "three by each: {orders:?}");
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
    t.parents(&[("good", true)]);
    assert_eq!(t.machine.banned().map(PeerId::as_str).collect::<Vec<_>>(), ["bad"], "and shown as that");
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

#[test]
fn what_a_parent_claimed_and_has_not_is_asked_of_the_scheduler_at_once() {
    let mut t = connected(2);
    t.parents(&[("a", false)]);
    t.has("a", &[0, 1]);
    let [(zero, 0), (one, 1)] = t.at("a")[..] else { panic!() };
    t.deliver(zero);
    // Its SyncPieces stays open: it may yet get other pieces, but it has said all it will of this one.
    let effects = t.fail(one, FailureKind::Missing);
    assert!(matches!(told(&effects)[..], [ToScheduler::Reschedule { .. }]), "{effects:?}");
    // The answer brings nothing new: asked again after 1 s, 2 s, 4 s, 8 s and from then on every 10 s.
    t.parents(&[("a", true)]);
    assert!(t.at("a").is_empty(), "the scheduler's word is no announcement");
    let mut questions = Vec::new();
    let begun = t.now;
    while t.now.since(begun) < ms(14_000) {
        let effects = t.tick(ms(100), &[]);
        questions.extend(told(&effects).iter().map(|_| t.now.since(begun).as_millis()));
    }
    assert_eq!(questions, [1000, 3000, 7000]);
    t.scheduler(lease(1, 1..2));
    deliver_all(&mut t);
    assert_eq!(t.finished, Some(Outcome::Done));
}

#[test]
fn who_denied_a_piece_is_listened_to_anew_with_growing_pauses() {
    let mut t = connected(1);
    t.parents(&[("a", true)]);
    assert!(t.watched.is_empty(), "it has everything");
    let [(id, 0)] = t.at("a")[..] else { panic!() };
    let effects = t.fail(id, FailureKind::Missing);
    assert!(effects.contains(&Effect::Watch("a".into())), "now it has to tell");
    for pause in [250, 500, 1000, 2000] {
        t.has("a", &[0]);
        let [(id, 0)] = t.at("a")[..] else { panic!() };
        t.fail(id, FailureKind::Missing);
        let effects = t.tick(ms(pause - 1), &[]);
        assert!(!effects.contains(&Effect::Unwatch("a".into())), "{pause}");
        let effects = t.tick(ms(1), &[]);
        let (unwatch, watch) = (Effect::Unwatch("a".into()), Effect::Watch("a".into()));
        assert!(effects.ends_with(&[unwatch, watch]), "{pause}: {effects:?}");
    }
    // A stream that breaks is no way around the pause.
    t.has("a", &[0]);
    let [(id, 0)] = t.at("a")[..] else { panic!() };
    t.fail(id, FailureKind::Missing);
    t.step(Event::Parent("a".into(), FromParent::Lost("broken".into())));
    assert!(!t.tick(ms(3999), &[]).contains(&Effect::Watch("a".into())));
    assert!(t.tick(ms(1), &[]).contains(&Effect::Watch("a".into())));
    t.has("a", &[0]);
    deliver_all(&mut t);
    assert_eq!(t.finished, Some(Outcome::Done), "in the end it was true");
}

#[test]
fn one_denied_piece_costs_a_parent_nothing_else() {
    let mut t = connected(40);
    t.parents(&[("a", false)]);
    t.has("a", &(0..40).collect::<Vec<_>>());
    let asked = t.at("a");
    let effects = t.fail(asked[0].0, FailureKind::Missing);
    assert!(told(&effects).is_empty(), "{effects:?}");
    assert_eq!(t.at("a").len(), asked.len(), "its window is full again");
}

#[test]
fn bytes_that_never_become_a_piece_do_not_hold_up_the_search() {
    let mut t = connected(1);
    t.parents(&[("a", false)]);
    let begun = t.now;
    // Whatever it sends, it turns out not to be the piece; and the scheduler has no answer.
    while t.at_origin().is_empty() {
        assert!(t.now.since(begun) < ms(20_000), "{}", t.machine.situation());
        t.has("a", &[0]);
        match t.at("a")[..] {
            [(id, _)] => {
                t.tick(ms(100), &[(id, PIECE)]);
                t.fail(id, FailureKind::Missing);
            }
            _ => drop(t.tick(ms(100), &[])),
        }
    }
    deliver_all(&mut t);
    assert_eq!(t.finished, Some(Outcome::Done));
}
