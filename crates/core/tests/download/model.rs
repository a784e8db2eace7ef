//! Random events in any order, sensible or not: whatever happens, the checker finds nothing amiss, and once the world
//! behaves again the download comes to its end.

use std::time::Duration;

use damselfly_core::download::{
    AttemptId, Client, ClientId, Config, Event, FailureKind, FromAttempt, FromParent, FromScheduler,
    HeadersId, Held, Learned, ParentInfo, Validator,
};
use damselfly_core::{ByteRange, Crc, Geometry, PieceSet, RangeSpec};
use proptest::prelude::*;

use crate::checker::Checker;
use crate::script::*;

const PIECES: u32 = 12;

/// One random thing to happen. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Action {
    Join {
        id: u64,
        range: RangeSpec,
        headers: u64,
        may_use_origin: bool,
        patience: Option<u64>,
    },
    Leave(u64),
    Pause,
    Resume,
    Cancel,
    Tick {
        after: u64,
        moving: u8,
    },
    Scheduler(FromScheduler),
    Ledger(u32, bool),
    Parent(u8, FromParent),
    Deliver(usize),
    /// Stores without ending, perhaps another piece, perhaps other bytes.
    Store(usize, u32, bool),
    Learn(usize, Learned),
    EndStream(usize),
    Fail(usize, FailureKind),
    Succeed(usize),
    Reap,
    Unknown(FailureKind),
}

fn range() -> impl Strategy<Value = RangeSpec> {
    let end = u64::from(PIECES) * PIECE;
    prop_oneof![
        3 => Just(RangeSpec::Whole),
        2 => (0..end, 1..end).prop_map(|(start, length)| RangeSpec::Span(ByteRange { start, length })),
        1 => (0..end + PIECE).prop_map(RangeSpec::From),
        1 => (0..end).prop_map(RangeSpec::Last),
    ]
}

fn geometry(pieces: u32) -> Geometry {
    Geometry::new(u64::from(pieces) * PIECE, PIECE).unwrap()
}

fn validator() -> impl Strategy<Value = Validator> {
    proptest::option::of(0u8..3).prop_map(|version| Validator {
        etag: version.map(|version| format!("\"{version}\"")),
        last_modified: None,
    })
}

fn any_learned() -> impl Strategy<Value = Learned> {
    let length =
        prop_oneof![6 => Just(Some(PIECES)), 1 => Just(None), 1 => Just(Some(3)), 1 => Just(Some(0))];
    let ranges = prop_oneof![4 => Just(Some(true)), 1 => Just(Some(false)), 1 => Just(None)];
    (length, ranges, validator()).prop_map(|(pieces, ranges, validator)| Learned {
        content_length: pieces.map(|pieces| u64::from(pieces) * PIECE),
        piece_length: if pieces.is_some() { PIECE } else { 0 },
        ranges,
        validator,
        ..Learned::default()
    })
}

fn parent_infos() -> impl Strategy<Value = Vec<ParentInfo>> {
    proptest::collection::vec((0u8..6, any::<bool>(), any::<bool>()), 0..6).prop_map(|list| {
        let info = |(id, ours, complete)| ParentInfo { id: format!("p{id}").into(), ours, complete };
        list.into_iter().map(info).collect()
    })
}

fn scheduler() -> impl Strategy<Value = FromScheduler> {
    let facts = (0u64..4, proptest::option::of(any_learned())).prop_map(|(generation, learned)| {
        FromScheduler::Facts(damselfly_core::download::Facts { generation, learned, ..Default::default() })
    });
    let lease = (0u64..5, 0..PIECES, 1u32..8, 0u64..3).prop_map(|(id, first, count, generation)| {
        let mut message = lease(id, first..first + count);
        if let FromScheduler::BackToSource(Some(lease)) = &mut message {
            lease.generation = generation;
        }
        message
    });
    prop_oneof![
        4 => any::<bool>().prop_map(|ours| FromScheduler::Connected { ours }),
        6 => parent_infos().prop_map(FromScheduler::Parents),
        4 => facts,
        6 => lease,
        1 => (1..PIECES + 2).prop_map(|pieces| FromScheduler::Length(geometry(pieces))),
        1 => Just(FromScheduler::BackToSource(None)),
        1 => Just(FromScheduler::Empty),
        1 => Just(FromScheduler::Refused("no".into())),
        1 => Just(FromScheduler::Absent),
        2 => Just(FromScheduler::Lost("broken".into())),
    ]
}

fn failure_kind() -> impl Strategy<Value = FailureKind> {
    prop_oneof![
        4 => proptest::option::of(0u64..20).prop_map(|after| FailureKind::Retry {
            after: after.map(Duration::from_secs)
        }),
        2 => Just(FailureKind::Wrong),
        2 => Just(FailureKind::Missing),
        1 => Just(FailureKind::Unauthorized),
        1 => Just(FailureKind::Refused),
        1 => validator().prop_map(FailureKind::Changed),
        1 => Just(FailureKind::Storage),
        2 => Just(FailureKind::Cancelled),
    ]
}

fn from_parent() -> impl Strategy<Value = FromParent> {
    prop_oneof![
        6 => proptest::collection::vec(0..PIECES + 2, 0..8).prop_map(FromParent::Has),
        1 => Just(FromParent::Mismatch("offset".into())),
        1 => Just(FromParent::Ended),
        1 => Just(FromParent::Lost("broken".into())),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let join = (0u64..8, range(), 0u64..3, any::<bool>(), proptest::option::weighted(0.2, 0u64..40_000));
    let join = join.prop_map(|(id, range, headers, may_use_origin, patience)| Action::Join {
        id,
        range,
        headers,
        may_use_origin,
        patience,
    });
    prop_oneof![
        3 => join,
        1 => (0u64..8).prop_map(Action::Leave),
        1 => Just(Action::Pause),
        2 => Just(Action::Resume),
        1 => proptest::bool::weighted(0.1).prop_map(|really| if really { Action::Cancel } else { Action::Reap }),
        8 => (prop_oneof![0u64..300, 0u64..7000], any::<u8>())
            .prop_map(|(after, moving)| Action::Tick { after, moving }),
        8 => scheduler().prop_map(Action::Scheduler),
        1 => (0..PIECES, any::<bool>()).prop_map(|(piece, right)| Action::Ledger(piece, right)),
        8 => (0u8..6, from_parent()).prop_map(|(parent, message)| Action::Parent(parent, message)),
        10 => any::<usize>().prop_map(Action::Deliver),
        2 => (any::<usize>(), 0..PIECES + 2, any::<bool>())
            .prop_map(|(which, piece, right)| Action::Store(which, piece, right)),
        4 => (any::<usize>(), any_learned()).prop_map(|(which, learned)| Action::Learn(which, learned)),
        1 => any::<usize>().prop_map(Action::EndStream),
        5 => (any::<usize>(), failure_kind()).prop_map(|(which, kind)| Action::Fail(which, kind)),
        1 => any::<usize>().prop_map(Action::Succeed),
        5 => Just(Action::Reap),
        1 => failure_kind().prop_map(Action::Unknown),
    ]
}

fn which(t: &Checker, index: usize) -> Option<AttemptId> {
    let ids: Vec<AttemptId> = t.running.keys().copied().collect();
    index.checked_rem(ids.len()).map(|index| ids[index])
}

fn perform(t: &mut Checker, action: Action) {
    let attempt = |t: &Checker, index| which(t, index);
    match action {
        Action::Join { id, range, headers, may_use_origin, patience } => {
            // An id is used once.
            if t.ready.contains(&ClientId(id)) || t.failed.contains_key(&ClientId(id)) {
                return;
            }
            let deadline = patience.map(|patience| t.now + ms(patience));
            let headers = HeadersId(headers);
            t.step(Event::Join(Client { id: ClientId(id), range, headers, may_use_origin, deadline }));
        }
        Action::Leave(id) => drop(t.step(Event::Leave(ClientId(id)))),
        Action::Pause => drop(t.step(Event::Pause)),
        Action::Resume => drop(t.step(Event::Resume)),
        Action::Cancel => drop(t.step(Event::Cancel)),
        Action::Tick { after, moving } => {
            let ids = t.running.keys().enumerate();
            let progress = ids
                .filter(|(index, _)| moving >> (index % 8) & 1 == 1)
                .map(|(_, &id)| (id, t.now.0 % PIECE))
                .collect::<Vec<_>>();
            t.tick(ms(after), &progress);
        }
        Action::Scheduler(message) => drop(t.scheduler(message)),
        Action::Ledger(piece, right) => {
            let crc = if right { crc_of(piece) } else { Crc(0) };
            t.tell_ledger(piece, vec![crc]);
        }
        Action::Parent(parent, message) => drop(t.step(Event::Parent(format!("p{parent}").into(), message))),
        Action::Deliver(index) => {
            if let Some(id) = attempt(t, index).filter(|id| t.running[id].piece.is_some()) {
                t.deliver(id);
            }
        }
        Action::Store(index, piece, right) => {
            if let Some(id) = attempt(t, index) {
                t.stored(id, piece, if right { crc_of(piece) } else { Crc(1) });
            }
        }
        Action::Learn(index, learned) => {
            if let Some(id) = attempt(t, index) {
                t.learn(id, learned);
            }
        }
        Action::EndStream(index) => {
            if let Some(id) = attempt(t, index) {
                let geometry = geometry(PIECES);
                let crcs = (0..PIECES).map(crc_of).collect();
                t.step(Event::Attempt(id, FromAttempt::Ended { geometry, crcs }));
            }
        }
        Action::Fail(index, kind) => {
            if let Some(id) = attempt(t, index) {
                t.fail(id, kind);
            }
        }
        Action::Succeed(index) => {
            if let Some(id) = attempt(t, index) {
                t.over(id);
            }
        }
        Action::Reap => drop(t.reap()),
        Action::Unknown(kind) => drop(t.fail(AttemptId(u64::MAX), kind)),
    }
}

/// From now on everything works: fetches deliver, ticks come when they are asked for. Every client must come to an end.
fn world_heals(t: &mut Checker) {
    if t.paused {
        t.step(Event::Resume);
    }
    for _ in 0..3000 {
        if t.finished.is_some() {
            return;
        }
        t.reap();
        if let Some(&id) = t.live().first() {
            t.advance(ms(5));
            let running = t.running[&id].clone();
            let count = t.geometry.map(|geometry| geometry.piece_count());
            match (running.piece, count) {
                (Some(_), Some(_)) => drop(t.deliver(id)),
                (_, None) => {
                    let news = Learned { validator: Validator::default(), ..learned(PIECES) };
                    t.learn(id, news);
                    if running.piece.is_none() {
                        t.over(id);
                    }
                }
                (None, Some(count)) => {
                    for piece in 0..count {
                        t.stored(id, piece, crc_of(piece));
                    }
                    t.over(id);
                }
            }
            continue;
        }
        // Ended ones whose end was not reported yet.
        if let Some(&id) = t.running.keys().next() {
            t.over(id);
            continue;
        }
        match t.machine.deadline() {
            Some(at) => {
                let wait = at.since(t.now);
                t.tick(wait, &[]);
            }
            None => break,
        }
    }
    assert!(
        t.finished.is_some() || (t.waiting.is_empty() && t.machine.state() == "idle"),
        "never ends: {} ({})",
        t.machine.situation(),
        t.machine.state()
    );
}

fn held() -> impl Strategy<Value = Held> {
    let some = (proptest::collection::vec(0..PIECES, 0..10), validator(), any::<bool>()).prop_map(
        |(numbers, validator, paused)| {
            let mut pieces = PieceSet::new(PIECES);
            for &number in &numbers {
                pieces.insert(number);
            }
            Held {
                geometry: Some(geometry(PIECES)),
                pieces,
                crcs: numbers.into_iter().map(|number| (number, crc_of(number))).collect(),
                validator,
                paused,
                ..Held::default()
            }
        },
    );
    prop_oneof![Just(Held::default()), some]
}

fn config() -> impl Strategy<Value = Config> {
    (proptest::bool::weighted(0.9), proptest::bool::weighted(0.3), any::<u64>(), 1usize..17).prop_map(
        |(uses_origin, foreign_scheduler, fingerprint, max_in_flight)| Config {
            uses_origin,
            foreign_scheduler,
            fingerprint,
            max_in_flight,
            ..Config::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(500)))]

    #[test]
    fn any_order_of_events_is_survived(
        config in config(),
        held in held(),
        first in range(),
        actions in proptest::collection::vec(action(), 0..120),
    ) {
        let mut t = Checker::new(config, held);
        t.step(Event::Join(Client { range: first, ..client(100) }));
        for action in actions {
            perform(&mut t, action);
        }
        world_heals(&mut t);
    }
}
