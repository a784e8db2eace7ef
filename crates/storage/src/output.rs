//! Putting content where a caller wants it: complete, or not at all.
//!
//! A hard link costs nothing, but its reader can write to our inode. So only a caller with the store's own uid gets one,
//! an inode is linked to one caller only, and from then on every change of its size, mtime or ctime brings all of its
//! pieces into doubt (see `task/read.rs`). Everybody else gets a reflink where the file system has them, else a copy.
//!
//! Modes: content files are made with 0666 under the daemon's umask, which is what the caller's own program would have
//! done, so a link needs no chmod; the store's directory (0700) keeps others out. Copies are made the same way, by the
//! thread that calls: run it under the caller's credentials and the file is the caller's.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use damselfly_core::ByteRange;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ioctl_ficlone, linkat, openat, renameat,
    renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use crate::copy::copy_range;
use crate::error::StoreError;
use crate::sidecar::Linked;
use crate::task::{TaskContent, Using};

/// What may be done to make an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputPolicy {
    /// The caller has the store's own uid, so a hard link gives it nothing that it could not have anyway.
    pub same_uid: bool,
    /// What exists under the name is replaced.
    pub overwrite: bool,
    /// A hard link or nothing.
    pub force_hard_link: bool,
}

/// How an output was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputWay {
    /// It is the stored inode.
    HardLink,
    /// It shares the stored blocks.
    Reflink,
    /// It is a copy.
    Copy,
}

/// A complete, verified content with everything opened that its output needs, so that the rest can run under another
/// uid. While it lives, the collector leaves the task alone.
#[derive(Debug)]
pub struct Output {
    file: Arc<File>,
    _sidecar: Arc<File>,
    epoch: u64,
    length: u64,
    using: Using,
}

impl TaskContent {
    /// Verifies the whole content and gets it ready for [`Output::publish_to`].
    ///
    /// # Errors
    /// [`StoreError::Missing`] when not every piece is held and good: fetch the rest, then ask again.
    pub fn output(self: &Arc<Self>) -> Result<Output, StoreError> {
        let using = self.serve()?;
        let geometry = self.geometry().ok_or_else(|| StoreError::NoGeometry(self.key().clone()))?;
        let (file, epoch) = self.verified(geometry.whole())?;
        let sidecar = self.sidecar_file()?;
        self.touch();
        Ok(Output { file, _sidecar: sidecar, epoch, length: geometry.content_length(), using })
    }

    /// [`Self::output`] and [`Output::publish_to`] in one, with the credentials of this thread.
    ///
    /// # Errors
    /// As those two.
    pub fn publish_to(
        self: &Arc<Self>,
        dir: impl AsFd,
        name: &OsStr,
        policy: OutputPolicy,
    ) -> Result<OutputWay, StoreError> {
        self.output()?.publish_to(dir, name, policy)
    }

    /// Copies `range` to the beginning of an open file, for outputs of a part.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when a piece of the range is not held and good, or was taken away during the copy; a
    /// full or failing disk. The file has part of the range then.
    pub fn publish_range_to(self: &Arc<Self>, to: &File, range: ByteRange) -> Result<(), StoreError> {
        let _using = self.serve()?;
        let (file, epoch) = self.verified(range)?;
        copy_range(&file, range.start, to, 0, range.length)
            .map_err(StoreError::at("cannot copy content to", Path::new("the output")))?;
        self.touch();
        self.still_verified(&file, epoch)
    }
}

impl Output {
    /// Bytes of content.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Makes the output `name` in `dir`. It appears complete, or not at all and nothing is left behind.
    ///
    /// Run it under the credentials of whoever is to own the output: a copy is created with them. A hard link is made
    /// with `policy.same_uid` only, and then they are the store's own anyway.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when the name is taken and may not be replaced (the stored inode itself under that name
    /// is a success), [`StoreError::NoHardLink`] when one was demanded, [`StoreError::Missing`] when the content was
    /// taken away meanwhile; a full or failing disk.
    pub fn publish_to(
        &self,
        dir: impl AsFd,
        name: &OsStr,
        policy: OutputPolicy,
    ) -> Result<OutputWay, StoreError> {
        let dir = dir.as_fd();
        let shown = || name.to_string_lossy().into_owned();
        if name.is_empty() || name == "." || name == ".." || name.as_bytes().contains(&b'/') {
            let error =
                io::Error::new(io::ErrorKind::InvalidInput, "expected the name of a file in the directory");
            return Err(StoreError::io("cannot create", Path::new(name), error));
        }
        let data = self.file.metadata().map_err(StoreError::at("cannot stat", &self.task().paths().data))?;
        match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if (there.st_dev, there.st_ino) == (data.dev(), data.ino()) => {
                return Ok(OutputWay::HardLink);
            }
            Ok(there)
                if !policy.overwrite || FileType::from_raw_mode(there.st_mode) == FileType::Directory =>
            {
                return Err(StoreError::Exists(shown()));
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(StoreError::io("cannot look for", Path::new(name), error.into())),
        }
        let refused = if policy.same_uid {
            match self.link(dir, name, policy.overwrite)? {
                Ok(()) => return Ok(OutputWay::HardLink),
                Err(why) => why,
            }
        } else {
            "the caller does not own the store".to_owned()
        };
        if policy.force_hard_link {
            return Err(StoreError::NoHardLink { name: shown(), why: refused });
        }
        self.copy(dir, name, policy.overwrite)
    }

    fn task(&self) -> &Arc<TaskContent> {
        self.using.task()
    }

    /// `Ok(Err(why))`: no link, but a copy may do.
    fn link(&self, dir: impl AsFd, name: &OsStr, overwrite: bool) -> Result<Result<(), String>, StoreError> {
        let task = self.task();
        let data = &task.paths().data;
        let stat = |file: &File| Linked::of(file).map_err(StoreError::at("cannot stat", data));
        let device = rustix::fs::fstat(&dir).map_err(StoreError::at("cannot stat", Path::new(name)))?.st_dev;
        let same_device = self.file.metadata().is_ok_and(|data| data.dev() == device);
        if !same_device {
            return Ok(Err("it is on another file system than the store".to_owned()));
        }
        task.with_io(|io, linked| {
            task.still_verified_locked(&self.file, self.epoch)?;
            if linked.is_some() {
                return Ok(Err("the stored content is, or was, linked to another output".to_owned()));
            }
            // Before the link, so that no crash leaves one that is not known of.
            task.set_linked(io, Some(stat(&self.file)?))?;
            match self.link_in_place(&dir, name, overwrite) {
                Ok(()) => {
                    // The output is there. If this cannot be recorded, our own link looks like somebody else's change,
                    // which costs one verification.
                    let recorded = stat(&self.file).and_then(|linked| task.set_linked(io, Some(linked)));
                    if let Err(error) = recorded {
                        tracing::warn!(task = %task.key(), %error, "cannot record a hard link");
                    }
                    Ok(Ok(()))
                }
                Err(Errno::EXIST) => {
                    task.set_linked(io, None)?;
                    Err(StoreError::Exists(name.to_string_lossy().into_owned()))
                }
                Err(error) => {
                    task.set_linked(io, None)?;
                    Ok(Err(io::Error::from(error).to_string()))
                }
            }
        })
    }

    fn link_in_place(&self, dir: impl AsFd, name: &OsStr, overwrite: bool) -> Result<(), Errno> {
        let task = self.task();
        let data = &task.paths().data;
        let hook = |change| task.shared().system.about_to(change).map_err(|_| Errno::IO);
        hook("link output")?;
        if !overwrite {
            return linkat(CWD, data, &dir, name, AtFlags::empty());
        }
        let temporary = self.temporary();
        linkat(CWD, data, &dir, &*temporary, AtFlags::empty())?;
        hook("rename linked output").and_then(|()| renameat(&dir, &*temporary, &dir, name)).inspect_err(
            |_| {
                let _: Result<(), Errno> = unlinkat(&dir, &*temporary, AtFlags::empty());
            },
        )
    }

    fn copy(&self, dir: impl AsFd, name: &OsStr, overwrite: bool) -> Result<OutputWay, StoreError> {
        let task = self.task();
        let temporary = self.temporary();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to: File = openat(&dir, &*temporary, flags, Mode::from_raw_mode(0o666))
            .map_err(StoreError::at("cannot create", Path::new(name)))?
            .into();
        let made = || {
            let way = if self.length > 0 && ioctl_ficlone(&to, &*self.file).is_ok() {
                OutputWay::Reflink
            } else {
                copy_range(&self.file, 0, &to, 0, self.length)
                    .map_err(StoreError::at("cannot write", Path::new(name)))?;
                OutputWay::Copy
            };
            // What was copied must have been good until its end.
            task.still_verified(&self.file, self.epoch)?;
            let system = &*task.shared().system;
            system.about_to("rename output").map_err(StoreError::at("cannot create", Path::new(name)))?;
            if overwrite {
                renameat(&dir, &*temporary, &dir, name)
            } else {
                rename_to_new(&dir, &temporary, name)
            }
            .map_err(|error| match error {
                Errno::EXIST => StoreError::Exists(name.to_string_lossy().into_owned()),
                error => StoreError::io("cannot create", Path::new(name), error.into()),
            })?;
            Ok(way)
        };
        made().inspect_err(|_| {
            let _: Result<(), Errno> = unlinkat(&dir, &*temporary, AtFlags::empty());
        })
    }

    /// A name that nobody else takes: short, because the output's own may already be as long as names can be.
    fn temporary(&self) -> String {
        let shared = self.task().shared();
        let number = shared.scratches.fetch_add(1, Ordering::Relaxed);
        let since_boot = shared.system.now().since_boot.as_micros();
        format!(".damselfly-{}-{since_boot:x}-{number}", std::process::id())
    }
}

/// Renames without replacing. Where the file system has no such rename, a link is as good.
fn rename_to_new(dir: impl AsFd, from: &str, to: &OsStr) -> Result<(), Errno> {
    match renameat_with(&dir, from, &dir, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {
            linkat(&dir, from, &dir, to, AtFlags::empty())?;
            unlinkat(&dir, from, AtFlags::empty())
        }
        done => done,
    }
}
