use std::sync::Arc;
use std::time::Duration;

use damselfly_core::task_id::{ContentId, PersistentCacheHasher};
use damselfly_core::{Algorithm, Crc, Digest, Geometry, Hasher, TaskKey};
use proptest::prelude::*;

use crate::testing::{Bench, begin, bytes, complete, fetch, persistent_key, put};
use crate::{Import, ImportId, Imported, NewImport, NewTask, Store, StoreError, TaskContent};

const UNIT: usize = 4 << 20;

pub(super) fn new() -> NewImport {
    NewImport {
        id: ImportId::Content(ContentId::Sha256),
        content_length: None,
        piece_length: None,
        new: NewTask {
            tag: Some("tag".to_owned()),
            owner_uid: Some(7),
            persistent: true,
            replica_target: 2,
            ttl: Some(Duration::from_secs(3600)),
            ..NewTask::default()
        },
        upload: None,
    }
}

pub(super) fn given(number: u32) -> NewImport {
    NewImport { id: ImportId::Given(persistent_key(number).id), ..new() }
}

pub(super) fn write(mut import: Import, content: &[u8], step: usize) -> Import {
    content.chunks(step.max(1)).for_each(|chunk| import.write(chunk).unwrap());
    assert_eq!(import.written(), content.len() as u64);
    import
}

fn import(store: &Arc<Store>, new: NewImport, content: &[u8]) -> Result<Imported, StoreError> {
    write(store.begin_import(new)?, content, 1_000_003).finish(None)
}

pub(super) fn check(task: &Arc<TaskContent>, content: &[u8]) {
    assert!(task.is_complete() && task.meta().finished_at.is_some());
    let count = task.geometry().unwrap().piece_count();
    let found: Vec<u8> = (0..count).flat_map(|number| fetch(task, number).unwrap()).collect();
    assert!(found == content);
}

/// Nothing that an import might have left.
pub(super) fn assert_clean(bench: &Bench, store: &Arc<Store>) {
    let imports = bench.dir.path().join("damselfly-v1/imports");
    assert!(imports.read_dir().map_or(true, |mut left| left.next().is_none()));
    let held: u64 = store.list().iter().map(|task| task.meta().held_bytes).sum();
    assert_eq!((store.usage().used, store.usage().reserved), (held, 0));
}

#[test]
fn the_id_follows_from_the_content_and_what_names_it() {
    for content_id in [ContentId::Sha256, ContentId::Blake3] {
        for piece_length in [None, Some(5 << 20)] {
            let (bench, content) = (Bench::new(), bytes(3, UNIT + 5));
            let store = bench.open();
            let id = ImportId::Content(content_id);
            let done = import(&store, NewImport { id, piece_length, ..new() }, &content).unwrap();
            let mut hasher = PersistentCacheHasher::new(content_id);
            hasher.update(&content);
            assert_eq!(done.content.key().id, hasher.finish(Some("tag"), None, piece_length).unwrap());
            assert!(!done.existed);
            check(&done.content, &content);
            let meta = done.content.meta();
            assert_eq!((meta.replica_target, meta.persistent, &meta.owners[..]), (2, true, &[7][..]));
            assert_eq!(meta.geometry.unwrap().piece_length(), piece_length.unwrap_or(16 << 20));
            assert_clean(&bench, &store);
            // A kill later it is all there.
            let key = done.content.key().clone();
            drop((store, done));
            let task = bench.open().get(&key).unwrap();
            check(&task, &content);
            assert_eq!(task.meta().replica_target, 2);
        }
    }
}

#[test]
fn a_known_length_is_cut_as_every_peer_would() {
    for length in [0, 1, UNIT - 1, UNIT, UNIT + 1] {
        let (bench, content) = (Bench::new(), bytes(4, length));
        let store = bench.open();
        let announced = NewImport { content_length: Some(length as u64), ..given(1) };
        let done = import(&store, announced, &content).unwrap();
        assert_eq!(done.content.key(), &persistent_key(1));
        assert_eq!(done.content.geometry(), Geometry::derived(length as u64).ok());
        check(&done.content, &content);
        assert_clean(&bench, &store);
    }
}

#[test]
fn what_is_not_as_announced_is_refused_and_leaves_nothing() {
    let (bench, content) = (Bench::new(), bytes(5, 1000));
    let store = bench.open();
    let announced = |length| store.begin_import(NewImport { content_length: Some(length), ..new() }).unwrap();
    let short = write(announced(1001), &content, 300).finish(None).unwrap_err();
    assert!(matches!(short, StoreError::WrongLength { announced: 1001, found: 1000 }), "{short}");
    let long = announced(999).write(&content).unwrap_err();
    assert!(matches!(long, StoreError::WrongLength { announced: 999, found: 1000 }), "{long}");

    let digest = |bytes: &[u8]| -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish().to_string().parse().unwrap()
    };
    let wrong = write(announced(1000), &content, 300).finish(Some(&digest(b"other"))).unwrap_err();
    assert!(matches!(wrong, StoreError::WrongDigest { .. }), "{wrong}");
    assert!(store.list().is_empty());
    assert_clean(&bench, &store);
    check(&write(announced(1000), &content, 300).finish(Some(&digest(&content))).unwrap().content, &content);
}

#[test]
fn every_digest_is_compared_whatever_the_id_is_made_of() {
    let content = bytes(5, UNIT + 9000);
    let ids = [ImportId::Given(persistent_key(1).id)]
        .into_iter()
        .chain([ContentId::Sha256, ContentId::Blake3].map(ImportId::Content));
    for id in ids {
        for (algorithm, piece_length) in Algorithm::ALL.into_iter().flat_map(|a| [(a, 4096), (a, 3 << 20)]) {
            let digest = |bytes: &[u8]| -> Digest {
                let mut hasher = Hasher::new(algorithm);
                hasher.update(bytes);
                hasher.finish().to_string().parse().unwrap()
            };
            let (bench, piece_length) = (Bench::new(), Some(piece_length));
            let store = bench.open();
            let begin = || store.begin_import(NewImport { id: id.clone(), piece_length, ..new() }).unwrap();
            let wrong = write(begin(), &content, UNIT).finish(Some(&digest(&content[1..]))).unwrap_err();
            assert!(matches!(wrong, StoreError::WrongDigest { .. }), "{wrong}");
            assert_clean(&bench, &store);
            let done = write(begin(), &content, UNIT).finish(Some(&digest(&content))).unwrap();
            let pieces = content.chunks(usize::try_from(piece_length.unwrap()).unwrap());
            assert_eq!(done.crcs, pieces.map(Crc::of).collect::<Vec<_>>());
        }
    }
}

#[test]
fn an_import_that_does_not_end_is_never_seen() {
    let (bench, content) = (Bench::new(), bytes(6, 2 * UNIT + 5));
    let store = bench.open();
    let unfinished = write(store.begin_import(given(1)).unwrap(), &content, UNIT);
    assert!(store.list().is_empty() && store.get(&persistent_key(1)).is_none());
    drop(unfinished);
    assert_clean(&bench, &store);
    drop(write(store.begin_import(given(1)).unwrap(), &content, UNIT));
    assert_clean(&bench, &store);
    // Nor after a kill in its midst.
    std::mem::forget(write(store.begin_import(given(1)).unwrap(), &content, UNIT));
    store.abandon();
    drop(store);
    let store = bench.open();
    assert!(store.list().is_empty());
    assert_clean(&bench, &store);
}

#[test]
fn equal_content_stays_and_lives_on_and_other_content_is_refused() {
    let (bench, content) = (Bench::new(), bytes(7, 5000));
    let store = bench.open();
    let first = import(&store, given(1), &content).unwrap().content;
    bench.system.pass(Duration::from_secs(3000));
    let again = NewImport { new: NewTask { owner_uid: Some(8), ..new().new }, ..given(1) };
    let second = import(&store, again, &content).unwrap();
    assert!(second.existed && Arc::ptr_eq(&first, &second.content));
    assert_eq!(second.crcs, [Crc::of(&content)]);
    assert_eq!(first.meta().ttl_left, Duration::from_secs(3600));
    assert_eq!(first.meta().owners, [7, 8]);
    for other in [bytes(8, 5000), bytes(7, 4999)] {
        let why = import(&store, given(1), &other).unwrap_err();
        assert!(matches!(why, StoreError::Taken(_)), "{why}");
    }
    check(&first, &content);
    assert_clean(&bench, &store);
}

#[test]
fn equal_content_is_equal_however_it_is_cut() {
    let (bench, content) = (Bench::new(), bytes(7, 9000));
    let store = bench.open();
    for (id, other) in [(new().id, None), (given(1).id, Some(bytes(8, 9000)))] {
        let cut = |piece_length: Option<u64>, content_length| NewImport {
            id: id.clone(),
            piece_length,
            content_length,
            ..new()
        };
        let first = import(&store, cut(None, Some(9000)), &content).unwrap();
        // A pipe's pieces are longer.
        let again = import(&store, cut(None, None), &content).unwrap();
        assert!(!first.existed && again.existed && Arc::ptr_eq(&first.content, &again.content));
        if let Some(other) = other {
            let why = import(&store, cut(None, None), &other).unwrap_err();
            assert!(matches!(why, StoreError::Taken(_)), "{why}");
        }
    }
}

#[test]
fn an_import_takes_the_place_of_an_unfinished_download() {
    let (bench, content) = (Bench::new(), bytes(9, 5000));
    let store = bench.open();
    let key = persistent_key(1);
    let partial = begin(&store, &key, &bytes(1, 9000), 1000);
    put(&partial, &bytes(1, 9000), 3);
    let before = partial.meta().generation;
    let done = import(&store, given(1), &content).unwrap();
    assert!(done.content.meta().generation > before);
    check(&done.content, &content);
    assert!(partial.piece(3).is_err(), "what was there has gone");
    assert_clean(&bench, &store);
}

#[test]
fn a_deleted_generation_is_not_used_again() {
    let (bench, content) = (Bench::new(), bytes(9, 5000));
    let store = bench.open();
    import(&store, given(1), &content).unwrap();
    let deleted = store.delete(&persistent_key(1)).unwrap().generation;
    let again = import(&store, given(1), &content).unwrap();
    assert_eq!((again.existed, again.content.meta().generation), (false, deleted + 1), "no time has passed");
    // Another host, where that was never deleted, gives another number at another time.
    let elsewhere = Bench::new();
    elsewhere.system.pass(Duration::from_secs(1));
    let other = import(&elsewhere.open(), given(1), &content).unwrap();
    assert_eq!(other.content.meta().generation, deleted + 1_000_000);
    drop((again, store));
    assert!(bench.open().get(&persistent_key(1)).is_some(), "the tombstone is of the former");
}

#[test]
fn two_imports_of_one_content_both_end_well() {
    let (bench, content) = (Bench::new(), bytes(2, UNIT + 1));
    let store = bench.open();
    let both = [store.begin_import(new()).unwrap(), store.begin_import(new()).unwrap()];
    let done = both.map(|import| write(import, &content, 700_001).finish(None).unwrap());
    assert_eq!(done.each_ref().map(|done| done.existed), [false, true]);
    check(&done[0].content, &content);
    assert_clean(&bench, &store);
}

#[test]
fn what_does_not_fit_is_refused_and_what_is_kept_is_not_evicted_for_it() {
    let mut bench = Bench::new();
    bench.options.capacity = Some(3 * UNIT as u64);
    let (store, kept) = (bench.open(), bytes(1, UNIT));
    import(&store, given(1), &kept).unwrap();
    let key = TaskKey { kind: damselfly_core::Kind::Standard, ..persistent_key(2) };
    complete(&store, &key, &bytes(2, UNIT), UNIT as u64);
    let done = import(&store, given(3), &bytes(3, 2 * UNIT)).unwrap();
    assert!(store.get(&key).is_none(), "a standard task makes room");
    let mut more = store.begin_import(given(4)).unwrap();
    let full = more.write(&kept).unwrap_err();
    assert!(matches!(full, StoreError::NoSpace { .. }), "{full}");
    drop(more);
    check(&done.content, &bytes(3, 2 * UNIT));
    assert_eq!(store.list().len(), 2);
    assert_clean(&bench, &store);
}

#[test]
fn a_kill_at_any_step_leaves_all_of_it_or_nothing() {
    let (bench, content) = (Bench::new(), bytes(5, 9000));
    let copies = tempfile::tempdir().unwrap();
    let store = bench.open();
    let places = (bench.dir.path().to_owned(), copies.path().to_owned(), 0);
    bench.system.0.lock().snapshots = Some(places);
    let again = || {
        write(store.begin_import(NewImport { piece_length: Some(4000), ..given(1) }).unwrap(), &content, 2500)
    };
    again().finish(None).unwrap();
    let done = bench.system.0.lock().snapshots.take().unwrap().2;
    drop(store);
    let mut seen = [0, 0];
    for number in 0..done {
        let dir = copies.path().join(number.to_string());
        let store = bench.open_at(&dir);
        let found = store.get(&persistent_key(1));
        seen[usize::from(found.is_some())] += 1;
        match found {
            // Recorded to the last piece, or what is not will be fetched from elsewhere.
            Some(task) => {
                let held: Vec<u32> = task.pieces().iter().collect();
                for piece in held {
                    assert_eq!(fetch(&task, piece).unwrap(), crate::testing::part(&task, &content, piece));
                }
            }
            None => assert!(store.list().is_empty()),
        }
        // Either way it can be imported once more.
        let import = store.begin_import(NewImport { piece_length: Some(4000), ..given(1) }).unwrap();
        check(&write(import, &content, 9000).finish(None).unwrap().content, &content);
    }
    assert!(seen[0] > 5 && seen[1] > 0, "{seen:?}");
}

#[test]
fn a_failure_at_any_step_leaves_nothing_and_the_next_import_ends_well() {
    for step in
        ["create content file", "create sidecar", "size content file", "rename imported content", "flush"]
    {
        let (bench, content) = (Bench::new(), bytes(5, 9000));
        let store = bench.open();
        bench.system.0.lock().fails = Some(step);
        assert!(import(&store, given(1), &content).is_err(), "{step}");
        assert!(store.list().is_empty(), "{step}");
        bench.system.0.lock().fails = None;
        check(&import(&store, given(1), &content).unwrap().content, &content);
        assert_clean(&bench, &store);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn however_content_comes_it_is_the_same(
        length in 0usize..60_000, step in 1usize..20_000, piece_length in 1000u64..30_000, seed in 0u64..9,
    ) {
        let (bench, content) = (Bench::new(), bytes(seed, length));
        let store = bench.open();
        let import = store.begin_import(NewImport { piece_length: Some(piece_length), ..new() }).unwrap();
        let done = write(import, &content, step).finish(None).unwrap();
        check(&done.content, &content);
        let mut hasher = PersistentCacheHasher::new(ContentId::Sha256);
        hasher.update(&content);
        prop_assert_eq!(&done.content.key().id, &hasher.finish(Some("tag"), None, Some(piece_length)).unwrap());
        assert_clean(&bench, &store);
    }
}
