//! Uploads: imports that have a name, and are kept when they are cut off, for their sender to go on with.
//!
//! Until it is complete an upload lies in a provisional place like every import. Its sidecar says what it was begun as, its
//! pieces are *units*, recorded one after the other: so whatever cut it off, the daemon's death included, what is
//! verified is a beginning of the content. It is under no id that anybody could ask for, and is not listed.
//!
//! One that nobody writes is *resting*. It holds no more room than it has units, and is the first to go by its age or for
//! others: it is less than a copy of anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use damselfly_core::digest::Computed;
use damselfly_core::geometry::MAX_PIECES;
use damselfly_core::{Algorithm, Geometry, Hasher, Kind, TaskId, TaskKey};

use super::Store;
use super::import::{Identity, NewImport};
use crate::clock::Lifetime;
use crate::error::StoreError;
use crate::meta::{NewTask, UploadName};
use crate::sidecar::{self, Header};
use crate::task::{Pin, TaskContent, UNIT};

/// How long an upload rests.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Uploads that rest at a time. Those that rested longest make place.
const MOST: usize = 64;

/// An upload.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) content: Arc<TaskContent>,
    /// What its id follows from, up to a unit's end: spares reading again what this process wrote.
    pub(super) identity: Identity,
}

impl Upload {
    /// What stands for an upload where a task's id does.
    pub(super) fn key(id: TaskId) -> TaskKey {
        TaskKey { kind: Kind::PersistentCache, id }
    }

    /// One of an earlier run of the daemon, if that is what was found.
    pub(super) fn found(content: &Arc<TaskContent>) -> Option<Self> {
        let upload = content.header().upload.filter(|_| content.held() > 0)?;
        Some(Self { content: Arc::clone(content), identity: Identity::new(&upload.id) })
    }

    fn rests(&self) -> bool {
        !self.content.in_use()
    }
}

/// The id that stands for an upload's name.
fn id_of(name: &UploadName) -> Result<TaskId, StoreError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(&name.uid.to_be_bytes());
    hasher.update(name.name.as_bytes());
    let text = match hasher.finish() {
        Computed::Hex(_, text) => text,
        Computed::Crc32(crc) => format!("{crc:08x}"),
    };
    TaskId::parse(&text).map_err(|why| StoreError::Id(why.to_string()))
}

/// How content of that length is cut into units: so that few bytes are lost with one, and none is longer than a piece.
fn units(content_length: u64, piece_length: Option<u64>) -> Result<Geometry, damselfly_core::GeometryError> {
    let times = content_length.div_ceil(UNIT.saturating_mul(u64::from(MAX_PIECES))).max(1);
    Geometry::new(content_length, UNIT.saturating_mul(times).min(piece_length.unwrap_or(u64::MAX)))
}

/// Whether an upload was begun as what is to be gone on with now. How long the task is to live and how many are to have
/// it is for whoever completes it to say.
fn goes_on(begun: &Header, import: &NewImport) -> bool {
    let length = begun.geometry.map(|geometry| geometry.content_length());
    let same = |upload: &sidecar::Upload| {
        upload.id == import.id
            && upload.piece_length == import.piece_length
            && import.upload.as_ref().is_some_and(|name| name.name == upload.name)
    };
    length == import.content_length
        && (&begun.tag, &begun.application) == (&import.new.tag, &import.new.application)
        && begun.upload.as_ref().is_some_and(same)
}

impl TaskContent {
    /// Bytes from the start of the content on that are held.
    pub(super) fn verified_length(&self) -> u64 {
        let Some(geometry) = self.geometry() else { return 0 };
        let missing = self.pieces().missing().next().and_then(|number| geometry.piece(number));
        // Of a deleted one nothing is held, and its units are not counted any more.
        missing.map_or_else(|| self.held(), |unit| unit.offset)
    }
}

impl Store {
    /// Bytes from the start of the content on that are kept of an upload; 0 for one that is not known. The next stream may
    /// go on there.
    #[must_use]
    pub fn verified_upload(&self, name: &UploadName) -> u64 {
        let Ok(id) = id_of(name) else { return 0 };
        let content = self.uploads.lock().get(&id).map(|upload| Arc::clone(&upload.content));
        content.map_or(0, |content| content.verified_length())
    }

    /// A place for an upload that begins at its first byte. What is kept under the name goes.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while it is being written; lengths that no pieces can be made of; a failing disk.
    pub(super) fn place_upload(
        &self,
        name: &UploadName,
        length: u64,
        import: &NewImport,
    ) -> Result<(Pin, Identity), StoreError> {
        let key = Upload::key(id_of(name)?);
        let cut = Geometry::told(length, import.piece_length.unwrap_or(0))
            .and_then(|_| units(length, import.piece_length));
        let cut = cut.map_err(|source| StoreError::Geometry { key: key.clone(), source })?;
        let _changing = self.changing.lock();
        self.still_open()?;
        if let Some(there) = self.resting(&key)? {
            self.remove_upload(&there)?;
        }
        let new = NewTask { persistent: false, ..import.new.clone() };
        let mut header = self.header(&key, new, 1);
        (header.geometry, header.lifetime) = (Some(cut), Lifetime::Unused(PATIENCE));
        let (name, id, piece_length) = (name.name.clone(), import.id.clone(), import.piece_length);
        header.upload = Some(sidecar::Upload { name, id, piece_length });
        let content = self.make(self.shared.layout.import(&key.id), header)?;
        let (pin, identity) = (content.pin()?, Identity::new(&import.id));
        self.uploads.lock().insert(key.id, Upload { content, identity: identity.clone() });
        Ok((pin, identity))
    }

    /// An upload to go on with from `offset` on; `None` when that cannot be. One that was begun as something else goes.
    ///
    /// # Errors
    /// As [`Self::place_upload`].
    pub(super) fn take_up(
        &self,
        name: &UploadName,
        offset: u64,
        import: &NewImport,
    ) -> Result<Option<(Pin, Identity)>, StoreError> {
        let key = Upload::key(id_of(name)?);
        let _changing = self.changing.lock();
        self.still_open()?;
        let Some(content) = self.resting(&key)? else { return Ok(None) };
        let begun = content.header();
        if !goes_on(&begun, import) {
            self.remove_upload(&content)?;
            return Ok(None);
        }
        let verified = content.verified_length();
        let at_a_unit = begun.geometry.is_some_and(|cut| offset.is_multiple_of(cut.piece_length()));
        if offset != verified && !(offset < verified && at_a_unit) {
            return Ok(None);
        }
        // From here on it does not rest: nobody takes it away.
        let pin = content.pin()?;
        let identity = self.uploads.lock().get(&key.id).map(|upload| upload.identity.clone());
        let identity = identity.unwrap_or_else(|| Identity::new(&import.id));
        Ok(Some((pin, identity)))
    }

    /// The upload under the key, if there is one.
    fn resting(&self, key: &TaskKey) -> Result<Option<Arc<TaskContent>>, StoreError> {
        let uploads = self.uploads.lock();
        let Some(upload) = uploads.get(&key.id) else { return Ok(None) };
        if upload.rests() {
            return Ok(Some(Arc::clone(&upload.content)));
        }
        Err(StoreError::Busy { key: key.clone(), what: "the upload".to_owned() })
    }

    /// A unit of an upload is written: what its id follows from so far.
    pub(super) fn note_unit(&self, content: &TaskContent, identity: &Identity) {
        if let Some(upload) = self.uploads.lock().get_mut(&content.key().id) {
            upload.identity.clone_from(identity);
        }
    }

    /// Nobody writes the upload any more. It rests, if it is to be kept and there is anything to keep. Only with `changing`
    /// locked.
    pub(super) fn put_down(&self, content: &Arc<TaskContent>, keep: bool) -> Result<(), StoreError> {
        if !keep || content.held() == 0 {
            return self.remove_upload(content);
        }
        content.touch();
        self.trim_uploads();
        Ok(())
    }

    /// Only with `changing` locked.
    fn remove_upload(&self, content: &Arc<TaskContent>) -> Result<(), StoreError> {
        match content.end(true) {
            Ok(_) | Err(StoreError::Gone(_)) => self.clear(content),
            Err(why) => Err(why),
        }
    }

    /// Removes the resting uploads that are over, or too many, or could not be removed before. Only with `changing` locked.
    pub(super) fn trim_uploads(&self) {
        let now = self.now();
        let resting = |uploads: &HashMap<TaskId, Upload>| {
            let resting = uploads.values().filter(|upload| upload.rests());
            resting.map(|upload| Arc::clone(&upload.content)).collect::<Vec<_>>()
        };
        let resting = resting(&self.uploads.lock());
        let facts = resting.iter().map(|content| content.fact(&now, false));
        let mut by_age: Vec<_> = facts.zip(&resting).collect();
        by_age.sort_by_key(|(fact, _)| fact.idle);
        for (turn, (fact, content)) in by_age.into_iter().enumerate() {
            if turn < MOST && !fact.ttl_left.is_zero() && !content.is_gone() {
                continue;
            }
            match self.remove_upload(content) {
                Ok(()) => tracing::info!("removed an upload that nobody went on with"),
                Err(why) => tracing::warn!(%why, "an upload that nobody went on with is not removed yet"),
            }
        }
    }

    pub(super) fn still_open(&self) -> Result<(), StoreError> {
        if self.shared.closed.load(std::sync::atomic::Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        Ok(())
    }
}
