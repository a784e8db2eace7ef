//! Admission makes room of what nobody uses.

use std::time::Duration;

use damselfly_core::{PieceSet, TaskKey};

use crate::system::Space;
use crate::testing::{Bench, begin, bytes, complete, fetch, key, put};
use crate::{NewTask, Store, StoreError};

const HOUR: Duration = Duration::from_secs(3600);

/// A store that may hold `capacity` bytes, with tasks 1 to `count` of 2000 bytes each, the first one used longest ago.
fn idle(capacity: u64, count: u32) -> (Bench, std::sync::Arc<Store>) {
    let mut bench = Bench::new();
    bench.options.capacity = Some(capacity);
    // Passes leave alone what admission left.
    (bench.options.high_percent, bench.options.low_percent) = (100, 100);
    let store = bench.open();
    for number in 1..=count {
        complete(&store, &key(number), &bytes(u64::from(number), 2000), 1000);
        bench.system.pass(HOUR);
    }
    (bench, store)
}

fn there(store: &Store) -> Vec<TaskKey> {
    (0..20).map(key).filter(|key| store.get(key).is_some()).collect()
}

#[test]
fn a_reservation_evicts_what_was_used_longest_ago() {
    let (bench, store) = idle(10_000, 5);
    fetch(&store.get(&key(1)).unwrap(), 0).unwrap();
    let pinned = store.get(&key(2)).unwrap().pin().unwrap();
    let served = store.get(&key(4)).unwrap().piece(0).unwrap().unwrap();
    bench.system.pass(HOUR);
    let task = begin(&store, &key(9), &bytes(9, 4000), 1000);
    task.reserve(&PieceSet::full(4)).unwrap();
    assert_eq!(there(&store), [1, 2, 4, 9].map(key));
    assert_eq!((store.usage().free, store.usage().reserved), (0, 4000));
    drop((pinned, served));
    // Whoever tells others of evictions hears of these, once.
    let collected = store.collect(store.now());
    assert_eq!((collected.evicted, collected.freed), (vec![key(3), key(5)], 4000));
    assert!(store.collect(store.now()).evicted.is_empty());
}

#[test]
fn nothing_is_evicted_in_vain() {
    let (_bench, store) = idle(10_000, 3);
    let _pinned = store.get(&key(2)).unwrap().pin().unwrap();
    let task = begin(&store, &key(9), &bytes(9, 9000), 1000);
    let error = task.reserve(&PieceSet::full(9)).unwrap_err();
    assert!(matches!(&error, StoreError::NoSpace { shortage, .. } if shortage.used == 6000), "{error}");
    assert_eq!(there(&store), [1, 2, 3, 9].map(key));
    assert_eq!(store.usage().reserved, 0);
}

#[test]
fn a_task_does_not_make_room_of_itself() {
    let (_bench, store) = idle(5000, 0);
    let content = bytes(1, 6000);
    let task = begin(&store, &key(1), &content, 1000);
    (0..3).for_each(|number| put(&task, &content, number));
    let error = task.reserve(&PieceSet::full(6)).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    assert_eq!(fetch(&task, 2).unwrap(), &content[2000..3000]);
}

#[test]
fn content_of_unknown_length_makes_room_as_it_comes() {
    const UNIT: usize = 4 << 20;
    let (_bench, store) = idle(2 * UNIT as u64, 2);
    let task = store.get_or_create(&key(9), NewTask::default()).unwrap();
    let mut writer = task.unit_writer().unwrap();
    writer.append(&bytes(9, UNIT)).unwrap();
    assert_eq!(there(&store), [1, 2, 9].map(key));
    writer.append(&bytes(9, UNIT)).unwrap();
    assert_eq!(there(&store), [key(9)]);
    assert!(matches!(writer.append(b"x"), Err(StoreError::NoSpace { .. })));
}

#[test]
fn a_full_disk_is_reason_enough() {
    let mut bench = Bench::new();
    bench.options.capacity = None;
    let store = bench.open();
    for number in 1..=2 {
        complete(&store, &key(number), &bytes(1, 2000), 1000);
        bench.system.pass(HOUR);
    }
    {
        // Room for 3000 above the margin of 1000.
        let mut play = bench.system.0.lock();
        play.space = Some(Space { total: 100_000, free: 4000 });
        play.removal_frees = 700;
    }
    let task = begin(&store, &key(9), &bytes(9, 5000), 1000);
    task.reserve(&PieceSet::full(5)).unwrap();
    assert_eq!(there(&store), [key(2), key(9)]);
}

#[test]
fn what_one_gets_freed_nobody_else_takes() {
    for _ in 0..20 {
        let (_bench, store) = idle(10_000, 5);
        let tasks: Vec<_> =
            (11..=14).map(|number| begin(&store, &key(number), &bytes(1, 2500), 500)).collect();
        let pins: Vec<_> = tasks.iter().map(|task| task.pin().unwrap()).collect();
        let start = std::sync::Barrier::new(tasks.len());
        std::thread::scope(|scope| {
            for task in &tasks {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    task.reserve(&PieceSet::full(5)).unwrap();
                });
            }
        });
        assert_eq!((store.usage().reserved, store.usage().used), (10_000, 0));
        drop(pins);
    }
}
