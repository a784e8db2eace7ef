//! The store: which tasks there are.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use damselfly_core::download::Validator;
use damselfly_core::{Crc, Kind, PieceSet, TaskId, TaskKey, redact};
use parking_lot::{Mutex, RwLock};

use crate::clock::{BootId, Lifetime, Moment};
use crate::error::StoreError;
use crate::layout::{Layout, TaskPaths, create_data, create_task_dir, remove_if_there};
use crate::ledger::{Ledger, usable};
use crate::meta::NewTask;
use crate::sidecar::{Header, SidecarFile};
use crate::system::{Machine, System};
use crate::task::TaskContent;
use crate::tombstone::{Reach, Tombstone, Tombstones};

mod collect;
mod import;
mod open;
mod upload;

pub use collect::Collected;
pub use import::{Import, Imported, NewImport};

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// `storage.dir`; the store is `damselfly-v1` in it.
    pub dir: PathBuf,
    /// Whether content outlives a restart. `false` removes what our own directory holds, and nothing else.
    pub keep: bool,
    /// The most bytes the store may hold (`diskThreshold`); `None`: what the file system has.
    pub capacity: Option<u64>,
    /// Collection begins at this share of the capacity, 1 to 100 %.
    pub high_percent: u8,
    /// And goes on down to this one.
    pub low_percent: u8,
    /// How long a task stays unless it says otherwise.
    pub task_ttl: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("/var/lib/dragonfly"),
            keep: true,
            capacity: None,
            high_percent: 80,
            low_percent: 60,
            task_ttl: Duration::from_secs(720 * 3600),
        }
    }
}

/// What tasks share with the store.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) layout: Layout,
    pub(crate) system: Arc<dyn System>,
    pub(crate) ledger: Ledger,
    /// Read while something is admitted, written while room is made for it: what one task gets freed no other takes.
    /// Locked before anything else.
    pub(crate) admission: RwLock<()>,
    /// Who makes room.
    pub(crate) store: OnceLock<Weak<Store>>,
    pub(crate) boot: BootId,
    /// Shut down: nothing is published any more.
    pub(crate) closed: AtomicBool,
    /// Numbers temporary files.
    pub(crate) scratches: AtomicU64,
}

impl Shared {
    pub(crate) fn scratch(&self) -> Result<std::fs::File, StoreError> {
        self.layout.scratch(self.scratches.fetch_add(1, Ordering::Relaxed))
    }
}

/// Room, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What the store may fill altogether: its capacity, or the file system's size.
    pub total: u64,
    /// What is held.
    pub used: u64,
    /// What could still be admitted.
    pub free: u64,
    /// What is promised and not held yet.
    pub reserved: u64,
}

/// A deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Which task.
    pub key: TaskKey,
    /// Its generation: what the tombstone names.
    pub generation: u64,
    /// Bytes that were held.
    pub bytes: u64,
}

/// The disk tier.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    options: Options,
    tasks: Mutex<HashMap<TaskKey, Arc<TaskContent>>>,
    /// What is not a task yet and can be gone on with, by the id that stands for its name.
    uploads: Mutex<HashMap<TaskId, upload::Upload>>,
    /// Creating and removing tasks happens one at a time. Never locked inside of `tasks`, `uploads` or a task's locks.
    changing: Mutex<Tombstones>,
    /// What admission removed since the last pass, for that to report.
    unreported: Mutex<Collected>,
}

impl Store {
    /// Opens the store: locks it, reads what is there, and repairs or removes what a crash left half-done.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it, [`StoreError::NewerFormat`], a failing disk.
    pub fn open(options: Options) -> Result<Arc<Self>, StoreError> {
        Self::open_on(options, Arc::new(Machine::new()))
    }

    /// The task, if it is here. Does not count as a use.
    #[must_use]
    pub fn get(&self, key: &TaskKey) -> Option<Arc<TaskContent>> {
        self.tasks.lock().get(key).filter(|task| !task.is_gone()).cloned()
    }

    /// The task, made with `new` if it is not here. Counts as a use. Of an existing task nothing is changed: whether
    /// the caller becomes an owner is decided elsewhere.
    ///
    /// # Errors
    /// [`StoreError::NotOnDisk`] for cache tasks; a full or failing disk.
    pub fn get_or_create(&self, key: &TaskKey, new: NewTask) -> Result<Arc<TaskContent>, StoreError> {
        if key.kind == Kind::Cache {
            return Err(StoreError::NotOnDisk(key.clone()));
        }
        if let Some(task) = self.get(key) {
            task.touch();
            return Ok(task);
        }
        let tombstones = self.changing.lock();
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        if let Some(task) = self.get(key) {
            task.touch();
            return Ok(task);
        }
        // A deleted generation may be known to others as such: go on after it.
        let generation = tombstones.generation(key).map_or(1, |deleted| deleted + 1);
        let generation = generation.max(new.generation.unwrap_or_default());
        let task = self.create(key, new, generation)?;
        self.tasks.lock().insert(key.clone(), Arc::clone(&task));
        Ok(task)
    }

    fn create(&self, key: &TaskKey, new: NewTask, generation: u64) -> Result<Arc<TaskContent>, StoreError> {
        self.make(self.shared.layout.task(key), self.header(key, new, generation))
    }

    /// What a task made now says of itself.
    fn header(&self, key: &TaskKey, new: NewTask, generation: u64) -> Header {
        let now = self.shared.system.now();
        let ttl = new.ttl.unwrap_or(self.options.task_ttl);
        Header {
            key: key.clone(),
            generation,
            geometry: None,
            validator: Validator::default(),
            headers: std::collections::BTreeMap::new(),
            private: new.private,
            persistent: new.persistent,
            replica_target: new.replica_target,
            paused: false,
            suspect: false,
            owners: new.owner_uid.into_iter().collect(),
            url: if new.url_redacted.is_empty() { String::new() } else { redact::url(&new.url_redacted) },
            tag: new.tag,
            application: new.application,
            digest: new.digest,
            created: now.wall,
            updated: now.wall,
            finished: None,
            used: now,
            lifetime: match key.kind {
                Kind::Standard => Lifetime::Unused(ttl),
                Kind::PersistentCache | Kind::Cache => Lifetime::Fixed(now, ttl),
            },
            linked: None,
            upload: None,
        }
    }

    /// A task without content whose files are at `paths`.
    fn make(&self, paths: TaskPaths, header: Header) -> Result<Arc<TaskContent>, StoreError> {
        let system = &*self.shared.system;
        create_task_dir(&paths.dir)?;
        // Content before sidecar: one alone is an orphan and goes when the store opens.
        let data = create_data(system, &paths.data)?;
        drop(data);
        let io = SidecarFile::create(system, &paths.meta, &header).inspect_err(|_| {
            drop(remove_files(system, &paths)); // the opening store removes it too
        })?;
        let shared = Arc::clone(&self.shared);
        let count = header.geometry.map_or(0, |geometry| geometry.piece_count());
        let (held, crcs) = (PieceSet::new(count), vec![Crc(0); count as usize]);
        Ok(TaskContent::assemble(shared, paths, io, header, held, crcs, false))
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// All tasks, in no order.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<TaskContent>> {
        self.tasks.lock().values().filter(|task| !task.is_gone()).cloned().collect()
    }

    /// Everything that takes room: tasks, and uploads that are none yet.
    fn all(&self) -> Vec<Arc<TaskContent>> {
        let mut all = self.list();
        all.extend(self.uploads.lock().values().map(|upload| Arc::clone(&upload.content)));
        all
    }

    /// Deletes a task and leaves a tombstone until its TTL would have ended. Whoever is reading it reads on to the end.
    ///
    /// # Errors
    /// [`StoreError::Unknown`]; [`StoreError::InUse`] while it is pinned or being written; a failing disk.
    pub fn delete(&self, key: &TaskKey) -> Result<Deleted, StoreError> {
        self.delete_within(key, Reach::Here)
    }

    /// The same because the task is deleted in the whole cluster, which its tombstone tells.
    ///
    /// # Errors
    /// As [`Self::delete`].
    pub fn delete_everywhere(&self, key: &TaskKey) -> Result<Deleted, StoreError> {
        self.delete_within(key, Reach::Everywhere)
    }

    /// What was deleted here turns out to be deleted in the whole cluster, up to `generation`.
    ///
    /// # Errors
    /// A failing disk.
    pub fn deleted_everywhere(&self, key: &TaskKey, generation: u64) -> Result<(), StoreError> {
        let mut tombstones = self.changing.lock();
        tombstones.widen(&self.shared.layout, &*self.shared.system, key, generation)
    }

    fn delete_within(&self, key: &TaskKey, reach: Reach) -> Result<Deleted, StoreError> {
        let mut tombstones = self.changing.lock();
        let task = self.get(key).ok_or_else(|| StoreError::Unknown(key.clone()))?;
        let meta = task.meta();
        let bytes = task.end(true)?;
        // The tombstone first: after a crash in between, opening the store finishes the deletion.
        let (shared, generation) = (&self.shared, meta.generation);
        let buried = tombstones.add(&shared.layout, &*shared.system, key, generation, meta.ttl_left, reach);
        self.clear(&task)?;
        buried?;
        Ok(Deleted { key: key.clone(), generation, bytes })
    }

    /// Removes the files of a task that is gone. While that fails it stays known, for [`Self::collect`] to try again.
    /// Only with `changing` locked: the next task of that name has the same files.
    fn clear(&self, task: &TaskContent) -> Result<(), StoreError> {
        remove_files(&*self.shared.system, task.paths())?;
        if task.is_upload() {
            self.uploads.lock().remove(&task.key().id);
        } else {
            self.tasks.lock().remove(task.key());
        }
        Ok(())
    }

    /// What was deleted and must not come back yet.
    #[must_use]
    pub fn tombstones(&self) -> Vec<Tombstone> {
        self.changing.lock().list(&self.shared.system.now())
    }

    /// The time as the store sees it: what [`Self::collect`] takes.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.shared.system.now()
    }

    /// The room there is. What cannot be asked of the file system counts as full.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let space = self.shared.system.space(self.shared.layout.root()).unwrap_or_default();
        let used: u64 = self.all().iter().map(|task| task.held()).sum();
        let totals = self.shared.ledger.totals();
        let disk = usable(space).saturating_sub(totals.pending);
        let capacity = self.shared.ledger.capacity();
        Usage {
            total: capacity.unwrap_or(space.total),
            used,
            free: capacity.map_or(disk, |capacity| disk.min(capacity.saturating_sub(totals.charged))),
            reserved: totals.charged.saturating_sub(used),
        }
    }

    /// Ends the store: writes what was only kept in memory and leaves the marker that spares the next start in this
    /// boot the verification. Nothing is published afterwards. Content is not flushed to the device: while the machine
    /// stays up it does not need to be, and once it does not, the marker is void.
    ///
    /// # Errors
    /// A failing disk: the marker is missing then, and the next start verifies.
    pub fn shutdown(&self) -> Result<(), StoreError> {
        let mut tombstones = self.changing.lock();
        self.shared.closed.store(true, Ordering::Release);
        for task in self.all() {
            task.flush()?;
        }
        tombstones.expire(&self.shared.layout, &*self.shared.system)?;
        self.shared.layout.leave_marker(&*self.shared.system, self.shared.boot)
    }

    /// Ends the store as the death of its process would, for tests: what was only in memory is lost, no marker is left,
    /// and the lock is free, whoever still holds parts of the store. When this returns nothing is recorded and no
    /// room is given back any more; whoever writes content must have ended before.
    pub fn abandon(&self) {
        let _tombstones = self.changing.lock();
        self.shared.closed.store(true, Ordering::Release);
        for task in self.all() {
            task.settle();
        }
        self.shared.layout.unlock();
    }
}

/// Removes a task's files, the sidecar first: content without one is an orphan.
fn remove_files(system: &dyn System, paths: &TaskPaths) -> Result<(), StoreError> {
    for path in [&paths.meta, &paths.data, &paths.fresh] {
        system.about_to("remove task file").map_err(StoreError::at("cannot remove", path))?;
        remove_if_there(path)?;
    }
    // Only when it was the last task in there.
    drop(std::fs::remove_dir(&paths.dir));
    Ok(())
}
