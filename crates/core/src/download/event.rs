//! What goes into the Download machine and what comes out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::{ByteRange, Crc, Geometry, PeerId, PieceSet, RangeSpec, Tick};

/// One piece attempt, unique within its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

/// One client waiting for the task, unique within its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// Names one set of request headers; equal for clients whose headers are equal. The shell keeps the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeadersId(pub u64);

/// A client's wish. Its digest and its output are the shell's: they are settled after [`Effect::ClientReady`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Who wishes.
    pub id: ClientId,
    /// What of the content.
    pub range: RangeSpec,
    /// The headers its origin requests carry.
    pub headers: HeadersId,
    /// Whether the origin may be asked for this client.
    pub may_use_origin: bool,
    /// When the client gives up.
    pub deadline: Option<Tick>,
}

/// What an origin says to tell one version of its content from another. Two validators differ when any part known to
/// both differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validator {
    /// The `ETag`, quotes and `W/` included.
    pub etag: Option<String>,
    /// The `Last-Modified` header as sent.
    pub last_modified: Option<String>,
}

impl Validator {
    /// Whether the two name different versions: a part known to both differs.
    #[must_use]
    pub fn differs(&self, other: &Validator) -> bool {
        let differ = |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a != b);
        differ(&self.etag, &other.etag) || differ(&self.last_modified, &other.last_modified)
    }
}

/// What is known of the content, from the origin's first answer or from the scheduler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// Bytes of content; `None` when the origin does not say.
    pub content_length: Option<u64>,
    /// Bytes per piece, 0 until the content length is known.
    pub piece_length: u64,
    /// The version of the content.
    pub validator: Validator,
    /// The origin's response headers, as clients get to see them.
    pub headers: BTreeMap<String, String>,
    /// Whether ranges can be asked of the origin; `None` when only a peer told us of the content.
    pub ranges: Option<bool>,
    /// Whether the content was fetched with request headers that others must prove anew.
    pub private: bool,
}

/// The scheduler's leave to fetch ranges of pieces from the origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The scheduler's number for it.
    pub id: u64,
    /// The pieces, possibly past the end of the content when its length is not known yet.
    pub ranges: Vec<Range<u32>>,
    /// The lease ends after this much silence; any piece report of its holder keeps it alive.
    pub silence: Duration,
    /// The content generation it is for.
    pub generation: u64,
}

/// A candidate parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentInfo {
    /// Its peer id.
    pub id: PeerId,
    /// Whether it is one of ours, so that requests may be pipelined on kept connections.
    pub ours: bool,
    /// Whether it is known to hold every piece, so that nobody needs to wait for its SyncPieces.
    pub complete: bool,
}

/// The scheduler's knowledge of a task (our schedulers only).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Which version this is about, counted by the scheduler within one announce stream: more than in an earlier message
    /// where this is its later word.
    pub generation: u64,
    /// What is known of the content, when anything is.
    pub learned: Option<Learned>,
    /// The first piece that `crcs` speaks of.
    pub first: u32,
    /// The CRC ledger from piece `first` on.
    pub crcs: Vec<Crc>,
}

/// What the scheduler, or the lack of one, does to a download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromScheduler {
    /// The announce stream stands. Ours means leases, facts and unsolicited answers.
    Connected {
        /// Whether the scheduler is ours.
        ours: bool,
    },
    /// The content is empty.
    Empty,
    /// Candidate parents: the full current list, replacing the former one where the scheduler is ours, adding to it
    /// where it is not.
    Parents(Vec<ParentInfo>),
    /// Leave to go to the origin: for the lease, or without one for the whole task.
    BackToSource(Option<Lease>),
    /// What the scheduler knows.
    Facts(Facts),
    /// The geometry that follows from the length Dragonfly's scheduler has for the task. It answers nothing, and is
    /// believed only where nobody has told the geometry: for clients that may not ask the origin.
    Length(Geometry),
    /// The scheduler will not serve this peer.
    Refused(String),
    /// The announce stream broke. The machine asks to register anew, with backoff.
    Lost(String),
    /// No scheduler can be reached or none is configured.
    Absent,
}

/// What a parent says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromParent {
    /// It holds these pieces now.
    Has(Vec<u32>),
    /// Its piece has another offset or length than ours: banned.
    Mismatch(String),
    /// Its SyncPieces stream ended: nothing more here.
    Ended,
    /// It cannot be reached.
    Lost(String),
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Worth another try, not before `after` where the origin asked for that.
    Retry {
        /// The origin's `Retry-After`.
        after: Option<Duration>,
    },
    /// Wrong bytes, wrong length or wrong offset: the parent is banned.
    Wrong,
    /// The parent does not have the piece.
    Missing,
    /// The origin does not let these headers in (401, 403): only clients with the same headers fail.
    Unauthorized,
    /// The origin says no for everybody (404, 410, another 4xx).
    Refused,
    /// The origin's content is another version now.
    Changed(Validator),
    /// This host cannot store the content (disk full, I/O error).
    Storage,
    /// The machine cancelled the attempt, or the fetch panicked or was killed: says nothing about the source.
    Cancelled,
}

/// A failed attempt, with the words for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it means.
    pub kind: FailureKind,
    /// What failed and why; never a secret.
    pub message: String,
    /// The origin's status where it gave one.
    pub status: Option<u16>,
    /// The origin's response headers.
    pub headers: BTreeMap<String, String>,
}

/// What a running attempt reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAttempt {
    /// The origin's first answer, reported before any of its content is stored. An [`Fetch::OriginPiece`] whose range
    /// the origin ignored says so here (`ranges: Some(false)`) and then fails with [`FailureKind::Retry`].
    Learned(Learned),
    /// A piece is verified and stored.
    Stored {
        /// Its number.
        piece: u32,
        /// Its CRC.
        crc: Crc,
        /// How long it took.
        cost: Duration,
    },
    /// An origin that gave no length ended: now the geometry is known, and all its pieces are stored.
    Ended {
        /// The geometry, from the number of bytes received.
        geometry: Geometry,
        /// The CRC of every piece.
        crcs: Vec<Crc>,
    },
    /// The attempt is over. It stored whatever it reported before.
    Over(Result<(), Failure>),
}

/// Everything that can happen to a download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client joins.
    Join(Client),
    /// A client leaves, satisfied or not.
    Leave(ClientId),
    /// The user pauses the task.
    Pause,
    /// The user resumes it.
    Resume,
    /// The user cancels it: every client fails.
    Cancel,
    /// Time passed. `progress` names the attempts whose bytes received changed since the last tick, with the new count.
    Tick {
        /// Bytes received so far by attempt.
        progress: Vec<(AttemptId, u64)>,
    },
    /// From the scheduler.
    Scheduler(FromScheduler),
    /// From a parent.
    Parent(PeerId, FromParent),
    /// From an attempt.
    Attempt(AttemptId, FromAttempt),
}

/// Where an attempt gets its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A parent.
    Parent(PeerId),
    /// The origin, with these headers.
    Origin(HeadersId),
}

/// One attempt to perform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// One piece from a parent.
    Piece {
        /// The piece.
        piece: u32,
        /// The parent.
        parent: PeerId,
        /// The CRC it must have, where the ledger knows it.
        crc: Option<Crc>,
        /// Another attempt at the same piece runs: write beside it.
        hedge: bool,
    },
    /// The first contact with the origin. It reports [`FromAttempt::Learned`] first. When `first_piece`, it asks for
    /// piece 0 in the same request and stores it; an origin without ranges is then followed to the end of its body,
    /// piece by piece. Without `first_piece` only the facts are asked for.
    OriginFirst {
        /// The headers.
        headers: HeadersId,
        /// Whether piece 0 is wanted.
        first_piece: bool,
    },
    /// One piece from the origin, by range.
    OriginPiece {
        /// The piece.
        piece: u32,
        /// The headers.
        headers: HeadersId,
        /// Another attempt at the same piece runs: write beside it.
        hedge: bool,
    },
    /// The whole body from an origin without ranges; pieces already held are read past and compared,
    /// and a piece that another attempt is writing is written beside it.
    OriginStream {
        /// The headers.
        headers: HeadersId,
    },
}

/// What to tell the scheduler. The shell adds ids, costs and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToScheduler {
    /// DownloadPeerStarted.
    Started,
    /// DownloadPeerBackToSourceStarted.
    BackToSourceStarted,
    /// What the origin's first answer taught (our schedulers only).
    Learned(Learned),
    /// DownloadPieceFinished, or DownloadPieceBackToSourceFinished when there is no parent.
    PieceFinished {
        /// The piece.
        piece: u32,
        /// Its CRC.
        crc: Crc,
        /// The parent it came from.
        parent: Option<PeerId>,
        /// How long it took.
        cost: Duration,
    },
    /// DownloadPieceFailed: only of banned parents.
    PieceFailed {
        /// The piece.
        piece: u32,
        /// The banned parent.
        parent: PeerId,
    },
    /// DownloadPieceBackToSourceFailed.
    OriginFailed(Failure),
    /// Of this part of the content leases are wanted from now on, of the whole without one: this peer registers again on
    /// the same stream (our schedulers only).
    Wants(Option<ByteRange>),
    /// A lease is given back (our schedulers only).
    Release(u64),
    /// ReschedulePeer: these parents are used up.
    Reschedule {
        /// The parents.
        parents: Vec<PeerId>,
        /// Why.
        description: String,
    },
    /// DownloadPeerFinished, or DownloadPeerBackToSourceFinished when everything came from the origin without a lease.
    Finished {
        /// Whether the back-to-source form is meant.
        back_to_source: bool,
    },
    /// DownloadPeerFailed, or DownloadPeerBackToSourceFailed.
    Failed {
        /// Why.
        description: String,
        /// Whether the back-to-source form is meant.
        back_to_source: bool,
    },
}

/// Why a client gets nothing (more).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LostClient {
    /// No source could deliver: the last failure tells why.
    Source(Failure),
    /// Its range lies outside the content.
    Range(String),
    /// Its deadline passed; the text says what was being waited for.
    Deadline(String),
    /// The user cancelled the task.
    Cancelled,
    /// The origin's content kept changing: both validators.
    Changed {
        /// What it was.
        before: Validator,
        /// What it is.
        after: Validator,
    },
    /// There is no source: the origin is forbidden to every client and no peer has the content.
    NoSource(String),
}

/// How a machine ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every wanted piece is verified.
    Done,
    /// Every client failed or left; what was stored stays and is served.
    Parked,
    /// The user cancelled.
    Cancelled,
}

/// What the shell does, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Open the announce stream and register this peer. `restate` names leases still held from a stream that broke.
    Register {
        /// Leases to restate.
        restate: Vec<Lease>,
    },
    /// Tell the scheduler.
    Tell(ToScheduler),
    /// Open SyncPieces to a parent for all pieces not held yet. Only once the geometry is known, and not for parents of
    /// ours that hold everything: those are fetched from without being watched.
    Watch(PeerId),
    /// Close it.
    Unwatch(PeerId),
    /// Start an attempt.
    Fetch(AttemptId, Fetch),
    /// Cancel an attempt; its `Over` still comes.
    Cancel(AttemptId),
    /// The content's facts are known: storage takes the geometry and validator over unless the attempt already did.
    Learn(Learned),
    /// A piece is held: publish progress.
    Verified {
        /// The piece.
        piece: u32,
        /// Where it came from.
        source: Source,
        /// How long it took.
        cost: Duration,
    },
    /// The ledger contradicts a stored piece: storage drops it, and it is fetched again.
    Invalidate(u32),
    /// The content changed: storage drops every piece and begins this generation. No attempt runs when this comes.
    NewGeneration(u64),
    /// Everything the client wanted is held: the shell finishes output and digest.
    ClientReady(ClientId, ByteRange),
    /// The client fails.
    ClientFailed(ClientId, LostClient),
    /// Nothing is left to do, and no attempt runs. The announce stream may be closed after what was told before. The
    /// machine answers to nothing from here on: whoever joins now needs a new one.
    Finish(Outcome),
}

/// What storage already has when a machine starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The geometry, when known.
    pub geometry: Option<Geometry>,
    /// Verified pieces.
    pub pieces: PieceSet,
    /// Their CRCs as far as storage knows them, to be compared with the scheduler's ledger.
    pub crcs: BTreeMap<u32, Crc>,
    /// The version they belong to.
    pub validator: Validator,
    /// The content generation.
    pub generation: u64,
    /// Whether the task was paused by its user.
    pub paused: bool,
}
