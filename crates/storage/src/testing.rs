//! A machine for tests: its clock, its disk's room and its failures are theirs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use damselfly_core::{Crc, Geometry, Kind, PieceSet, TaskId, TaskKey};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::clock::{BootId, Moment};
use crate::system::{Space, System};
use crate::{Facts, NewTask, Options, Store, TaskContent};

/// What the fake machine does.
#[derive(Debug)]
pub(crate) struct Play {
    pub(crate) now: Moment,
    pub(crate) space: Option<Space>,
    /// Bytes that can still be written before the disk is full.
    pub(crate) budget: Option<u64>,
    pub(crate) sparse_only: bool,
    pub(crate) allocated: Vec<(u64, u64)>,
    /// After that many more allocations the disk is full.
    pub(crate) allocations: Option<u32>,
    /// What the disk gets back from every file that is removed.
    pub(crate) removal_frees: u64,
    /// The change (by its name, `flush` for one of those) that fails.
    pub(crate) fails: Option<&'static str>,
    /// Copies of the directory as a kill would leave it, taken before each change and in the middle of each write.
    pub(crate) snapshots: Option<(PathBuf, PathBuf, usize)>,
}

#[derive(Debug)]
pub(crate) struct Fake(pub(crate) Mutex<Play>);

pub(crate) const BOOT: BootId = BootId([7; 16]);

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        let now =
            Moment { boot: BOOT, since_boot: Duration::from_secs(1000), wall: Duration::from_secs(1 << 30) };
        Arc::new(Self(Mutex::new(Play {
            now,
            space: None,
            budget: None,
            sparse_only: false,
            allocated: Vec::new(),
            allocations: None,
            removal_frees: 0,
            fails: None,
            snapshots: None,
        })))
    }

    pub(crate) fn pass(&self, time: Duration) {
        let mut play = self.0.lock();
        play.now.since_boot += time;
        play.now.wall += time;
    }

    pub(crate) fn reboot(&self, boot: u8, away: Duration) {
        let mut play = self.0.lock();
        play.now =
            Moment { boot: BootId([boot; 16]), since_boot: Duration::ZERO, wall: play.now.wall + away };
    }

    fn snapshot(&self) {
        let mut play = self.0.lock();
        if let Some((from, to, count)) = &mut play.snapshots {
            copy_tree(from, &to.join(count.to_string()));
            *count += 1;
        }
    }
}

pub(crate) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

impl System for Fake {
    fn now(&self) -> Moment {
        self.0.lock().now
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        Ok(self.0.lock().space.unwrap_or(Space { total: 1 << 50, free: 1 << 50 }))
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.snapshot();
        let room = {
            let mut play = self.0.lock();
            match &mut play.budget {
                Some(budget) => {
                    let room = (bytes.len() as u64).min(*budget);
                    *budget -= room;
                    usize::try_from(room).unwrap()
                }
                None => bytes.len(),
            }
        };
        let half = room / 2;
        file.write_all_at(&bytes[..half], offset)?;
        if half > 0 {
            self.snapshot();
        }
        file.write_all_at(&bytes[half..room], offset + half as u64)?;
        if room < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn about_to(&self, change: &'static str) -> io::Result<()> {
        self.snapshot();
        let mut play = self.0.lock();
        if play.fails == Some(change) {
            return Err(io::Error::other("made to fail"));
        }
        let frees = if change == "remove task file" { play.removal_frees } else { 0 };
        if let Some(space) = &mut play.space {
            space.free += frees;
        }
        Ok(())
    }

    fn flush(&self, _file: &File) -> io::Result<()> {
        self.about_to("flush")
    }

    fn allocate(&self, _file: &File, offset: u64, length: u64) -> io::Result<bool> {
        let mut play = self.0.lock();
        if play.sparse_only {
            return Ok(false);
        }
        if let Some(left) = &mut play.allocations {
            *left = left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        }
        if let Some(space) = &mut play.space {
            space.free = space.free.checked_sub(length).ok_or(io::ErrorKind::StorageFull)?;
        }
        play.allocated.push((offset, length));
        Ok(true)
    }

    fn punch(&self, _file: &File, _offset: u64, length: u64) {
        if let Some(space) = &mut self.0.lock().space {
            space.free += length;
        }
    }
}

/// A store in a directory that vanishes.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    pub(crate) system: Arc<Fake>,
    pub(crate) options: Options,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { dir: dir.path().to_owned(), ..Options::default() };
        Self { dir, system: Fake::new(), options }
    }

    pub(crate) fn open(&self) -> Arc<Store> {
        Store::open_on(self.options.clone(), Arc::<Fake>::clone(&self.system)).unwrap()
    }

    pub(crate) fn open_at(&self, dir: &Path) -> Arc<Store> {
        let options = Options { dir: dir.to_owned(), ..self.options.clone() };
        Store::open_on(options, Arc::<Fake>::clone(&self.system)).unwrap()
    }

    pub(crate) fn path(&self, key: &TaskKey, end: &str) -> PathBuf {
        let id = key.id.as_str();
        let dir = self.dir.path().join("damselfly-v1").join(key.kind.name()).join(&id[..3]);
        dir.join(format!("{id}.{end}"))
    }

    /// Changes a byte of what is stored, behind the store's back.
    pub(crate) fn corrupt(&self, key: &TaskKey, end: &str, offset: u64) {
        let file = File::options().read(true).write(true).open(self.path(key, end)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x55], offset).unwrap();
    }
}

impl Store {
    /// Bytes promised and not backed by blocks.
    pub(crate) fn pending(&self) -> u64 {
        self.shared().ledger.totals().pending
    }
}

pub(crate) fn key(number: u32) -> TaskKey {
    TaskKey { kind: Kind::Standard, id: TaskId::parse(&format!("{number:064x}")).unwrap() }
}

pub(crate) fn persistent_key(number: u32) -> TaskKey {
    TaskKey { kind: Kind::PersistentCache, ..key(number) }
}

/// Content that differs at every offset and seed.
pub(crate) fn bytes(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|at| ((at.wrapping_mul(0x9E37_79B9) >> 7) ^ (at >> 3) ^ seed.wrapping_mul(31)) as u8)
        .collect()
}

pub(crate) fn facts(content_length: u64, piece_length: u64) -> Facts {
    Facts { geometry: Some(Geometry::new(content_length, piece_length).unwrap()), ..Facts::default() }
}

/// A task of `content`, no piece of it held.
pub(crate) fn begin(store: &Store, key: &TaskKey, content: &[u8], piece_length: u64) -> Arc<TaskContent> {
    let task = store.get_or_create(key, NewTask::default()).unwrap();
    task.set_facts(facts(content.len() as u64, piece_length)).unwrap();
    task
}

pub(crate) fn put(task: &Arc<TaskContent>, content: &[u8], number: u32) {
    let mut slot = task.slot(number).unwrap();
    let part = part(task, content, number);
    slot.write_at(0, part).unwrap();
    slot.commit(Crc::of(part)).unwrap();
}

pub(crate) fn part<'a>(task: &TaskContent, content: &'a [u8], number: u32) -> &'a [u8] {
    let span = task.geometry().unwrap().piece(number).unwrap();
    let start = usize::try_from(span.offset).unwrap();
    &content[start..start + usize::try_from(span.length).unwrap()]
}

/// A complete task of `content`.
pub(crate) fn complete(store: &Store, key: &TaskKey, content: &[u8], piece_length: u64) -> Arc<TaskContent> {
    let task = begin(store, key, content, piece_length);
    for number in 0..task.geometry().unwrap().piece_count() {
        put(&task, content, number);
    }
    assert!(task.is_complete());
    task
}

/// The bytes handed out for a piece.
pub(crate) fn fetch(task: &Arc<TaskContent>, number: u32) -> Option<Vec<u8>> {
    let piece = task.piece(number).unwrap()?;
    let damselfly_core::Content::File { file, offset, length } = &piece.content else { panic!("not a file") };
    let mut bytes = vec![0; usize::try_from(*length).unwrap()];
    file.read_exact_at(&mut bytes, *offset).unwrap();
    assert_eq!(Crc::of(&bytes), piece.crc);
    assert_eq!((piece.length, piece.offset), (*length, *offset));
    Some(bytes)
}

pub(crate) fn set(task: &TaskContent, numbers: &[u32]) -> PieceSet {
    let mut set = PieceSet::new(task.geometry().unwrap().piece_count());
    numbers.iter().for_each(|&number| {
        set.insert(number);
    });
    set
}
