//! Putting content where a caller wants it: complete, or not at all.
//!
//! A hard link costs nothing, but its reader can write to our inode. So only a caller with the store's own uid gets one,
//! an inode is linked to one caller only, and from then on every change of its size, mtime or ctime brings all of its
//! pieces into doubt (see `task/read.rs`). Everybody else gets a reflink where the file system has them, else a copy.
//!
//! Modes: an output has 0666 less the caller's umask, as if the caller's own program had made it; `chmod`ed, because the
//! umask of the thread that makes it is the daemon's. A linked output's mode is the stored inode's, which nobody else
//! gets to see (the store's directory is 0700) and which goes to one caller only: so it is that caller's to choose, as
//! long as it leaves the store its own access. Copies belong to whoever's credentials the thread has that makes them.

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
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, fallocate, fchmod, ioctl_ficlone,
    linkat, openat, renameat, renameat_with, statat, unlinkat,
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
    /// The caller's umask; `None`: this process's own.
    pub umask: Option<u32>,
}

impl OutputPolicy {
    fn mode(self) -> Option<u32> {
        self.umask.map(|umask| 0o666 & !umask)
    }
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

/// A verified content, or a range of it, with everything opened that its output needs, so that the rest can run under
/// another uid. While it lives, the collector leaves the task alone.
#[derive(Debug)]
pub struct Output {
    file: Arc<File>,
    _sidecar: Arc<File>,
    epoch: u64,
    range: ByteRange,
    /// Whether the range is the whole content.
    whole: bool,
    using: Using,
}

impl TaskContent {
    /// Verifies the whole content and gets it ready for [`Output::publish_to`].
    ///
    /// # Errors
    /// [`StoreError::Missing`] when not every piece is held and good: fetch the rest, then ask again.
    pub fn output(self: &Arc<Self>) -> Result<Output, StoreError> {
        let geometry = self.geometry().ok_or_else(|| StoreError::NoGeometry(self.key().clone()))?;
        self.output_of(geometry.whole())
    }

    /// The same for `range` of it: what is made is as long as that.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when a piece of the range is not held and good, [`StoreError::OutOfRange`].
    pub fn output_of(self: &Arc<Self>, range: ByteRange) -> Result<Output, StoreError> {
        let using = self.serve()?;
        let (file, epoch) = self.verified(range)?;
        let sidecar = self.sidecar_file()?;
        self.touch();
        let whole = self.geometry().is_some_and(|geometry| geometry.whole() == range);
        Ok(Output { file, _sidecar: sidecar, epoch, range, whole, using })
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
        self.output()?.publish_to(dir, name, policy, &|_| ())
    }
}

impl Output {
    /// Bytes of the output.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.range.length
    }

    /// Copies the range to the beginning of an open file. `progress` hears after every
    /// step, of 1 MiB at most, how many bytes are there.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when a piece was taken away during the copy; a full or failing disk. The file has part
    /// of the range then.
    pub fn copy_to(&self, to: &File, progress: &dyn Fn(u64)) -> Result<(), StoreError> {
        copy_range(&self.file, self.range.start, to, 0, self.range.length, progress)
            .map_err(StoreError::at("cannot copy content to", Path::new("the output")))?;
        self.task().still_verified(&self.file, self.epoch)
    }

    /// Makes the range all that an open file holds. It may not be open for appending. `progress` is that of
    /// [`Self::copy_to`].
    ///
    /// # Errors
    /// As [`Self::copy_to`].
    pub fn fill(&self, to: &File, progress: &dyn Fn(u64)) -> Result<OutputWay, StoreError> {
        let failed = |why: io::Error| StoreError::io("cannot make room in", Path::new("the output"), why);
        to.set_len(0).map_err(failed)?;
        if self.clone_to(to)? {
            return Ok(OutputWay::Reflink);
        }
        match fallocate(to, FallocateFlags::empty(), 0, self.length()) {
            // Nothing to take; or a file system that cannot: a full one is noticed when writing.
            Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        self.copy_to(to, progress)?;
        Ok(OutputWay::Copy)
    }

    /// Shares the stored blocks with an empty file, where the file system can.
    fn clone_to(&self, to: &File) -> Result<bool, StoreError> {
        if !self.whole || self.length() == 0 || ioctl_ficlone(to, &*self.file).is_err() {
            return Ok(false);
        }
        // What was shared must have been good until now.
        self.task().still_verified(&self.file, self.epoch)?;
        Ok(true)
    }

    /// Makes the output `name` in `dir`. It appears complete, or not at all and nothing is left behind.
    ///
    /// Run it under the credentials of whoever is to own the output: a copy is created with them. A hard link is made
    /// with `policy.same_uid` only, and then they are the store's own anyway. `progress` is that of [`Self::copy_to`].
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
        progress: &dyn Fn(u64),
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
            Ok(there) if self.whole && (there.st_dev, there.st_ino) == (data.dev(), data.ino()) => {
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
        let refused = if !self.whole {
            "it is a part of the content".to_owned()
        } else if !policy.same_uid {
            "the caller does not own the store".to_owned()
        } else if policy.mode().is_some_and(|mode| mode & 0o600 != 0o600) {
            "the caller's umask denies its owner, and so the store, reading or writing".to_owned()
        } else {
            match self.link(dir, name, policy)? {
                Ok(()) => return Ok(OutputWay::HardLink),
                Err(why) => why,
            }
        };
        if policy.force_hard_link {
            return Err(StoreError::NoHardLink { name: shown(), why: refused });
        }
        self.copy(dir, name, policy, progress)
    }

    fn task(&self) -> &Arc<TaskContent> {
        self.using.task()
    }

    /// `Ok(Err(why))`: no link, but a copy may do.
    fn link(
        &self,
        dir: impl AsFd,
        name: &OsStr,
        policy: OutputPolicy,
    ) -> Result<Result<(), String>, StoreError> {
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
            if let Some(Err(error)) = policy.mode().map(|mode| fchmod(&*self.file, Mode::from_raw_mode(mode)))
            {
                return Ok(Err(format!("its mode cannot be the caller's: {error}")));
            }
            // Before the link, so that no crash leaves one that is not known of.
            task.set_linked(io, Some(stat(&self.file)?))?;
            match self.link_in_place(&dir, name, policy.overwrite) {
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

    fn copy(
        &self,
        dir: impl AsFd,
        name: &OsStr,
        policy: OutputPolicy,
        progress: &dyn Fn(u64),
    ) -> Result<OutputWay, StoreError> {
        let task = self.task();
        let temporary = self.temporary();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(policy.mode().unwrap_or(0o666));
        let to: File = openat(&dir, &*temporary, flags, mode)
            .map_err(StoreError::at("cannot create", Path::new(name)))?
            .into();
        if policy.umask.is_some() {
            // The daemon's umask may have taken more; where that cannot be undone, too little is not too much.
            let _: Result<(), Errno> = fchmod(&to, mode);
        }
        let made = || {
            let way = if self.clone_to(&to)? {
                OutputWay::Reflink
            } else {
                self.copy_to(&to, progress)?;
                OutputWay::Copy
            };
            let system = &*task.shared().system;
            system.about_to("rename output").map_err(StoreError::at("cannot create", Path::new(name)))?;
            if policy.overwrite {
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
