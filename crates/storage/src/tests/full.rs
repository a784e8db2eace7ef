//! The disk fills up in spite of admission, because others write to it too.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::sync::Arc;

use damselfly_core::{Class, Crc, PieceSet};

use crate::testing::{Bench, begin, bytes, facts, fetch, key, part};
use crate::{NewTask, OutputPolicy, StoreError, TaskContent};

/// Fetches what is missing, until something fails: the error's class and text.
fn fill(task: &Arc<TaskContent>, content: &[u8]) -> Result<(), (Class, String)> {
    for number in task.pieces().missing().collect::<Vec<_>>() {
        let (part, mut slot) = (part(task, content, number), task.slot(number).unwrap());
        for (at, chunk) in (0..).step_by(300).zip(part.chunks(300)) {
            slot.write_at(at, chunk).map_err(|error| (StoreError::class_of(&error), error.to_string()))?;
        }
        slot.commit(Crc::of(part)).map_err(|error| (error.class(), error.to_string()))?;
    }
    Ok(())
}

#[test]
fn pieces_fail_with_a_word_and_are_fetched_again_once_there_is_room() {
    let content = bytes(1, 3500);
    let mut failures = 0;
    // At every point of a download, between and in the middle of writes.
    for budget in (0..4000).step_by(61) {
        let bench = Bench::new();
        let out = tempfile::tempdir_in(bench.dir.path()).unwrap();
        let store = bench.open();
        let task = begin(&store, &key(1), &content, 1000);
        let pin = task.pin().unwrap();
        task.reserve(&PieceSet::full(4)).unwrap();
        bench.system.0.lock().budget = Some(budget);
        let filled = fill(&task, &content);
        bench.system.0.lock().budget = None;
        if let Err((class, text)) = filled {
            failures += 1;
            assert_eq!(class, Class::Fatal);
            assert!(text.contains("disk is full") && text.contains("free space there"), "{text}");
            assert!(text.contains(bench.dir.path().to_str().unwrap()), "{text}");
            assert!(matches!(task.output(), Err(StoreError::Missing { .. })));
            for number in task.pieces().iter() {
                assert_eq!(fetch(&task, number).unwrap(), part(&task, &content, number), "{budget}");
            }
            assert_eq!(
                store.usage().used + store.usage().reserved,
                3500,
                "what is missing is still promised"
            );
        }
        fill(&task, &content).unwrap();
        let dir = File::open(out.path()).unwrap();
        task.publish_to(&dir, OsStr::new("x"), OutputPolicy::default()).unwrap();
        assert_eq!(fs::read(out.path().join("x")).unwrap(), content);
        drop((pin, task, store));
        let task = bench.open().get(&key(1)).unwrap();
        assert!((0..4).all(|number| fetch(&task, number).unwrap() == part(&task, &content, number)));
    }
    assert!(failures > 50, "{failures}");
}

#[test]
fn an_output_that_does_not_fit_is_not_there() {
    let bench = Bench::new();
    let content = bytes(1, 3500);
    let store = bench.open();
    let task = crate::testing::complete(&store, &key(1), &content, 1000);
    let Ok(full) = File::options().write(true).open("/dev/full") else { return };
    let error = task.output().unwrap().copy_to(&full, &|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { .. }) && error.class() == Class::Fatal, "{error}");
}

#[test]
fn content_of_unknown_length_begins_anew_once_there_is_room() {
    const LENGTH: usize = 10_000;
    let content = bytes(2, LENGTH);
    let write = |task: &Arc<TaskContent>| {
        let mut writer = task.unit_writer()?.with_piece_length(1000);
        content.chunks(3000).try_for_each(|chunk| writer.append(chunk))?;
        writer.finish().map(drop)
    };
    let mut failures = 0;
    // While the content comes, and while its end is written down: the header, then the pieces' records.
    for budget in (0..LENGTH as u64 + 6000).step_by(509) {
        let bench = Bench::new();
        let store = bench.open();
        let task = store.get_or_create(&key(1), NewTask::default()).unwrap();
        bench.system.0.lock().budget = Some(budget);
        let written = write(&task);
        bench.system.0.lock().budget = None;
        if let Err(error) = written {
            failures += 1;
            assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
            assert!(task.pieces().is_empty() && !task.is_complete());
            assert_eq!((store.usage().used, store.usage().reserved), (0, 0), "{budget}");
            write(&task).unwrap();
        }
        assert!((0..10).all(|number| fetch(&task, number).unwrap() == part(&task, &content, number)));
        drop((task, store));
        let task = bench.open().get(&key(1)).unwrap();
        assert!(task.is_complete(), "{budget}");
        task.set_facts(facts(LENGTH as u64, 1000)).unwrap();
    }
    assert!(failures > 25, "{failures}");
}
