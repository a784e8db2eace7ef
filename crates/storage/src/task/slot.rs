//! Slots: the right to write one piece.
//!
//! One primary slot writes straight into the piece's extent. Scratch slots, for second attempts at the same piece,
//! write to nameless files of their own. Whoever commits first wins:
//!
//! ```text
//! primary commits ─────────────► record, publish              scratch commits later: AlreadyHeld
//! scratch commits ─► take the extent ─► copy in ─► record, publish
//!                    the primary's write under way returns first; every later one, and its commit, is refused
//! ```
//!
//! Each lent extent has a lock that is held during every single write call (at most one buffer) and says whether the
//! primary may still write. The scratch's commit takes it away under that lock, so no late write of the loser can land
//! in a published extent, and nobody waits for the loser to come back.

use std::fs::File;
use std::io;
use std::sync::Arc;

use damselfly_core::{Crc, PieceSpan};
use parking_lot::Mutex;

use super::guard::{Use, Using};
use super::{Inner, TaskContent};
use crate::copy::copy_range;
use crate::error::StoreError;

/// What became of a committed piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It is stored and published.
    Stored,
    /// Another attempt was faster; the piece is held, these bytes are not kept.
    AlreadyHeld,
}

/// Who may write an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// The primary slot.
    Primary,
    /// Nobody any more, but the attempt that took it.
    Taken,
}

type Extent = Mutex<Right>;

/// An extent that is lent out.
#[derive(Debug)]
pub(super) struct Lent {
    extent: Arc<Extent>,
    /// The primary slot, and scratch commits at work.
    holders: u32,
}

#[derive(Debug)]
enum Place {
    /// The extent in the content file.
    Primary(Arc<Extent>, Arc<File>),
    /// From byte 0 of a nameless file.
    Scratch(File),
}

/// The right to write one piece. Dropping it gives the piece back unpublished.
#[derive(Debug)]
pub struct PieceSlot {
    using: Using,
    span: PieceSpan,
    generation: u64,
    /// Which content file.
    instance: u64,
    place: Place,
    /// Bytes from the start of the piece on that were written.
    written: u64,
}

impl TaskContent {
    /// Lends the extent of piece `number` to one writer.
    ///
    /// # Errors
    /// [`StoreError::AlreadyHeld`], [`StoreError::Busy`] when it is lent out, no such piece, no geometry, task gone.
    pub fn slot(self: &Arc<Self>, number: u32) -> Result<PieceSlot, StoreError> {
        self.forget_what_is_linked()?;
        self.with_data(|inner, file| {
            let span = self.missing(inner, number)?;
            if inner.lent.contains_key(&number) {
                return Err(StoreError::Busy { key: self.key.clone(), what: format!("piece {number}") });
            }
            let extent = Arc::new(Mutex::new(Right::Primary));
            inner.lent.insert(number, Lent { extent: Arc::clone(&extent), holders: 1 });
            let using = self.begin(Use::Write, inner);
            let place = Place::Primary(extent, file);
            Ok(PieceSlot::new(using, span, inner, place))
        })
    }

    /// Gives a second attempt at piece `number` a place beside the first one. Its commit copies the piece in.
    ///
    /// # Errors
    /// As [`TaskContent::slot`], but never [`StoreError::Busy`].
    pub fn scratch(self: &Arc<Self>, number: u32) -> Result<PieceSlot, StoreError> {
        self.forget_what_is_linked()?;
        let file = self.shared.scratch()?;
        let inner = self.inner.lock();
        self.live(&inner)?;
        let span = self.missing(&inner, number)?;
        let using = self.begin(Use::Write, &inner);
        let place = Place::Scratch(file);
        Ok(PieceSlot::new(using, span, &inner, place))
    }

    fn missing(&self, inner: &Inner, number: u32) -> Result<PieceSpan, StoreError> {
        let span = inner.span(&self.key, number)?;
        if inner.pieces.published.contains(number) {
            return Err(StoreError::AlreadyHeld { key: self.key.clone(), piece: number });
        }
        Ok(span)
    }

    /// Ends one hold on an extent, unless a new generation ended all of them.
    fn take_back(&self, number: u32, extent: &Arc<Extent>) {
        let mut inner = self.inner.lock();
        if let Some(lent) = inner.lent.get_mut(&number).filter(|lent| Arc::ptr_eq(&lent.extent, extent)) {
            lent.holders -= 1;
            if lent.holders == 0 {
                inner.lent.remove(&number);
            }
        }
    }

    /// What was begun in that generation and content file still goes on there.
    pub(super) fn same_content(
        &self,
        inner: &Inner,
        generation: u64,
        instance: u64,
    ) -> Result<(), StoreError> {
        self.live(inner)?;
        let is = inner.header.generation;
        if inner.instance == instance {
            return Ok(());
        }
        Err(StoreError::OtherGeneration { key: self.key.clone(), was: generation, is })
    }

    /// Record, then publish. The content is in place, and `span`'s extent is the caller's alone.
    fn publish(&self, span: PieceSpan, generation: u64, instance: u64, crc: Crc) -> Result<(), StoreError> {
        let mut io = self.io.lock();
        self.same_content(&self.inner.lock(), generation, instance)?;
        io.write_held(&*self.shared.system, &self.key, generation, span.number, &[crc])?;
        let mut inner = self.inner.lock();
        self.same_content(&inner, generation, instance)?;
        self.account_published(&mut inner, span);
        inner.pieces.crcs[span.number as usize] = crc;
        inner.pieces.unverified.remove(span.number);
        inner.pieces.published.insert(span.number);
        drop(inner);
        self.announce();
        Ok(())
    }
}

impl PieceSlot {
    fn new(using: Using, span: PieceSpan, inner: &Inner, place: Place) -> Self {
        let (generation, instance) = (inner.header.generation, inner.instance);
        Self { using, span, generation, instance, place, written: 0 }
    }

    /// Which piece, and where it lies.
    #[must_use]
    pub fn span(&self) -> PieceSpan {
        self.span
    }

    /// The task's generation when the slot was lent.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Bytes written so far, from the start of the piece on.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes `bytes` at `offset`, counted from the start of the piece. Earlier bytes may be written again; a gap may
    /// not be left.
    ///
    /// # Errors
    /// The system's error with its kind; `Other` when another attempt was faster. [`StoreError::class_of`] tells what
    /// an error means. The slot stays usable after a failed write.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= self.span.length);
        let (Some(end), true) = (end, offset <= self.written) else {
            let (PieceSpan { number, length, .. }, key) = (self.span, self.task().key.clone());
            let (written, bytes) = (self.written, bytes.len());
            return Err(StoreError::BadWrite { key, piece: number, length, written, offset, bytes }.into_io());
        };
        let task = self.task();
        let system = &*task.shared.system;
        let done = match &self.place {
            Place::Scratch(file) => system.write_at(file, bytes, offset),
            Place::Primary(extent, file) => {
                let right = extent.lock();
                if *right == Right::Taken {
                    return Err(self.superseded().into_io());
                }
                system.write_at(file, bytes, self.span.offset + offset)
            }
        };
        done.map_err(|error| StoreError::io("cannot write", &task.paths.data, error).into_io())?;
        self.written = self.written.max(end);
        Ok(())
    }

    /// Publishes the piece. `crc` is that of the bytes written; the caller computed it on their way in and compared it
    /// with whatever it had to match.
    ///
    /// # Errors
    /// [`StoreError::Short`] when bytes are missing, [`StoreError::OtherGeneration`] when the content changed
    /// meanwhile, [`StoreError::Superseded`] when a faster attempt took the extent and then failed; a full or failing
    /// disk. The piece stays missing then.
    pub fn commit(self, crc: Crc) -> Result<Committed, StoreError> {
        let task = self.task();
        let PieceSpan { number, length, .. } = self.span;
        if self.written < length {
            return Err(StoreError::Short {
                key: task.key.clone(),
                piece: number,
                written: self.written,
                length,
            });
        }
        match &self.place {
            Place::Primary(extent, _) => {
                let mut right = extent.lock();
                if *right == Right::Taken {
                    task.same_content(&task.inner.lock(), self.generation, self.instance)?;
                    return if task.has(number) {
                        Ok(Committed::AlreadyHeld)
                    } else {
                        Err(self.superseded())
                    };
                }
                task.publish(self.span, self.generation, self.instance, crc)?;
                *right = Right::Taken;
                Ok(Committed::Stored)
            }
            Place::Scratch(file) => self.copy_in(file, crc),
        }
    }

    fn copy_in(&self, scratch: &File, crc: Crc) -> Result<Committed, StoreError> {
        let task = self.task();
        let PieceSpan { number, offset, length } = self.span;
        let taken = task.with_data(|inner, file| {
            task.same_content(inner, self.generation, self.instance)?;
            if inner.pieces.published.contains(number) {
                return Ok(None);
            }
            let fresh = || Lent { extent: Arc::new(Mutex::new(Right::Primary)), holders: 0 };
            let lent = inner.lent.entry(number).or_insert_with(fresh);
            lent.holders += 1;
            Ok(Some((Arc::clone(&lent.extent), file)))
        })?;
        let Some((extent, file)) = taken else { return Ok(Committed::AlreadyHeld) };
        let _held = Held { task, number, extent: &extent };
        let mut right = extent.lock();
        if task.has(number) {
            return Ok(Committed::AlreadyHeld);
        }
        *right = Right::Taken;
        let copy = || {
            task.shared.system.about_to("copy scratch")?;
            copy_range(scratch, 0, &file, offset, length, &|_| ())
        };
        copy().map_err(StoreError::at("cannot write", &task.paths.data))?;
        task.publish(self.span, self.generation, self.instance, crc)?;
        Ok(Committed::Stored)
    }

    fn task(&self) -> &Arc<TaskContent> {
        self.using.task()
    }

    fn superseded(&self) -> StoreError {
        StoreError::Superseded { key: self.task().key.clone(), piece: self.span.number }
    }
}

impl Drop for PieceSlot {
    fn drop(&mut self) {
        if let Place::Primary(extent, _) = &self.place {
            self.using.task().take_back(self.span.number, extent);
        }
    }
}

/// A scratch commit's hold on the extent: nobody else is lent it, even if the primary comes back meanwhile.
struct Held<'a> {
    task: &'a TaskContent,
    number: u32,
    extent: &'a Arc<Extent>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.task.take_back(self.number, self.extent);
    }
}
