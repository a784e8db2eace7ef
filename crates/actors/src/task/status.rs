//! What a running task shows of itself.

use damselfly_core::PeerId;

use super::TaskState;

/// A parent as shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentView {
    /// Its peer id.
    pub id: PeerId,
    /// Where it serves pieces, or its gRPC address.
    pub address: String,
    /// Whether it is one of ours.
    pub ours: bool,
    /// Whether its bytes or geometry were wrong.
    pub banned: bool,
    /// Attempts in flight.
    pub fetches: u32,
    /// Pieces that came from it.
    pub pieces: u32,
    /// Bytes that came from it.
    pub bytes: u64,
}

/// A running task as shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskView {
    /// What it is doing.
    pub state: String,
    /// Pieces that waiting clients still need.
    pub wanted: u32,
    /// Attempts in flight.
    pub fetches: u32,
    /// Clients waiting.
    pub clients: u32,
    /// Speed limit in bytes per second.
    pub limit: Option<u64>,
    /// Its parents.
    pub parents: Vec<ParentView>,
    /// Bytes from the origin in this run.
    pub origin_bytes: u64,
    /// Bytes from peers in this run.
    pub peer_bytes: u64,
    /// Bytes that were here before this run.
    pub local_bytes: u64,
}

impl TaskState {
    pub(super) fn publish(&self) {
        let parents = self.machine.parents().map(|parent| {
            let known = self.parents.get(&parent.id);
            let address =
                known.map_or_else(String::new, |known| known.vortex.unwrap_or(known.grpc).to_string());
            let (pieces, bytes) = self.tally.parents.get(&parent.id).copied().unwrap_or_default();
            ParentView {
                id: parent.id.clone(),
                address,
                ours: known.is_some_and(|known| known.ours),
                banned: parent.state == "dropped",
                fetches: u32::try_from(parent.in_flight).unwrap_or(u32::MAX),
                pieces,
                bytes,
            }
        });
        let wanted = self.machine.wanted();
        let missing = wanted.iter().filter(|number| !self.machine.held().contains(*number)).count();
        let view = TaskView {
            state: self.machine.state().to_owned(),
            wanted: u32::try_from(missing).unwrap_or(u32::MAX),
            fetches: u32::try_from(self.attempts.len()).unwrap_or(u32::MAX),
            clients: u32::try_from(self.machine.clients().count()).unwrap_or(u32::MAX),
            limit: self.args.limit.rate(),
            parents: parents.collect(),
            origin_bytes: self.tally.origin,
            peer_bytes: self.tally.peers,
            local_bytes: self.tally.local,
        };
        self.seat.show(format!("{}, {} pieces missing, {} fetches", view.state, view.wanted, view.fetches));
        self.engine().live.show(&self.key, &self.args.peer_id, view);
    }
}
