//! Admission: what may still be written, over all tasks together.

use std::path::Path;

use parking_lot::Mutex;

use crate::error::Shortage;
use crate::system::Space;

/// Kept free on the file system: sidecars, directories, and everybody else's small needs.
const MARGIN: u64 = 64 << 20;

/// The sums over all tasks, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Held or promised: what `capacity` limits.
    pub(crate) charged: u64,
    /// Promised, and not yet backed by blocks: what the file system does not know of.
    pub(crate) pending: u64,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    capacity: Option<u64>,
    totals: Mutex<Totals>,
}

/// What of `space` the store may fill. Of a small file system the margin takes a hundredth.
pub(crate) fn usable(space: Space) -> u64 {
    space.free.saturating_sub(MARGIN.min(space.total / 100))
}

impl Ledger {
    pub(crate) fn new(capacity: Option<u64>) -> Self {
        Self { capacity, totals: Mutex::default() }
    }

    pub(crate) fn totals(&self) -> Totals {
        *self.totals.lock()
    }

    pub(crate) fn capacity(&self) -> Option<u64> {
        self.capacity
    }

    /// Promises `needed` bytes, or says what is short. `space` is asked for under the lock, so that what another
    /// admission just took is seen either in the promises or in the file system.
    pub(crate) fn admit(
        &self,
        needed: u64,
        dir: &Path,
        space: impl FnOnce() -> std::io::Result<Space>,
    ) -> std::io::Result<Result<(), Shortage>> {
        let mut totals = self.totals.lock();
        let space = space()?;
        if self.short(&totals, needed, space) != (0, 0) {
            return Ok(Err(Shortage {
                needed,
                free: usable(space),
                reserved: totals.pending,
                used: totals.charged,
                capacity: self.capacity,
                dir: dir.to_owned(),
            }));
        }
        totals.charged += needed;
        totals.pending += needed;
        Ok(Ok(()))
    }

    /// How much must go before `needed` bytes can be admitted: from the file system, and from the store's capacity.
    pub(crate) fn shortfall(&self, needed: u64, space: Space) -> (u64, u64) {
        self.short(&self.totals.lock(), needed, space)
    }

    fn short(&self, totals: &Totals, needed: u64, space: Space) -> (u64, u64) {
        let disk = needed.saturating_add(totals.pending).saturating_sub(usable(space));
        let own = totals.charged.saturating_add(needed).saturating_sub(self.capacity.unwrap_or(u64::MAX));
        (disk, own)
    }

    /// Promised bytes that the file system accounts for from now on.
    pub(crate) fn backed(&self, bytes: u64) {
        let mut totals = self.totals.lock();
        totals.pending = totals.pending.saturating_sub(bytes);
    }

    /// Bytes that are there without having been promised.
    pub(crate) fn charge(&self, bytes: u64) {
        let mut totals = self.totals.lock();
        totals.charged = totals.charged.saturating_add(bytes);
    }

    /// Bytes that are neither held nor promised any more, `pending` of them never written.
    pub(crate) fn release(&self, charged: u64, pending: u64) {
        let mut totals = self.totals.lock();
        totals.charged = totals.charged.saturating_sub(charged);
        totals.pending = totals.pending.saturating_sub(pending);
    }
}
