//! What the store asks of the machine, in one place, so that tests can fill the disk, stop the clock, and take the
//! state a `kill -9` would leave between any two writes.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use crate::clock::{BootId, Moment};

/// The file system's room, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    /// Its size, without what is reserved for others (root, a quota): counting that as used would call a file system
    /// full that has room.
    pub(crate) total: u64,
    /// What an unprivileged writer may still fill.
    pub(crate) free: u64,
}

/// The machine beneath the store.
pub(crate) trait System: Debug + Send + Sync {
    /// The time.
    fn now(&self) -> Moment;

    /// The room on `dir`'s file system.
    fn space(&self, dir: &Path) -> io::Result<Space> {
        let stat = statvfs(dir)?;
        let unit = stat.f_frsize.max(1);
        // As df counts: what is used, and what may still be.
        let total = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_add(stat.f_bavail);
        Ok(Space { total: total.saturating_mul(unit), free: stat.f_bavail.saturating_mul(unit) })
    }

    /// Writes all of `bytes` at `offset`: every content byte and every sidecar byte passes here.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Flushes a file to the device, or the names in a directory.
    fn flush(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// Called before every other change of the directory (create, rename, remove, truncate, link); an error is
    /// treated as the change's own.
    fn about_to(&self, _change: &'static str) -> io::Result<()> {
        Ok(())
    }

    /// Backs a stretch of `file` with blocks. `Ok(false)`: the file system cannot, the file stays sparse.
    fn allocate(&self, file: &File, offset: u64, length: u64) -> io::Result<bool> {
        loop {
            match fallocate(file, FallocateFlags::KEEP_SIZE, offset, length) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives the blocks of a stretch back; the file system may not be able to, which costs only the room.
    fn punch(&self, file: &File, offset: u64, length: u64) {
        if length > 0 {
            let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
            let _: Result<(), Errno> = fallocate(file, flags, offset, length);
        }
    }
}

/// The real machine.
#[derive(Debug)]
pub(crate) struct Machine {
    boot: BootId,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { boot: BootId::current() }
    }
}

impl System for Machine {
    fn now(&self) -> Moment {
        Moment::read(self.boot)
    }
}
