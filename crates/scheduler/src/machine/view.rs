//! What the machine shows of itself.

use damselfly_core::{ByteRange, Geometry, HostId, PeerId, TaskKey, Tick};

use super::event::{About, Priority};
use super::peers::{Peer, PeerState};
use super::tasks::{Task, TaskState};
use super::{Counters, Scheduler};

/// One host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostView {
    /// Its id.
    pub id: HostId,
    /// Its daemon is ours.
    pub ours: bool,
    /// It is a seed.
    pub seed: bool,
    /// Its peers are offered.
    pub alive: bool,
    /// It has an open Hold stream.
    pub held: bool,
    /// Peers it has.
    pub peers: usize,
    /// Children it serves.
    pub children: u32,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Its id.
    pub id: PeerId,
    /// Its host.
    pub host: HostId,
    /// Its state.
    pub state: PeerState,
    /// Its daemon is ours.
    pub ours: bool,
    /// Its announce stream is open.
    pub connected: bool,
    /// How much it matters.
    pub priority: Priority,
    /// The part it wants.
    pub range: Option<ByteRange>,
    /// It was told to ask the origin.
    pub need_back_to_source: bool,
    /// Its host keeps the content as a replica.
    pub persistent: bool,
    /// The pieces it holds.
    pub pieces: Vec<u32>,
    /// Pieces it has leave to fetch from the origin and has not finished.
    pub leased: usize,
    /// Its parents in the peer graph.
    pub parents: usize,
    /// Its children.
    pub children: usize,
    /// When it registered.
    pub created: Tick,
    /// When it was heard of last.
    pub updated: Tick,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// The task.
    pub key: TaskKey,
    /// What it is.
    pub about: About,
    /// Its state.
    pub state: TaskState,
    /// Its geometry, when known.
    pub geometry: Option<Geometry>,
    /// Counts the versions of its content.
    pub generation: u64,
    /// Its peers.
    pub peers: usize,
    /// Somebody has or fetches content.
    pub has_available_peer: bool,
    /// Live leases.
    pub leases: usize,
    /// Pieces whose CRC is known.
    pub ledger: usize,
    /// Pieces that nobody holds and nobody fetches.
    pub free: usize,
    /// When it was first heard of.
    pub created: Tick,
    /// When it was heard of last.
    pub updated: Tick,
}

/// Everything, for status pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The hosts.
    pub hosts: Vec<HostView>,
    /// The tasks.
    pub tasks: Vec<TaskView>,
    /// What was done so far.
    pub counters: Counters,
}

fn peer_view(task: &Task, peer: &Peer) -> PeerView {
    PeerView {
        id: peer.id.clone(),
        host: peer.host.clone(),
        state: peer.state,
        ours: peer.ours,
        connected: peer.stream.is_some(),
        priority: peer.priority,
        range: peer.range,
        need_back_to_source: peer.need_back_to_source || task.whole.contains_key(&peer.id),
        persistent: peer.persistent,
        pieces: peer.pieces.iter().collect(),
        leased: task.coverage.unfinished(&peer.id),
        parents: peer.parents.len(),
        children: peer.children.len(),
        created: peer.created,
        updated: peer.updated,
    }
}

fn task_view(task: &Task) -> TaskView {
    TaskView {
        key: task.key.clone(),
        about: task.about.clone(),
        state: task.state,
        geometry: task.geometry,
        generation: task.generation,
        peers: task.peers.len(),
        has_available_peer: task.peers.values().any(|peer| peer.potential),
        leases: task.coverage.count() + task.whole.len(),
        ledger: task.ledger.len(),
        free: task.coverage.free().len(),
        created: task.created,
        updated: task.updated,
    }
}

impl Scheduler {
    /// Whether the host is known.
    #[must_use]
    pub fn knows_host(&self, id: &HostId) -> bool {
        self.hosts.get(id).is_some()
    }

    /// One peer.
    #[must_use]
    pub fn peer(&self, task: &TaskKey, peer: &PeerId) -> Option<PeerView> {
        let task = self.tasks.get(task)?;
        task.peers.get(peer).map(|peer| peer_view(task, peer))
    }

    /// All peers of one task.
    #[must_use]
    pub fn peers(&self, task: &TaskKey) -> Vec<PeerView> {
        let Some(task) = self.tasks.get(task) else { return Vec::new() };
        task.peers.values().map(|peer| peer_view(task, peer)).collect()
    }

    /// One task.
    #[must_use]
    pub fn task(&self, task: &TaskKey) -> Option<TaskView> {
        self.tasks.get(task).map(task_view)
    }

    /// Everything.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let hosts = self.hosts.iter().map(|host| HostView {
            id: host.info.id.clone(),
            ours: host.is_ours(),
            seed: host.info.seed,
            alive: host.alive,
            held: host.hold.is_some(),
            peers: host.peers.len(),
            children: host.children,
        });
        Snapshot {
            hosts: hosts.collect(),
            tasks: self.tasks.values().map(task_view).collect(),
            counters: self.counters,
        }
    }
}
