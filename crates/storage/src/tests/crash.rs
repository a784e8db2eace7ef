//! A kill at every step: the directory is copied before each change and in the middle of each write, and each copy is
//! opened as the next start would find it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use damselfly_core::Crc;
use damselfly_core::download::Validator;

use crate::testing::{Bench, bytes, copy_tree, facts, fetch, key, put};
use crate::{NewTask, OutputPolicy, Store, TaskContent};

const PIECE: u64 = 5000;
const LENGTH: usize = 17_000;

/// What is known to be stored after a step. `None`: the task is not there.
type State = Option<(u64, BTreeSet<u32>)>;

struct Script {
    bench: Bench,
    store: Arc<Store>,
    states: Vec<(usize, State)>,
    copies: tempfile::TempDir,
    /// From this copy on, somebody else changed the stored bytes: a listed piece may turn out to be wrong when used.
    touched: usize,
}

fn state(store: &Store) -> State {
    store.get(&key(1)).map(|task| (task.meta().generation, task.pieces().iter().collect()))
}

impl Script {
    fn new() -> Self {
        let (bench, copies) = (Bench::new(), tempfile::tempdir().unwrap());
        let store = bench.open();
        let places = (bench.dir.path().to_owned(), copies.path().to_owned(), 0);
        bench.system.0.lock().snapshots = Some(places);
        Self { bench, store, states: vec![(0, None)], copies, touched: usize::MAX }
    }

    fn step(&mut self, act: impl FnOnce(&Arc<Store>)) {
        act(&self.store);
        let count = self.bench.system.0.lock().snapshots.as_ref().unwrap().2;
        self.states.push((count, state(&self.store)));
    }

    fn task(&self) -> Arc<TaskContent> {
        self.store.get(&key(1)).unwrap()
    }

    /// Opens every copy: it opens, what is listed is right, and nothing is missing but what the step under way was about.
    fn check(self) -> usize {
        let Self { bench, store, states, copies, touched } = self;
        bench.system.0.lock().snapshots = None;
        drop(store);
        let mut checked = 0;
        for window in states.windows(2) {
            let [(from, before), (to, after)] = window else { unreachable!() };
            for number in *from..*to {
                let dir = copies.path().join(number.to_string());
                let store = bench.open_at(&dir);
                let found = state(&store);
                if number < touched {
                    assert_kept(&found, before, after, &dir);
                }
                for task in store.list() {
                    let content = bytes(task.meta().generation, LENGTH);
                    for piece in task.pieces().iter() {
                        let expected = crate::testing::part(&task, &content, piece);
                        match fetch(&task, piece) {
                            Some(found) => assert_eq!(found, expected, "{dir:?} piece {piece}"),
                            None => {
                                assert!(number >= touched, "{dir:?} piece {piece} was recorded and is wrong")
                            }
                        }
                    }
                    // And it can go on from there.
                    if task.geometry().is_none() {
                        task.set_facts(facts(LENGTH as u64, PIECE)).unwrap();
                    }
                    for piece in task.pieces().missing().collect::<Vec<_>>() {
                        put(&task, &content, piece);
                    }
                    assert!(task.is_complete());
                }
                checked += 1;
            }
        }
        checked
    }
}

fn assert_kept(found: &State, before: &State, after: &State, dir: &Path) {
    match (before, after) {
        (Some((old, held)), Some((new, kept))) => {
            let (generation, pieces) = found.as_ref().unwrap_or_else(|| panic!("{dir:?}: lost"));
            assert!(generation == old || generation == new, "{dir:?}");
            if old == new {
                let sure: BTreeSet<u32> = held & kept;
                assert!(sure.is_subset(pieces), "{dir:?}: {pieces:?} of {sure:?}");
            }
            let possible: BTreeSet<u32> = held | kept;
            assert!(pieces.is_subset(&possible), "{dir:?}: {pieces:?} of {possible:?}");
        }
        _ => {
            let pieces = found.as_ref().map(|(_, pieces)| pieces.clone()).unwrap_or_default();
            let [before, after] =
                [before, after].map(|state| state.clone().map(|(_, held)| held).unwrap_or_default());
            assert!(pieces.is_subset(&(&before | &after)), "{dir:?}");
        }
    }
}

fn write(task: &Arc<TaskContent>, content: &[u8], number: u32, beside: bool) {
    let part = crate::testing::part(task, content, number);
    let mut slot = if beside { task.scratch(number) } else { task.slot(number) }.unwrap();
    for (at, chunk) in (0..).step_by(3000).zip(part.chunks(3000)) {
        slot.write_at(at, chunk).unwrap();
    }
    slot.commit(Crc::of(part)).unwrap();
}

#[test]
fn a_kill_at_any_step_loses_at_most_what_was_in_flight() {
    let mut script = Script::new();
    let (first, second) = (bytes(1, LENGTH), bytes(2, LENGTH));
    script.step(|store| {
        let new =
            NewTask { url_redacted: "http://h/x?sig=1".into(), owner_uid: Some(5), ..NewTask::default() };
        store.get_or_create(&key(1), new).unwrap();
    });
    let task = script.task();
    script.step(|_| task.set_facts(facts(LENGTH as u64, PIECE)).unwrap());
    for number in [2, 0, 3] {
        script.step(|_| write(&task, &first, number, false));
    }
    script.step(|_| write(&task, &first, 1, true));
    script.step(|_| task.mark_finished().unwrap());
    script.step(|_| task.invalidate(2).unwrap());
    script.step(|_| write(&task, &first, 2, false));
    // More metadata than a header holds: the overflow moves about.
    for size in [9000, 20_000, 100] {
        script.step(|_| task.set_digest(&"x".repeat(size)).unwrap());
    }
    script.step(|_| assert_eq!(task.begin_generation(2, Validator::default()).unwrap(), 2));
    script.step(|_| task.set_facts(facts(LENGTH as u64, PIECE)).unwrap());
    script.step(|_| write(&task, &second, 1, false));
    drop(task);
    script.step(|store| {
        store.delete(&key(1)).unwrap();
    });
    assert!(script.check() > 60);
}

#[test]
fn a_kill_while_a_content_of_unknown_length_ends() {
    let mut script = Script::new();
    script.step(|store| {
        store.get_or_create(&key(1), NewTask::default()).unwrap();
    });
    let task = script.task();
    script.step(|_| {
        let mut writer = task.unit_writer().unwrap().with_piece_length(PIECE);
        writer.append(&bytes(1, LENGTH)).unwrap();
        writer.finish().unwrap();
    });
    drop(task);
    assert!(script.check() > 8);
}

#[test]
fn a_kill_around_a_hard_link_never_writes_into_the_output() {
    let mut script = Script::new();
    let content = bytes(1, LENGTH);
    script.step(|store| {
        store.get_or_create(&key(1), NewTask::default()).unwrap();
    });
    let task = script.task();
    script.step(|_| task.set_facts(facts(LENGTH as u64, PIECE)).unwrap());
    for number in 0..4 {
        script.step(|_| write(&task, &content, number, false));
    }
    let out = script.bench.dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let dir = std::fs::File::open(&out).unwrap();
    script.step(|_| {
        let policy = OutputPolicy { same_uid: true, ..OutputPolicy::default() };
        task.publish_to(&dir, "x".as_ref(), policy).unwrap();
    });
    // The caller overwrites its file in place; the store notices and begins anew without touching it.
    std::fs::write(out.join("x"), "the caller's own words").unwrap();
    script.touched = script.states.last().unwrap().0;
    script.step(|_| assert!(task.piece(0).unwrap().is_none()));
    script.step(|_| write(&task, &content, 0, false));
    assert_eq!(std::fs::read_to_string(out.join("x")).unwrap(), "the caller's own words");
    drop(task);
    script.check();
}

#[test]
fn a_kill_before_a_linked_file_is_replaced_leaves_it_alone() {
    // Only a real link shows it: the copies above have inodes of their own.
    let bench = Bench::new();
    let content = bytes(1, LENGTH);
    let store = bench.open();
    let task = crate::testing::complete(&store, &key(1), &content, PIECE);
    let out = tempfile::tempdir_in(bench.dir.path()).unwrap();
    let dir = std::fs::File::open(out.path()).unwrap();
    let policy = OutputPolicy { same_uid: true, ..OutputPolicy::default() };
    task.publish_to(&dir, "x".as_ref(), policy).unwrap();
    bench.system.0.lock().fails = Some("create content file");
    assert!(task.begin_generation(2, Validator::default()).is_err());
    bench.system.0.lock().fails = None;
    drop((task, store));
    let store = bench.open();
    let task = store.get(&key(1)).unwrap();
    assert_eq!(task.meta().generation, 2);
    task.set_facts(facts(10, 10)).unwrap();
    put(&task, b"0123456789", 0);
    assert_eq!(std::fs::read(out.path().join("x")).unwrap(), content);
    let copy = tempfile::tempdir().unwrap();
    copy_tree(bench.dir.path(), copy.path());
}
