//! Reading: nothing leaves here that was not verified since it was last in doubt.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use damselfly_core::digest::Computed;
use damselfly_core::{Algorithm, ByteRange, Content, Crc, Hasher, PieceSet};

use super::guard::{Use, Using};
use super::{Inner, TaskContent};
use crate::copy::read_through;
use crate::error::StoreError;
use crate::sidecar::Linked;

/// One verified piece, ready to be sent. While it lives, the collector leaves the task alone.
#[derive(Debug)]
pub struct PieceRef {
    /// The bytes.
    pub content: Content,
    /// Their CRC.
    pub crc: Crc,
    /// How many there are.
    pub length: u64,
    /// Where the piece begins in the task's content.
    pub offset: u64,
    _using: Using,
}

/// What verification needs of the moment it begins.
struct Doubt {
    file: Arc<File>,
    crc: Crc,
    offset: u64,
    length: u64,
    epoch: u64,
}

impl Linked {
    /// What the inode looks like now.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let stat = file.metadata()?;
        Ok(Self {
            inode: stat.ino(),
            size: stat.size(),
            mtime: (stat.mtime(), stat.mtime_nsec()),
            ctime: (stat.ctime(), stat.ctime_nsec()),
        })
    }
}

impl TaskContent {
    /// Hands out piece `number`; `None` when it is not held. Counts as a use. A piece that was not verified since the
    /// machine died, or since somebody changed a linked file, is read and compared first; one that fails is unpublished.
    ///
    /// # Errors
    /// No such piece, no geometry, task gone; a failing disk.
    pub fn piece(self: &Arc<Self>, number: u32) -> Result<Option<PieceRef>, StoreError> {
        self.doubt_if_touched()?;
        loop {
            let found = self.with_data(|inner, file| {
                let span = inner.span(&self.key, number)?;
                if !inner.pieces.published.contains(number) {
                    return Ok(Some(None));
                }
                if inner.pieces.unverified.contains(number) {
                    return Ok(None);
                }
                Ok(Some(Some(PieceRef {
                    content: Content::File { file, offset: span.offset, length: span.length },
                    crc: inner.pieces.crcs[number as usize],
                    length: span.length,
                    offset: span.offset,
                    _using: self.begin(Use::Read, inner),
                })))
            })?;
            if let Some(found) = found {
                self.touch();
                return Ok(found);
            }
            self.verify(number)?;
        }
    }

    /// The digest of the whole content, read once. Counts as a use.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when not every piece is held; a failing disk.
    pub fn digest(&self, algorithm: Algorithm) -> Result<Computed, StoreError> {
        let geometry = self.geometry().ok_or_else(|| StoreError::NoGeometry(self.key.clone()))?;
        let (file, epoch) = self.verified(geometry.whole())?;
        let mut hasher = Hasher::new(algorithm);
        read_through(&file, 0, geometry.content_length(), |bytes| hasher.update(bytes))
            .map_err(StoreError::at("cannot read", &self.paths.data))?;
        self.still_verified(&file, epoch)?;
        self.touch();
        Ok(hasher.finish())
    }

    /// Makes sure that every piece of `range` is held and verified. Returns the content file, and the epoch to compare
    /// once it has been read.
    pub(crate) fn verified(&self, range: ByteRange) -> Result<(Arc<File>, u64), StoreError> {
        self.doubt_if_touched()?;
        let geometry = self.geometry().ok_or_else(|| StoreError::NoGeometry(self.key.clone()))?;
        let content_length = geometry.content_length();
        if range.end() > content_length {
            let (start, end) = (range.start, range.end());
            return Err(StoreError::OutOfRange { key: self.key.clone(), start, end, content_length });
        }
        let wanted = geometry.pieces_of(range);
        for number in wanted.clone() {
            self.verify(number)?;
        }
        self.with_data(|inner, file| {
            let mut bad = wanted.clone().filter(|&number| !inner.is_good(number));
            match bad.next() {
                None => Ok((file, inner.epoch)),
                Some(first) => {
                    let count = u32::try_from(bad.count()).unwrap_or(u32::MAX).saturating_add(1);
                    Err(StoreError::Missing { key: self.key.clone(), first, count })
                }
            }
        })
    }

    /// Whether what [`Self::verified`] said of `file` at `epoch` held until now.
    pub(crate) fn still_verified(&self, file: &File, epoch: u64) -> Result<(), StoreError> {
        // Whoever makes a link right now changes the ctime, and records it before letting go of `io`.
        let _io = self.io.lock();
        self.still_verified_locked(file, epoch)
    }

    /// The same with `io` locked by the caller.
    pub(crate) fn still_verified_locked(&self, file: &File, epoch: u64) -> Result<(), StoreError> {
        let now = Linked::of(file).map_err(StoreError::at("cannot stat", &self.paths.data))?;
        let inner = self.inner.lock();
        self.live(&inner)?;
        if inner.epoch == epoch && inner.header.linked.is_none_or(|linked| linked == now) {
            return Ok(());
        }
        let mut bad = (0..inner.pieces.published.count()).filter(|&number| !inner.is_good(number));
        let first = bad.next().unwrap_or(0);
        let count = u32::try_from(bad.count()).unwrap_or(u32::MAX).saturating_add(1);
        Err(StoreError::Missing { key: self.key.clone(), first, count })
    }

    /// Verifies all pieces of `range` that await it, and says which of its pieces are held then.
    ///
    /// # Errors
    /// No geometry, task gone, a failing disk.
    pub fn verify_range(&self, range: ByteRange) -> Result<PieceSet, StoreError> {
        self.doubt_if_touched()?;
        let geometry = self.geometry().ok_or_else(|| StoreError::NoGeometry(self.key.clone()))?;
        let mut held = PieceSet::new(geometry.piece_count());
        for number in geometry.pieces_of(range) {
            if self.verify(number)? {
                held.insert(number);
            }
        }
        Ok(held)
    }

    /// Reads and compares piece `number` if it is in doubt. Says whether it is held afterwards.
    fn verify(&self, number: u32) -> Result<bool, StoreError> {
        let doubt = self.with_data(|inner, file| {
            let span = inner.span(&self.key, number)?;
            if !inner.pieces.unverified.contains(number) {
                return Ok(Err(inner.pieces.published.contains(number)));
            }
            let crc = inner.pieces.crcs[number as usize];
            Ok(Ok(Doubt { file, crc, offset: span.offset, length: span.length, epoch: inner.epoch }))
        })?;
        let doubt = match doubt {
            Ok(doubt) => doubt,
            Err(held) => return Ok(held),
        };
        let mut hasher = crc32fast::Hasher::new();
        // What cannot be read is not held either.
        let read = read_through(&doubt.file, doubt.offset, doubt.length, |bytes| hasher.update(bytes));
        let good = read.is_ok() && hasher.finalize() == doubt.crc.0;
        {
            let mut inner = self.inner.lock();
            if inner.epoch != doubt.epoch || !inner.pieces.unverified.contains(number) {
                return Ok(inner.is_good(number));
            }
            if good {
                inner.pieces.unverified.remove(number);
                return Ok(true);
            }
        }
        tracing::warn!(
            task = %self.key, piece = number, error = read.err().map(tracing::field::display),
            "a stored piece is damaged and will be fetched again"
        );
        self.unpublish(number, Some(doubt.epoch))?;
        Ok(false)
    }

    /// If somebody else changed a linked content file, every piece is in doubt again.
    pub(crate) fn doubt_if_touched(&self) -> Result<(), StoreError> {
        if self.inner.lock().header.linked.is_none() {
            return Ok(());
        }
        let io = self.io.lock();
        let file = self.data(&io)?;
        let now = Linked::of(&file).map_err(StoreError::at("cannot stat", &self.paths.data))?;
        let mut inner = self.inner.lock();
        self.live(&inner)?;
        if inner.header.linked.is_some_and(|linked| linked != now) {
            inner.pieces.unverified = inner.pieces.published.clone();
            // Not written: until the next header write a restart finds the difference by itself.
            inner.header.linked = Some(now);
            inner.epoch += 1;
        }
        Ok(())
    }
}

impl Inner {
    fn is_good(&self, number: u32) -> bool {
        self.pieces.published.contains(number) && !self.pieces.unverified.contains(number)
    }
}
