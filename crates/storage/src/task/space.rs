//! Room for pieces that are not there yet.

use std::sync::atomic::Ordering;

use damselfly_core::{Geometry, PieceSet, PieceSpan};

use super::{Inner, TaskContent, bytes_of};
use crate::error::StoreError;

/// Neighbouring spans as one stretch: (offset, length).
fn runs(spans: impl Iterator<Item = PieceSpan>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for span in spans {
        match runs.last_mut() {
            Some((offset, length)) if *offset + *length == span.offset => *length += span.length,
            _ => runs.push((span.offset, span.length)),
        }
    }
    runs
}

impl TaskContent {
    /// Admits the missing ones of `pieces`: afterwards there is room for them, whatever other tasks reserve. Reserving
    /// again is free. The room is given back as pieces are evicted or the task deleted, and, as far as nothing was
    /// written there, when the last pin goes.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] with the numbers; nothing is reserved then.
    pub fn reserve(&self, pieces: &PieceSet) -> Result<(), StoreError> {
        self.forget_what_is_linked()?;
        let missing = |inner: &Inner| {
            let geometry = inner.header.geometry.ok_or_else(|| StoreError::NoGeometry(self.key.clone()))?;
            let (held, reserved) = (&inner.pieces.published, &inner.pieces.reserved);
            let mut fresh = PieceSet::new(geometry.piece_count());
            for number in pieces.iter().filter(|&number| !held.contains(number) && !reserved.contains(number))
            {
                fresh.insert(number);
            }
            Ok((bytes_of(geometry, fresh.iter()), fresh, geometry))
        };
        let (asked, ..) = {
            let inner = self.inner.lock();
            self.live(&inner)?;
            missing(&inner)?
        };
        if asked == 0 {
            return Ok(());
        }
        self.admit(asked)?;
        let reserved = self.with_data(|inner, file| {
            // What came in or was reserved meanwhile is accounted for already.
            let (needed, fresh, geometry) = missing(inner)?;
            let extra = asked.saturating_sub(needed);
            self.shared.ledger.release(extra, extra);
            fresh.iter().for_each(|number| {
                inner.pieces.reserved.insert(number);
            });
            Ok((fresh, geometry, file, inner.instance))
        });
        let (fresh, geometry, file, instance) =
            reserved.inspect_err(|_| self.shared.ledger.release(asked, asked))?;
        for (offset, length) in runs(fresh.iter().filter_map(|number| geometry.piece(number))) {
            match self.shared.system.allocate(&file, offset, length) {
                Ok(true) => self.allocated(instance, geometry, offset, length),
                Ok(false) => return Ok(()), // sparse: the promise alone has to do
                Err(error) => {
                    self.give_back(|inner, number| inner.instance == instance && fresh.contains(number));
                    return Err(StoreError::io("cannot allocate", &self.paths.data, error));
                }
            }
        }
        Ok(())
    }

    /// Asks the ledger for `needed` bytes.
    pub(super) fn admit(&self, needed: u64) -> Result<(), StoreError> {
        let root = self.shared.layout.root();
        let admitted = self.shared.ledger.admit(needed, root, || self.shared.system.space(root));
        let admitted = admitted.map_err(StoreError::at("cannot read the free space of", root))?;
        admitted.map_err(|shortage| StoreError::NoSpace { key: self.key.clone(), shortage })
    }

    fn allocated(&self, instance: u64, geometry: Geometry, offset: u64, length: u64) {
        let mut inner = self.inner.lock();
        if inner.instance != instance {
            return; // the new content file let go of all that was promised
        }
        let range = damselfly_core::ByteRange { start: offset, length };
        for number in geometry.pieces_of(range) {
            if inner.pieces.allocated.insert(number) && inner.pieces.reserved.contains(number) {
                self.shared.ledger.backed(bytes_of(geometry, std::iter::once(number)));
            }
        }
    }

    /// Takes one reservation back. Its blocks, if it has some, are accounted as free from here on.
    fn let_go(&self, inner: &mut Inner, geometry: Geometry, number: u32) {
        if inner.pieces.reserved.remove(number) {
            let bytes = bytes_of(geometry, std::iter::once(number));
            let pending = if inner.pieces.allocated.contains(number) { 0 } else { bytes };
            self.shared.ledger.release(bytes, pending);
        }
    }

    /// A piece is about to be published: what was promised is there now.
    pub(super) fn account_published(&self, inner: &mut Inner, span: PieceSpan) {
        let fresh = inner.pieces.allocated.insert(span.number);
        if inner.pieces.reserved.remove(span.number) {
            if fresh {
                self.shared.ledger.backed(span.length);
            }
        } else {
            self.shared.ledger.charge(span.length);
        }
    }

    /// Gives back what was reserved and not written: nobody works on the task any more.
    pub(super) fn release_reserved(&self) {
        self.give_back(|_, _| self.pins.load(Ordering::Acquire) == 0);
    }

    /// Gives back those reservations that are not lent out and that `which` names, blocks included.
    fn give_back(&self, which: impl Fn(&Inner, u32) -> bool) {
        let io = self.io.lock();
        if self.shared.closed.load(Ordering::Acquire) {
            return; // the files may be another store's by now
        }
        let holes = {
            let mut inner = self.inner.lock();
            let Some(geometry) = inner.header.geometry else { return };
            let reserved = inner.pieces.reserved.iter();
            let idle: Vec<u32> = reserved
                .filter(|number| !inner.lent.contains_key(number) && which(&inner, *number))
                .collect();
            let mut backed = Vec::new();
            for number in idle {
                self.let_go(&mut inner, geometry, number);
                if inner.pieces.allocated.remove(number) {
                    backed.extend(geometry.piece(number));
                }
            }
            // Until the holes are made, nobody gets a slot or a reservation: its bytes might end in one.
            inner.punching = true;
            runs(backed.into_iter())
        };
        if let (false, Ok(file)) = (holes.is_empty(), self.data(&io)) {
            for (offset, length) in holes {
                self.shared.system.punch(&file, offset, length);
            }
        }
        self.inner.lock().punching = false;
    }

    /// Gives back the blocks that a crash left behind in extents of missing pieces: `blocks` bytes are allocated.
    pub(crate) fn punch_missing(&self, blocks: u64) {
        let io = self.io.lock();
        let (runs, held) = {
            let inner = self.inner.lock();
            let Some(geometry) = inner.header.geometry.filter(|_| inner.header.linked.is_none()) else {
                return;
            };
            (
                runs(inner.pieces.published.missing().filter_map(|number| geometry.piece(number))),
                inner.held_bytes(),
            )
        };
        // A file system's own blocks for large files stay below that.
        if runs.is_empty() || blocks <= held.saturating_add(held / 64 + (64 << 10)) {
            return;
        }
        if let Ok(file) = self.data(&io) {
            runs.into_iter().for_each(|(offset, length)| self.shared.system.punch(&file, offset, length));
        }
    }

    /// Forgets all pieces and what they cost: the file they are in is on its way out.
    pub(super) fn drop_pieces(&self, inner: &mut Inner) {
        if let Some(geometry) = inner.header.geometry {
            let pieces = &inner.pieces;
            let unbacked = pieces.reserved.iter().filter(|&number| !pieces.allocated.contains(number));
            let pending = bytes_of(geometry, unbacked);
            let charged = inner.held_bytes() + bytes_of(geometry, inner.pieces.reserved.iter());
            self.shared.ledger.release(charged, pending);
        }
        let count = inner.pieces.published.count();
        inner.pieces = super::Pieces::new(count);
        inner.lent.clear();
    }
}
