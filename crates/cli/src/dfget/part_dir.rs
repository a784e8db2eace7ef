//! Where a download without a daemon keeps what it has: `.NAME.<id>.part` beside the output, a directory with a store.
//!
//! It outlives an interrupted run, so that the next one resumes, and is locked, so that two do not write into it. The
//! output is a hard link to the stored content, or a copy, so nothing is lost when the directory goes.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::output::FileOutput;
use crate::part::{ATTEMPTS, OutputError, hidden, target};

/// A part directory, locked for this process.
#[derive(Debug)]
pub(super) struct PartDir {
    path: PathBuf,
    /// Holds the lock, also while the directory is being removed.
    _lock: File,
    remove: bool,
}

impl PartDir {
    /// Opens and locks the part directory of `output` for the task called `id`, making it if it is not there. One that
    /// was made goes when this is dropped, until [`PartDir::keep`] says otherwise.
    ///
    /// # Errors
    /// When it is locked, is not this user's alone, or cannot be made.
    pub(super) fn open(output: &FileOutput, id: &str) -> Result<Self, OutputError> {
        let path = Self::path_of(output, id);
        let shown = || path.display().to_string();
        for _ in 0..ATTEMPTS {
            let made = match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => true,
                Err(why) if why.kind() == io::ErrorKind::AlreadyExists => false,
                Err(why) => return Err(OutputError::io("create", &path, why)),
            };
            let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
            let directory = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
                Ok(directory) => directory,
                // Another run has just ended and taken it away.
                Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
                Err(why) if matches!(Errno::from_io_error(&why), Some(Errno::NOTDIR | Errno::LOOP)) => {
                    return Err(OutputError::Stranger { path: shown(), what: "directory" });
                }
                Err(why) => return Err(OutputError::io("open", &path, why)),
            };
            let found = directory.metadata().map_err(|why| OutputError::io("look at", &path, why))?;
            if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
                return Err(OutputError::Stranger { path: shown(), what: "directory" });
            }
            match directory.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => return Err(OutputError::Busy { path: shown() }),
                Err(fs::TryLockError::Error(why)) => return Err(OutputError::io("lock", &path, why)),
            }
            if is_there(&path, &found) {
                return Ok(Self { path, _lock: directory, remove: made });
            }
        }
        Err(OutputError::Busy { path: shown() })
    }

    /// The part directory that an earlier run left, if one did.
    pub(super) fn left(output: &FileOutput, id: &str) -> Option<PathBuf> {
        let path = Self::path_of(output, id);
        fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()).then_some(path)
    }

    fn path_of(output: &FileOutput, id: &str) -> PathBuf {
        hidden(&target(output), id, ".part")
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the directory outlives this value.
    pub(super) fn keep(&mut self, keep: bool) {
        self.remove = !keep;
    }
}

impl Drop for PartDir {
    fn drop(&mut self) {
        if self.remove
            && let Err(why) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %why, "cannot remove the part directory");
        }
    }
}

/// Whether `path` still is what was locked: a run that ended meanwhile removed it under its own lock.
fn is_there(path: &Path, found: &Metadata) -> bool {
    fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn output(home: &tempfile::TempDir) -> FileOutput {
        FileOutput { path: home.path().join("model.bin"), overwrite: false, existed: false }
    }

    #[test]
    fn it_goes_with_its_first_run_unless_kept() {
        let home = tempfile::tempdir().unwrap();
        let part = PartDir::open(&output(&home), ID).unwrap();
        let path = part.path().to_owned();
        assert_eq!(path, home.path().join(".model.bin.0123456789abcdef.part"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(part);
        assert!(!path.try_exists().unwrap());

        let mut part = PartDir::open(&output(&home), ID).unwrap();
        part.keep(true);
        fs::write(path.join("piece"), "x").unwrap();
        drop(part);
        assert_eq!(PartDir::left(&output(&home), ID), Some(path.clone()));
        // A run that finds it there does not take it away unless told.
        drop(PartDir::open(&output(&home), ID).unwrap());
        assert_eq!(fs::read(path.join("piece")).unwrap(), b"x");
        let mut part = PartDir::open(&output(&home), ID).unwrap();
        part.keep(false);
        drop(part);
        assert!(!path.try_exists().unwrap());
        assert_eq!(PartDir::left(&output(&home), ID), None);
    }

    #[test]
    fn only_one_run_has_it() {
        let home = tempfile::tempdir().unwrap();
        let first = PartDir::open(&output(&home), ID).unwrap();
        let second = PartDir::open(&output(&home), ID).unwrap_err();
        assert!(second.to_string().contains("another dfget or dfcache writes the same output"), "{second}");
        drop(first);
        drop(PartDir::open(&output(&home), ID).unwrap());
    }

    #[test]
    fn what_others_made_is_not_used() {
        let home = tempfile::tempdir().unwrap();
        let path = PartDir::path_of(&output(&home), ID);
        let refused = || PartDir::open(&output(&home), ID).unwrap_err().to_string();
        fs::write(&path, "a file").unwrap();
        assert!(refused().contains("is not a directory of this user's alone"));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/tmp", &path).unwrap();
        assert!(refused().contains("is not a directory of this user's alone"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refused().contains("is not a directory of this user's alone"));
    }
}
