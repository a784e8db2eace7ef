//! What goes into the machine and what comes out.

use std::net::SocketAddr;
use std::time::Duration;

use damselfly_core::download::{Learned, Lease, Validator};
use damselfly_core::{ByteRange, Crc, HostId, PeerId, TaskKey, Tick};

use super::peers::PeerState;

/// One announce stream, unique for the machine's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// One Hold stream, unique for the machine's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HoldId(pub u64);

/// How much a download matters, Dragonfly's levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Whatever the application's priority is; without one a seed is triggered.
    #[default]
    Level0,
    /// Refused unless peers have the content.
    Level1,
    /// Not found unless peers have the content.
    Level2,
    /// The origin, no seed.
    Level3,
    /// A seed is triggered.
    Level4,
    /// A seed is triggered.
    Level5,
    /// A seed is triggered.
    Level6,
}

/// A host as announced, as far as scheduling looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// Its id.
    pub id: HostId,
    /// Whether it is a seed.
    pub seed: bool,
    /// Where its gRPC server listens: seeds are triggered and health is probed there.
    pub address: SocketAddr,
    /// Its data centre; empty when unknown.
    pub idc: String,
    /// Its place, `|`-separated from the outside in; empty when unknown.
    pub location: String,
    /// What it can send, in bits per second; 0 when unknown.
    pub max_tx_bandwidth: u64,
    /// What it sends, in bits per second.
    pub tx_bandwidth: u64,
    /// Bytes free where its content lives, where it says so.
    pub disk_free: Option<u64>,
    /// It serves nobody.
    pub disable_shared: bool,
    /// Present means the host is ours; a new one voids the host's former peers.
    pub incarnation: Option<u64>,
}

/// A peer's registration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    /// What the task is.
    pub about: About,
    /// How much it matters.
    pub priority: Priority,
    /// The part that is wanted; the whole content without one.
    pub range: Option<ByteRange>,
    /// Bytes per piece, when the peer knows.
    pub piece_length: Option<u64>,
    /// Bytes of content, when the peer knows.
    pub content_length: Option<u64>,
    /// The peer may not ask the origin.
    pub disable_back_to_source: bool,
    /// The peer is to ask the origin (a triggered seed).
    pub need_back_to_source: bool,
    /// The peer has the content and only says so.
    pub metadata_only: bool,
    /// Its copy becomes a replica.
    pub persistent: bool,
    /// What it brings along from a stream that broke.
    pub restate: Option<Restate>,
}

/// What a task is, for those who ask. Request headers are no part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Where the content comes from.
    pub url: String,
    /// The digest its user promised.
    pub digest: Option<String>,
    /// The tag.
    pub tag: Option<String>,
    /// The application.
    pub application: Option<String>,
    /// Query parameters that are no part of the task's identity.
    pub filtered_query_params: Vec<String>,
}

/// What a peer of ours says again when it registers anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restate {
    /// Leases it still fetches under.
    pub leases: Vec<Lease>,
    /// Pieces it holds, in the form of `PieceSet::to_bytes`.
    pub bitmap: Vec<u8>,
    /// How its daemon counts the versions of the content.
    pub generation: u64,
    /// The version of the content they belong to.
    pub validator: Validator,
}

/// A piece that a peer has verified and stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceReport {
    /// Its number.
    pub number: u32,
    /// Its bytes.
    pub length: u64,
    /// Its CRC; `None` when the peer did not compute one.
    pub crc: Option<Crc>,
    /// The parent it came from; `None` for the origin.
    pub parent: Option<PeerId>,
    /// How long it took.
    pub cost: Duration,
}

/// What a peer says on its announce stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// It wants the task. On a stream that is registered already: what it wants has changed.
    Register(Box<Register>),
    /// It downloads from parents.
    Started,
    /// It downloads from the origin.
    BackToSourceStarted,
    /// Its parents are used up.
    Reschedule(Vec<PeerId>),
    /// It has all it wanted.
    Finished,
    /// It has all it wanted, from the origin.
    BackToSourceFinished,
    /// It gives up.
    Failed(String),
    /// It gives up, the origin having failed it.
    BackToSourceFailed(String),
    /// A piece from a parent.
    PieceFinished(PieceReport),
    /// A piece from the origin.
    PieceBackToSourceFinished(PieceReport),
    /// A parent failed it.
    PieceFailed {
        /// The parent.
        parent: PeerId,
    },
    /// The origin failed it.
    PieceBackToSourceFailed,
}

/// One message on an announce stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerEvent {
    /// The stream.
    pub stream: StreamId,
    /// The peer's host.
    pub host: HostId,
    /// The task.
    pub task: TaskKey,
    /// The peer.
    pub peer: PeerId,
    /// What the origin taught it.
    pub learned: Option<Learned>,
    /// A lease it gives back.
    pub released: Option<u64>,
    /// What it says.
    pub message: Option<PeerMessage>,
}

/// One task on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The task.
    pub task: TaskKey,
    /// How the daemon counts the versions of the task.
    pub generation: u64,
    /// Bytes of content; `None` while unknown.
    pub content_length: Option<u64>,
    /// Bytes per piece; 0 while the length is unknown.
    pub piece_length: u64,
    /// Pieces held, in the form of `PieceSet::to_bytes`; empty means all.
    pub bitmap: Vec<u8>,
    /// How many of the pieces held come before those of `crcs`. Above 0 the holding goes on with another one's CRCs.
    pub crcs_from: u32,
    /// CRCs of pieces held, in the order of their numbers.
    pub crcs: Vec<Crc>,
    /// The version of the content.
    pub validator: Validator,
    /// Every further client must prove its headers at the origin.
    pub private: bool,
    /// Where private content comes from, without secrets; empty where its host does not say.
    pub url: String,
    /// It is a replica.
    pub persistent: bool,
    /// How many replicas are to be kept.
    pub replica_target: u64,
    /// What is left of its time.
    pub ttl_left: Duration,
    /// The tag it was made with.
    pub tag: Option<String>,
    /// The application it was made with.
    pub application: Option<String>,
}

/// A task deleted on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// Which.
    pub task: TaskKey,
    /// Up to which version, as the daemon counts them.
    pub generation: u64,
    /// It was deleted in the whole cluster.
    pub everywhere: bool,
    /// What would be left of its time.
    pub ttl_left: Duration,
}

/// What a daemon says on its Hold stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldMessage {
    /// Who it is. Comes first.
    Hello(Box<HostInfo>),
    /// It lives.
    Beat,
    /// What it holds.
    Holdings {
        /// Some of it.
        holdings: Vec<Holding>,
        /// This ends the first, full list.
        last: bool,
    },
    /// An order was carried out, or not.
    Done {
        /// Which.
        order: u64,
        /// Why not.
        error: Option<String>,
    },
    /// Tasks deleted there.
    Tombstones(Vec<Tombstone>),
    /// It goes on purpose.
    Leaving {
        /// To come back with its content.
        restarting: bool,
    },
}

/// Everything that can happen to a scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A host announced itself, and will again within the interval.
    HostAnnounced(Box<HostInfo>, Duration),
    /// A host left for good.
    HostLeft(HostId),
    /// A health probe ended.
    Probed {
        /// The host.
        host: HostId,
        /// Whether it answered.
        alive: bool,
    },
    /// A peer spoke.
    Peer(Box<PeerEvent>),
    /// An announce stream ended on the peer's side.
    StreamClosed(StreamId),
    /// A daemon spoke.
    Hold(HoldId, HoldMessage),
    /// A Hold stream ended on the daemon's side.
    HoldClosed(HoldId),
    /// A peer is to be forgotten.
    PeerDeleted {
        /// Its task.
        task: TaskKey,
        /// The peer.
        peer: PeerId,
    },
    /// A host has deleted a task.
    TaskDeleted {
        /// The host.
        host: HostId,
        /// The task.
        task: TaskKey,
    },
    /// The call that triggered a seed has ended, one way or the other.
    SeedEnded {
        /// The task.
        task: TaskKey,
        /// The seed.
        host: HostId,
        /// It could not be called, or could not download.
        failed: bool,
    },
    /// An order ended: a call for [`Effect::Copy`] has, or no Hold took an [`Effect::Order`].
    OrderEnded {
        /// Which.
        order: u64,
        /// Why it failed.
        error: Option<String>,
    },
    /// Time passed; asked for by the machine's deadline.
    Tick,
}

/// A candidate parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The peer.
    pub peer: PeerId,
    /// Its host.
    pub host: HostId,
    /// Its state.
    pub state: PeerState,
    /// Whether it holds every piece.
    pub complete: bool,
    /// When it registered.
    pub created: Tick,
    /// When it was heard of last.
    pub updated: Tick,
}

/// What a peer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The content is empty.
    Empty,
    /// Candidate parents, best first. For ours the full current list, possibly empty.
    Parents(Vec<Parent>),
    /// Leave to ask the origin: for the lease, or for the whole task.
    BackToSource {
        /// Why, for people.
        description: &'static str,
        /// The lease; only ours get one.
        lease: Option<Lease>,
    },
    /// Taken note of.
    MetadataOnly,
    /// What is known of the content (ours only).
    Facts {
        /// Which version of the content this is about, as counted for this peer: more than in a former message where
        /// it outweighs that.
        generation: u64,
        /// What the origin said, when anybody has asked it; with headers where they are news.
        learned: Option<Learned>,
        /// The first piece that `crcs` speaks of.
        first: u32,
        /// The ledger from there on.
        crcs: Vec<Crc>,
    },
}

/// How an announce stream ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As it should, after a final message.
    Done,
    /// The content or the host is not known here.
    NotFound(String),
    /// The peer cannot be served.
    Refused(String),
    /// The peer broke the dialogue's rules.
    Invalid(String),
    /// The peer is no longer who it was: registered again, or its host restarted.
    Superseded(String),
    /// The peer sends faster than its host is announced.
    Exhausted(String),
}

/// What a host of ours is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Fetch a task and keep it as a replica, or make its copy one.
    Replicate(TaskKey),
    /// Delete a task up to this version, as its daemon counts them.
    Drop(TaskKey, u64),
    /// Keep a replica no longer: it is an ordinary copy from then on, which may be evicted.
    Demote(TaskKey),
}

/// What a host of Dragonfly's is to do with its copy of a persistent cache task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copy {
    /// Fetch it as a replica.
    Fetch {
        /// The tag.
        tag: Option<String>,
        /// The application.
        application: Option<String>,
    },
    /// Make the copy that is there a replica.
    Promote,
    /// Delete it.
    Delete,
}

/// What the shell does, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tell a peer.
    Answer(StreamId, TaskKey, Answer),
    /// End an announce stream.
    Close(StreamId, Ending),
    /// End a Hold stream: another took its place, or the host is gone.
    CloseHold(HoldId, &'static str),
    /// Have a seed download what `stream` registered for.
    TriggerSeed {
        /// The registration to copy.
        stream: StreamId,
        /// The task.
        task: TaskKey,
        /// The seed.
        host: HostId,
        /// Where to call it.
        address: SocketAddr,
    },
    /// Ask a host whether it is healthy.
    Probe {
        /// The host.
        host: HostId,
        /// Where to ask.
        address: SocketAddr,
    },
    /// Order something of a host of ours, over its Hold. The number comes back with [`HoldMessage::Done`].
    Order(HoldId, u64, Order),
    /// Call a host of Dragonfly's about its copy. The number comes back with [`Event::OrderEnded`].
    Copy {
        /// The order.
        order: u64,
        /// The task.
        task: TaskKey,
        /// The host.
        host: HostId,
        /// Where to call it.
        address: SocketAddr,
        /// What about.
        copy: Copy,
    },
    /// A host is forgotten.
    Forget(HostId),
}
