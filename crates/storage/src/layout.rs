//! The store's directory: lock, format, clean-shutdown marker, and where each task lies.
//!
//! ```text
//! <storage.dir>/damselfly-v1/        0700: nobody else gets at the content files, whatever their own mode
//!   .lock                            held while a process has the store
//!   format                           the storage format, refused by name when newer
//!   clean                            the boot in which the store was last shut down properly; gone while it is open
//!   tombstones                       what was deleted and must not come back
//!   imports/                         content on its way in: when the store opens, uploads that can be gone on with stay
//!   task/0ab/0ab….{data,meta}        content and sidecar of a standard task; other kinds likewise
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use damselfly_core::{Crc, Kind, TaskId, TaskKey};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::clock::BootId;
use crate::error::StoreError;
use crate::sidecar::FORMAT;
use crate::system::System;

/// The kinds that live on disk.
pub(crate) const KINDS: [Kind; 2] = [Kind::Standard, Kind::PersistentCache];

const LOCK: &str = ".lock";
const FORMAT_FILE: &str = "format";
const CLEAN: &str = "clean";
const TOMBSTONES: &str = "tombstones";
const SCRATCH: &str = "scratch-";
const IMPORTS: &str = "imports";

/// A task's files.
#[derive(Clone, Debug)]
pub(crate) struct TaskPaths {
    pub(crate) dir: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) meta: PathBuf,
    /// A content file on its way to replace `data`.
    pub(crate) fresh: PathBuf,
}

/// The directory, locked.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    /// Closing it lets go of the lock.
    lock: File,
}

impl Layout {
    /// Makes the directory where needed, locks it and checks its format.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        refuse_newer_sibling(dir)?;
        let root = dir.join(format!("damselfly-v{FORMAT}"));
        fs::create_dir_all(dir).map_err(StoreError::at("cannot create", dir))?;
        match DirBuilder::new().mode(0o700).create(&root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("cannot create", &root, error));
            }
            _ => {}
        }
        let mode = fs::metadata(&root).map_err(StoreError::at("cannot read", &root))?.permissions().mode();
        if mode & 0o077 != 0 {
            let private = Permissions::from_mode(0o700);
            fs::set_permissions(&root, private).map_err(StoreError::at("cannot make private", &root))?;
        }
        let lock = lock(&root)?;
        let this = Self { root, lock };
        this.check_format()?;
        Ok(this)
    }

    /// Lets go of the lock before its time.
    pub(crate) fn unlock(&self) {
        if let Err(error) = flock(&self.lock, FlockOperation::Unlock) {
            tracing::warn!(%error, "store's lock not let go of before its last user ends");
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn tombstones(&self) -> PathBuf {
        self.root.join(TOMBSTONES)
    }

    pub(crate) fn kind_dir(&self, kind: Kind) -> PathBuf {
        self.root.join(kind.name())
    }

    pub(crate) fn task(&self, key: &TaskKey) -> TaskPaths {
        // An id has at least 5 ASCII digits.
        files(self.kind_dir(key.kind).join(&key.id.as_str()[..3]), &key.id)
    }

    /// A provisional place for an import.
    pub(crate) fn import(&self, id: &TaskId) -> TaskPaths {
        files(self.imports_dir(), id)
    }

    /// Where imports have their provisional places.
    pub(crate) fn imports_dir(&self) -> PathBuf {
        self.root.join(IMPORTS)
    }

    /// A nameless file, for what must vanish with its last descriptor.
    pub(crate) fn scratch(&self, number: u64) -> Result<File, StoreError> {
        use rustix::fs::{CWD, Mode, OFlags, openat};
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match openat(CWD, &self.root, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => return Ok(file.into()),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
            Err(error) => return Err(StoreError::io("cannot create a file in", &self.root, error.into())),
        }
        let path = self.root.join(format!("{SCRATCH}{number}"));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(StoreError::at("cannot create", &path))?;
        fs::remove_file(&path).map_err(StoreError::at("cannot remove", &path))?;
        Ok(file)
    }

    /// Removes everything that is ours, the lock excepted.
    pub(crate) fn wipe(&self) -> Result<(), StoreError> {
        for dir in KINDS.map(|kind| self.kind_dir(kind)).into_iter().chain([self.imports_dir()]) {
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("cannot remove", &dir, error));
                }
                _ => {}
            }
        }
        for name in [CLEAN, TOMBSTONES] {
            remove_if_there(&self.root.join(name))?;
        }
        Ok(())
    }

    /// Whether the last process shut down properly in `boot`. Asking takes the marker away: it is written anew when
    /// this process shuts down properly too.
    pub(crate) fn take_marker(&self, boot: BootId) -> Result<bool, StoreError> {
        let path = self.root.join(CLEAN);
        let clean = match fs::read(&path) {
            Ok(bytes) => bytes == marker(boot),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(StoreError::io("cannot read", &path, error)),
        };
        remove_if_there(&path)?;
        Ok(clean)
    }

    /// Leaves the marker.
    pub(crate) fn leave_marker(&self, system: &dyn System, boot: BootId) -> Result<(), StoreError> {
        self.replace(system, CLEAN, &marker(boot))
    }

    /// Writes a small file so that it appears whole or not at all, and once this returns, whole: even without power.
    pub(crate) fn replace(&self, system: &dyn System, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let (path, fresh) = (self.root.join(name), self.root.join(format!("{name}.fresh")));
        let write = || {
            system.about_to("replace small file")?;
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            system.write_at(&file, bytes, 0)?;
            // Else the name may reach the device before the bytes, and what it named is lost with them.
            system.flush(&file)?;
            system.about_to("rename small file")?;
            fs::rename(&fresh, &path)?;
            system.flush(&File::open(&self.root)?)
        };
        write().map_err(StoreError::at("cannot write", &path))
    }

    pub(crate) fn replace_tombstones(&self, system: &dyn System, bytes: &[u8]) -> Result<(), StoreError> {
        self.replace(system, TOMBSTONES, bytes)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let path = self.root.join(FORMAT_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => match text.trim().strip_prefix("damselfly-storage ").map(str::parse::<u32>) {
                Some(Ok(found)) if found > FORMAT => {
                    Err(StoreError::NewerFormat { path, found, supported: FORMAT })
                }
                Some(Ok(_)) => Ok(()),
                _ => {
                    // A crash of the machine may leave it empty; the sidecars name their format themselves.
                    tracing::warn!(path = %path.display(), "the storage format file is damaged, writing it anew");
                    self.write_format(&path)
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.write_format(&path),
            Err(error) => Err(StoreError::io("cannot read", &path, error)),
        }
    }

    fn write_format(&self, path: &Path) -> Result<(), StoreError> {
        fs::write(path, format!("damselfly-storage {FORMAT}\n")).map_err(StoreError::at("cannot write", path))
    }
}

fn files(dir: PathBuf, id: &TaskId) -> TaskPaths {
    let file = |end: &str| dir.join(format!("{id}.{end}"));
    TaskPaths { data: file("data"), meta: file("meta"), fresh: file("fresh"), dir }
}

/// A directory of a newer format beside ours: going on would leave its content behind without a word.
fn refuse_newer_sibling(dir: &Path) -> Result<(), StoreError> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let found = name.to_str().and_then(|name| name.strip_prefix("damselfly-v")?.parse::<u32>().ok());
        if let Some(found) = found.filter(|&found| found > FORMAT) {
            return Err(StoreError::NewerFormat { path: entry.path(), found, supported: FORMAT });
        }
    }
    Ok(())
}

fn lock(root: &Path) -> Result<File, StoreError> {
    let path = root.join(LOCK);
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = file.map_err(StoreError::at("cannot open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // Only for the message.
            let known = file.read_to_string(&mut text).is_ok() && !text.trim().is_empty();
            let holder =
                if known { format!("process {}", text.trim()) } else { "another process".to_owned() };
            return Err(StoreError::Locked { dir: root.to_owned(), holder });
        }
        Err(error) => return Err(StoreError::io("cannot lock", &path, error.into())),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(StoreError::at("cannot write", &path))?;
    Ok(file)
}

fn marker(boot: BootId) -> Vec<u8> {
    let mut bytes = b"damselfly clean shutdown ".to_vec();
    bytes.extend_from_slice(damselfly_core::digest::hex(&boot.0).as_bytes());
    let crc = Crc::of(&bytes).0;
    bytes.extend_from_slice(format!(" {crc:08x}\n").as_bytes());
    bytes
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("cannot remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Makes the directory of a task's files, and its parent.
pub(crate) fn create_task_dir(dir: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(StoreError::at("cannot create", dir))
}

/// Makes an empty content file in place of whatever has the name.
///
/// It is made with mode 0666 under the daemon's umask, as any program would make its output: a hard-linked output is
/// this very inode, unless its caller's umask is known to be another. Others are kept out by the directory.
pub(crate) fn create_data(system: &dyn System, path: &Path) -> Result<File, StoreError> {
    let create = || {
        system.about_to("create content file")?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o666).open(path)
    };
    create().map_err(StoreError::at("cannot create", path))
}
