//! The header's body: tagged fields, so that a later minor addition is skipped by an older reader of the same format.

use std::collections::BTreeMap;
use std::time::Duration;

use damselfly_core::download::Validator;
use damselfly_core::task_id::ContentId;
use damselfly_core::{Geometry, Kind, TaskId, TaskKey};

use crate::clock::{BootId, Lifetime, Moment};
use crate::meta::ImportId;

/// What an inode looked like right after our own last change of it. Any difference means that somebody else was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Linked {
    pub(crate) inode: u64,
    pub(crate) size: u64,
    /// Modification and change time, seconds and nanoseconds since the epoch.
    pub(crate) mtime: (i64, i64),
    pub(crate) ctime: (i64, i64),
}

/// What an upload that is not complete was begun as. Its length, uid, tag and application are where a task's are; its
/// pieces are the units it is kept in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upload {
    pub(crate) name: String,
    pub(crate) id: ImportId,
    /// As the user named it.
    pub(crate) piece_length: Option<u64>,
}

/// Everything the sidecar says of a task, its pieces excepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) key: TaskKey,
    pub(crate) generation: u64,
    pub(crate) geometry: Option<Geometry>,
    pub(crate) validator: Validator,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) private: bool,
    pub(crate) persistent: bool,
    /// How many replicas the cluster keeps; 0: not replicated.
    pub(crate) replica_target: u64,
    pub(crate) paused: bool,
    /// Pieces are still to be verified before first use, whatever the clean-shutdown marker says.
    pub(crate) suspect: bool,
    pub(crate) owners: Vec<u32>,
    pub(crate) url: String,
    pub(crate) tag: Option<String>,
    pub(crate) application: Option<String>,
    pub(crate) digest: Option<String>,
    /// Wall clock times since the epoch, for people.
    pub(crate) created: Duration,
    pub(crate) updated: Duration,
    pub(crate) finished: Option<Duration>,
    pub(crate) used: Moment,
    pub(crate) lifetime: Lifetime,
    /// The content file is, or once was, hard-linked to a caller's output.
    pub(crate) linked: Option<Linked>,
    /// This is no task yet.
    pub(crate) upload: Option<Upload>,
}

/// The kind's number on disk; never changed.
pub(crate) fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Standard => 0,
        Kind::PersistentCache => 1,
        Kind::Cache => 2,
    }
}

pub(crate) fn kind_of(code: u8) -> Option<Kind> {
    Kind::ALL.into_iter().find(|&kind| kind_code(kind) == code)
}

mod tag {
    pub(super) const KEY: u8 = 1;
    pub(super) const GENERATION: u8 = 2;
    pub(super) const GEOMETRY: u8 = 3;
    pub(super) const ETAG: u8 = 4;
    pub(super) const LAST_MODIFIED: u8 = 5;
    pub(super) const FLAGS: u8 = 6;
    pub(super) const OWNERS: u8 = 7;
    pub(super) const URL: u8 = 8;
    pub(super) const TAG: u8 = 9;
    pub(super) const APPLICATION: u8 = 10;
    pub(super) const DIGEST: u8 = 11;
    pub(super) const CREATED: u8 = 12;
    pub(super) const UPDATED: u8 = 13;
    pub(super) const FINISHED: u8 = 14;
    pub(super) const USED: u8 = 15;
    pub(super) const UNUSED_FOR: u8 = 16;
    pub(super) const FIXED: u8 = 17;
    pub(super) const LINKED: u8 = 18;
    pub(super) const RESPONSE_HEADER: u8 = 19;
    pub(super) const REPLICAS: u8 = 20;
    pub(super) const UPLOAD: u8 = 21;
    pub(super) const UPLOAD_ID: u8 = 22;
    pub(super) const UPLOAD_PIECE_LENGTH: u8 = 23;
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    #[expect(clippy::cast_possible_truncation, reason = "bodies beyond MAX_BODY are refused when written")]
    fn field(&mut self, tag: u8, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.0.push(tag);
        self.0.extend_from_slice(&(length as u32).to_le_bytes());
        parts.iter().for_each(|part| self.0.extend_from_slice(part));
    }

    fn text(&mut self, tag: u8, text: Option<&str>) {
        if let Some(text) = text {
            self.field(tag, &[text.as_bytes()]);
        }
    }

    fn time(&mut self, tag: u8, time: Duration) {
        self.field(tag, &[&micros(time)]);
    }
}

fn micros(time: Duration) -> [u8; 8] {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).to_le_bytes()
}

impl Header {
    /// The body's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.field(tag::KEY, &[&[kind_code(self.key.kind)], self.key.id.as_str().as_bytes()]);
        out.field(tag::GENERATION, &[&self.generation.to_le_bytes()]);
        if let Some(geometry) = &self.geometry {
            let lengths = [geometry.content_length().to_le_bytes(), geometry.piece_length().to_le_bytes()];
            out.field(tag::GEOMETRY, &[&lengths[0], &lengths[1]]);
        }
        out.text(tag::ETAG, self.validator.etag.as_deref());
        out.text(tag::LAST_MODIFIED, self.validator.last_modified.as_deref());
        let flags = [self.private, self.persistent, self.paused, self.suspect];
        let flags = flags.iter().rev().fold(0, |bits, &flag| bits << 1 | u8::from(flag));
        out.field(tag::FLAGS, &[&[flags]]);
        let owners: Vec<u8> = self.owners.iter().flat_map(|uid| uid.to_le_bytes()).collect();
        out.field(tag::OWNERS, &[&owners]);
        if self.replica_target > 0 {
            out.field(tag::REPLICAS, &[&self.replica_target.to_le_bytes()]);
        }
        out.text(tag::URL, Some(&self.url));
        out.text(tag::TAG, self.tag.as_deref());
        out.text(tag::APPLICATION, self.application.as_deref());
        out.text(tag::DIGEST, self.digest.as_deref());
        out.time(tag::CREATED, self.created);
        out.time(tag::UPDATED, self.updated);
        if let Some(finished) = self.finished {
            out.time(tag::FINISHED, finished);
        }
        out.field(tag::USED, &[&self.used.boot.0, &micros(self.used.since_boot), &micros(self.used.wall)]);
        match &self.lifetime {
            Lifetime::Unused(length) => out.time(tag::UNUSED_FOR, *length),
            Lifetime::Fixed(from, length) => {
                let times = [micros(from.since_boot), micros(from.wall), micros(*length)];
                out.field(tag::FIXED, &[&from.boot.0, &times[0], &times[1], &times[2]]);
            }
        }
        if let Some(linked) = &self.linked {
            let [mtime, ctime] =
                [linked.mtime, linked.ctime].map(|(s, n)| [s.to_le_bytes(), n.to_le_bytes()]);
            let (inode, size) = (linked.inode.to_le_bytes(), linked.size.to_le_bytes());
            out.field(tag::LINKED, &[&inode, &size, &mtime[0], &mtime[1], &ctime[0], &ctime[1]]);
        }
        if let Some(upload) = &self.upload {
            out.text(tag::UPLOAD, Some(&upload.name));
            match &upload.id {
                ImportId::Content(ContentId::Sha256) => out.field(tag::UPLOAD_ID, &[&[0]]),
                ImportId::Content(ContentId::Blake3) => out.field(tag::UPLOAD_ID, &[&[1]]),
                ImportId::Given(id) => out.field(tag::UPLOAD_ID, &[&[2], id.as_str().as_bytes()]),
            }
            if let Some(piece_length) = upload.piece_length {
                out.field(tag::UPLOAD_PIECE_LENGTH, &[&piece_length.to_le_bytes()]);
            }
        }
        for (name, value) in &self.headers {
            let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes();
            out.field(tag::RESPONSE_HEADER, &[&length, name.as_bytes(), value.as_bytes()]);
        }
        out.0
    }

    /// Reads a body; `None` when it is not one.
    pub(crate) fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields::default();
        let mut reader = Reader(body);
        while !reader.0.is_empty() {
            let tag = reader.byte()?;
            let length = reader.word()? as usize;
            fields.take(tag, Reader(reader.bytes(length)?))?;
        }
        fields.finish()
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn word(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn signed(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn time(&mut self) -> Option<Duration> {
        self.long().map(Duration::from_micros)
    }

    fn moment(&mut self) -> Option<Moment> {
        Some(Moment { boot: BootId(self.array()?), since_boot: self.time()?, wall: self.time()? })
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(std::mem::take(&mut self.0).to_vec()).ok()
    }
}

#[derive(Default)]
struct Fields {
    key: Option<TaskKey>,
    generation: Option<u64>,
    geometry: Option<Geometry>,
    validator: Validator,
    headers: BTreeMap<String, String>,
    flags: u8,
    replica_target: u64,
    owners: Vec<u32>,
    url: String,
    tag: Option<String>,
    application: Option<String>,
    digest: Option<String>,
    created: Option<Duration>,
    updated: Option<Duration>,
    finished: Option<Duration>,
    used: Option<Moment>,
    lifetime: Option<Lifetime>,
    linked: Option<Linked>,
    upload: Option<String>,
    upload_id: Option<ImportId>,
    upload_piece_length: Option<u64>,
}

impl Fields {
    fn take(&mut self, tag: u8, mut value: Reader<'_>) -> Option<()> {
        match tag {
            tag::KEY => {
                let kind = kind_of(value.byte()?)?;
                self.key = Some(TaskKey { kind, id: TaskId::parse(&value.text()?).ok()? });
            }
            tag::GENERATION => self.generation = Some(value.long()?),
            tag::GEOMETRY => self.geometry = Some(Geometry::new(value.long()?, value.long()?).ok()?),
            tag::ETAG => self.validator.etag = Some(value.text()?),
            tag::LAST_MODIFIED => self.validator.last_modified = Some(value.text()?),
            tag::FLAGS => self.flags = value.byte()?,
            tag::REPLICAS => self.replica_target = value.long()?,
            tag::OWNERS => {
                while !value.0.is_empty() {
                    self.owners.push(value.word()?);
                }
            }
            tag::URL => self.url = value.text()?,
            tag::TAG => self.tag = Some(value.text()?),
            tag::APPLICATION => self.application = Some(value.text()?),
            tag::DIGEST => self.digest = Some(value.text()?),
            tag::CREATED => self.created = Some(value.time()?),
            tag::UPDATED => self.updated = Some(value.time()?),
            tag::FINISHED => self.finished = Some(value.time()?),
            tag::USED => self.used = Some(value.moment()?),
            tag::UNUSED_FOR => self.lifetime = Some(Lifetime::Unused(value.time()?)),
            tag::FIXED => self.lifetime = Some(Lifetime::Fixed(value.moment()?, value.time()?)),
            tag::LINKED => {
                let (inode, size) = (value.long()?, value.long()?);
                let mtime = (value.signed()?, value.signed()?);
                self.linked = Some(Linked { inode, size, mtime, ctime: (value.signed()?, value.signed()?) });
            }
            tag::UPLOAD => self.upload = Some(value.text()?),
            tag::UPLOAD_ID => {
                self.upload_id = Some(match value.byte()? {
                    0 => ImportId::Content(ContentId::Sha256),
                    1 => ImportId::Content(ContentId::Blake3),
                    2 => ImportId::Given(TaskId::parse(&value.text()?).ok()?),
                    _ => return None,
                });
            }
            tag::UPLOAD_PIECE_LENGTH => self.upload_piece_length = Some(value.long()?),
            tag::RESPONSE_HEADER => {
                let length = value.word()? as usize;
                let name = String::from_utf8(value.bytes(length)?.to_vec()).ok()?;
                self.headers.insert(name, value.text()?);
            }
            _ => {}
        }
        Some(())
    }

    fn finish(self) -> Option<Header> {
        let flag = |bit: u8| self.flags >> bit & 1 == 1;
        let upload = match (self.upload, self.upload_id) {
            (None, None) => None,
            (name, id) => Some(Upload { name: name?, id: id?, piece_length: self.upload_piece_length }),
        };
        Some(Header {
            key: self.key?,
            generation: self.generation?,
            private: flag(0),
            persistent: flag(1),
            replica_target: self.replica_target,
            paused: flag(2),
            suspect: flag(3),
            geometry: self.geometry,
            validator: self.validator,
            headers: self.headers,
            owners: self.owners,
            url: self.url,
            tag: self.tag,
            application: self.application,
            digest: self.digest,
            created: self.created?,
            updated: self.updated?,
            finished: self.finished,
            used: self.used?,
            lifetime: self.lifetime?,
            linked: self.linked,
            upload,
        })
    }
}
