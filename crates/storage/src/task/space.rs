//! Room for pieces that are not there yet.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use damselfly_core::pieces::runs;
use damselfly_core::{Geometry, PieceSet, PieceSpan};

use super::guard::{Use, Using};
use super::{Inner, TaskContent, bytes_of};
use crate::error::StoreError;

/// Ascending pieces as stretches of the content: (offset, length).
fn stretches(geometry: Geometry, pieces: impl Iterator<Item = u32>) -> Vec<(u64, u64)> {
    let ranges = runs(pieces).into_iter().map(|run| geometry.range_of(run));
    ranges.map(|range| (range.start, range.length)).collect()
}

impl TaskContent {
    /// Admits the missing ones of `pieces`: afterwards there is room for them, whatever other tasks reserve. Reserving
    /// again is free. Where the room is not there, the least recently used tasks go for it, if that is enough. It is
    /// given back as pieces are evicted or the task deleted, and, as far as nothing was written there, when the last
    /// pin goes.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] with the numbers; nothing is reserved then.
    pub fn reserve(self: &Arc<Self>, pieces: &PieceSet) -> Result<(), StoreError> {
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
        let (asked, using) = {
            let inner = self.inner.lock();
            self.live(&inner)?;
            (missing(&inner)?.0, self.begin(Use::Write, &inner))
        };
        if asked == 0 {
            return Ok(());
        }
        self.admit(asked, &using)?;
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
        for (offset, length) in stretches(geometry, fresh.iter()) {
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

    /// Asks the ledger for `needed` bytes; what it does not have the store may make room for, once. `_using` is the
    /// proof that this task is not what has to go.
    pub(super) fn admit(&self, needed: u64, _using: &Using) -> Result<(), StoreError> {
        let shared = &self.shared;
        {
            let _admission = shared.admission.read();
            match self.ask(needed) {
                Err(StoreError::NoSpace { .. }) => {}
                answer => return answer,
            }
        }
        let _alone = shared.admission.write();
        if let Some(store) = shared.store.get().and_then(Weak::upgrade) {
            store.make_room(needed);
        }
        self.ask(needed)
    }

    fn ask(&self, needed: u64) -> Result<(), StoreError> {
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
                    backed.push(number);
                }
            }
            // Until the holes are made, nobody gets a slot or a reservation: its bytes might end in one.
            inner.punching = true;
            stretches(geometry, backed.into_iter())
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
        let (missing, held) = {
            let inner = self.inner.lock();
            let Some(geometry) = inner.header.geometry.filter(|_| inner.header.linked.is_none()) else {
                return;
            };
            (stretches(geometry, inner.pieces.published.missing()), inner.held_bytes())
        };
        // A file system's own blocks for large files stay below that.
        if missing.is_empty() || blocks <= held.saturating_add(held / 64 + (64 << 10)) {
            return;
        }
        if let Ok(file) = self.data(&io) {
            missing.into_iter().for_each(|(offset, length)| self.shared.system.punch(&file, offset, length));
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
