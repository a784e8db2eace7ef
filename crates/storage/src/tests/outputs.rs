use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use damselfly_core::{ByteRange, Class};
use tempfile::TempDir;

use crate::testing::{Bench, begin, bytes, complete, fetch, key, put};
use crate::{OutputPolicy, OutputWay, Store, StoreError, TaskContent};

struct Outputs {
    bench: Bench,
    store: Arc<Store>,
    task: Arc<TaskContent>,
    content: Vec<u8>,
    out: TempDir,
    dir: File,
}

const LINK: OutputPolicy =
    OutputPolicy { same_uid: true, overwrite: false, force_hard_link: false, umask: None };
const COPY: OutputPolicy =
    OutputPolicy { same_uid: false, overwrite: false, force_hard_link: false, umask: None };

impl Outputs {
    fn new() -> Self {
        let bench = Bench::new();
        let (store, content) = (bench.open(), bytes(4, 3 << 20));
        let task = complete(&store, &key(1), &content, 1 << 20);
        let out = tempfile::tempdir_in(bench.dir.path()).unwrap();
        let dir = File::open(out.path()).unwrap();
        Self { bench, store, task, content, out, dir }
    }

    fn publish(&self, name: &str, policy: OutputPolicy) -> Result<OutputWay, StoreError> {
        self.task.publish_to(&self.dir, OsStr::new(name), policy)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.out.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.out.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn inode(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().ino()
    }

    fn stored_inode(&self) -> u64 {
        fs::metadata(self.bench.path(&key(1), "data")).unwrap().ino()
    }
}

fn is_copy(way: OutputWay) -> bool {
    matches!(way, OutputWay::Copy | OutputWay::Reflink)
}

#[test]
fn the_stores_own_uid_gets_one_hard_link_and_others_get_copies() {
    let test = Outputs::new();
    assert_eq!(test.publish("a", LINK).unwrap(), OutputWay::HardLink);
    assert_eq!(test.inode("a"), test.stored_inode());
    assert_eq!(test.publish("a", COPY).unwrap(), OutputWay::HardLink, "the same inode is a success");
    assert!(is_copy(test.publish("b", LINK).unwrap()), "a linked inode goes to no second caller");
    assert!(is_copy(test.publish("c", COPY).unwrap()));
    for name in ["a", "b", "c"] {
        assert_eq!(fs::read(test.path(name)).unwrap(), test.content, "{name}");
    }
    let error = test.publish("d", OutputPolicy { force_hard_link: true, ..LINK }).unwrap_err();
    assert!(
        matches!(&error, StoreError::NoHardLink { why, .. } if why.contains("linked to another")),
        "{error}"
    );
    assert!(matches!(
        test.publish("d", OutputPolicy { force_hard_link: true, ..COPY }),
        Err(StoreError::NoHardLink { .. })
    ));
    assert_eq!(test.names(), ["a", "b", "c"]);
    // Over a restart too.
    let Outputs { bench, store, task, out, dir, .. } = test;
    store.shutdown().unwrap();
    drop((store, task));
    let task = bench.open().get(&key(1)).unwrap();
    assert!(is_copy(task.publish_to(&dir, OsStr::new("e"), LINK).unwrap()));
    drop(out);
}

#[test]
fn an_output_has_the_mode_any_program_would_have_given_it() {
    let test = Outputs::new();
    let plain = test.path("plain");
    fs::write(&plain, "x").unwrap();
    let mode = |name: &str| fs::metadata(test.path(name)).unwrap().permissions().mode();
    test.publish("link", LINK).unwrap();
    test.publish("copy", COPY).unwrap();
    assert_eq!([mode("link"), mode("copy")], [mode("plain"); 2]);
    let root = fs::metadata(test.bench.dir.path().join("damselfly-v1")).unwrap();
    assert_eq!(root.permissions().mode() & 0o777, 0o700, "that the files are readable is nobody's way in");
    let sidecar = fs::metadata(test.bench.path(&key(1), "meta")).unwrap();
    assert_eq!(sidecar.permissions().mode() & 0o777, 0o600);
}

#[test]
fn an_output_obeys_its_callers_umask() {
    for umask in [0o077, 0o027, 0o002, 0] {
        let test = Outputs::new();
        let mode = |name: &str| fs::metadata(test.path(name)).unwrap().permissions().mode() & 0o777;
        let (link, copy) =
            (OutputPolicy { umask: Some(umask), ..LINK }, OutputPolicy { umask: Some(umask), ..COPY });
        test.publish("copy", copy).unwrap();
        assert_eq!(test.publish("link", link).unwrap(), OutputWay::HardLink);
        assert_eq!([mode("link"), mode("copy")], [0o666 & !umask; 2], "{umask:o}");
        assert_eq!(fetch(&test.task, 1).unwrap(), &test.content[1 << 20..2 << 20]);
    }
    // A mode that would shut the store itself out is a copy's only.
    let test = Outputs::new();
    let odd = OutputPolicy { umask: Some(0o277), ..LINK };
    let error = test.publish("b", OutputPolicy { force_hard_link: true, ..odd }).unwrap_err();
    assert!(matches!(&error, StoreError::NoHardLink { why, .. } if why.contains("umask")), "{error}");
    assert!(is_copy(test.publish("b", odd).unwrap()));
    assert_eq!(fs::metadata(test.path("b")).unwrap().permissions().mode() & 0o777, 0o400);
    let stored = fs::metadata(test.bench.path(&key(1), "data")).unwrap();
    assert_eq!(stored.permissions().mode() & 0o600, 0o600);
}

#[test]
fn a_part_of_the_content_is_never_the_stored_inode() {
    let test = Outputs::new();
    assert_eq!(test.publish("whole", LINK).unwrap(), OutputWay::HardLink);
    let part = test.task.output_of(ByteRange { start: 5, length: 2 << 20 }).unwrap();
    assert_eq!(part.length(), 2 << 20);
    let steps = std::cell::Cell::new(0);
    part.copy_to(&tempfile::tempfile().unwrap(), &|_| steps.set(steps.get() + 1)).unwrap();
    assert!(steps.get() >= 2, "a copy of 2 MiB gets on at least twice");
    let over = OutputPolicy { overwrite: true, ..LINK };
    for (name, policy) in [("part", LINK), ("whole", over)] {
        assert_eq!(part.publish_to(&test.dir, OsStr::new(name), policy, &|_| ()).unwrap(), OutputWay::Copy);
        assert_eq!(fs::read(test.path(name)).unwrap(), test.content[5..5 + (2 << 20)]);
    }
    let forced = OutputPolicy { force_hard_link: true, ..over };
    let error = part.publish_to(&test.dir, OsStr::new("part"), forced, &|_| ()).unwrap_err();
    assert!(matches!(&error, StoreError::NoHardLink { why, .. } if why.contains("part")), "{error}");
}

#[test]
fn what_exists_is_kept_unless_told_otherwise() {
    let test = Outputs::new();
    for policy in [LINK, COPY] {
        fs::write(test.path("a"), "mine").unwrap();
        assert!(matches!(test.publish("a", policy), Err(StoreError::Exists(name)) if name == "a"));
        assert_eq!(fs::read(test.path("a")).unwrap(), b"mine");
        let way = test.publish("a", OutputPolicy { overwrite: true, ..policy }).unwrap();
        assert_eq!(way == OutputWay::HardLink, policy.same_uid);
        assert_eq!(fs::read(test.path("a")).unwrap(), test.content);
        assert_eq!(test.names(), ["a"]);
        fs::remove_file(test.path("a")).unwrap();
    }
    fs::create_dir(test.path("d")).unwrap();
    let over = OutputPolicy { overwrite: true, ..COPY };
    assert!(matches!(test.publish("d", over), Err(StoreError::Exists(_))), "a directory is not overwritten");
    // A symbolic link is a name like any other: it is replaced, not followed.
    fs::write(test.path("target"), "mine").unwrap();
    std::os::unix::fs::symlink("target", test.path("s")).unwrap();
    assert!(matches!(test.publish("s", COPY), Err(StoreError::Exists(_))));
    test.publish("s", over).unwrap();
    assert_eq!(fs::read(test.path("target")).unwrap(), b"mine");
    for name in ["", ".", "..", "a/b", "/x"] {
        assert!(test.publish(name, over).is_err(), "{name:?}");
    }
}

#[test]
fn a_failure_leaves_nothing_behind() {
    for fails in ["rename output", "link output", "rename linked output"] {
        let test = Outputs::new();
        test.bench.system.0.lock().fails = Some(fails);
        let over = OutputPolicy { overwrite: true, ..LINK };
        let results = [test.publish("a", COPY), test.publish("b", LINK), test.publish("c", over)];
        test.bench.system.0.lock().fails = None;
        let made = ["a", "b", "c"].into_iter().zip(&results).filter(|(_, result)| result.is_ok());
        assert_eq!(
            test.names(),
            made.map(|(name, _)| name.to_owned()).collect::<Vec<_>>(),
            "{fails} {results:?}"
        );
        assert!(!test.task.in_use());
    }
}

#[test]
fn an_incomplete_content_has_no_output_but_its_held_ranges_do() {
    let bench = Bench::new();
    let (store, content) = (bench.open(), bytes(4, 4500));
    let task = begin(&store, &key(1), &content, 1000);
    [1, 2, 4].into_iter().for_each(|number| put(&task, &content, number));
    let error = task.output().unwrap_err();
    assert!(matches!(error, StoreError::Missing { first: 0, count: 2, .. }) && error.class() == Class::Retry);
    let to = tempfile::tempfile().unwrap();
    task.output_of(ByteRange { start: 1500, length: 1500 }).unwrap().copy_to(&to, &|_| ()).unwrap();
    let mut read = vec![0; 1500];
    to.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, content[1500..3000]);
    // Filled, a file holds that and nothing else.
    to.set_len(9000).unwrap();
    let told = std::cell::RefCell::new(Vec::new());
    let part = task.output_of(ByteRange { start: 1500, length: 1500 }).unwrap();
    assert_eq!(part.fill(&to, &|moved| told.borrow_mut().push(moved)).unwrap(), OutputWay::Copy);
    assert_eq!((to.metadata().unwrap().len(), told.into_inner().pop()), (1500, Some(1500)));
    to.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, content[1500..3000]);
    assert!(matches!(
        task.output_of(ByteRange { start: 2999, length: 2 }),
        Err(StoreError::Missing { first: 3, count: 1, .. })
    ));
    assert!(matches!(
        task.output_of(ByteRange { start: 4000, length: 501 }),
        Err(StoreError::OutOfRange { end: 4501, .. })
    ));
}

#[test]
fn an_empty_content_has_an_empty_output() {
    let bench = Bench::new();
    let store = bench.open();
    let task = begin(&store, &key(1), b"", 1000);
    let dir = File::open(bench.dir.path()).unwrap();
    task.publish_to(&dir, OsStr::new("empty"), COPY).unwrap();
    assert_eq!(fs::read(bench.dir.path().join("empty")).unwrap(), b"");
}

#[test]
fn a_linked_output_that_its_owner_changes_is_forgotten_and_left_alone() {
    let test = Outputs::new();
    test.publish("a", LINK).unwrap();
    assert!(test.task.is_complete());
    assert_eq!(fetch(&test.task, 1).unwrap(), &test.content[1 << 20..2 << 20], "our own link is no change");
    File::options().write(true).open(test.path("a")).unwrap().write_all_at(b"mine", 1 << 20).unwrap();
    // Lazily: what is still right is found to be so, what is not makes us give up the file.
    assert!(test.task.is_complete());
    assert_eq!(fetch(&test.task, 0).unwrap(), &test.content[..1 << 20]);
    assert_eq!(fetch(&test.task, 1), None);
    assert!(test.task.pieces().is_empty());
    assert_ne!(test.inode("a"), test.stored_inode());
    (0..3).for_each(|number| put(&test.task, &test.content, number));
    assert_eq!(&fs::read(test.path("a")).unwrap()[1 << 20..][..4], b"mine");
    // The new inode was never linked.
    assert_eq!(test.publish("b", LINK).unwrap(), OutputWay::HardLink);
}

#[test]
fn a_touched_but_unchanged_output_is_verified_once_and_kept() {
    let test = Outputs::new();
    test.publish("a", LINK).unwrap();
    fs::set_permissions(test.path("a"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(is_copy(test.publish("b", LINK).unwrap()));
    assert_eq!(fs::read(test.path("b")).unwrap(), test.content);
    assert_eq!(test.inode("a"), test.stored_inode());
    // Removing the link changes the ctime as well.
    fs::remove_file(test.path("a")).unwrap();
    assert_eq!(fetch(&test.task, 2).unwrap(), &test.content[2 << 20..]);
}

#[test]
fn a_change_while_the_store_was_closed_is_noticed_in_spite_of_the_marker() {
    let test = Outputs::new();
    test.publish("a", LINK).unwrap();
    test.store.shutdown().unwrap();
    let Outputs { bench, store, task, out, content, .. } = test;
    drop((store, task));
    File::options().write(true).open(out.path().join("a")).unwrap().write_all_at(b"mine", 0).unwrap();
    let store = bench.open();
    let task = store.get(&key(1)).unwrap();
    assert_eq!(fetch(&task, 1).unwrap(), &content[1 << 20..2 << 20]);
    assert_eq!(fetch(&task, 0), None);
}

#[test]
fn a_ledger_that_contradicts_a_linked_piece_does_not_repair_it_in_place() {
    let test = Outputs::new();
    test.publish("a", LINK).unwrap();
    test.task.invalidate(1).unwrap();
    assert!(test.task.pieces().is_empty());
    let mut slot = test.task.slot(1).unwrap();
    slot.write_at(0, &vec![0xEE; 1 << 20]).unwrap();
    assert_eq!(fs::read(test.path("a")).unwrap(), test.content);
}

#[test]
fn an_output_is_of_one_generation() {
    let test = Outputs::new();
    let output = test.task.output().unwrap();
    assert_eq!(output.length(), 3 << 20);
    test.task.begin_generation(2, damselfly_core::download::Validator::default()).unwrap();
    for policy in [LINK, COPY] {
        assert!(matches!(
            output.publish_to(&test.dir, OsStr::new("a"), policy, &|_| ()),
            Err(StoreError::Missing { .. })
        ));
    }
    assert!(test.names().is_empty());
}

#[test]
fn content_goes_to_another_file_system_as_a_copy() {
    let test = Outputs::new();
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else { return };
    let device = |path: &std::path::Path| fs::metadata(path).unwrap().dev();
    if device(elsewhere.path()) == device(test.out.path()) {
        return;
    }
    let dir = File::open(elsewhere.path()).unwrap();
    assert_eq!(test.task.publish_to(&dir, OsStr::new("a"), LINK).unwrap(), OutputWay::Copy);
    assert_eq!(fs::read(elsewhere.path().join("a")).unwrap(), test.content);
    assert_eq!(test.publish("b", LINK).unwrap(), OutputWay::HardLink, "that was no link");
}

#[test]
fn a_link_is_known_of_before_it_is_made() {
    let test = Outputs::new();
    test.bench.system.0.lock().budget = Some(0);
    assert!(matches!(test.publish("a", LINK), Err(StoreError::DiskFull { .. })));
    assert!(test.names().is_empty(), "what cannot be recorded is not linked");
    // The first of the two header writes around a link succeeds, the second one does not.
    test.bench.system.0.lock().budget = Some(4096);
    assert_eq!(test.publish("a", LINK).unwrap(), OutputWay::HardLink);
    test.bench.system.0.lock().budget = None;
    let Outputs { bench, store, task, content, out, dir } = test;
    drop((store, task));
    let store = bench.open();
    let task = store.get(&key(1)).unwrap();
    assert!(is_copy(task.publish_to(&dir, OsStr::new("b"), LINK).unwrap()));
    assert_eq!(fs::read(out.path().join("b")).unwrap(), content);
}

#[test]
fn linked_content_frees_capacity_but_not_the_disk() {
    let test = Outputs::new();
    test.publish("a", LINK).unwrap();
    let Outputs { mut bench, store, task, out, .. } = test;
    store.shutdown().unwrap();
    drop((store, task));
    bench.system.0.lock().space = Some(crate::system::Space { total: 10 << 20, free: 1 << 20 });
    bench.system.pass(Duration::from_secs(10));
    let store = bench.open();
    assert!(store.collect(store.now()).evicted.is_empty());
    assert!(store.evict_for(5 << 20).evicted.is_empty());
    drop(store);
    bench.options.capacity = Some(3 << 20);
    let store = bench.open();
    assert_eq!(store.collect(store.now()).evicted, [key(1)]);
    assert!(out.path().join("a").try_exists().unwrap());
}
