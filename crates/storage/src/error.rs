//! What can go wrong in the store.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use damselfly_core::{Class, GeometryError, TaskKey};
use thiserror::Error;

/// Why content was not admitted, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What was asked for.
    pub needed: u64,
    /// What the file system has left, the safety margin already taken off.
    pub free: u64,
    /// What other downloads were promised and have not written yet.
    pub reserved: u64,
    /// What the store holds or has promised altogether.
    pub used: u64,
    /// The store's own limit (`diskThreshold`), if there is one.
    pub capacity: Option<u64>,
    /// Where.
    pub dir: PathBuf,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortage { needed, free, reserved, used, capacity, dir } = self;
        let dir = dir.display();
        match capacity {
            Some(capacity) if used.saturating_add(*needed) > *capacity => write!(
                f,
                "{needed} bytes needed, but the store in {dir} may hold {capacity} (diskThreshold) and {used} are \
                 taken or promised; delete tasks or raise diskThreshold"
            ),
            _ => write!(
                f,
                "{needed} bytes needed, but {dir} has {free} free, of which {reserved} are promised to other \
                 downloads; free space there, delete tasks, or choose another storage.dir"
            ),
        }
    }
}

/// Why the store did not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the store.
    #[error(
        "the store in {dir} is in use by {holder}; stop that daemon, or give this one another directory (--home, storage.dir)",
        dir = .dir.display()
    )]
    Locked {
        /// The store's directory.
        dir: PathBuf,
        /// Who has it, as far as the lock file tells.
        holder: String,
    },
    /// Written by a newer program.
    #[error(
        "{path} has storage format {found}, and this program knows formats up to {supported}; run the newer program, or \
         choose another storage.dir",
        path = .path.display()
    )]
    NewerFormat {
        /// The file or directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        supported: u32,
    },
    /// Tasks of this kind do not live on disk.
    #[error("{0} cannot be kept on disk: cache tasks live in the memory tier")]
    NotOnDisk(TaskKey),
    /// The store does not have the task.
    #[error("{0} is not in this store")]
    Unknown(TaskKey),
    /// The task was deleted or evicted while this caller still knew it.
    #[error("{0} was deleted from this store meanwhile; begin it anew")]
    Gone(TaskKey),
    /// The store has been shut down.
    #[error("the store is shut down")]
    Closed,
    /// Not admitted.
    #[error("no space left on device: not enough space to store {key}: {shortage}")]
    NoSpace {
        /// The task.
        key: TaskKey,
        /// The numbers.
        shortage: Shortage,
    },
    /// The disk filled up during a write, in spite of admission.
    #[error("the disk is full: {action} {path}: {source}; free space there, then try again", path = .path.display())]
    DiskFull {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The disk or the file system failed.
    #[error("{action} {path}: {source}", path = .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The task's metadata would not fit its sidecar.
    #[error("the metadata of {key} takes {bytes} bytes, more than the {limit} that a sidecar may hold")]
    TooMuchMetadata {
        /// The task.
        key: TaskKey,
        /// What it takes.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The length of the content is not known yet, so it has no pieces.
    #[error("{0} has no known length yet")]
    NoGeometry(TaskKey),
    /// No geometry follows from the length.
    #[error("{key}: {source}")]
    Geometry {
        /// The task.
        key: TaskKey,
        /// Why.
        source: GeometryError,
    },
    /// More pieces than a host can keep account of.
    #[error(
        "{key} would have {count} pieces, more than the {limit} that are kept; use a larger piece length"
    )]
    TooManyPieces {
        /// The task.
        key: TaskKey,
        /// How many it would have.
        count: u32,
        /// How many are possible.
        limit: u32,
    },
    /// There is no such piece.
    #[error("{key} has {count} pieces, there is no piece {piece}")]
    NoSuchPiece {
        /// The task.
        key: TaskKey,
        /// The piece asked for.
        piece: u32,
        /// How many there are.
        count: u32,
    },
    /// Somebody else is writing there.
    #[error("{key}: {what} is lent to another writer; wait until it is given back")]
    Busy {
        /// The task.
        key: TaskKey,
        /// The piece, or the whole content.
        what: String,
    },
    /// The piece is held already.
    #[error("{key}: piece {piece} is held already")]
    AlreadyHeld {
        /// The task.
        key: TaskKey,
        /// The piece.
        piece: u32,
    },
    /// A piece was to be committed before all of its bytes were there.
    #[error("{key}: piece {piece} has {written} of its {length} bytes; it is not stored")]
    Short {
        /// The task.
        key: TaskKey,
        /// The piece.
        piece: u32,
        /// Bytes written without a gap.
        written: u64,
        /// Bytes of the piece.
        length: u64,
    },
    /// A write outside the piece, or one that leaves a gap.
    #[error(
        "{key}: piece {piece} of {length} bytes has {written}: {bytes} bytes cannot be written at {offset}"
    )]
    BadWrite {
        /// The task.
        key: TaskKey,
        /// The piece.
        piece: u32,
        /// Bytes of the piece.
        length: u64,
        /// Bytes written without a gap.
        written: u64,
        /// Where the write began.
        offset: u64,
        /// How much it had.
        bytes: usize,
    },
    /// A second attempt at the piece was faster.
    #[error("{key}: another attempt at piece {piece} was faster")]
    Superseded {
        /// The task.
        key: TaskKey,
        /// The piece.
        piece: u32,
    },
    /// The content changed at its origin while this caller was busy with the old one.
    #[error("{key} is at generation {is} of its content, and this was for generation {was}")]
    OtherGeneration {
        /// The task.
        key: TaskKey,
        /// The caller's.
        was: u64,
        /// The task's.
        is: u64,
    },
    /// Facts that contradict those the stored pieces rest on.
    #[error("{key} is stored with {what} {known}, not {given}; a changed content needs a new generation")]
    Contradiction {
        /// The task.
        key: TaskKey,
        /// Which fact.
        what: &'static str,
        /// As stored.
        known: String,
        /// As given.
        given: String,
    },
    /// Not deleted: in use.
    #[error("{key} is {how}; cancel it or wait for it to finish")]
    InUse {
        /// The task.
        key: TaskKey,
        /// How.
        how: &'static str,
    },
    /// Pieces are needed that are not held (any more): they were never fetched, or failed verification just now.
    #[error(
        "{key}: {count} of the pieces needed are not held, the first of them piece {first}; fetch them again"
    )]
    Missing {
        /// The task.
        key: TaskKey,
        /// The first of them.
        first: u32,
        /// How many.
        count: u32,
    },
    /// A range outside the content.
    #[error("{key} has {content_length} bytes, bytes {start} to {end} are not in it")]
    OutOfRange {
        /// The task.
        key: TaskKey,
        /// First byte asked for.
        start: u64,
        /// The byte after the last one asked for.
        end: u64,
        /// Bytes of content.
        content_length: u64,
    },
    /// Other content has the id of an import.
    #[error("{0} is here with other content; delete it first, or import under another id")]
    Taken(TaskKey),
    /// An import was shorter or longer than announced.
    #[error("the import was announced with {announced} bytes and has {found}; import it again")]
    WrongLength {
        /// Bytes announced.
        announced: u64,
        /// Bytes that came, or at least as many.
        found: u64,
    },
    /// An import is not what its digest says.
    #[error("digest mismatch expected: {expected}, actual: {found}")]
    WrongDigest {
        /// As given.
        expected: String,
        /// As it is.
        found: String,
    },
    /// What is kept of an upload is not what was written.
    #[error(
        "what is kept of the upload is damaged from byte {verified} on; run the import again, it goes on there"
    )]
    UploadDamaged {
        /// Bytes from the start of the content that are right.
        verified: u64,
    },
    /// No id can be made of an import.
    #[error("no task id can be made: {0}")]
    Id(String),
    /// The output exists and is to be kept.
    #[error("{0} exists; name another output or allow overwriting")]
    Exists(String),
    /// A hard link was demanded and cannot be made.
    #[error(
        "{name} cannot be a hard link to the stored content: {why}; allow a copy, or choose another output"
    )]
    NoHardLink {
        /// The output's name.
        name: String,
        /// Why not.
        why: String,
    },
}

impl StoreError {
    /// What the error means for the machine that has to go on.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Busy { .. }
            | Self::AlreadyHeld { .. }
            | Self::Superseded { .. }
            | Self::OtherGeneration { .. }
            | Self::InUse { .. }
            | Self::Missing { .. }
            | Self::Short { .. } => Class::Retry,
            Self::Contradiction { .. } | Self::NoSuchPiece { .. } | Self::BadWrite { .. } => {
                Class::OtherSource
            }
            _ => Class::Fatal,
        }
    }

    /// The class of an error that came out of [`PieceSlot::write_at`](crate::PieceSlot::write_at).
    #[must_use]
    pub fn class_of(error: &io::Error) -> Class {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<StoreError>());
        inner.map_or(Class::Fatal, StoreError::class)
    }

    /// A failed system call.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { action, path, source }
            }
            _ => Self::Io { action, path, source },
        }
    }

    /// For `map_err`.
    pub(crate) fn at<'a, E: Into<io::Error>>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(E) -> Self + use<'a, E> {
        move |error| Self::io(action, path, error.into())
    }

    /// As an `io::Error` that keeps both the system's kind and this error's text and class.
    pub(crate) fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::DiskFull { source, .. } | Self::Io { source, .. } => source.kind(),
            Self::BadWrite { .. } => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}
