//! The scheduler: leases, losses, silence, Dragonfly.

use damselfly_core::download::{
    Client, Config, Effect, Event, Facts, FailureKind, Fetch, FromParent, FromScheduler, Held, LostClient,
    Outcome, ParentInfo, ToScheduler,
};
use damselfly_core::{ByteRange, RangeSpec};
use std::time::Duration;

use super::{connected, deliver_all, fresh, held, lost};
use crate::checker::Checker;
use crate::script::{PIECE, client, facts, learned, lease, ms, told};

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
    assert_eq!(pieces, [0], "siblings may come, and wait for a first piece");
    t.tick(ms(300), &[]);
    let pieces: Vec<_> = t.at_origin().iter().map(|(_, piece)| piece.unwrap()).collect();
    assert_eq!(pieces, [0, 1], "nobody came, and the origin takes long");
    t.deliver(first);
    let pieces: Vec<_> = t.at_origin().iter().map(|(_, piece)| piece.unwrap()).collect();
    assert_eq!(pieces, [1, 2, 3, 4], "as many as one host may");
    deliver_all(&mut t);
    assert_eq!(t.held.len(), 8, "no piece beyond the lease");
    t.scheduler(lease(2, 8..12));
    let effects = deliver_all(&mut t);
    assert_eq!(t.finished, Some(Outcome::Done));
    assert_eq!(told(&effects).last(), Some(&ToScheduler::Finished { back_to_source: false }));
    assert_eq!(effects.last(), Some(&Effect::Finish(Outcome::Done)));
}

#[test]
fn siblings_share_the_line_to_the_origin() {
    for (siblings, most) in [(1, 2), (2, 1), (3, 1), (9, 1)] {
        let mut t = fresh();
        t.join(1);
        t.scheduler(FromScheduler::Connected { ours: true });
        t.scheduler(lease(1, 0..8));
        let [(first, Some(0))] = t.at_origin()[..] else { panic!("the first contact") };
        t.learn(first, learned(40));
        let names: Vec<String> = (0..siblings).map(|number| format!("s{number}")).collect();
        let mut list: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), false)).collect();
        // Who has everything needs nothing from the origin.
        list.push(("complete", true));
        t.parents(&list);
        t.deliver(first);
        assert_eq!(t.at_origin().len(), most, "{siblings} siblings");
    }
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
        let effects = t.scheduler(FromScheduler::Parents(vec![ParentInfo {
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
fn leases_of_what_is_held_are_given_back_too() {
    let mut t = Checker::new(Config::default(), held(20, &[0, 1, 2, 3]));
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    let effects = t.scheduler(lease(1, 0..4));
    assert_eq!(told(&effects), [ToScheduler::BackToSourceStarted, ToScheduler::Release(1)]);
    t.scheduler(lease(2, 4..6));
    let effects = deliver_all(&mut t);
    assert_eq!(told(&effects).last(), Some(&ToScheduler::Release(2)), "whether or not every report counted");
}

#[test]
fn parts_far_from_each_other_all_get_their_leases() {
    let part = |id, first: u64, count: u64| {
        let range = ByteRange { start: first * PIECE, length: count * PIECE };
        (range, Event::Join(Client { range: RangeSpec::Span(range), ..client(id) }))
    };
    let (near, far) = (part(1, 0, 2), part(2, 100, 5));
    let mut t = fresh();
    t.step(near.1.clone());
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(facts(110));
    t.scheduler(lease(1, 0..2));
    let effects = t.step(far.1.clone());
    assert_eq!(told(&effects), [ToScheduler::Wants(Some(far.0))], "the first part needs no more");
    t.scheduler(lease(2, 100..105));
    deliver_all(&mut t);
    assert_eq!(t.finished, Some(Outcome::Done));

    // What the first part lacks is with somebody who does not get on.
    let mut t = fresh();
    t.step(near.1);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(facts(110));
    assert!(told(&t.step(far.1)).is_empty());
    let wants: Vec<ToScheduler> = (0..3).flat_map(|_| told(&t.tick(ms(1000), &[]))).collect();
    let wants: Vec<&ToScheduler> =
        wants.iter().filter(|message| matches!(message, ToScheduler::Wants(_))).collect();
    let [near, far] = [near.0, far.0].map(|range| ToScheduler::Wants(Some(range)));
    assert_eq!(wants, [&far, &near, &far]);

    // Whoever wants everything wants the parts, too.
    let mut t = connected(110);
    let effects = t.step(part(2, 100, 5).1);
    assert!(
        told(&effects).is_empty()
            && told(&t.tick(ms(5000), &[]))
                .iter()
                .all(|message| { !matches!(message, ToScheduler::Wants(_)) })
    );
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
fn dragonflys_scheduler_is_asked_rarely_while_attempts_stand_still() {
    let questions = |foreign_scheduler: bool| {
        let mut t = Checker::new(Config { foreign_scheduler, ..Config::default() }, held(8, &[]));
        t.step(Event::Join(Client { may_use_origin: false, ..client(1) }));
        t.scheduler(FromScheduler::Connected { ours: !foreign_scheduler });
        let parents = vec![ParentInfo { id: "a".into(), ours: !foreign_scheduler, complete: false }];
        t.scheduler(FromScheduler::Parents(parents.clone()));
        t.has("a", &(0..8).collect::<Vec<_>>());
        let (begun, mut asked) = (t.now, Vec::new());
        while t.now.since(begun) < Duration::from_secs(14) {
            let effects = t.tick(ms(100), &[]);
            if told(&effects).iter().any(|message| matches!(message, ToScheduler::Reschedule { .. })) {
                asked.push(t.now.since(begun).as_millis() / 1000);
                t.scheduler(FromScheduler::Parents(parents.clone()));
            }
        }
        asked
    };
    assert_eq!(questions(true), [5, 10], "its fifth answer is the origin");
    assert_eq!(questions(false), [1, 2, 4, 8]);
}

#[test]
fn a_length_at_second_hand_is_believed_where_nobody_else_told() {
    let config = Config { foreign_scheduler: true, ..Config::default() };
    let mut t = Checker::new(config.clone(), Held::default());
    t.step(Event::Join(Client { may_use_origin: false, ..client(1) }));
    let length = |pieces| FromScheduler::Length(held(pieces, &[]).geometry.unwrap());
    t.scheduler(length(4));
    assert_eq!(t.geometry.unwrap().piece_count(), 4);
    t.scheduler(length(5));
    assert_eq!(t.geometry.unwrap().piece_count(), 4, "the first word stands");
    t.scheduler(FromScheduler::Connected { ours: false });
    let effects = t.scheduler(length(4));
    assert!(told(&effects).is_empty(), "it answers nothing, so nothing is asked: {effects:?}");
    let effects = t.scheduler(FromScheduler::Parents(vec![ParentInfo {
        id: "a".into(),
        ours: false,
        complete: false,
    }]));
    assert_eq!(told(&effects), [ToScheduler::Started]);
    t.has("a", &[0, 1, 2, 3]);
    deliver_all(&mut t);
    assert_eq!(t.finished, Some(Outcome::Done));

    // The origin says otherwise: that is a new version.
    let mut t = Checker::new(config, Held::default());
    t.step(Event::Join(Client { may_use_origin: false, ..client(1) }));
    t.scheduler(length(4));
    t.scheduler(FromScheduler::Connected { ours: false });
    t.join(2);
    t.scheduler(FromScheduler::BackToSource(None));
    let (first, _) = t.at_origin()[0];
    t.fail(first, FailureKind::Changed(Default::default()));
    let effects = t.reap();
    assert!(effects.contains(&Effect::NewGeneration(1)), "{effects:?}");
    t.scheduler(length(4));
    assert_eq!(t.geometry, None, "the old length is not believed again");
    let (first, _) = t.at_origin()[0];
    t.learn(first, learned(6));
    deliver_all(&mut t);
    assert_eq!((t.finished, t.held.len()), (Some(Outcome::Done), 6));
}
