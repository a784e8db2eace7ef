//! Writing a file in a caller's name: complete or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::PathError;
use crate::local::act::spawn;
use crate::local::{Caller, as_caller};

/// How many random names are tried.
const TRIES: usize = 16;

/// A file to be: its directory, opened as the caller, and its name in there.
#[derive(Clone, Debug)]
pub struct OutputTarget {
    dir: Arc<OwnedFd>,
    name: OsString,
    path: PathBuf,
    caller: Arc<Caller>,
}

impl OutputTarget {
    pub(super) fn new(dir: OwnedFd, name: OsString, path: PathBuf, caller: Arc<Caller>) -> Self {
        Self { dir: Arc::new(dir), name, path, caller }
    }

    /// The directory, a descriptor for paths only (`O_PATH`).
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The file's name in the directory.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// The path as the caller gave it, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// In whose name.
    #[must_use]
    pub fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// Whether something has the name now. Only a hint for an early refusal: [`TempOutput::commit`] decides.
    ///
    /// # Errors
    /// When the caller may not look.
    pub async fn is_taken(&self) -> Result<bool, PathError> {
        let target = self.clone();
        let looked = as_caller(&self.caller, move || {
            match rustix::fs::statat(&*target.dir, &target.name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Ok(true),
                Err(Errno::NOENT) => Ok(false),
                Err(errno) => Err(target.refused("look at", errno)),
            }
        });
        looked.await?
    }

    /// Makes an empty file with a temporary name beside the target, owned by the caller. This is also the proof that
    /// the caller may write there.
    ///
    /// # Errors
    /// [`PathError::Refused`] when the caller may not.
    pub async fn create_temp(&self) -> Result<TempOutput, PathError> {
        let target = self.clone();
        let created = as_caller(&self.caller, move || {
            let mode = Mode::from_raw_mode(0o666 & !target.caller.umask);
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut random = RandomState::new().build_hasher();
            for attempt in 0..TRIES {
                random.write_usize(attempt);
                let name = OsString::from(format!(".damselfly-{:016x}.part", random.finish()));
                match rustix::fs::openat(&*target.dir, &name, flags, mode) {
                    Ok(file) => {
                        let temp = TempOutput { target, name, file: Arc::new(file.into()), done: false };
                        // The daemon's umask had its say as well.
                        return match rustix::fs::fchmod(&*temp.file, mode) {
                            Ok(()) => Ok(temp),
                            Err(errno) => Err(temp.target.refused("set the mode of", errno)),
                        };
                    }
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(target.refused("create a file beside", errno)),
                }
            }
            Err(target.refused("find a free name beside", Errno::EXIST))
        });
        created.await?
    }

    fn refused(&self, what: &'static str, errno: Errno) -> PathError {
        PathError::Refused { what, path: self.path.clone(), uid: self.caller.uid, source: errno.into() }
    }
}

/// A file that is being written under a temporary name. Dropped before [`TempOutput::commit`], it is removed.
#[derive(Debug)]
pub struct TempOutput {
    target: OutputTarget,
    name: OsString,
    file: Arc<File>,
    done: bool,
}

impl TempOutput {
    /// The file, open for reading and writing.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The temporary name.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Where it will be.
    #[must_use]
    pub fn target(&self) -> &OutputTarget {
        &self.target
    }

    /// Gives the file its name, as the caller, in one step.
    ///
    /// # Errors
    /// [`PathError::Exists`] when the name is taken and `overwrite` is not set; [`PathError::Refused`] when the caller
    /// may not replace what is there. The temporary file is removed then.
    pub async fn commit(mut self, overwrite: bool) -> Result<(), PathError> {
        let (target, name) = (self.target.clone(), self.name.clone());
        let renamed = as_caller(&self.target.caller, move || {
            let dir = &*target.dir;
            let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
            match rustix::fs::renameat_with(dir, &name, dir, &target.name, flags) {
                Ok(()) => Ok(()),
                Err(Errno::EXIST) if !overwrite => Err(PathError::Exists(target.path)),
                // Some file systems cannot rename without replacing; a link to a taken name fails just as well.
                Err(Errno::INVAL) if !overwrite => {
                    let linked = rustix::fs::linkat(dir, &name, dir, &target.name, AtFlags::empty());
                    match linked {
                        Ok(()) => rustix::fs::unlinkat(dir, &name, AtFlags::empty())
                            .map_err(|errno| target.refused("remove the temporary name of", errno)),
                        Err(Errno::EXIST) => Err(PathError::Exists(target.path)),
                        Err(errno) => Err(target.refused("name", errno)),
                    }
                }
                Err(errno) => Err(target.refused("rename onto", errno)),
            }
        });
        let renamed = renamed.await?;
        self.done = renamed.is_ok();
        renamed
    }
}

impl Drop for TempOutput {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (target, name) = (self.target.clone(), std::mem::take(&mut self.name));
        let caller = Caller::clone(&target.caller);
        let spawned = spawn(caller, move |ready| {
            let removed = ready.map(|()| rustix::fs::unlinkat(&*target.dir, &name, AtFlags::empty()));
            match removed {
                Ok(Ok(()) | Err(Errno::NOENT)) => {}
                other => tracing::warn!(path = %target.path.display(), ?name, ?other, "temporary file stays"),
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to remove a temporary file with; it stays");
        }
    }
}
