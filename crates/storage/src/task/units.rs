//! Content whose length is not known: written in order, in units of 4 MiB, and cut into pieces at its end.

use std::fs::File;
use std::sync::Arc;

use damselfly_core::geometry::MAX_PIECES;
use damselfly_core::geometry::MIN_PIECE_LENGTH;
use damselfly_core::{Crc, Geometry};

use super::guard::{Use, Using};
use super::{Pieces, TaskContent};
use crate::copy::read_through;
use crate::error::StoreError;

/// Divides every derived piece length, so that the CRCs of units can be combined to those of pieces.
pub(crate) const UNIT: u64 = MIN_PIECE_LENGTH;

/// Writes content of unknown length. Dropped unfinished, it leaves nothing behind.
#[derive(Debug)]
pub struct UnitWriter {
    using: Using,
    generation: u64,
    instance: u64,
    file: Arc<File>,
    position: u64,
    unit: crc32fast::Hasher,
    crcs: Vec<Crc>,
    /// Bytes admitted from the start of the content on, and those of them that the file system accounts for by now.
    admitted: u64,
    backed: u64,
    piece_length: Option<u64>,
    /// The pieces are published and accounted for; nothing is to be undone.
    finished: bool,
}

impl TaskContent {
    /// Lends the whole content to one writer, as long as its length is not known.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when it is lent out already, or when the length is known: then write pieces.
    pub fn unit_writer(self: &Arc<Self>) -> Result<UnitWriter, StoreError> {
        self.forget_what_is_linked()?;
        self.with_data(|inner, file| {
            if inner.streaming || inner.header.geometry.is_some() {
                return Err(StoreError::Busy { key: self.key.clone(), what: "the whole content".into() });
            }
            inner.streaming = true;
            Ok(UnitWriter {
                using: self.begin(Use::Write, inner),
                generation: inner.header.generation,
                instance: inner.instance,
                file,
                position: 0,
                unit: crc32fast::Hasher::new(),
                crcs: Vec::new(),
                admitted: 0,
                backed: 0,
                piece_length: None,
                finished: false,
            })
        })
    }
}

impl UnitWriter {
    /// Cuts the content into pieces of `piece_length` bytes at its end, instead of the length every peer derives.
    #[must_use]
    pub fn with_piece_length(mut self, piece_length: u64) -> Self {
        self.piece_length = Some(piece_length);
        self
    }

    /// Admits all of a content whose length is told beforehand, and has it allocated. More may come all the same, and
    /// is admitted by the unit.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] with the numbers; a full disk.
    pub fn with_content_length(mut self, content_length: u64) -> Result<Self, StoreError> {
        let task = Arc::clone(self.using.task());
        let Some(needed) = content_length.checked_sub(self.admitted).filter(|&needed| needed > 0) else {
            return Ok(self);
        };
        task.admit(needed, &self.using)?;
        let offset = self.admitted;
        self.admitted = content_length;
        let allocated = task.shared.system.allocate(&self.file, offset, needed);
        if allocated.map_err(StoreError::at("cannot allocate", &task.paths.data))? {
            self.back(content_length);
        }
        Ok(self)
    }

    /// The file system accounts for everything up to `end`.
    fn back(&mut self, end: u64) {
        let fresh = end.saturating_sub(self.backed);
        self.using.task().shared.ledger.backed(fresh);
        self.backed += fresh;
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.position
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] when the next unit is not admitted, a full or failing disk. After an error only dropping
    /// the writer makes sense.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        let task = Arc::clone(self.using.task());
        while !bytes.is_empty() {
            let filled = self.position % UNIT;
            if self.position == self.admitted {
                task.admit(UNIT, &self.using)?;
                self.admitted += UNIT;
            }
            let room = (UNIT - filled).min(self.admitted - self.position);
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
            let (head, rest) = bytes.split_at(room);
            let written = task.shared.system.write_at(&self.file, head, self.position);
            written.map_err(StoreError::at("cannot write", &task.paths.data))?;
            self.unit.update(head);
            self.position += head.len() as u64;
            if self.position.is_multiple_of(UNIT) {
                self.crcs.push(Crc(std::mem::take(&mut self.unit).finalize()));
                self.back(self.position);
            }
            bytes = rest;
        }
        Ok(())
    }

    /// The content ends here: fixes the geometry, writes all records and publishes all pieces.
    ///
    /// # Errors
    /// When the length cannot be cut into pieces, the content changed meanwhile, or the disk fails.
    pub fn finish(mut self) -> Result<(Geometry, Vec<Crc>), StoreError> {
        let task = Arc::clone(self.using.task());
        let last = self.position % UNIT;
        if last > 0 {
            self.crcs.push(Crc(std::mem::take(&mut self.unit).finalize()));
        }
        let geometry = match self.piece_length {
            Some(piece_length) => Geometry::new(self.position, piece_length),
            None => Geometry::derived(self.position),
        };
        let geometry = geometry.map_err(|source| StoreError::Geometry { key: task.key.clone(), source })?;
        if geometry.piece_count() > MAX_PIECES {
            let (key, count) = (task.key.clone(), geometry.piece_count());
            return Err(StoreError::TooManyPieces { key, count, limit: MAX_PIECES });
        }
        let crcs = piece_crcs(geometry, UNIT, &self.crcs, &self.file)
            .map_err(StoreError::at("cannot read", &task.paths.data))?;
        let mut io = task.io.lock();
        let mut header = {
            let inner = task.inner.lock();
            task.same_content(&inner, self.generation, self.instance)?;
            inner.header.clone()
        };
        let system = &*task.shared.system;
        let size = || {
            system.about_to("size content file")?;
            self.file.set_len(self.position)
        };
        size().map_err(StoreError::at("cannot size", &task.paths.data))?;
        header.geometry = Some(geometry);
        header.updated = system.now().wall;
        io.write_header(system, &header)?;
        {
            let mut inner = task.inner.lock();
            inner.header = header;
            inner.pieces = Pieces::new(geometry.piece_count());
            inner.streaming = false;
        }
        if let Err(error) = io.write_held(system, &task.key, self.generation, 0, &crcs) {
            // Without its pieces the length is of no use: whoever comes next has a stream to write.
            let mut header = task.inner.lock().header.clone();
            header.geometry = None;
            if let Err(again) = io.write_header(system, &header) {
                tracing::warn!(task = %task.key, error = %again, "a length without its pieces stays recorded");
            }
            let mut inner = task.inner.lock();
            inner.header = header;
            inner.pieces = Pieces::default();
            return Err(error);
        }
        {
            let mut inner = task.inner.lock();
            inner.pieces.crcs.clone_from(&crcs);
            for number in 0..geometry.piece_count() {
                inner.pieces.published.insert(number);
                inner.pieces.allocated.insert(number);
            }
            // What was admitted is exactly as long as the content now, and all of it is there.
            task.shared.ledger.release(self.admitted - self.position, self.admitted - self.backed);
            self.finished = true;
        }
        drop(io);
        task.announce();
        Ok((geometry, crcs))
    }
}

/// The CRCs of the pieces of content that was written in units, each `unit` long but for the last: combined from those
/// of the units where these divide the pieces, else read.
pub(crate) fn piece_crcs(
    geometry: Geometry,
    unit: u64,
    crcs: &[Crc],
    file: &File,
) -> std::io::Result<Vec<Crc>> {
    let pieces = (0..geometry.piece_count()).filter_map(|number| geometry.piece(number));
    if geometry.piece_length().is_multiple_of(unit) {
        let per_piece = usize::try_from(geometry.piece_length() / unit).unwrap_or(usize::MAX);
        let length = |number: usize| unit.min(geometry.content_length() - number as u64 * unit);
        return Ok((0..crcs.len())
            .step_by(per_piece)
            .map(|first| {
                let units = first..crcs.len().min(first.saturating_add(per_piece));
                units.fold(Crc(0), |crc, number| crc.followed_by(crcs[number], length(number)))
            })
            .collect());
    }
    let read = |span: damselfly_core::PieceSpan| {
        let mut hasher = crc32fast::Hasher::new();
        read_through(file, span.offset, span.length, |bytes| hasher.update(bytes))?;
        Ok(Crc(hasher.finalize()))
    };
    pieces.map(read).collect()
}

impl Drop for UnitWriter {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let task = self.using.task();
        task.shared.ledger.release(self.admitted, self.admitted - self.backed);
        // The file is this writer's alone until `streaming` is taken back.
        if task.geometry().is_none()
            && let Err(error) = self.file.set_len(0)
        {
            tracing::warn!(task = %task.key, %error, "cannot truncate an unfinished content");
        }
        let mut inner = task.inner.lock();
        if inner.instance == self.instance {
            inner.streaming = false;
        }
    }
}
