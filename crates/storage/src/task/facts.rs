//! Changes of a task's metadata. Each is one header write, and nothing when nothing changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use damselfly_core::download::Validator;
use damselfly_core::geometry::MAX_PIECES;

use super::{Pieces, TaskContent, held_bytes};
use crate::clock::{Lifetime, Moment};
use crate::error::StoreError;
use crate::meta::Facts;
use crate::policy::Fact;
use crate::sidecar::Header;

impl TaskContent {
    /// Takes over what the origin or the scheduler says of the content. Telling it again is fine; what was unknown is
    /// filled in. A validator that no byte rests on is replaced: a download of unknown length told it, and ended before
    /// anything was stored. Nothing is admitted yet: see [`TaskContent::reserve`].
    ///
    /// # Errors
    /// [`StoreError::Contradiction`] when geometry or validator differ from what the stored pieces rest on;
    /// [`StoreError::Busy`] while a content of unknown length is being written; too many pieces; a failing disk.
    pub fn set_facts(&self, facts: Facts) -> Result<(), StoreError> {
        self.forget_what_is_linked()?;
        let mut io = self.io.lock();
        let (mut header, streaming) = {
            let inner = self.inner.lock();
            self.live(&inner)?;
            (inner.header.clone(), inner.streaming)
        };
        let before = header.clone();
        self.merge(&mut header, facts, streaming)?;
        if header == before {
            return Ok(());
        }
        let cut = header.geometry.filter(|_| before.geometry.is_none());
        if let Some(geometry) = cut {
            if streaming {
                return Err(StoreError::Busy { key: self.key.clone(), what: "the whole content".into() });
            }
            let data = self.data(&io)?;
            let size = || {
                self.shared.system.about_to("size content file")?;
                data.set_len(geometry.content_length())
            };
            size().map_err(StoreError::at("cannot size", &self.paths.data))?;
        }
        header.updated = self.shared.system.now().wall;
        io.write_header(&*self.shared.system, &header)?;
        let mut inner = self.inner.lock();
        inner.header = header;
        if let Some(geometry) = cut {
            inner.pieces = Pieces::new(geometry.piece_count());
        }
        drop(inner);
        self.announce();
        Ok(())
    }

    fn merge(&self, header: &mut Header, facts: Facts, streaming: bool) -> Result<(), StoreError> {
        let nothing_stored = header.geometry.is_none() && !streaming;
        let contradiction = |what, known: String, given: String| {
            Err(StoreError::Contradiction { key: self.key.clone(), what, known, given })
        };
        match (header.geometry, facts.geometry) {
            (Some(known), Some(given)) if known != given => {
                let words = |g: damselfly_core::Geometry| {
                    format!("{} bytes in pieces of {}", g.content_length(), g.piece_length())
                };
                return contradiction("geometry", words(known), words(given));
            }
            (None, Some(given)) if given.piece_count() > MAX_PIECES => {
                let (key, count) = (self.key.clone(), given.piece_count());
                return Err(StoreError::TooManyPieces { key, count, limit: MAX_PIECES });
            }
            (None, Some(given)) => header.geometry = Some(given),
            _ => {}
        }
        if header.validator.differs(&facts.validator) {
            if !nothing_stored {
                let words = |v: &Validator| format!("ETag {:?}, Last-Modified {:?}", v.etag, v.last_modified);
                return contradiction("validator", words(&header.validator), words(&facts.validator));
            }
            header.validator = Validator::default();
            header.headers.clear();
        }
        let known = &mut header.validator;
        known.etag = known.etag.take().or(facts.validator.etag);
        known.last_modified = known.last_modified.take().or(facts.validator.last_modified);
        if header.headers.is_empty() {
            header.headers = facts.headers;
        }
        header.private |= facts.private;
        Ok(())
    }

    /// Changes the header on disk, then here.
    pub(super) fn amend(&self, change: impl FnOnce(&mut Header)) -> Result<(), StoreError> {
        let mut io = self.io.lock();
        let mut header = {
            let inner = self.inner.lock();
            self.live(&inner)?;
            inner.header.clone()
        };
        let before = header.clone();
        change(&mut header);
        if header == before {
            return Ok(());
        }
        header.updated = self.shared.system.now().wall;
        io.write_header(&*self.shared.system, &header)?;
        self.inner.lock().header = header;
        Ok(())
    }

    /// Remembers over restarts whether the user paused the task.
    ///
    /// # Errors
    /// When the task is gone or the disk fails.
    pub fn set_paused(&self, paused: bool) -> Result<(), StoreError> {
        self.amend(|header| header.paused = paused)
    }

    /// Lets a uid delete the task too.
    ///
    /// # Errors
    /// When the task is gone or the disk fails.
    pub fn add_owner(&self, uid: u32) -> Result<(), StoreError> {
        self.amend(|header| {
            if let Err(place) = header.owners.binary_search(&uid) {
                header.owners.insert(place, uid);
            }
        })
    }

    /// Remembers that all that was wanted is held. The first time counts.
    ///
    /// # Errors
    /// When the task is gone or the disk fails.
    pub fn mark_finished(&self) -> Result<(), StoreError> {
        let now = self.shared.system.now().wall;
        self.amend(|header| header.finished = header.finished.or(Some(now)))
    }

    /// Remembers the whole content's digest as `algorithm:value`.
    ///
    /// # Errors
    /// When the task is gone or the disk fails.
    pub fn set_digest(&self, digest: &str) -> Result<(), StoreError> {
        self.amend(|header| header.digest = Some(digest.to_owned()))
    }

    /// Makes the task immune to disk pressure, or takes that back. Its TTL ends it either way.
    ///
    /// # Errors
    /// When the task is gone or the disk fails.
    pub fn set_persistent(&self, persistent: bool) -> Result<(), StoreError> {
        self.amend(|header| header.persistent = persistent)
    }

    /// Says how many replicas the cluster keeps of the task.
    ///
    /// # Errors
    /// When the task is gone or the disk fails.
    pub fn set_replica_target(&self, target: u64) -> Result<(), StoreError> {
        self.amend(|header| header.replica_target = target)
    }

    /// The header as it is.
    pub(crate) fn header(&self) -> Header {
        self.inner.lock().header.clone()
    }

    /// Lets the task live for `ttl` from now, if it would have ended sooner.
    ///
    /// # Errors
    /// When the task is gone or the disk fails.
    pub fn extend_ttl(&self, ttl: Duration) -> Result<(), StoreError> {
        self.touch();
        let now = self.shared.system.now();
        self.amend(|header| {
            let longer = match header.lifetime {
                Lifetime::Unused(length) => (ttl > length).then_some(Lifetime::Unused(ttl)),
                Lifetime::Fixed(..) => {
                    (ttl > header.lifetime.left(&now, &now)).then_some(Lifetime::Fixed(now, ttl))
                }
            };
            header.lifetime = longer.unwrap_or(header.lifetime);
        })
    }

    /// Writes what was only kept in memory: the last use, and whether pieces still await verification. Says whether
    /// there was anything.
    pub(crate) fn flush(&self) -> Result<bool, StoreError> {
        let mut io = self.io.lock();
        let now = self.shared.system.now();
        let (mut header, before) = {
            let inner = self.inner.lock();
            if inner.life == super::Life::Gone {
                return Ok(false);
            }
            let mut header = inner.header.clone();
            header.used = self.used(&header, &now);
            header.suspect = !inner.pieces.unverified.is_empty();
            (header, inner.header.clone())
        };
        if header == before {
            return Ok(false);
        }
        io.write_header(&*self.shared.system, &header)?;
        let mut inner = self.inner.lock();
        std::mem::swap(&mut inner.header, &mut header);
        drop(inner);
        Ok(true)
    }

    /// Waits for whoever is changing the task's files.
    pub(crate) fn settle(&self) {
        drop(self.io.lock());
    }

    /// Whether a use is known here that the sidecar does not know.
    pub(crate) fn is_unflushed(&self) -> bool {
        let micros = u128::from(self.used_at.load(Ordering::Relaxed));
        micros != 0 && self.inner.lock().header.used.since_boot.as_micros() != micros
    }

    /// What the eviction policy wants to know.
    ///
    /// `on_disk`: bytes count as freeable if the file system would get them back. A file that a caller's output is
    /// linked to stays after all; of the store's own capacity it frees its share all the same.
    pub(crate) fn fact(&self, now: &Moment, on_disk: bool) -> Fact {
        let linked = self.inner.lock().header.linked.is_some();
        let shared = on_disk && linked && fs::metadata(&self.paths.data).is_ok_and(|data| data.nlink() > 1);
        let inner = self.inner.lock();
        let used = self.used(&inner.header, now);
        let pieces = |set| held_bytes(inner.header.geometry, set);
        let freeable = match (on_disk, shared) {
            (true, true) => 0,
            (true, false) => pieces(&inner.pieces.allocated),
            (false, _) => pieces(&inner.pieces.published) + pieces(&inner.pieces.reserved),
        };
        Fact {
            freeable,
            idle: used.age(now),
            ttl_left: inner.header.lifetime.left(&used, now),
            in_use: self.in_use(),
            persistent: inner.header.persistent,
        }
    }
}
