use std::fs;

use damselfly_core::{Class, Kind, TaskKey};

use crate::testing::{Bench, begin, bytes, complete, fetch, key, persistent_key};
use crate::{NewTask, Options, Store, StoreError};

#[test]
fn a_second_process_is_refused_by_the_directorys_name() {
    let bench = Bench::new();
    let first = Store::open(bench.options.clone()).unwrap();
    let error = Store::open(bench.options.clone()).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(bench.dir.path().to_str().unwrap()), "{text}");
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    drop(first);
    Store::open(bench.options.clone()).unwrap();
}

#[test]
fn the_real_machine_takes_content_and_keeps_it() {
    let bench = Bench::new();
    let content = bytes(1, 10_000);
    let store = Store::open(bench.options.clone()).unwrap();
    let task = begin(&store, &key(1), &content, 4096);
    task.reserve(&damselfly_core::PieceSet::full(3)).unwrap();
    (0..3).for_each(|number| crate::testing::put(&task, &content, number));
    task.sync().unwrap();
    task.set_paused(true).unwrap();
    store.shutdown().unwrap();
    drop((task, store));
    let store = Store::open(bench.options.clone()).unwrap();
    let task = store.get(&key(1)).unwrap();
    assert!(task.is_complete() && task.meta().paused);
    assert_eq!(fetch(&task, 2).unwrap(), &content[8192..]);
    let usage = store.usage();
    assert!(usage.total > usage.free && usage.used == 10_000 && usage.reserved == 0, "{usage:?}");
}

#[test]
fn what_was_flushed_is_flushed_at_every_later_change() {
    let bench = Bench::new();
    let store = bench.open();
    let task = complete(&store, &key(1), &bytes(1, 1000), 500);
    let fail = |change: Option<&'static str>| bench.system.0.lock().fails = change;
    fail(Some("flush"));
    assert!(matches!(task.sync(), Err(StoreError::Io { .. })));
    task.set_paused(true).unwrap();
    fail(None);
    task.sync().unwrap();
    fail(Some("flush"));
    assert!(matches!(task.set_paused(false), Err(StoreError::Io { .. })));
    fail(None);
    assert!(task.meta().paused, "not so before it is on the device");
    task.set_paused(false).unwrap();
}

#[test]
fn newer_formats_are_refused_by_name() {
    let bench = Bench::new();
    drop(bench.open());
    let format = bench.dir.path().join("damselfly-v1/format");
    fs::write(&format, "damselfly-storage 7\n").unwrap();
    let error = Store::open(bench.options.clone()).unwrap_err();
    assert!(
        error.to_string().contains("format 7") && error.to_string().contains("damselfly-v1/format"),
        "{error}"
    );
    fs::write(&format, "").unwrap();
    drop(bench.open());
    assert_eq!(fs::read_to_string(&format).unwrap(), "damselfly-storage 1\n");
    fs::create_dir(bench.dir.path().join("damselfly-v2")).unwrap();
    let error = Store::open(bench.options.clone()).unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { found: 2, .. }), "{error}");
    assert!(error.to_string().contains("damselfly-v2"), "{error}");
}

#[test]
fn wiping_spares_what_is_not_ours() {
    let mut bench = Bench::new();
    let store = bench.open();
    complete(&store, &key(1), &bytes(1, 100), 40);
    complete(&store, &key(2), &bytes(1, 100), 40);
    store.delete(&key(2)).unwrap();
    store.shutdown().unwrap();
    drop(store);
    let foreign = ["content/tasks/abc/abcdef", "damselfly-v1/notes.txt", "metadata/CURRENT"];
    for name in foreign {
        let path = bench.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "mine").unwrap();
    }
    bench.options.keep = false;
    let store = bench.open();
    assert!(store.list().is_empty() && store.tombstones().is_empty());
    assert!(!bench.path(&key(1), "data").try_exists().unwrap());
    for name in foreign {
        assert_eq!(fs::read_to_string(bench.dir.path().join(name)).unwrap(), "mine", "{name}");
    }
}

#[test]
fn content_is_kept_unless_told_otherwise() {
    let bench = Bench::new();
    complete(&bench.open(), &key(1), &bytes(1, 100), 40);
    assert_eq!(bench.open().list().len(), 1);
}

#[test]
fn what_a_crash_left_is_removed_and_the_rest_is_kept() {
    let bench = Bench::new();
    let content = bytes(3, 5000);
    let store = bench.open();
    for number in 1..=6 {
        complete(&store, &key(number), &content, 1000);
    }
    drop(store);
    fs::remove_file(bench.path(&key(1), "meta")).unwrap(); // content without a sidecar
    fs::remove_file(bench.path(&key(2), "data")).unwrap(); // a sidecar without content
    fs::write(bench.path(&key(3), "meta"), "garbage").unwrap();
    fs::write(bench.path(&key(4), "fresh"), "half a replacement").unwrap();
    fs::File::options().write(true).open(bench.path(&key(5), "data")).unwrap().set_len(2500).unwrap();
    let foreign = bench.path(&key(6), "notes");
    fs::write(&foreign, "mine").unwrap();
    let store = bench.open();
    for number in 1..=3 {
        assert!(store.get(&key(number)).is_none(), "{number}");
        for end in ["data", "meta"] {
            assert!(!bench.path(&key(number), end).try_exists().unwrap(), "{number} {end}");
        }
    }
    assert!(store.get(&key(4)).unwrap().is_complete());
    assert!(!bench.path(&key(4), "fresh").try_exists().unwrap());
    let short = store.get(&key(5)).unwrap();
    assert_eq!(short.pieces().iter().collect::<Vec<_>>(), [0, 1]);
    assert_eq!(fetch(&short, 1).unwrap(), &content[1000..2000]);
    crate::testing::put(&short, &content, 4);
    assert_eq!(fetch(&short, 4).unwrap(), &content[4000..]);
    assert!(store.get(&key(6)).unwrap().is_complete());
    assert!(foreign.try_exists().unwrap());
}

#[test]
fn one_damaged_record_costs_one_piece_and_one_damaged_header_nothing_stored() {
    let bench = Bench::new();
    let content = bytes(3, 5000);
    complete(&bench.open(), &key(1), &content, 1000);
    bench.corrupt(&key(1), "meta", 8192 + 2 * 16 + 5);
    let store = bench.open();
    let task = store.get(&key(1)).unwrap();
    assert_eq!(task.pieces().missing().collect::<Vec<_>>(), [2]);
    task.set_paused(true).unwrap();
    task.set_paused(false).unwrap();
    drop((task, store));
    // Four header writes: creation, facts, paused, and the last one at the even place.
    bench.corrupt(&key(1), "meta", 100);
    let task = bench.open().get(&key(1)).unwrap();
    assert!(task.meta().paused, "the header before the last counts");
    assert_eq!(task.pieces().len(), 4);
}

#[test]
fn a_deletion_that_was_interrupted_is_finished() {
    let bench = Bench::new();
    let store = bench.open();
    let task = complete(&store, &key(1), &bytes(3, 500), 100);
    let saved = bench.dir.path().join("saved");
    crate::testing::copy_tree(&bench.dir.path().join("damselfly-v1/task"), &saved);
    drop(task);
    assert_eq!(store.delete(&key(1)).unwrap().bytes, 500);
    drop(store);
    crate::testing::copy_tree(&saved, &bench.dir.path().join("damselfly-v1/task"));
    let store = bench.open();
    assert!(store.list().is_empty());
    assert!(!bench.path(&key(1), "data").try_exists().unwrap());
    let again = store.get_or_create(&key(1), NewTask::default()).unwrap();
    assert_eq!(again.meta().generation, 2, "others know generation 1 as deleted");
}

#[test]
fn kinds_are_apart_and_cache_tasks_are_not_for_the_disk() {
    let bench = Bench::new();
    let store = bench.open();
    complete(&store, &key(1), &bytes(1, 100), 40);
    let task = begin(&store, &persistent_key(1), &bytes(2, 100), 40);
    assert!(task.pieces().is_empty());
    let cache = TaskKey { kind: Kind::Cache, ..key(1) };
    let error = store.get_or_create(&cache, NewTask::default()).unwrap_err();
    assert!(matches!(error, StoreError::NotOnDisk(_)) && error.class() == Class::Fatal);
}

#[test]
fn a_store_that_cannot_be_made_says_where() {
    let error = Store::open(Options { dir: "/proc/nowhere".into(), ..Options::default() }).unwrap_err();
    assert!(error.to_string().contains("/proc/nowhere"), "{error}");
}
