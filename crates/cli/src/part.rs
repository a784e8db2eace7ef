//! An output that appears complete or not at all: `.NAME.<id>.tmp` beside it, renamed at the end.
//!
//! For content that comes through a socket. What the daemon holds stays with the daemon, so an unfinished file is of no
//! use to the next run.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use damselfly_core::digest::Computed;
use damselfly_core::{Algorithm, Hasher};
use rustix::fs::{CWD, FallocateFlags, FlockOperation, RenameFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::FileOutput;

/// Bytes read at a time to compute a digest.
const READ: usize = 1 << 20;
/// The part file or directory can vanish between opening and locking it, when the run that held it ends; so often it is made anew.
pub(crate) const ATTEMPTS: usize = 8;
/// Longest name a file system takes, in bytes.
const MAX_NAME: usize = 255;

/// Something at the output failed.
#[derive(Debug, Error)]
pub enum OutputError {
    /// Another process writes the same output.
    #[error(
        "{path} is locked: another dfget or dfcache writes the same output; wait for it or name another output"
    )]
    Busy {
        /// The part file or directory.
        path: String,
    },
    /// Somebody else made the part file or directory.
    #[error("{path} is not a {what} of this user's alone, and is not written to; remove it first")]
    Stranger {
        /// The part file or directory.
        path: String,
        /// Which of both was expected.
        what: &'static str,
    },
    /// The output came into being meanwhile.
    #[error(
        "output path {path} is already exist: it was made during the download; use --overwrite to replace it"
    )]
    Exists {
        /// The output.
        path: String,
    },
    /// The daemon wrote something else than it says.
    #[error(
        "{path} has {found} bytes instead of {length}: something else writes to it, or the daemon sees another file of \
         this name; use --transfer-from-dfdaemon"
    )]
    Length {
        /// The file.
        path: String,
        /// Its bytes.
        found: u64,
        /// What there should be.
        length: u64,
    },
    /// The file system said no.
    #[error("cannot {action} {path}: {why}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: String,
        /// Why not.
        why: io::Error,
    },
}

impl OutputError {
    pub(crate) fn io(action: &'static str, path: &Path, why: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.display().to_string(), why: why.into() }
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        let exit = match &error {
            OutputError::Io { why, .. }
                if matches!(why.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Exit::NoSpace
            }
            _ => Exit::Failure,
        };
        Failure::new("Downloading Failed!", exit, error)
    }
}

/// An output being written. Dropping it unfinished removes it.
#[derive(Debug)]
pub struct Part {
    file: File,
    path: PathBuf,
    target: PathBuf,
    overwrite: bool,
    renamed: bool,
}

impl Part {
    /// Opens and locks the part file of `output` for the task called `id`.
    ///
    /// # Errors
    /// When it is locked, is not this user's alone, or cannot be made.
    pub fn open(output: &FileOutput, id: &str) -> Result<Self, OutputError> {
        let target = target(output);
        let path = hidden(&target, id, ".tmp");
        for _ in 0..ATTEMPTS {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                .open(&path)
                .map_err(|why| OutputError::io("create", &path, why))?;
            let found = file.metadata().map_err(|why| OutputError::io("look at", &path, why))?;
            if !found.is_file() || found.uid() != rustix::process::geteuid().as_raw() || found.nlink() > 1 {
                return Err(OutputError::Stranger { path: path.display().to_string(), what: "file" });
            }
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Err(OutputError::Busy { path: path.display().to_string() }),
                Err(why) => return Err(OutputError::io("lock", &path, why)),
                Ok(()) => {}
            }
            let still_there = fs::symlink_metadata(&path)
                .is_ok_and(|now| (now.dev(), now.ino()) == (found.dev(), found.ino()));
            if still_there {
                return Ok(Self { file, path, target, overwrite: output.overwrite, renamed: false });
            }
        }
        Err(OutputError::Busy { path: path.display().to_string() })
    }

    /// Begins with an empty file and takes the room for `length` bytes.
    ///
    /// # Errors
    /// When there is not so much room.
    pub fn allocate(&self, length: u64) -> Result<(), OutputError> {
        let failed = |why: io::Error| OutputError::io("make room in", &self.path, why);
        self.file.set_len(0).map_err(failed)?;
        if length == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, length) {
            // File systems that cannot: full ones are noticed when writing.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.file.set_len(length).map_err(failed),
            Err(why) => Err(failed(why.into())),
            Ok(()) => Ok(()),
        }
    }

    /// The file under its first name.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes at `offset`. Blocking.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), OutputError> {
        self.file.write_all_at(bytes, offset).map_err(|why| OutputError::io("write to", &self.path, why))
    }

    /// Computes the digest of what was written. Blocking.
    ///
    /// # Errors
    /// What the file system says.
    pub fn digest(&self, algorithm: Algorithm) -> Result<Computed, OutputError> {
        let mut hasher = Hasher::new(algorithm);
        let mut buffer = vec![0; READ];
        let mut offset = 0;
        loop {
            match self.file.read_at(&mut buffer, offset) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    offset += count as u64;
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(OutputError::io("read back", &self.path, why)),
            }
        }
    }

    /// Puts the file in its place when others wrote it, and it has `length` bytes as they said.
    ///
    /// # Errors
    /// As [`Self::finish`]; [`OutputError::Length`].
    pub fn finish_with(self, length: u64) -> Result<(), OutputError> {
        let found = self.file.metadata().map_err(|why| OutputError::io("look at", &self.path, why))?.len();
        if found != length {
            return Err(OutputError::Length { path: self.path.display().to_string(), found, length });
        }
        self.finish()
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`OutputError::Exists`] when something is there that may not be replaced.
    pub fn finish(mut self) -> Result<(), OutputError> {
        let failed = |why: Errno| match why {
            Errno::EXIST => OutputError::Exists { path: self.target.display().to_string() },
            why => OutputError::io("rename the download to", &self.target, why),
        };
        if self.overwrite {
            rustix::fs::rename(&self.path, &self.target).map_err(failed)?;
        } else {
            match rustix::fs::renameat_with(CWD, &self.path, CWD, &self.target, RenameFlags::NOREPLACE) {
                // A link is refused just the same when the name is taken; the part file goes with this value.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    rustix::fs::link(&self.path, &self.target).map_err(failed)?;
                    return Ok(());
                }
                renamed => renamed.map_err(failed)?,
            }
        }
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.renamed {
            // A part file that cannot be removed is taken up by the next run.
            let _removed = fs::remove_file(&self.path);
        }
    }
}

/// The file that is written in the end. A link is followed as any program that opens its output does: the file it names
/// is what is replaced.
pub(crate) fn target(output: &FileOutput) -> PathBuf {
    match fs::canonicalize(&output.path) {
        Ok(target) if output.existed => target,
        _ => output.path.clone(),
    }
}

/// `.NAME.<first 16 digits of id><suffix>` beside `target`, its name cut to what a file system takes.
pub(crate) fn hidden(target: &Path, id: &str, suffix: &str) -> PathBuf {
    let id = &id.as_bytes()[..id.len().min(16)];
    let name = target.file_name().unwrap_or_default().as_bytes();
    let room = MAX_NAME - ".".len() - ".".len() - id.len() - suffix.len();
    let hidden = [b".", &name[..name.len().min(room)], b".", id, suffix.as_bytes()].concat();
    target.with_file_name(OsString::from_vec(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn output(home: &tempfile::TempDir, overwrite: bool) -> FileOutput {
        let path = home.path().join("model.bin");
        FileOutput { existed: fs::symlink_metadata(&path).is_ok(), path, overwrite }
    }

    fn names(home: &tempfile::TempDir) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(home.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn it_appears_when_finished() {
        let home = tempfile::tempdir().unwrap();
        let part = Part::open(&output(&home, false), ID).unwrap();
        part.allocate(6).unwrap();
        part.write_at(3, b"def").unwrap();
        part.write_at(0, b"abc").unwrap();
        assert_eq!(names(&home), [".model.bin.0123456789abcdef.tmp"]);
        assert_eq!(
            part.digest(Algorithm::Crc32).unwrap(),
            Computed::Crc32(damselfly_core::Crc::of(b"abcdef").0)
        );
        part.finish().unwrap();
        assert_eq!(names(&home), ["model.bin"]);
        assert_eq!(fs::read(home.path().join("model.bin")).unwrap(), b"abcdef");
    }

    #[test]
    fn dropping_it_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        drop(Part::open(&output(&home, false), ID).unwrap());
        assert!(names(&home).is_empty());
    }

    #[test]
    fn only_one_writes() {
        let home = tempfile::tempdir().unwrap();
        let first = Part::open(&output(&home, false), ID).unwrap();
        let second = Part::open(&output(&home, false), ID).unwrap_err();
        assert!(matches!(second, OutputError::Busy { .. }), "{second}");
        drop(first);
        assert!(Part::open(&output(&home, false), ID).is_ok());
    }

    #[test]
    fn what_came_meanwhile_is_not_replaced() {
        let home = tempfile::tempdir().unwrap();
        let part = Part::open(&output(&home, false), ID).unwrap();
        fs::write(home.path().join("model.bin"), "theirs").unwrap();
        assert!(matches!(part.finish(), Err(OutputError::Exists { .. })));
        assert_eq!(names(&home), ["model.bin"]);
        assert_eq!(fs::read(home.path().join("model.bin")).unwrap(), b"theirs");

        let part = Part::open(&output(&home, true), ID).unwrap();
        part.allocate(0).unwrap();
        part.finish().unwrap();
        assert_eq!(fs::read(home.path().join("model.bin")).unwrap(), b"");
    }

    #[test]
    fn a_link_stays_and_its_file_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("real")).unwrap();
        fs::write(home.path().join("real/file"), "old").unwrap();
        std::os::unix::fs::symlink("real/file", home.path().join("model.bin")).unwrap();
        let part = Part::open(&output(&home, true), ID).unwrap();
        part.allocate(3).unwrap();
        part.write_at(0, b"new").unwrap();
        part.finish().unwrap();
        assert!(fs::symlink_metadata(home.path().join("model.bin")).unwrap().is_symlink());
        assert_eq!(fs::read(home.path().join("real/file")).unwrap(), b"new");
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let output = output(&home, false);
        std::os::unix::fs::symlink("/etc/hostname", hidden(&output.path, ID, ".tmp")).unwrap();
        assert!(matches!(Part::open(&output, ID), Err(OutputError::Io { action: "create", .. })));
    }

    #[test]
    fn long_names_fit() {
        let path = hidden(&Path::new("/d").join("x".repeat(255)), ID, ".part");
        assert_eq!(path.file_name().unwrap().len(), 255);
        assert!(path.to_string_lossy().ends_with("x.0123456789abcdef.part"));
    }
}
