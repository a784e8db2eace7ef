//! Opening: from files to tasks.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, DirEntry, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock, Weak};

use damselfly_core::{Kind, TaskId, TaskKey};
use parking_lot::{Mutex, RwLock};

use super::upload::Upload;
use super::{Collected, Options, Shared, Store, remove_files};
use crate::error::StoreError;
use crate::layout::{KINDS, Layout, TaskPaths, remove_if_there};
use crate::ledger::Ledger;
use crate::sidecar::{Loaded, SidecarFile};
use crate::system::System;
use crate::task::TaskContent;
use crate::tombstone::Tombstones;

/// Which of a task's files are there.
#[derive(Debug, Default)]
struct Found {
    data: bool,
    meta: bool,
    fresh: bool,
}

impl Store {
    pub(crate) fn open_on(options: Options, system: Arc<dyn System>) -> Result<Arc<Self>, StoreError> {
        let layout = Layout::open(&options.dir)?;
        if !options.keep {
            layout.wipe()?;
        }
        let now = system.now();
        let clean = layout.take_marker(now.boot)?;
        let tombstones = Tombstones::load(&layout, &now)?;
        let shared = Arc::new(Shared {
            layout,
            system,
            ledger: Ledger::new(options.capacity),
            admission: RwLock::new(()),
            store: OnceLock::new(),
            boot: now.boot,
            closed: AtomicBool::new(false),
            scratches: AtomicU64::new(0),
        });
        let mut tasks = HashMap::new();
        for kind in KINDS {
            for (id, found) in scan(&shared.layout.kind_dir(kind), kind)? {
                let key = TaskKey { kind, id };
                let paths = shared.layout.task(&key);
                if let Some(task) = load(&shared, &tombstones, &key, paths, &found, clean)? {
                    tasks.insert(key, task);
                }
            }
        }
        let uploads = load_uploads(&shared, &tombstones, clean)?;
        tracing::info!(
            dir = %shared.layout.root().display(), tasks = tasks.len(), uploads = uploads.len(), verified = clean,
            "opened the store"
        );
        let store = Arc::new_cyclic(|store| {
            let _first = shared.store.set(Weak::clone(store));
            Self {
                shared,
                options,
                tasks: Mutex::new(tasks),
                uploads: Mutex::new(uploads),
                changing: Mutex::new(tombstones),
                unreported: Mutex::new(Collected::default()),
            }
        });
        {
            let _changing = store.changing.lock();
            store.trim_uploads();
        }
        Ok(store)
    }
}

/// The directory's entries; none when it is not there.
fn entries(dir: &Path) -> Result<Vec<DirEntry>, StoreError> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<io::Result<_>>().map_err(StoreError::at("cannot list", dir)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(StoreError::io("cannot list", dir, error)),
    }
}

/// Everything that is named like a task's file and lies in its place. Other files are not ours.
fn scan(dir: &Path, kind: Kind) -> Result<BTreeMap<TaskId, Found>, StoreError> {
    let mut found: BTreeMap<TaskId, Found> = BTreeMap::new();
    for prefix in entries(dir)? {
        scan_one(&prefix.path(), &mut found, |path, id| {
            let in_place = prefix.file_name() == OsStr::new(&id.as_str()[..3]);
            if !in_place {
                tracing::warn!(%kind, path = %path.display(), "a file in a foreign place is left alone");
            }
            in_place
        })?;
    }
    Ok(found)
}

/// What is named like a task's file, as far as it lies in its place.
fn scan_one(
    dir: &Path,
    found: &mut BTreeMap<TaskId, Found>,
    in_place: impl Fn(&Path, &TaskId) -> bool,
) -> Result<(), StoreError> {
    for entry in entries(dir)? {
        let name = entry.file_name();
        let Some((id, end)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
        let Some(id) = TaskId::parse(id).ok().filter(|id| in_place(&entry.path(), id)) else { continue };
        match end {
            "data" => found.entry(id).or_default().data = true,
            "meta" => found.entry(id).or_default().meta = true,
            "fresh" => found.entry(id).or_default().fresh = true,
            _ => {}
        }
    }
    Ok(())
}

/// The uploads that can be gone on with. Whatever else imports left behind that did not come to their end is removed.
fn load_uploads(
    shared: &Arc<Shared>,
    tombstones: &Tombstones,
    clean: bool,
) -> Result<HashMap<TaskId, Upload>, StoreError> {
    let dir = shared.layout.imports_dir();
    let mut found = BTreeMap::new();
    scan_one(&dir, &mut found, |_, _| true)?;
    let mut uploads = HashMap::new();
    for (id, found) in found.iter().filter(|(_, found)| found.meta && found.data) {
        let (key, paths) = (Upload::key(id.clone()), shared.layout.import(id));
        let Some(content) = load(shared, tombstones, &key, paths, found, clean)? else { continue };
        match Upload::found(&content) {
            Some(upload) => drop(uploads.insert(id.clone(), upload)),
            // Gives back what it was charged.
            None => drop(content.end(true)),
        }
    }
    for entry in entries(&dir)? {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| TaskId::parse(name.split_once('.')?.0).ok());
        if id.is_none_or(|id| !uploads.contains_key(&id)) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(uploads)
}

/// One task from its files; `None` when there is nothing to keep, and then the files are gone.
fn load(
    shared: &Arc<Shared>,
    tombstones: &Tombstones,
    key: &TaskKey,
    paths: TaskPaths,
    found: &Found,
    clean: bool,
) -> Result<Option<Arc<TaskContent>>, StoreError> {
    if found.fresh {
        remove_if_there(&paths.fresh)?;
    }
    let discard = |why: &str| {
        tracing::warn!(task = %key, why, "removing what is left of a task");
        remove_files(&*shared.system, &paths)?;
        Ok(None)
    };
    let loaded = match (found.meta, found.data) {
        (false, false) => return Ok(None),
        (false, true) => return discard("content without a sidecar"),
        (true, false) => return discard("a sidecar without content"),
        (true, true) => match SidecarFile::load(&paths.meta, key) {
            Ok(Some(loaded)) => loaded,
            Ok(None) => return discard("the sidecar is damaged"),
            Err(error @ StoreError::NewerFormat { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(task = %key, %error, "a task cannot be read and is left alone");
                return Ok(None);
            }
        },
    };
    if tombstones.generation(key).is_some_and(|deleted| loaded.header.generation <= deleted) {
        return discard("its deletion was interrupted");
    }
    let data = match File::open(&paths.data).and_then(|file| file.metadata()) {
        Ok(data) => data,
        Err(error) => {
            tracing::warn!(task = %key, %error, "a task cannot be read and is left alone");
            return Ok(None);
        }
    };
    let Loaded { file, mut header, mut held, crcs } = loaded;
    let mut suspect = !clean || header.suspect;
    if header.linked.is_some_and(|linked| linked.inode != data.ino()) {
        // The linked file was replaced just before a crash, or the whole store was copied: what is right will show.
        header.linked = None;
        suspect = true;
    }
    let resize = |length: u64| {
        let file = File::options().write(true).open(&paths.data);
        file.and_then(|file| file.set_len(length)).map_err(StoreError::at("cannot size", &paths.data))
    };
    if header.geometry.is_none() && header.linked.is_none() && data.len() > 0 {
        resize(0)?; // what a writer of unknown length left
    }
    if let Some(geometry) = header.geometry {
        let beyond: Vec<u32> = held
            .iter()
            .filter(|&number| {
                geometry.piece(number).is_none_or(|span| span.offset + span.length > data.len())
            })
            .collect();
        if !beyond.is_empty() {
            tracing::warn!(task = %key, pieces = beyond.len(), "the content file is too short for what it should hold");
            beyond.into_iter().for_each(|number| {
                held.remove(number);
            });
        }
        if header.linked.is_none() && data.len() != geometry.content_length() {
            resize(geometry.content_length())?;
        }
    }
    let task = TaskContent::assemble(Arc::clone(shared), paths, file, header, held, crcs, suspect);
    task.punch_missing(data.blocks().saturating_mul(512));
    Ok(Some(task))
}
