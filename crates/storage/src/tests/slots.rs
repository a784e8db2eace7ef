use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use damselfly_core::download::Validator;
use damselfly_core::{Class, Crc};

use crate::testing::{Bench, begin, bytes, facts, fetch, key, put};
use crate::{Committed, Facts, NewTask, StoreError};

#[test]
fn a_piece_is_lent_once_and_comes_back() {
    let bench = Bench::new();
    let (store, content) = (bench.open(), bytes(1, 100));
    let task = begin(&store, &key(1), &content, 40);
    let slot = task.slot(1).unwrap();
    assert_eq!((slot.span().offset, slot.span().length), (40, 40));
    assert!(matches!(task.slot(1), Err(StoreError::Busy { .. })));
    drop(slot);
    assert!(!task.has(1));
    put(&task, &content, 1);
    assert!(matches!(task.slot(1), Err(StoreError::AlreadyHeld { piece: 1, .. })));
    assert!(matches!(task.scratch(1), Err(StoreError::AlreadyHeld { .. })));
    let error = task.slot(3).unwrap_err();
    assert!(matches!(error, StoreError::NoSuchPiece { count: 3, .. }) && error.class() == Class::OtherSource);
    let unknown = store.get_or_create(&key(2), NewTask::default()).unwrap();
    assert!(matches!(unknown.slot(0), Err(StoreError::NoGeometry(_))));
}

#[test]
fn a_piece_is_published_whole_or_not_at_all() {
    let bench = Bench::new();
    let (store, content) = (bench.open(), bytes(1, 100));
    let task = begin(&store, &key(1), &content, 40);
    let mut slot = task.slot(2).unwrap();
    slot.write_at(0, &content[80..90]).unwrap();
    let gap = slot.write_at(11, &content[91..]).unwrap_err();
    assert_eq!(
        (gap.kind(), StoreError::class_of(&gap)),
        (std::io::ErrorKind::InvalidInput, Class::OtherSource)
    );
    assert!(slot.write_at(10, &content[..11]).is_err(), "past the end");
    assert!(slot.write_at(u64::MAX, &content[..2]).is_err());
    assert_eq!(slot.written(), 10);
    let error = slot.commit(Crc::of(&content[80..90])).unwrap_err();
    assert!(matches!(error, StoreError::Short { written: 10, length: 20, .. }), "{error}");
    assert_eq!(fetch(&task, 2), None);
    // A retry may begin again, or go on where the last one stopped.
    let mut slot = task.slot(2).unwrap();
    slot.write_at(0, b"wrong").unwrap();
    slot.write_at(0, &content[80..95]).unwrap();
    slot.write_at(15, &content[95..]).unwrap();
    assert_eq!(slot.commit(Crc::of(&content[80..])).unwrap(), Committed::Stored);
    assert_eq!(fetch(&task, 2).unwrap(), &content[80..]);
    assert_eq!(task.crc(2), Some(Crc::of(&content[80..])));
    assert_eq!(task.crc(0), None);
}

#[test]
fn a_full_disk_leaves_the_piece_missing_and_the_task_sound() {
    let bench = Bench::new();
    let (store, content) = (bench.open(), bytes(1, 100));
    let task = begin(&store, &key(1), &content, 40);
    put(&task, &content, 0);
    let mut slot = task.slot(1).unwrap();
    bench.system.0.lock().budget = Some(20);
    let error = slot.write_at(0, &content[40..80]).unwrap_err();
    assert_eq!((error.kind(), StoreError::class_of(&error)), (std::io::ErrorKind::StorageFull, Class::Fatal));
    assert!(error.to_string().contains("full"), "{error}");
    bench.system.0.lock().budget = None;
    slot.write_at(0, &content[40..80]).unwrap();
    bench.system.0.lock().budget = Some(7); // the sidecar record is torn
    assert!(matches!(slot.commit(Crc::of(&content[40..80])), Err(StoreError::DiskFull { .. })));
    bench.system.0.lock().budget = None;
    assert!(!task.has(1));
    drop((task, store));
    let store = bench.open();
    let task = store.get(&key(1)).unwrap();
    assert_eq!(task.pieces().iter().collect::<Vec<_>>(), [0]);
    put(&task, &content, 1);
    assert_eq!(fetch(&task, 1).unwrap(), &content[40..80]);
}

#[test]
fn the_faster_second_attempt_wins_and_the_first_can_do_no_harm() {
    let bench = Bench::new();
    let (store, content) = (bench.open(), bytes(1, 100));
    let task = begin(&store, &key(1), &content, 40);
    let mut slow = task.slot(0).unwrap();
    slow.write_at(0, &[0xEE; 10]).unwrap();
    let mut fast = task.scratch(0).unwrap();
    fast.write_at(0, &content[..40]).unwrap();
    assert_eq!(fast.commit(Crc::of(&content[..40])).unwrap(), Committed::Stored);
    assert_eq!(fetch(&task, 0).unwrap(), &content[..40]);
    let error = slow.write_at(10, &[0xEE; 30]).unwrap_err();
    assert_eq!(StoreError::class_of(&error), Class::Retry);
    assert_eq!(fetch(&task, 0).unwrap(), &content[..40]);
    assert!(matches!(slow.commit(Crc(0)), Err(StoreError::Short { .. })));
    assert!(!task.in_use());
}

#[test]
fn of_two_whole_attempts_one_is_kept() {
    let bench = Bench::new();
    let (store, content) = (bench.open(), bytes(1, 100));
    let task = begin(&store, &key(1), &content, 40);
    let crc = Crc::of(&content[..40]);
    let attempts = || {
        let mut primary = task.slot(0).unwrap();
        let mut scratch = task.scratch(0).unwrap();
        primary.write_at(0, &content[..40]).unwrap();
        scratch.write_at(0, &content[..40]).unwrap();
        (primary, scratch)
    };
    let (primary, scratch) = attempts();
    assert_eq!(primary.commit(crc).unwrap(), Committed::Stored);
    assert_eq!(scratch.commit(crc).unwrap(), Committed::AlreadyHeld);
    task.invalidate(0).unwrap();
    let (primary, scratch) = attempts();
    assert_eq!(scratch.commit(crc).unwrap(), Committed::Stored);
    assert_eq!(primary.commit(crc).unwrap(), Committed::AlreadyHeld);
    // Without a primary a scratch commits all the same, and the piece can be lent again afterwards.
    task.invalidate(0).unwrap();
    let mut scratch = task.scratch(0).unwrap();
    scratch.write_at(0, &content[..40]).unwrap();
    assert_eq!(scratch.commit(crc).unwrap(), Committed::Stored);
    task.invalidate(0).unwrap();
    put(&task, &content, 0);
}

#[test]
fn a_second_attempt_that_fails_in_the_end_frees_the_piece() {
    let bench = Bench::new();
    let (store, content) = (bench.open(), bytes(1, 100));
    let task = begin(&store, &key(1), &content, 40);
    let crc = Crc::of(&content[..40]);
    let mut primary = task.slot(0).unwrap();
    primary.write_at(0, &content[..40]).unwrap();
    let mut scratch = task.scratch(0).unwrap();
    scratch.write_at(0, &content[..40]).unwrap();
    bench.system.0.lock().fails = Some("copy scratch");
    assert!(matches!(scratch.commit(crc), Err(StoreError::Io { .. })));
    // The extent may have been half overwritten, so the primary's bytes do not count either.
    let error = primary.commit(crc).unwrap_err();
    assert!(matches!(error, StoreError::Superseded { .. }) && error.class() == Class::Retry);
    assert!(!task.has(0));
    put(&task, &content, 0);
}

#[test]
fn a_new_generation_drops_everything_at_once() {
    let bench = Bench::new();
    let (store, old, new) = (bench.open(), bytes(1, 100), bytes(2, 70));
    let task = begin(&store, &key(1), &old, 40);
    put(&task, &old, 0);
    let reader = task.piece(0).unwrap().unwrap();
    let mut late = task.slot(1).unwrap();
    let mut late_scratch = task.scratch(2).unwrap();
    late.write_at(0, &old[40..80]).unwrap();
    late_scratch.write_at(0, &old[80..]).unwrap();
    let validator = Validator { etag: Some("\"2\"".into()), last_modified: None };
    assert_eq!(task.begin_generation(2, validator.clone()).unwrap(), 2);
    assert_eq!(task.begin_generation(2, Validator::default()).unwrap(), 2, "told twice");
    assert_eq!((task.geometry(), task.pieces().count()), (None, 0));
    task.set_facts(Facts { validator: validator.clone(), ..facts(70, 40) }).unwrap();
    let mut fresh = task.slot(1).unwrap();
    fresh.write_at(0, &new[40..]).unwrap();
    let error = late.commit(Crc::of(&old[40..80])).unwrap_err();
    assert!(matches!(error, StoreError::OtherGeneration { was: 1, is: 2, .. }), "{error}");
    assert!(matches!(late_scratch.commit(Crc(0)), Err(StoreError::OtherGeneration { .. })));
    assert!(
        matches!(task.slot(1), Err(StoreError::Busy { .. })),
        "the old slot's return is not the new one's"
    );
    fresh.commit(Crc::of(&new[40..])).unwrap();
    assert_eq!(fetch(&task, 1).unwrap(), &new[40..]);
    let damselfly_core::Content::File { file, offset, .. } = &reader.content else { panic!() };
    let mut bytes = [0; 40];
    std::os::unix::fs::FileExt::read_exact_at(&**file, &mut bytes, *offset).unwrap();
    assert_eq!(bytes, old[..40], "readers of the old content keep it");
    drop((reader, task, store));
    let store = bench.open();
    let task = store.get(&key(1)).unwrap();
    assert_eq!((task.meta().generation, task.meta().validator), (2, validator));
    assert_eq!(task.pieces().iter().collect::<Vec<_>>(), [1]);
    assert_eq!(fetch(&task, 1).unwrap(), &new[40..]);
}

#[test]
fn facts_may_be_told_again_but_not_contradicted() {
    let bench = Bench::new();
    let store = bench.open();
    let task = store.get_or_create(&key(1), NewTask::default()).unwrap();
    let etag = |text: &str| Validator { etag: Some(text.into()), last_modified: None };
    task.set_facts(Facts { validator: etag("a"), ..Facts::default() }).unwrap();
    task.set_facts(facts(100, 40)).unwrap();
    let changes = task.changes();
    task.set_facts(Facts { validator: etag("a"), ..facts(100, 40) }).unwrap();
    assert!(!changes.has_changed().unwrap());
    let error = task.set_facts(facts(101, 40)).unwrap_err();
    assert!(matches!(error, StoreError::Contradiction { what: "geometry", .. }), "{error}");
    assert!(error.to_string().contains("100 bytes") && error.to_string().contains("101 bytes"), "{error}");
    assert_eq!(error.class(), Class::OtherSource);
    let error = task.set_facts(Facts { validator: etag("b"), ..Facts::default() }).unwrap_err();
    assert!(matches!(error, StoreError::Contradiction { what: "validator", .. }), "{error}");
    let other = store.get_or_create(&key(2), NewTask::default()).unwrap();
    assert!(matches!(
        other.set_facts(facts(1 << 31, 1)),
        Err(StoreError::TooManyPieces { .. } | StoreError::Geometry { .. })
    ));
    // An empty content is complete as soon as that is known.
    other.set_facts(facts(0, 4 << 20)).unwrap();
    assert!(other.is_complete());
}

#[test]
fn a_validator_that_no_byte_rests_on_is_replaced() {
    let bench = Bench::new();
    let store = bench.open();
    let task = store.get_or_create(&key(1), NewTask::default()).unwrap();
    let told = |text: &str| Facts {
        validator: Validator { etag: Some(text.into()), last_modified: None },
        headers: [("etag".to_owned(), text.to_owned())].into(),
        ..Facts::default()
    };
    task.set_facts(told("a")).unwrap();
    let mut writer = task.unit_writer().unwrap();
    writer.append(b"content").unwrap();
    let error = task.set_facts(told("b")).unwrap_err();
    assert!(matches!(error, StoreError::Contradiction { what: "validator", .. }), "{error}");
    // That download ended, and meanwhile the origin has another version; over a restart too.
    drop((writer, task, store));
    let store = bench.open();
    let task = store.get(&key(1)).unwrap();
    task.set_facts(told("b")).unwrap();
    let meta = task.meta();
    assert_eq!((meta.validator, meta.headers, meta.generation), (told("b").validator, told("b").headers, 1));
    let mut writer = task.unit_writer().unwrap();
    writer.append(b"content").unwrap();
    writer.finish().unwrap();
    assert!(matches!(task.set_facts(told("c")), Err(StoreError::Contradiction { .. })));
}

/// Many threads at few pieces, primaries and second attempts, some of which lie or give up: whatever is published is
/// right, and stays right.
#[test]
fn a_crowd_of_writers_publishes_every_piece_once_and_right() {
    const PIECES: u32 = 8;
    const LENGTH: usize = 64 << 10;
    let bench = Bench::new();
    let (store, content) = (bench.open(), bytes(5, LENGTH * PIECES as usize));
    for round in 0..4 {
        let task = begin(&store, &key(round), &content, LENGTH as u64);
        let (stored, start) = (AtomicUsize::new(0), Barrier::new(8));
        thread::scope(|scope| {
            for worker in 0..8u32 {
                let (task, content, stored, start) = (&task, &content, &stored, &start);
                scope.spawn(move || {
                    start.wait();
                    for step in 0..PIECES * 4 {
                        let number = (step * 3 + worker) % PIECES;
                        let slot =
                            if (step + worker) % 3 == 0 { task.scratch(number) } else { task.slot(number) };
                        let Ok(mut slot) = slot else { continue };
                        let start = number as usize * LENGTH;
                        let give_up = (step + worker) % 5 == 0;
                        let mut good = true;
                        for chunk in (0..LENGTH).step_by(8 << 10) {
                            let mut buffer = content[start + chunk..start + chunk + (8 << 10)].to_vec();
                            if give_up {
                                buffer.fill(0xEE);
                            }
                            good &= slot.write_at(chunk as u64, &buffer).is_ok();
                            if task.has(number) {
                                assert_eq!(fetch(task, number).unwrap(), &content[start..start + LENGTH]);
                            }
                        }
                        if good && !give_up {
                            match slot.commit(Crc::of(&content[start..start + LENGTH])) {
                                Ok(Committed::Stored) => {
                                    stored.fetch_add(1, Ordering::Relaxed);
                                }
                                Ok(Committed::AlreadyHeld) | Err(StoreError::Superseded { .. }) => {}
                                Err(error) => panic!("{error}"),
                            }
                        }
                    }
                });
            }
        });
        assert!(task.is_complete());
        assert_eq!(stored.load(Ordering::Relaxed), PIECES as usize);
        for number in 0..PIECES {
            assert_eq!(fetch(&task, number).unwrap(), &content[number as usize * LENGTH..][..LENGTH]);
        }
        assert!(!task.in_use());
        assert_eq!(store.usage().used, u64::from(round + 1) * content.len() as u64);
    }
}
