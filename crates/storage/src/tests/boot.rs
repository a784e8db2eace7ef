use std::time::Duration;

use damselfly_core::{Algorithm, ByteRange};

use crate::testing::{Bench, bytes, complete, fetch, key, put};
use crate::{Store, StoreError};

/// A complete task with piece 2 of 5 damaged while the store was closed.
fn damaged(bench: &Bench, clean: bool) -> Vec<u8> {
    let content = bytes(3, 5000);
    let store = bench.open();
    drop(complete(&store, &key(1), &content, 1000));
    if clean {
        store.shutdown().unwrap();
    }
    drop(store);
    bench.corrupt(&key(1), "data", 2500);
    content
}

#[test]
fn after_a_kill_every_piece_is_verified_before_its_first_use() {
    let bench = Bench::new();
    let content = damaged(&bench, false);
    let store = bench.open();
    let task = store.get(&key(1)).unwrap();
    let changes = task.changes();
    assert!(task.is_complete(), "found out only when used");
    assert_eq!(fetch(&task, 1).unwrap(), &content[1000..2000]);
    assert!(!changes.has_changed().unwrap());
    assert_eq!(fetch(&task, 2), None);
    assert!(changes.has_changed().unwrap());
    assert_eq!(task.pieces().missing().collect::<Vec<_>>(), [2]);
    put(&task, &content, 2);
    assert_eq!(fetch(&task, 2).unwrap(), &content[2000..3000]);
    drop((task, store));
    assert!(bench.open().get(&key(1)).unwrap().is_complete());
}

#[test]
fn an_abandoned_store_can_be_opened_while_parts_of_it_live() {
    let bench = Bench::new();
    // The real machine: this is about files that two stores have open.
    let open = || Store::open(bench.options.clone());
    let (store, content) = (open().unwrap(), bytes(3, 3000));
    let task = complete(&store, &key(1), &content, 1000);
    let partial = crate::testing::begin(&store, &key(2), &content, 1000);
    let pin = partial.pin().unwrap();
    partial.reserve(&damselfly_core::PieceSet::full(3)).unwrap();
    assert!(matches!(open(), Err(StoreError::Locked { .. })));
    store.abandon();
    let next = open().unwrap();
    bench.corrupt(&key(1), "data", 1500);
    let same = next.get(&key(1)).unwrap();
    assert_eq!(fetch(&same, 1), None, "not marked clean: verified before its first use");
    // What was left over neither records anything nor takes away what its successor writes.
    assert!(matches!(task.invalidate(0), Err(StoreError::Closed)));
    let successor = next.get(&key(2)).unwrap();
    successor.reserve(&damselfly_core::PieceSet::full(3)).unwrap();
    put(&successor, &content, 0);
    drop(pin);
    assert_eq!(fetch(&successor, 0).unwrap(), &content[..1000]);
    assert!(matches!(open(), Err(StoreError::Locked { .. })), "the lock is the successor's");
    drop((store, task, partial));
    assert!(matches!(open(), Err(StoreError::Locked { .. })), "and stays its");
}

#[test]
fn nothing_unverified_leaves_by_any_way() {
    let bench = Bench::new();
    damaged(&bench, false);
    let store = bench.open();
    let task = store.get(&key(1)).unwrap();
    let error = task.digest(Algorithm::Sha256).unwrap_err();
    assert!(matches!(error, StoreError::Missing { first: 2, count: 1, .. }), "{error}");
    for (start, good) in [(0, true), (1999, true), (2000, false), (1000, true), (3000, true)] {
        let output = task.output_of(ByteRange { start, length: 1 });
        assert_eq!(output.is_ok(), good, "{start}");
        assert!(output.is_ok() || matches!(output, Err(StoreError::Missing { first: 2, count: 1, .. })));
    }
    let held = task.verify_range(ByteRange { start: 900, length: 2000 }).unwrap();
    assert_eq!(held.iter().collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_clean_shutdown_in_this_boot_is_trusted() {
    let bench = Bench::new();
    damaged(&bench, true);
    let task = bench.open().get(&key(1)).unwrap();
    assert!(task.piece(2).unwrap().is_some(), "not read, or the damage would have been found");
}

#[test]
fn the_marker_counts_once() {
    let bench = Bench::new();
    damaged(&bench, true);
    drop(bench.open());
    let task = bench.open().get(&key(1)).unwrap();
    assert!(task.piece(2).unwrap().is_none());
}

#[test]
fn the_marker_of_another_boot_does_not_count() {
    let bench = Bench::new();
    damaged(&bench, true);
    bench.system.reboot(9, Duration::from_secs(60));
    let task = bench.open().get(&key(1)).unwrap();
    assert!(task.piece(2).unwrap().is_none());
}

#[test]
fn a_clean_shutdown_does_not_vouch_for_what_was_never_verified() {
    let bench = Bench::new();
    let content = damaged(&bench, false);
    let store = bench.open();
    assert_eq!(fetch(&store.get(&key(1)).unwrap(), 0).unwrap(), &content[..1000]);
    store.shutdown().unwrap();
    drop(store);
    let store = bench.open();
    let task = store.get(&key(1)).unwrap();
    assert!(task.piece(2).unwrap().is_none());
    // Once everything is verified, the next clean shutdown vouches for it again.
    put(&task, &content, 2);
    task.digest(Algorithm::Crc32).unwrap();
    store.shutdown().unwrap();
    drop((task, store));
    bench.corrupt(&key(1), "data", 2500);
    assert!(bench.open().get(&key(1)).unwrap().piece(2).unwrap().is_some());
}

#[test]
fn nothing_is_published_after_the_shutdown() {
    let bench = Bench::new();
    let content = bytes(1, 100);
    let store = bench.open();
    let task = crate::testing::begin(&store, &key(1), &content, 50);
    let mut slot = task.slot(0).unwrap();
    slot.write_at(0, &content[..50]).unwrap();
    store.shutdown().unwrap();
    let error = slot.commit(damselfly_core::Crc::of(&content[..50])).unwrap_err();
    assert!(matches!(error, StoreError::Closed));
    assert!(matches!(task.slot(1), Err(StoreError::Closed)));
    assert!(matches!(store.get_or_create(&key(2), crate::NewTask::default()), Err(StoreError::Closed)));
}
