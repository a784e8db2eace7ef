use std::sync::Arc;
use std::time::Duration;

use damselfly_core::TaskKey;
use damselfly_core::download::Validator;

use crate::system::Space;
use crate::testing::{Bench, begin, bytes, complete, fetch, key, persistent_key, put};
use crate::{NewTask, Reach, Store, StoreError, TaskContent};

const HOUR: Duration = Duration::from_secs(3600);

fn made(store: &Store, key: &TaskKey, new: NewTask) -> Arc<TaskContent> {
    let task = store.get_or_create(key, new).unwrap();
    task.set_facts(crate::testing::facts(1000, 500)).unwrap();
    (0..2).for_each(|number| put(&task, &bytes(1, 1000), number));
    task
}

#[test]
fn a_standard_task_lives_on_while_it_is_used() {
    let mut bench = Bench::new();
    bench.options.task_ttl = 10 * HOUR;
    let store = bench.open();
    complete(&store, &key(1), &bytes(1, 1000), 500);
    complete(&store, &key(2), &bytes(1, 1000), 500);
    for _ in 0..3 {
        bench.system.pass(6 * HOUR);
        fetch(&store.get(&key(1)).unwrap(), 0).unwrap();
        store.collect(store.now());
    }
    assert!(store.get(&key(2)).is_none());
    let task = store.get(&key(1)).unwrap();
    assert_eq!(task.meta().ttl_left, 10 * HOUR);
    drop((task, store));
    // The collector wrote the last use down, so a kill does not lose it.
    bench.system.pass(8 * HOUR);
    let store = bench.open();
    assert_eq!(store.get(&key(1)).unwrap().meta().ttl_left, 2 * HOUR);
    bench.system.pass(2 * HOUR);
    assert_eq!(store.collect(store.now()).expired, [key(1)]);
    assert!(store.tombstones().is_empty(), "other hosts keep theirs");
    assert!(!bench.path(&key(1), "data").try_exists().unwrap());
}

#[test]
fn a_ttl_of_its_own_ends_used_or_not_and_can_be_extended() {
    let bench = Bench::new();
    let store = bench.open();
    let new = || NewTask { ttl: Some(5 * HOUR), persistent: true, ..NewTask::default() };
    let task = made(&store, &persistent_key(1), new());
    made(&store, &persistent_key(2), new());
    bench.system.pass(4 * HOUR);
    task.touch();
    assert_eq!(task.meta().ttl_left, HOUR);
    task.extend_ttl(Duration::from_secs(10)).unwrap();
    assert_eq!(task.meta().ttl_left, HOUR, "never shortened");
    task.extend_ttl(3 * HOUR).unwrap();
    assert_eq!(task.meta().ttl_left, 3 * HOUR);
    bench.system.pass(2 * HOUR);
    assert_eq!(store.collect(store.now()).expired, [persistent_key(2)], "persistent or not");
    // Over a reboot that took an hour, half of it before the clock ran again.
    drop((task, store));
    bench.system.reboot(9, HOUR / 2);
    bench.system.pass(HOUR / 4);
    let store = bench.open();
    assert_eq!(store.get(&persistent_key(1)).unwrap().meta().ttl_left, HOUR / 4);
    bench.system.pass(HOUR / 4);
    assert_eq!(store.collect(store.now()).expired, [persistent_key(1)]);
}

#[test]
fn room_is_made_from_the_least_recently_used() {
    let mut bench = Bench::new();
    bench.options.capacity = Some(10_000);
    let store = bench.open();
    for number in 1..=8 {
        made(&store, &key(number), NewTask::default());
        bench.system.pass(HOUR);
    }
    // 1 is used later than 2; 3 is kept; 4 is pinned; 5 is being served; 6 is being written to.
    fetch(&store.get(&key(1)).unwrap(), 0).unwrap();
    store.get(&key(3)).unwrap().set_persistent(true).unwrap();
    let pinned = store.get(&key(4)).unwrap().pin().unwrap();
    let served = store.get(&key(5)).unwrap().piece(1).unwrap().unwrap();
    let writing = store.get(&key(6)).unwrap();
    writing.invalidate(0).unwrap();
    let slot = writing.slot(0).unwrap();
    let evicted = |store: &Store| store.collect(store.now()).evicted;
    // Those guards count as uses of now, as far as they are uses at all: 2 goes first, then 7, and the mark is reached.
    assert_eq!(evicted(&store), [key(2), key(7)]);
    assert_eq!(store.usage().free, 4000);
    assert!(evicted(&store).is_empty(), "below the high mark nothing goes");
    let room = store.evict_for(6000);
    assert_eq!((room.evicted, room.freed), (vec![key(8), key(1)], 2000));
    assert!(store.evict_for(6000).evicted.is_empty(), "there is room");
    assert!(store.evict_for(9000).evicted.is_empty(), "it would be in vain");
    drop((pinned, served, slot));
    assert_eq!(store.evict_for(8000).evicted.len(), 2);
    assert!(store.get(&key(3)).is_some());
}

#[test]
fn disk_pressure_counts_what_others_took_too() {
    let bench = Bench::new();
    let store = bench.open();
    for number in 1..=3 {
        made(&store, &key(number), NewTask::default());
        bench.system.pass(HOUR);
    }
    let space = |free| Some(Space { total: 10_000, free });
    bench.system.0.lock().space = space(2001);
    assert!(store.collect(store.now()).evicted.is_empty());
    bench.system.0.lock().space = space(2000);
    let collected = store.collect(store.now());
    assert_eq!((collected.evicted, collected.freed, collected.more), (vec![key(1), key(2)], 2000, false));
}

#[test]
fn a_pass_is_short_and_says_when_there_is_more() {
    let mut bench = Bench::new();
    bench.options.task_ttl = HOUR;
    let store = bench.open();
    for number in 0..150 {
        store.get_or_create(&key(number), NewTask::default()).unwrap();
    }
    bench.system.pass(2 * HOUR);
    let first = store.collect(store.now());
    assert_eq!((first.expired.len(), first.more), (128, true));
    let second = store.collect(store.now());
    assert_eq!((second.expired.len(), second.more), (22, false));
    let left: Vec<_> = std::fs::read_dir(bench.dir.path().join("damselfly-v1/task")).unwrap().collect();
    assert!(left.is_empty(), "directories go with their last task");
}

#[test]
fn collecting_while_others_begin_to_use_never_takes_what_they_hold() {
    let bench = Bench::new();
    let store = bench.open();
    let content = bytes(1, 1000);
    std::thread::scope(|scope| {
        for worker in 0..4u32 {
            let (store, content) = (&store, &content);
            scope.spawn(move || {
                for round in 0..100 {
                    let key = key((round + worker) % 5);
                    let task = store.get_or_create(&key, NewTask::default()).unwrap();
                    let Ok(pin) = task.pin() else { continue };
                    if task.geometry().is_none() {
                        // Another worker may have told it first.
                        task.set_facts(crate::testing::facts(1000, 500)).unwrap();
                    }
                    if let Ok(mut slot) = task.slot(0) {
                        slot.write_at(0, &content[..500]).unwrap();
                        slot.commit(damselfly_core::Crc::of(&content[..500])).unwrap();
                    }
                    let piece = task.piece(0).unwrap();
                    drop(pin);
                    if piece.is_some() {
                        assert_eq!(store.get(&key).unwrap().key(), &key, "served, so it stays");
                    }
                }
            });
        }
        scope.spawn(|| {
            bench.system.0.lock().space = Some(Space { total: 10_000, free: 0 });
            for _ in 0..200 {
                store.collect(store.now());
            }
        });
    });
    bench.system.0.lock().space = None;
    let used: u64 = store.list().iter().map(|task| task.meta().held_bytes).sum();
    assert_eq!((store.usage().used, store.usage().reserved), (used, 0));
}

#[test]
fn a_deletion_leaves_a_tombstone_until_the_ttl_would_have_ended() {
    let bench = Bench::new();
    let store = bench.open();
    for number in 1..=3 {
        let ttl = Some(HOUR * number);
        made(&store, &persistent_key(number), NewTask { ttl, ..NewTask::default() });
        store.delete(&persistent_key(number)).unwrap();
    }
    assert!(matches!(store.delete(&key(1)), Err(StoreError::Unknown(_))));
    let graves = |store: &Store| store.tombstones().into_iter().map(|stone| stone.key).collect::<Vec<_>>();
    assert_eq!(graves(&store).len(), 3);
    bench.system.pass(HOUR);
    store.collect(store.now());
    assert_eq!(graves(&store), [persistent_key(2), persistent_key(3)]);
    drop(store);
    let store = bench.open();
    assert_eq!(store.tombstones()[0].left, HOUR);
    assert_eq!(store.tombstones()[1].generation, 1);
    // A torn last entry costs that one.
    drop(store);
    let path = bench.dir.path().join("damselfly-v1/tombstones");
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(length - 5).unwrap();
    let store = bench.open();
    assert_eq!(graves(&store), [persistent_key(2)]);
    made(&store, &persistent_key(9), NewTask::default());
    store.delete(&persistent_key(9)).unwrap();
    drop(store);
    assert_eq!(graves(&bench.open()), [persistent_key(2), persistent_key(9)]);
    bench.system.reboot(3, 2 * HOUR);
    let store = bench.open();
    assert_eq!(graves(&store), [persistent_key(9)]);
    std::fs::write(&path, "garbage").unwrap();
    drop(store);
    assert!(bench.open().tombstones().is_empty());
}

#[test]
fn a_tombstone_tells_whether_all_copies_are_deleted() {
    let bench = Bench::new();
    let store = bench.open();
    let key = persistent_key;
    for number in 1..=3 {
        let generation = Some(7).filter(|_| number < 3);
        made(&store, &key(number), NewTask { ttl: Some(HOUR), generation, ..NewTask::default() });
    }
    store.delete(&key(1)).unwrap();
    store.delete_everywhere(&key(2)).unwrap();
    store.delete(&key(3)).unwrap();
    let told = |store: &Store, number: u32| {
        let stones = store.tombstones().into_iter().filter(|stone| stone.key == key(number));
        stones.map(|stone| (stone.generation, stone.reach)).collect::<Vec<_>>()
    };
    assert_eq!(told(&store, 1), [(7, Reach::Here)]);
    assert_eq!(told(&store, 2), [(7, Reach::Everywhere)]);
    // Of a later one that was not here nothing is known.
    store.deleted_everywhere(&key(1), 6).unwrap();
    store.deleted_everywhere(&key(4), 9).unwrap();
    assert_eq!(told(&store, 1).len() + told(&store, 4).len(), 1);
    for _ in 0..2 {
        store.deleted_everywhere(&key(1), 9).unwrap();
    }
    drop(store);
    let store = bench.open();
    assert_eq!(told(&store, 1), [(7, Reach::Here), (7, Reach::Everywhere)]);
    assert_eq!(told(&store, 3), [(1, Reach::Here)]);
    // What others know by its number goes on after what was deleted here, too.
    let again = NewTask { generation: Some(5), ..NewTask::default() };
    assert_eq!(made(&store, &key(1), again).meta().generation, 8);
}

#[test]
fn what_is_left_of_a_failed_task_goes_with_the_next_pass() {
    let bench = Bench::new();
    let store = bench.open();
    let files = |number: u32| ["data", "meta"].map(|end| bench.path(&key(number), end).try_exists().unwrap());
    for number in 1..=4 {
        complete(&store, &key(number), &bytes(1, 1000), 500);
    }
    let fail = |change: Option<&'static str>| bench.system.0.lock().fails = change;
    // 1 and 2 cannot be replaced, and 2 is begun anew; 3 cannot be removed; 4 has nothing to do with it.
    fail(Some("create content file"));
    let lost = [1, 2].map(|number| store.get(&key(number)).unwrap());
    assert!(lost.iter().all(|task| task.begin_generation(2, Validator::default()).is_err()));
    fail(Some("remove task file"));
    assert!(store.delete(&key(3)).is_err());
    store.collect(store.now());
    assert_eq!((files(1), files(3), store.list().len()), ([true; 2], [true; 2], 1));
    fail(None);
    complete(&store, &key(2), &bytes(2, 1000), 500);
    store.collect(store.now());
    assert_eq!((files(1), files(3)), ([false; 2], [false; 2]));
    assert_eq!((files(2), files(4), store.list().len()), ([true; 2], [true; 2], 2));
    assert_eq!(fetch(&store.get(&key(2)).unwrap(), 1).unwrap(), &bytes(2, 1000)[500..]);
}

#[test]
fn tombstones_are_on_the_device_before_they_count() {
    let bench = Bench::new();
    let store = bench.open();
    let new = |hours: u32| NewTask { ttl: Some(HOUR * hours), ..NewTask::default() };
    for number in 1..=6 {
        made(&store, &persistent_key(number), new(if number < 4 { 1 } else { 9 }));
    }
    // The first one makes the file, the others are appended.
    for number in 1..=4 {
        store.delete(&persistent_key(number)).unwrap();
    }
    let path = bench.dir.path().join("damselfly-v1/tombstones");
    let before = std::fs::read(&path).unwrap();
    bench.system.0.lock().fails = Some("flush");
    assert!(store.delete(&persistent_key(5)).is_err(), "appended");
    // Most are expired: the file is to be written anew, which does not replace it before it is flushed.
    bench.system.pass(2 * HOUR);
    std::fs::write(&path, &before).unwrap();
    store.collect(store.now());
    assert_eq!(std::fs::read(&path).unwrap(), before);
    bench.system.0.lock().fails = None;
    store.collect(store.now());
    assert!(std::fs::read(&path).unwrap().len() < before.len());
    drop(store);
    assert_eq!(bench.open().tombstones()[0].key, persistent_key(4));
}

#[test]
fn a_task_in_use_is_not_deleted_but_readers_are_no_hindrance() {
    let bench = Bench::new();
    let store = bench.open();
    let content = bytes(1, 1000);
    let task = complete(&store, &key(1), &content, 500);
    let pin = task.pin().unwrap();
    let error = store.delete(&key(1)).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(pin);
    let piece = task.piece(1).unwrap().unwrap();
    // The collector looks again, in case the reader came after it had made its plan.
    assert!(matches!(task.end(false), Err(StoreError::InUse { how: "being served", .. })));
    let changes = task.changes();
    store.delete(&key(1)).unwrap();
    assert!(changes.has_changed().unwrap());
    let damselfly_core::Content::File { file, offset, .. } = &piece.content else { panic!() };
    let mut read = [0; 500];
    std::os::unix::fs::FileExt::read_exact_at(&**file, &mut read, *offset).unwrap();
    assert_eq!(read, content[500..]);
    // Who still knows the task is told so, and the next one begins anew.
    assert!(matches!(task.piece(1), Err(StoreError::Gone(_))));
    assert!(matches!(task.pin(), Err(StoreError::Gone(_))));
    assert!(matches!(task.slot(1), Err(StoreError::Gone(_))));
    let next = begin(&store, &key(1), &content, 500);
    assert!(next.pieces().is_empty() && next.meta().generation == 2);
    drop(piece);
    assert_eq!(store.usage().used, 0);
}

#[test]
fn metadata_outlives_a_restart_and_holds_no_secrets() {
    let bench = Bench::new();
    let store = bench.open();
    let new = NewTask {
        url_redacted: "https://u:secret@h/x?X-Amz-Signature=secret".into(),
        tag: Some("t".into()),
        application: Some("a".into()),
        owner_uid: Some(7),
        private: true,
        digest: Some("crc32:1".into()),
        ..NewTask::default()
    };
    let task = made(&store, &key(1), new);
    bench.system.pass(HOUR);
    task.add_owner(3).unwrap();
    task.add_owner(7).unwrap();
    task.set_digest("crc32:2").unwrap();
    task.set_persistent(true).unwrap();
    task.mark_finished().unwrap();
    bench.system.pass(HOUR);
    task.mark_finished().unwrap();
    let meta = task.meta();
    assert_eq!((&meta.owners[..], meta.private, meta.paused), (&[3, 7][..], true, false));
    assert_eq!((meta.digest.as_deref(), meta.persistent), (Some("crc32:2"), true));
    assert_eq!(meta.finished_at.unwrap().duration_since(meta.created_at).unwrap(), HOUR);
    assert!(!format!("{meta:?}").contains("secret"), "{meta:?}");
    drop((task, store));
    let read = bench.open().get(&key(1)).unwrap().meta();
    assert_eq!(read, meta);
    let sidecar = std::fs::read(bench.path(&key(1), "meta")).unwrap();
    assert!(!sidecar.windows(6).any(|window| window == b"secret"));
}

#[test]
fn only_what_is_blank_and_waits_for_nobody_is_removed_as_that() {
    let bench = Bench::new();
    let store = bench.open();
    let new = |number: u32, new: NewTask| store.get_or_create(&key(number), new).unwrap();
    let failed = new(1, NewTask::default());
    let held = made(&store, &key(2), NewTask::default());
    let paused = new(3, NewTask::default());
    paused.set_paused(true).unwrap();
    let persistent = new(4, NewTask { persistent: true, ..NewTask::default() });
    let empty = new(5, NewTask::default());
    complete(&store, &key(5), &[], 500);
    let measured = new(6, NewTask::default());
    measured.set_facts(crate::testing::facts(1000, 500)).unwrap();
    for task in [&held, &paused, &persistent, &empty, &measured] {
        assert!(!store.remove_blank(task).unwrap(), "{:?}", task.meta());
    }
    let pin = failed.pin().unwrap();
    assert!(!store.remove_blank(&failed).unwrap(), "somebody wants it");
    drop(pin);
    assert!(store.remove_blank(&failed).unwrap());
    assert!(!store.remove_blank(&failed).unwrap(), "once");
    assert!(!bench.path(&key(1), "data").try_exists().unwrap());
    assert_eq!((store.list().len(), store.tombstones().len()), (5, 0));
}
