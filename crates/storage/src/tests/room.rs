use damselfly_core::{Class, PieceSet};

use crate::StoreError;
use crate::system::Space;
use crate::testing::{Bench, begin, bytes, key, put, set};

/// Room for exactly `free` bytes above the margin (a hundredth of 100,000).
fn space(free: u64) -> Option<Space> {
    Some(Space { total: 100_000, free: free + 1000 })
}

#[test]
fn concurrent_reservations_add_up() {
    for sparse_only in [false, true] {
        let bench = Bench::new();
        {
            let mut play = bench.system.0.lock();
            play.space = space(10_000);
            play.sparse_only = sparse_only;
        }
        let store = bench.open();
        let content = bytes(1, 6000);
        let one = begin(&store, &key(1), &content, 1000);
        let two = begin(&store, &key(2), &content, 1000);
        let _at_work = one.pin().unwrap();
        one.reserve(&PieceSet::full(6)).unwrap();
        one.reserve(&PieceSet::full(6)).unwrap();
        assert_eq!((store.usage().reserved, store.usage().free), (6000, 4000));
        let error = two.reserve(&PieceSet::full(6)).unwrap_err();
        let StoreError::NoSpace { shortage, .. } = &error else { panic!("{error}") };
        let (free, reserved) = if sparse_only { (10_000, 6000) } else { (4000, 0) };
        assert_eq!((shortage.needed, shortage.free, shortage.reserved), (6000, free, reserved));
        assert_eq!(error.class(), Class::Fatal);
        let text = error.to_string();
        assert!(text.contains("no space left on device") && text.contains("6000 bytes needed"), "{text}");
        assert!(text.contains("storage.dir"), "{text}");
        // A part of it fits: a range of a huge object is not asked to fit whole.
        two.reserve(&set(&two, &[1, 2, 3, 5])).unwrap();
        assert_eq!((store.usage().reserved, store.usage().free), (10_000, 0));
        drop(two);
        store.delete(&key(2)).unwrap();
        if !sparse_only {
            bench.system.0.lock().space = space(4000); // the fake does not see deletions
        }
        assert_eq!((store.usage().reserved, store.usage().free), (6000, 4000));
        assert_eq!(bench.system.0.lock().allocated.is_empty(), sparse_only);
    }
}

#[test]
fn of_many_at_once_only_as_many_are_admitted_as_fit() {
    let mut bench = Bench::new();
    bench.options.capacity = Some(10_000);
    let store = bench.open();
    let tasks: Vec<_> = (0..8).map(|number| begin(&store, &key(number), &bytes(1, 3000), 1000)).collect();
    let _at_work: Vec<_> = tasks.iter().map(|task| task.pin().unwrap()).collect();
    let start = std::sync::Barrier::new(tasks.len());
    let admitted = std::thread::scope(|scope| {
        let reserve = |task| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                crate::TaskContent::reserve(task, &PieceSet::full(3)).is_ok()
            })
        };
        let threads: Vec<_> = tasks.iter().map(reserve).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|&admitted| admitted).count()
    });
    assert_eq!((admitted, store.usage().reserved), (3, 9000));
}

#[test]
fn blocks_are_allocated_by_runs() {
    let bench = Bench::new();
    let store = bench.open();
    let task = begin(&store, &key(1), &bytes(1, 5500), 1000);
    put(&task, &bytes(1, 5500), 1);
    task.reserve(&set(&task, &[0, 1, 3, 4, 5])).unwrap();
    assert_eq!(bench.system.0.lock().allocated, [(0, 1000), (3000, 2500)]);
}

#[test]
fn what_is_written_is_not_counted_twice() {
    let mut bench = Bench::new();
    bench.options.capacity = Some(5000);
    for sparse_only in [false, true] {
        bench.system.0.lock().sparse_only = sparse_only;
        let store = bench.open();
        let content = bytes(1, 5000);
        let task = begin(&store, &key(u32::from(sparse_only)), &content, 1000);
        task.reserve(&PieceSet::full(5)).unwrap();
        for number in 0..5 {
            put(&task, &content, number);
            let usage = store.usage();
            assert_eq!((usage.used + usage.reserved, usage.free), (5000, 0));
        }
        assert_eq!(store.usage().reserved, 0);
        assert_eq!(store.usage().total, 5000);
        // An invalidated piece keeps its room, so that it can be fetched again.
        task.invalidate(3).unwrap();
        assert_eq!((store.usage().used, store.usage().reserved), (4000, 1000));
        put(&task, &content, 3);
        assert_eq!((store.usage().used, store.usage().reserved), (5000, 0));
        let other = begin(&store, &key(7), &content, 1000);
        let served = task.piece(0).unwrap();
        let error = other.reserve(&set(&other, &[0])).unwrap_err();
        assert!(error.to_string().contains("diskThreshold"), "{error}");
        drop(served);
        store.delete(task.key()).unwrap();
        assert_eq!(store.usage().free, 5000);
        store.delete(&key(7)).unwrap();
    }
}

#[test]
fn the_last_pin_gives_back_what_was_not_written() {
    let bench = Bench::new();
    bench.system.0.lock().space = space(10_000);
    let store = bench.open();
    let content = bytes(1, 6000);
    let task = begin(&store, &key(1), &content, 1000);
    let (one, two) = (task.pin().unwrap(), task.pin().unwrap());
    task.reserve(&PieceSet::full(6)).unwrap();
    put(&task, &content, 2);
    let lent = task.slot(4).unwrap();
    drop(one);
    assert_eq!(store.usage().reserved, 5000);
    drop(two);
    assert_eq!(store.usage().reserved, 1000, "what is lent out is still being written");
    drop(lent);
    assert_eq!(bench.system.0.lock().space, space(8000));
    task.reserve(&PieceSet::full(6)).unwrap();
    assert_eq!(store.usage().reserved, 5000);
    drop(task.pin().unwrap());
    assert_eq!((store.usage().reserved, store.usage().used), (0, 1000));
    assert_eq!(bench.system.0.lock().space, space(9000));
}

#[test]
fn a_failing_allocation_reserves_nothing() {
    let bench = Bench::new();
    let store = bench.open();
    let task = begin(&store, &key(1), &bytes(1, 6000), 1000);
    put(&task, &bytes(1, 6000), 2);
    // Room enough by the numbers, but somebody else takes it before the second run's blocks are there.
    bench.system.0.lock().space = space(10_000);
    bench.system.0.lock().allocations = Some(1);
    let error = task.reserve(&PieceSet::full(6)).unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { .. }) && error.class() == Class::Fatal, "{error}");
    assert_eq!((store.usage().reserved, store.usage().used), (0, 1000));
    assert_eq!(bench.system.0.lock().space, space(10_000), "the first run's blocks are given back");
    bench.system.0.lock().allocations = None;
    task.reserve(&PieceSet::full(6)).unwrap();
    assert_eq!(store.usage().reserved, 5000);
}

#[test]
fn admission_survives_a_new_generation_and_a_restart() {
    let bench = Bench::new();
    bench.system.0.lock().sparse_only = true;
    let store = bench.open();
    let content = bytes(1, 6000);
    let task = begin(&store, &key(1), &content, 1000);
    task.reserve(&PieceSet::full(6)).unwrap();
    put(&task, &content, 0);
    task.begin_generation(2, damselfly_core::download::Validator::default()).unwrap();
    assert_eq!((store.usage().used, store.usage().reserved), (0, 0));
    task.set_facts(crate::testing::facts(6000, 1000)).unwrap();
    put(&task, &content, 5);
    put(&task, &content, 1);
    drop((task, store));
    let store = bench.open();
    assert_eq!((store.usage().used, store.usage().reserved), (2000, 0));
}
