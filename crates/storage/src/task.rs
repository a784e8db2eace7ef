//! One task's content: what everybody reads, and who may write what.
//!
//! Two locks. `io` serialises everything that changes the sidecar or replaces the content file, and is held across
//! those writes. `inner` is memory only and never held across I/O, so plain questions never wait for a disk. A slot's
//! extent has a lock of its own (see [`slot`]). Order: extent, `io`, `inner`, the store's ledger.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use damselfly_core::{Crc, Geometry, PieceSet, PieceSpan, TaskKey};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::clock::{Lifetime, Moment};
use crate::error::StoreError;
use crate::layout::TaskPaths;
use crate::meta::Meta;
use crate::sidecar::{Header, SidecarFile};
use crate::store::Shared;

mod facts;
mod generation;
mod guard;
mod read;
mod slot;
mod space;
mod units;

pub use guard::Pin;
pub(crate) use guard::Using;
pub use read::PieceRef;
pub use slot::{Committed, PieceSlot};
pub use units::UnitWriter;
pub(crate) use units::{UNIT, piece_crcs};

/// One task's content on disk. Everything is done through `&self`, from any thread.
#[derive(Debug)]
pub struct TaskContent {
    key: TaskKey,
    paths: TaskPaths,
    shared: Arc<Shared>,
    changes: watch::Sender<u64>,
    pins: AtomicU32,
    reads: AtomicU32,
    writes: AtomicU32,
    /// The last use as microseconds of `CLOCK_BOOTTIME`; 0: not since the header was read or written.
    used_at: AtomicU64,
    io: Mutex<SidecarFile>,
    inner: Mutex<Inner>,
}

/// Whether the task can be worked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Live,
    /// Deleted, or a change of its files failed half-way: the store removes what is left of it.
    Gone,
}

#[derive(Debug)]
struct Inner {
    /// As it is on disk, but for `linked`.
    header: Header,
    pieces: Pieces,
    lent: HashMap<u32, slot::Lent>,
    /// A [`UnitWriter`] is out.
    streaming: bool,
    /// Holes are being made where nothing is held; true only while `io` is locked.
    punching: bool,
    /// Counts everything that took pieces away or into doubt, so that a long read can tell whether it still holds.
    epoch: u64,
    /// Counts content files: what was begun in one is not published in the next.
    instance: u64,
    life: Life,
    data: Weak<File>,
    /// Kept open while pinned.
    keep: Option<(Arc<File>, Arc<File>)>,
}

/// The bitmap and what belongs to it.
#[derive(Debug, Default)]
struct Pieces {
    published: PieceSet,
    /// Of those, the ones to be read and compared before first use.
    unverified: PieceSet,
    crcs: Vec<Crc>,
    /// Admitted and not published.
    reserved: PieceSet,
    /// Backed by blocks, whether published or not.
    allocated: PieceSet,
}

impl Pieces {
    fn new(count: u32) -> Self {
        let none = || PieceSet::new(count);
        let crcs = vec![Crc(0); count as usize];
        Self { published: none(), unverified: none(), crcs, reserved: none(), allocated: none() }
    }
}

/// Bytes of `pieces`.
fn bytes_of(geometry: Geometry, pieces: impl Iterator<Item = u32>) -> u64 {
    pieces.filter_map(|number| geometry.piece(number)).map(|span| span.length).sum()
}

fn held_bytes(geometry: Option<Geometry>, held: &PieceSet) -> u64 {
    let Some(geometry) = geometry else { return 0 };
    let last = geometry.piece_count().checked_sub(1).and_then(|last| geometry.piece(last));
    let short = last
        .filter(|last| held.contains(last.number))
        .map_or(0, |last| geometry.piece_length() - last.length);
    u64::from(held.len()) * geometry.piece_length() - short
}

fn wall(time: Duration) -> SystemTime {
    UNIX_EPOCH + time
}

impl Inner {
    fn span(&self, key: &TaskKey, number: u32) -> Result<PieceSpan, StoreError> {
        let geometry = self.header.geometry.ok_or_else(|| StoreError::NoGeometry(key.clone()))?;
        geometry.piece(number).ok_or_else(|| StoreError::NoSuchPiece {
            key: key.clone(),
            piece: number,
            count: geometry.piece_count(),
        })
    }

    /// The content file is being replaced: whoever wants one waits for the next, and nothing begun in this one counts.
    fn part_with_data(&mut self) {
        self.data = Weak::new();
        self.epoch += 1;
        self.instance += 1;
    }

    fn held_bytes(&self) -> u64 {
        held_bytes(self.header.geometry, &self.pieces.published)
    }
}

impl TaskContent {
    /// A task whose files exist. `suspect`: nothing of it was verified since the machine or the process last died.
    pub(crate) fn assemble(
        shared: Arc<Shared>,
        paths: TaskPaths,
        io: SidecarFile,
        header: Header,
        held: PieceSet,
        crcs: Vec<Crc>,
        suspect: bool,
    ) -> Arc<Self> {
        let count = header.geometry.map_or(0, |geometry| geometry.piece_count());
        let unverified = if suspect { held.clone() } else { PieceSet::new(count) };
        shared.ledger.charge(held_bytes(header.geometry, &held));
        let pieces =
            Pieces { allocated: held.clone(), published: held, unverified, crcs, ..Pieces::new(count) };
        Arc::new(Self {
            key: header.key.clone(),
            paths,
            shared,
            changes: watch::Sender::new(0),
            pins: AtomicU32::new(0),
            reads: AtomicU32::new(0),
            writes: AtomicU32::new(0),
            used_at: AtomicU64::new(0),
            io: Mutex::new(io),
            inner: Mutex::new(Inner {
                header,
                pieces,
                lent: HashMap::new(),
                streaming: false,
                punching: false,
                epoch: 0,
                instance: 0,
                life: Life::Live,
                data: Weak::new(),
                keep: None,
            }),
        })
    }

    /// Which task.
    #[must_use]
    pub fn key(&self) -> &TaskKey {
        &self.key
    }

    /// The pieces published now. Some may still await their first verification after a restart: [`Self::piece`]
    /// does that before it hands one out.
    #[must_use]
    pub fn pieces(&self) -> PieceSet {
        self.inner.lock().pieces.published.clone()
    }

    /// Whether piece `number` is published.
    #[must_use]
    pub fn has(&self, number: u32) -> bool {
        self.inner.lock().pieces.published.contains(number)
    }

    /// Whether every piece is published; false while the length is unknown.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let inner = self.inner.lock();
        inner.header.geometry.is_some() && inner.pieces.published.is_full()
    }

    /// How the content is cut, once known.
    #[must_use]
    pub fn geometry(&self) -> Option<Geometry> {
        self.inner.lock().header.geometry
    }

    /// The CRC of a published piece.
    #[must_use]
    pub fn crc(&self, number: u32) -> Option<Crc> {
        let inner = self.inner.lock();
        inner.pieces.published.contains(number).then(|| inner.pieces.crcs[number as usize])
    }

    /// Counts up at every publication, invalidation, new generation, change of facts and at the end of the task.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A snapshot of the metadata.
    #[must_use]
    pub fn meta(&self) -> Meta {
        let now = self.shared.system.now();
        let inner = self.inner.lock();
        let header = &inner.header;
        let ttl = match header.lifetime {
            Lifetime::Unused(length) | Lifetime::Fixed(_, length) => length,
        };
        Meta {
            generation: header.generation,
            geometry: header.geometry,
            validator: header.validator.clone(),
            headers: header.headers.clone(),
            private: header.private,
            owners: header.owners.clone(),
            tag: header.tag.clone(),
            application: header.application.clone(),
            url_redacted: header.url.clone(),
            digest: header.digest.clone(),
            paused: header.paused,
            persistent: header.persistent,
            replica_target: header.replica_target,
            created_at: wall(header.created),
            updated_at: wall(header.updated),
            finished_at: header.finished.map(wall),
            ttl,
            ttl_left: header.lifetime.left(&self.used(header, &now), &now),
            held_bytes: inner.held_bytes(),
        }
    }

    /// Counts as a use: keeps the task from being the least recently used one, and a standard task's TTL from ending.
    /// Written to the sidecar later, with others.
    pub fn touch(&self) {
        let since_boot = self.shared.system.now().since_boot.as_micros();
        self.used_at.store(u64::try_from(since_boot).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    fn used(&self, header: &Header, now: &Moment) -> Moment {
        match self.used_at.load(Ordering::Relaxed) {
            0 => header.used,
            micros => {
                let since_boot = Duration::from_micros(micros);
                let ago = now.since_boot.saturating_sub(since_boot);
                Moment { boot: now.boot, since_boot, wall: now.wall.saturating_sub(ago) }
            }
        }
    }

    /// Bytes of published pieces.
    pub(crate) fn held(&self) -> u64 {
        self.inner.lock().held_bytes()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn paths(&self) -> &TaskPaths {
        &self.paths
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.inner.lock().life == Life::Gone
    }

    /// Whether it is an upload, which is no task yet.
    pub(crate) fn is_upload(&self) -> bool {
        self.inner.lock().header.upload.is_some()
    }

    fn live(&self, inner: &Inner) -> Result<(), StoreError> {
        match inner.life {
            Life::Gone => Err(StoreError::Gone(self.key.clone())),
            Life::Live if self.shared.closed.load(Ordering::Acquire) => Err(StoreError::Closed),
            Life::Live => Ok(()),
        }
    }

    fn announce(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Runs `look` under the lock, with the content file of that very moment.
    fn with_data<T>(
        &self,
        look: impl FnOnce(&mut Inner, Arc<File>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        {
            let mut inner = self.inner.lock();
            self.live(&inner)?;
            if let (false, Some(file)) = (inner.punching, inner.data.upgrade()) {
                return look(&mut inner, file);
            }
        }
        let io = self.io.lock();
        let file = self.data(&io)?;
        let mut inner = self.inner.lock();
        self.live(&inner)?;
        look(&mut inner, file)
    }

    /// The content file. Whoever holds `io` knows that it is not replaced meanwhile.
    fn data(&self, _io: &MutexGuard<'_, SidecarFile>) -> Result<Arc<File>, StoreError> {
        if let Some(file) = self.inner.lock().data.upgrade() {
            return Ok(file);
        }
        let file = OpenOptions::new().read(true).write(true).open(&self.paths.data);
        let file = Arc::new(file.map_err(StoreError::at("cannot open", &self.paths.data))?);
        self.inner.lock().data = Arc::downgrade(&file);
        Ok(file)
    }
}
