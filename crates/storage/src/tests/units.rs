use damselfly_core::{Crc, Geometry};

use crate::testing::{Bench, bytes, facts, fetch, key};
use crate::{NewTask, Store, StoreError, TaskContent};

const UNIT: usize = 4 << 20;

fn stream(
    store: &Store,
    content: &[u8],
    piece_length: Option<u64>,
) -> (std::sync::Arc<TaskContent>, Geometry) {
    let task = store.get_or_create(&key(1), NewTask::default()).unwrap();
    let mut writer = task.unit_writer().unwrap();
    if let Some(piece_length) = piece_length {
        writer = writer.with_piece_length(piece_length);
    }
    for chunk in content.chunks(1_000_003) {
        writer.append(chunk).unwrap();
    }
    assert_eq!(writer.written(), content.len() as u64);
    assert!(task.geometry().is_none() && !task.is_complete());
    let (geometry, crcs) = writer.finish().unwrap();
    assert!(task.is_complete());
    for (number, crc) in (0..).zip(&crcs) {
        let part = crate::testing::part(&task, content, number);
        assert_eq!(*crc, Crc::of(part));
        assert_eq!(fetch(&task, number).unwrap(), part);
    }
    assert_eq!(crcs.len(), geometry.piece_count() as usize);
    assert_eq!(store.usage().used, content.len() as u64);
    assert_eq!(store.usage().reserved, 0);
    (task, geometry)
}

#[test]
fn a_content_of_unknown_length_gets_its_pieces_at_the_end() {
    for length in [0, 1, UNIT - 1, UNIT, UNIT + 1, 3 * UNIT + 17] {
        let bench = Bench::new();
        let content = bytes(9, length);
        let (_, geometry) = stream(&bench.open(), &content, None);
        assert_eq!(geometry, Geometry::derived(length as u64).unwrap());
        let store = bench.open();
        let task = store.get(&key(1)).unwrap();
        assert!(task.is_complete(), "after a kill too: {length}");
        task.digest(damselfly_core::Algorithm::Sha256).unwrap();
    }
}

#[test]
fn named_piece_lengths_are_combined_or_read_again() {
    for piece_length in [UNIT as u64, 2 * UNIT as u64, 5_000_000, 1 << 20, 64 << 20] {
        let bench = Bench::new();
        let (_, geometry) = stream(&bench.open(), &bytes(9, 3 * UNIT + 17), Some(piece_length));
        assert_eq!(geometry.piece_length(), piece_length);
    }
}

#[test]
fn an_unfinished_content_leaves_nothing() {
    let bench = Bench::new();
    let store = bench.open();
    let task = store.get_or_create(&key(1), NewTask::default()).unwrap();
    let mut writer = task.unit_writer().unwrap();
    writer.append(&bytes(1, UNIT + 5)).unwrap();
    assert!(matches!(task.unit_writer(), Err(StoreError::Busy { .. })));
    assert!(matches!(task.set_facts(facts(10, 4)), Err(StoreError::Busy { .. })));
    assert!(matches!(store.delete(&key(1)), Err(StoreError::InUse { how: "being written", .. })));
    assert_eq!(store.usage().reserved, 2 * UNIT as u64);
    drop(writer);
    assert_eq!(store.usage().reserved, 0);
    assert_eq!(std::fs::metadata(bench.path(&key(1), "data")).unwrap().len(), 0);
    // And the next one begins at the beginning.
    drop(task);
    stream(&store, &bytes(2, 1000), None);
    assert!(matches!(store.get(&key(1)).unwrap().unit_writer(), Err(StoreError::Busy { .. })));
}

#[test]
fn a_killed_content_of_unknown_length_is_begun_anew() {
    let bench = Bench::new();
    let store = bench.open();
    let mut writer = store.get_or_create(&key(1), NewTask::default()).unwrap().unit_writer().unwrap();
    writer.append(&bytes(1, 5000)).unwrap();
    let killed = tempfile::tempdir().unwrap();
    crate::testing::copy_tree(bench.dir.path(), killed.path());
    let store = bench.open_at(killed.path());
    stream(&store, &bytes(2, 1000), None);
}

#[test]
fn units_are_admitted_one_by_one() {
    let mut bench = Bench::new();
    bench.options.capacity = Some(UNIT as u64 + 100);
    let store = bench.open();
    let task = store.get_or_create(&key(1), NewTask::default()).unwrap();
    let mut writer = task.unit_writer().unwrap();
    writer.append(&bytes(1, UNIT)).unwrap();
    let error = writer.append(b"x").unwrap_err();
    assert!(
        matches!(&error, StoreError::NoSpace { shortage, .. } if shortage.needed == UNIT as u64),
        "{error}"
    );
    drop(writer);
    assert_eq!(store.usage().free, UNIT as u64 + 100);
}

#[test]
fn a_length_told_beforehand_is_admitted_and_allocated_at_once() {
    for (sparse_only, told) in
        [false, true].into_iter().flat_map(|sparse| [0, 1, 5, UNIT, UNIT + 1].map(|told| (sparse, told)))
    {
        let bench = Bench::new();
        bench.system.0.lock().sparse_only = sparse_only;
        let store = bench.open();
        // More may come than was told.
        let content = bytes(3, UNIT + 7);
        let task = store.get_or_create(&key(1), NewTask::default()).unwrap();
        let mut writer = task.unit_writer().unwrap().with_content_length(told as u64).unwrap();
        assert_eq!(store.usage().reserved, told as u64);
        let allocated = bench.system.0.lock().allocated.clone();
        let expected = (!sparse_only && told > 0).then_some((0, told as u64));
        assert_eq!(allocated, Vec::from_iter(expected));
        content.chunks(1_000_003).for_each(|chunk| writer.append(chunk).unwrap());
        writer.finish().unwrap();
        let (usage, pending) = (store.usage(), store.pending());
        assert_eq!((usage.used, usage.reserved, pending), (content.len() as u64, 0, 0), "{told}");
        assert_eq!(fetch(&task, 1).unwrap(), &content[UNIT..]);
        drop(task);
        assert_eq!(store.delete(&key(1)).unwrap().bytes, content.len() as u64);
        // Unfinished, all of it is given back.
        let task = store.get_or_create(&key(1), NewTask::default()).unwrap();
        let mut writer = task.unit_writer().unwrap().with_content_length(told as u64).unwrap();
        writer.append(&content[..told / 2]).unwrap();
        drop(writer);
        assert_eq!((store.usage().used, store.usage().reserved, store.pending()), (0, 0, 0), "{told}");
    }
}

#[test]
fn a_length_that_does_not_fit_is_refused_before_a_byte_comes() {
    let mut bench = Bench::new();
    bench.options.capacity = Some(1000);
    let store = bench.open();
    let task = store.get_or_create(&key(1), NewTask::default()).unwrap();
    let refused = task.unit_writer().unwrap().with_content_length(1001).unwrap_err();
    assert!(matches!(&refused, StoreError::NoSpace { shortage, .. } if shortage.needed == 1001), "{refused}");
    bench.system.0.lock().allocations = Some(0);
    let full = task.unit_writer().unwrap().with_content_length(1000).unwrap_err();
    assert!(matches!(full, StoreError::DiskFull { .. }), "{full}");
    assert_eq!((store.usage().free, store.usage().reserved, store.pending()), (1000, 0, 0));
    bench.system.0.lock().allocations = None;
    task.unit_writer().unwrap().with_content_length(1000).unwrap();
}

#[test]
fn a_generation_that_changes_under_a_stream_stops_it() {
    let bench = Bench::new();
    let store = bench.open();
    let task = store.get_or_create(&key(1), NewTask::default()).unwrap();
    let mut writer = task.unit_writer().unwrap();
    writer.append(&bytes(1, 10)).unwrap();
    task.begin_generation(2, damselfly_core::download::Validator::default()).unwrap();
    let mut next = task.unit_writer().unwrap();
    next.append(b"new").unwrap();
    assert!(matches!(writer.finish(), Err(StoreError::OtherGeneration { was: 1, is: 2, .. })));
    assert!(matches!(task.unit_writer(), Err(StoreError::Busy { .. })), "the next writer is still out");
    next.finish().unwrap();
    assert_eq!(fetch(&task, 0).unwrap(), b"new");
    assert_eq!(store.usage(), crate::Usage { used: 3, ..store.usage() });
    assert_eq!(store.usage().reserved, 0);
}
