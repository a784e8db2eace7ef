//! Writing an upload: unit by unit, each recorded when it is full.
//!
//! What the id follows from is not on the disk. When an upload is taken up by a process that did not write it, the kept units
//! are read again while the next ones come, a few for each: so the sender need not wait before it sends, and never
//! long in between. What is read is compared with its record first.

use std::sync::Arc;

use damselfly_core::digest::Computed;
use damselfly_core::task_id::PersistentCacheHasher;
use damselfly_core::{Content, Crc, Geometry, PieceSet, TaskId};

use super::super::Store;
use crate::copy::read_through;
use crate::error::StoreError;
use crate::meta::ImportId;
use crate::task::{PieceSlot, Pin, TaskContent, piece_crcs};

/// Kept units that are read for each one that is written.
const CATCHING_UP: u32 = 4;

/// What the id will be.
#[derive(Clone, Debug)]
pub(in crate::store) enum Identity {
    Given(TaskId),
    /// What it follows from so far, and of how many bytes.
    Content(Box<PersistentCacheHasher>, u64),
}

impl Identity {
    pub(in crate::store) fn new(id: &ImportId) -> Self {
        match id {
            ImportId::Given(id) => Self::Given(id.clone()),
            ImportId::Content(content_id) => {
                Self::Content(Box::new(PersistentCacheHasher::new(*content_id)), 0)
            }
        }
    }

    /// Takes the bytes that begin at `at`, unless those before were not taken.
    pub(super) fn take(&mut self, at: u64, bytes: &[u8]) {
        if let Self::Content(hasher, taken) = self
            && *taken == at
        {
            hasher.update(bytes);
            *taken += bytes.len() as u64;
        }
    }

    /// The digest that the content's id is made of.
    pub(super) fn content_digest(&self) -> Option<Computed> {
        match self {
            Self::Given(_) => None,
            Self::Content(hasher, _) => Some(hasher.content_digest()),
        }
    }
}

/// Writes an upload.
#[derive(Debug)]
pub(super) struct Units {
    store: Arc<Store>,
    identity: Identity,
    position: u64,
    cut: Geometry,
    /// The unit that is being written.
    slot: Option<(PieceSlot, crc32fast::Hasher)>,
    // After the slot: with the pin goes what was reserved.
    pin: Pin,
}

impl Units {
    /// Goes on at `offset`, where a unit begins. Room for all that is to come is admitted.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] with the numbers; a failing disk.
    pub(super) fn begin(
        store: &Arc<Store>,
        pin: Pin,
        identity: Identity,
        offset: u64,
    ) -> Result<Self, StoreError> {
        let content = Arc::clone(pin.task());
        let cut = content.geometry().ok_or_else(|| StoreError::NoGeometry(content.key().clone()))?;
        // What comes again is written again.
        let again = |number: &u32| cut.piece(*number).is_some_and(|unit| unit.offset >= offset);
        for number in content.pieces().iter().filter(again).collect::<Vec<_>>() {
            content.invalidate(number)?;
        }
        let identity = match identity {
            Identity::Content(hasher, taken) if taken <= offset => Identity::Content(hasher, taken),
            Identity::Content(..) => {
                let upload = content.header().upload;
                upload.map_or(identity, |upload| Identity::new(&upload.id))
            }
            given => given,
        };
        content.reserve(&PieceSet::full(cut.piece_count()))?;
        Ok(Self { store: Arc::clone(store), identity, position: offset, cut, slot: None, pin })
    }

    /// Bytes from the start of the content on that are written.
    pub(super) fn written(&self) -> u64 {
        self.position
    }

    fn content(&self) -> &Arc<TaskContent> {
        self.pin.task()
    }

    /// Writes the next bytes, of which there are not more than the content has left.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            let (slot, crc) = match &mut self.slot {
                Some(unit) => unit,
                none => {
                    let number = self.position / self.cut.piece_length();
                    let slot = self.pin.task().slot(u32::try_from(number).unwrap_or(u32::MAX))?;
                    none.insert((slot, crc32fast::Hasher::new()))
                }
            };
            let (filled, length) = (slot.written(), slot.span().length);
            let room = usize::try_from(length - filled).unwrap_or(usize::MAX).min(bytes.len());
            let (head, rest) = bytes.split_at(room);
            let written = slot.write_at(filled, head);
            written.map_err(StoreError::at("cannot write", &self.pin.task().paths().data))?;
            crc.update(head);
            self.identity.take(self.position, head);
            self.position += head.len() as u64;
            if filled + head.len() as u64 == length
                && let Some((slot, crc)) = self.slot.take()
            {
                slot.commit(Crc(crc.finalize()))?;
                self.catch_up(CATCHING_UP)?;
                self.store.note_unit(self.content(), &self.identity);
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Reads up to `most` of the kept units that the id does not follow from yet.
    fn catch_up(&mut self, most: u32) -> Result<(), StoreError> {
        let content = Arc::clone(self.pin.task());
        let Identity::Content(hasher, taken) = &mut self.identity else { return Ok(()) };
        for _ in 0..most {
            if *taken >= self.position {
                break;
            }
            let number = u32::try_from(*taken / self.cut.piece_length()).unwrap_or(u32::MAX);
            let Some(unit) = content.piece(number)? else {
                return Err(StoreError::UploadDamaged { verified: *taken });
            };
            if let Content::File { file, offset, length } = &unit.content {
                read_through(file, *offset, *length, |bytes| hasher.update(bytes))
                    .map_err(StoreError::at("cannot read", &content.paths().data))?;
            }
            *taken += unit.length;
        }
        Ok(())
    }

    /// The content is complete: how it is cut into pieces, and what its id follows from.
    pub(super) fn finish(mut self, geometry: Geometry) -> Result<(Vec<Crc>, Identity), StoreError> {
        self.catch_up(u32::MAX)?;
        let content = self.content();
        let verified = content.verified(self.cut.whole());
        let (file, _) = verified.map_err(|why| match why {
            StoreError::Missing { .. } => StoreError::UploadDamaged { verified: content.verified_length() },
            why => why,
        })?;
        let crcs = piece_crcs(geometry, self.cut.piece_length(), &content.all_crcs(), &file);
        let crcs = crcs.map_err(StoreError::at("cannot read", &content.paths().data))?;
        Ok((crcs, self.identity))
    }
}
