//! Imports: content that comes in order from outside the cluster, under an id that is known at its end at the latest.
//!
//! While it comes it lies in a provisional place, under no id that anybody could ask for. At the end it takes its place
//! among the tasks in one rename, with the sidecar before it: what a crash leaves in between is an orphan, which goes when
//! the store opens. So nothing half-imported is ever seen. One that has a name is an [upload](super::upload).

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use damselfly_core::digest::Computed;
use damselfly_core::{Algorithm, Crc, Digest, Geometry, Kind, PieceSet, TaskId, TaskKey};

use super::{Store, remove_files};
use crate::error::StoreError;
use crate::flusher::Flusher;
use crate::layout::create_task_dir;
use crate::meta::{ImportId, NewTask, UploadName};
use crate::sidecar::SidecarFile;
use crate::task::{Pin, TaskContent, UnitWriter};
pub(super) use units::Identity;
use units::Units;

mod units;

/// Bytes per piece where neither the content's length nor a piece length is known beforehand, as with a pipe.
const PIPED_PIECE_LENGTH: u64 = 16 << 20;

/// What is to be imported.
#[derive(Clone, Debug)]
pub struct NewImport {
    /// Its id.
    pub id: ImportId,
    /// Its length in bytes, where known.
    pub content_length: Option<u64>,
    /// Bytes per piece where the user named them; enters an id that follows from the content.
    pub piece_length: Option<u64>,
    /// What the task is made with; always a persistent one.
    pub new: NewTask,
    /// What it is called, if it is to be gone on with after it was cut off; has no effect without a length.
    pub upload: Option<UploadName>,
}

/// What came of an import.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The task.
    pub content: Arc<TaskContent>,
    /// Equal content was there under the id already: it stays, and lives as long as this import was to live.
    pub existed: bool,
    /// The CRC of every piece as `content` is cut, in order.
    pub crcs: Vec<Crc>,
}

/// An import under way. Dropped before its end, it leaves nothing behind, but for an upload what was written of it.
#[derive(Debug)]
pub struct Import {
    import: NewImport,
    flusher: Flusher,
    // Before the place: it is let go of first.
    writer: Writer,
    place: Place,
}

/// How content is written.
#[derive(Debug)]
enum Writer {
    Stream(UnitWriter, Identity),
    Upload(Units),
}

/// The provisional place. Dropping it removes it, or has the upload in it rest.
#[derive(Debug)]
struct Place {
    store: Arc<Store>,
    content: Arc<TaskContent>,
    /// If it is an upload: whether it may be gone on with.
    keep: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _changing = self.store.changing.lock();
        // After its end the files may be another store's by now, which removes what cannot be gone on with.
        if self.store.still_open().is_err() {
            return;
        }
        let left = if self.content.is_upload() {
            self.store.put_down(&self.content, self.keep)
        } else {
            // Nobody else knows of it, so it is in nobody's use but the writer's, which ended first.
            drop(self.content.end(true));
            remove_files(&*self.store.shared.system, self.content.paths())
        };
        if let Err(why) = left {
            tracing::warn!(%why, "an unfinished import is not removed before the next start");
        }
    }
}

impl Store {
    /// Begins an import. What its length says is admitted at once; without one, room is admitted as the content comes.
    /// One that has a name and a length is an upload: what was kept under the name goes.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] with the numbers; [`StoreError::Busy`] for an upload that is being written;
    /// [`StoreError::Closed`]; a full or failing disk.
    pub fn begin_import(self: &Arc<Self>, import: NewImport) -> Result<Import, StoreError> {
        if let (Some(name), Some(length)) = (&import.upload, import.content_length) {
            let (pin, identity) = self.place_upload(name, length, &import)?;
            return self.upload(import, pin, identity, 0);
        }
        self.still_open()?;
        let number = self.shared.scratches.fetch_add(1, Ordering::Relaxed);
        // Of no task: it is not among those that can be asked for.
        let id = TaskId::parse(&format!("{number:064x}")).map_err(|why| StoreError::Id(why.to_string()))?;
        let paths = self.shared.layout.import(&id);
        let header = self.header(&TaskKey { kind: Kind::PersistentCache, id }, import.new.clone(), 1);
        let content = {
            let _changing = self.changing.lock();
            self.make(paths, header)?
        };
        let place = Place { store: Arc::clone(self), content, keep: false };
        let mut writer = place.content.unit_writer()?;
        let piped = import.content_length.is_none().then_some(PIPED_PIECE_LENGTH);
        if let Some(piece_length) = import.piece_length.or(piped) {
            writer = writer.with_piece_length(piece_length);
        }
        if let Some(content_length) = import.content_length {
            writer = writer.with_content_length(content_length)?;
        }
        let writer = Writer::Stream(writer, Identity::new(&import.id));
        Ok(Import { import, flusher: Flusher::default(), writer, place })
    }

    /// Goes on with an upload at `offset`: where [`Self::verified_upload`] said, or at the end of any unit before, for what
    /// comes twice is written again. `None` when nothing of it is kept there. Time to live, replicas and owner are those
    /// of `import`; everything else must be as it was when the upload began, or what is kept goes.
    ///
    /// # Errors
    /// As [`Self::begin_import`]; what is kept stays then.
    pub fn resume_import(
        self: &Arc<Self>,
        import: NewImport,
        offset: u64,
    ) -> Result<Option<Import>, StoreError> {
        let Some(name) = &import.upload else { return Ok(None) };
        let Some((pin, identity)) = self.take_up(name, offset, &import)? else { return Ok(None) };
        self.upload(import, pin, identity, offset).map(Some)
    }

    fn upload(
        self: &Arc<Self>,
        import: NewImport,
        pin: Pin,
        identity: Identity,
        offset: u64,
    ) -> Result<Import, StoreError> {
        let place = Place { store: Arc::clone(self), content: Arc::clone(pin.task()), keep: true };
        let writer = Writer::Upload(Units::begin(self, pin, identity, offset)?);
        Ok(Import { import, flusher: Flusher::default(), writer, place })
    }

    /// Gives imported content its place. What is there already stays if it is equal.
    fn adopt(
        &self,
        key: TaskKey,
        place: &Place,
        (geometry, crcs): (Geometry, Vec<Crc>),
        by_content: bool,
        new: &NewTask,
    ) -> Result<Imported, StoreError> {
        let tombstones = self.changing.lock();
        self.still_open()?;
        // The time tells this import from those of other hosts, of which this one knows nothing.
        let now = u64::try_from(self.shared.system.now().wall.as_micros()).unwrap_or_default();
        let mut generation = tombstones.generation(&key).map_or(1, |deleted| deleted + 1).max(now);
        if let Some(there) = self.get(&key) {
            if there.is_complete() {
                let equal = same_content(&there, place, (geometry, &crcs), by_content)?;
                return if equal { self.renew(there, new) } else { Err(StoreError::Taken(key)) };
            }
            generation = generation.max(there.meta().generation + 1);
            there.end(true)?;
            self.clear(&there)?;
        }
        let (shared, system) = (&self.shared, &*self.shared.system);
        let paths = shared.layout.task(&key);
        create_task_dir(&paths.dir)?;
        let mut header = self.header(&key, NewTask { persistent: true, ..new.clone() }, generation);
        (header.geometry, header.finished) = (Some(geometry), Some(header.updated));
        // The provisional task gives back what it was charged for before the new one is charged for it.
        place.content.end(true)?;
        // The sidecar first: without the content it is nothing, and a crash leaves an upload as it was.
        let io = SidecarFile::create(system, &paths.meta, &header).and_then(|mut io| {
            io.write_held(system, &key, generation, 0, &crcs)?;
            let moved = || {
                system.about_to("rename imported content")?;
                fs::rename(&place.content.paths().data, &paths.data)
            };
            moved().map_err(StoreError::at("cannot rename", &paths.data))?;
            Ok(io)
        });
        let io = io.inspect_err(|_| {
            drop(remove_files(system, &paths)); // the opening store removes it too
        })?;
        let held = PieceSet::full(geometry.piece_count());
        let content = TaskContent::assemble(Arc::clone(shared), paths, io, header, held, crcs.clone(), false);
        if let Err(why) = content.sync() {
            content.end(true)?;
            remove_files(system, content.paths())?;
            return Err(why);
        }
        self.tasks.lock().insert(key, Arc::clone(&content));
        drop(tombstones);
        Ok(Imported { content, existed: false, crcs })
    }

    /// Equal content that is here already, to live and to be kept as the new import would be.
    fn renew(&self, content: Arc<TaskContent>, new: &NewTask) -> Result<Imported, StoreError> {
        content.extend_ttl(new.ttl.unwrap_or(self.options.task_ttl))?;
        content.set_persistent(true)?;
        content.set_replica_target(new.replica_target)?;
        if let Some(uid) = new.owner_uid {
            content.add_owner(uid)?;
        }
        content.sync()?;
        let crcs = content.all_crcs();
        Ok(Imported { content, existed: true, crcs })
    }
}

impl Import {
    /// Bytes from the start of the content on that are written.
    #[must_use]
    pub fn written(&self) -> u64 {
        match &self.writer {
            Writer::Stream(writer, _) => writer.written(),
            Writer::Upload(units) => units.written(),
        }
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`StoreError::WrongLength`] past the length that was announced; [`StoreError::NoSpace`];
    /// [`StoreError::UploadDamaged`]; a failing disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let at = self.written();
        let length = at.saturating_add(bytes.len() as u64);
        if let Some(announced) = self.import.content_length.filter(|announced| length > *announced) {
            return Err(StoreError::WrongLength { announced, found: length });
        }
        match &mut self.writer {
            Writer::Stream(writer, identity) => {
                identity.take(at, bytes);
                writer.append(bytes)?;
            }
            Writer::Upload(units) => units.append(bytes)?,
        }
        self.flusher.written(length, &self.place.content.paths().data);
        Ok(())
    }

    /// Ends it for good: an upload, too, leaves nothing behind.
    pub fn discard(mut self) {
        self.place.keep = false;
    }

    /// The content ends here. When this returns it has its id, is complete, and is on the device.
    ///
    /// # Errors
    /// [`StoreError::WrongLength`], [`StoreError::WrongDigest`]; [`StoreError::Taken`] when other content has the id;
    /// [`StoreError::InUse`] while an unfinished download has it; a failing disk. Nothing is left behind then.
    /// [`StoreError::UploadDamaged`] and [`StoreError::Closed`] leave what an upload can be gone on with.
    pub fn finish(self, digest: Option<&Digest>) -> Result<Imported, StoreError> {
        let Self { import, writer, mut place, .. } = self;
        let imported = complete(&import, writer, &place, digest);
        place.keep &= matches!(imported, Err(StoreError::UploadDamaged { .. } | StoreError::Closed));
        imported
    }
}

fn complete(
    import: &NewImport,
    writer: Writer,
    place: &Place,
    digest: Option<&Digest>,
) -> Result<Imported, StoreError> {
    let found = match &writer {
        Writer::Stream(writer, _) => writer.written(),
        Writer::Upload(units) => units.written(),
    };
    if let Some(announced) = import.content_length.filter(|announced| *announced != found) {
        return Err(StoreError::WrongLength { announced, found });
    }
    let (geometry, crcs, identity) = match writer {
        Writer::Stream(writer, identity) => {
            let (geometry, crcs) = writer.finish()?;
            (geometry, crcs, identity)
        }
        Writer::Upload(units) => {
            let geometry = Geometry::told(found, import.piece_length.unwrap_or(0));
            let key = place.content.key();
            let geometry = geometry.map_err(|source| StoreError::Geometry { key: key.clone(), source })?;
            let (crcs, identity) = units.finish(geometry)?;
            (geometry, crcs, identity)
        }
    };
    if let Some(expected) = digest {
        let known = known_digest(expected.algorithm(), &identity, geometry, &crcs);
        let computed = known.map_or_else(|| place.content.digest(expected.algorithm()), Ok)?;
        if !expected.matches(&computed) {
            let (expected, found) = (expected.to_string(), computed.to_string());
            return Err(StoreError::WrongDigest { expected, found });
        }
    }
    let by_content = matches!(identity, Identity::Content(..));
    let id = match identity {
        Identity::Given(id) => id,
        Identity::Content(hasher, _) => {
            let (tag, application) = (import.new.tag.as_deref(), import.new.application.as_deref());
            hasher
                .finish(tag, application, import.piece_length)
                .map_err(|why| StoreError::Id(why.to_string()))?
        }
    };
    let key = TaskKey { kind: Kind::PersistentCache, id };
    // The bulk of it before others have to wait.
    place.content.sync()?;
    place.store.adopt(key, place, (geometry, crcs), by_content, &import.new)
}

/// Whether a complete content under the import's id is what was imported. An id that follows from the content says so by
/// itself, however the content is cut; under a given one it is compared.
fn same_content(
    there: &TaskContent,
    place: &Place,
    (geometry, crcs): (Geometry, &[Crc]),
    by_content: bool,
) -> Result<bool, StoreError> {
    let known = there.geometry();
    if known.map(|known| known.content_length()) != Some(geometry.content_length()) {
        return Ok(false);
    }
    if by_content || geometry.content_length() == 0 {
        return Ok(true);
    }
    if known == Some(geometry) {
        return Ok(there.all_crcs() == crcs);
    }
    Ok(there.digest(Algorithm::Sha256)? == place.content.digest(Algorithm::Sha256)?)
}

/// The whole content's digest, if it follows from what was computed as the content came. Otherwise it has to be read.
fn known_digest(
    algorithm: Algorithm,
    identity: &Identity,
    geometry: Geometry,
    crcs: &[Crc],
) -> Option<Computed> {
    if algorithm == Algorithm::Crc32 {
        let pieces = (0..geometry.piece_count()).filter_map(|number| geometry.piece(number)).zip(crcs);
        let whole = pieces.fold(Crc(0), |whole, (span, crc)| whole.followed_by(*crc, span.length));
        return Some(Computed::Crc32(whole.0));
    }
    let computed = identity.content_digest()?;
    matches!(&computed, Computed::Hex(of, _) if *of == algorithm).then_some(computed)
}

impl TaskContent {
    /// The CRCs of all pieces of a complete content.
    fn all_crcs(&self) -> Vec<Crc> {
        let count = self.geometry().map_or(0, |geometry| geometry.piece_count());
        (0..count).filter_map(|number| self.crc(number)).collect()
    }
}
