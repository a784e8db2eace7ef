//! What can be set about scheduling.

use std::collections::BTreeMap;
use std::time::Duration;

use super::event::Priority;

/// How the machine decides. The defaults are Dragonfly's where Dragonfly has the setting.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether no earlier process can have scheduled for anybody who will call now: the first start of a store, a
    /// daemon bound to loopback alone, a test.
    ///
    /// The grace below exists because daemons may still fetch under leases that a former scheduler at this address
    /// granted, and may hold content it knew of. Where there was no such scheduler nothing can be restated, so a
    /// fresh one grants its first lease at once. The embedding daemon must not claim it after a restart behind
    /// an address that others join.
    ///
    /// That everybody who is connected has said what it holds does not end the grace sooner: nobody knows who else
    /// is on the way back.
    pub fresh: bool,
    /// For how long after tick zero a scheduler that is not fresh grants nothing, so that leases and holdings can be
    /// restated first. Also how long a task waits that a re-registration with leases has brought along.
    pub startup_grace: Duration,
    /// Pieces per lease.
    pub lease_pieces: u32,
    /// The shortest silence that ends a lease.
    pub lease_silence: Duration,
    /// A host of ours is dead when its Hold is silent for so long.
    pub hold_silence: Duration,
    /// Time between health probes of hosts without a Hold.
    pub probe_interval: Duration,
    /// Time from a missed probe to the next one.
    pub probe_retry: Duration,
    /// Missed probes that make a host dead.
    pub probe_misses: u32,
    /// How long a dead host's replicas count as there: most hosts come back.
    pub repair_after: Duration,
    /// How long a registration waits for its host to be announced.
    pub unknown_host_wait: Duration,
    /// A Dragonfly peer that nobody could serve for so long is sent to the origin although somebody fetches there.
    pub back_to_source_after: Duration,
    /// A peer that nobody can serve and that may not ask the origin is refused after so long.
    pub refuse_after: Duration,
    /// Dragonfly peers of one task that may be at the origin at once.
    pub back_to_source_limit: usize,
    /// Messages a Dragonfly peer gets in all: its daemon gives up when it counts more.
    pub answer_limit: u32,
    /// Parents in one answer to a Dragonfly peer.
    pub parent_limit: usize,
    /// Parents in one list for a peer of ours.
    pub our_parent_limit: usize,
    /// Children a host that is no seed may have at once.
    pub upload_limit: u32,
    /// Children a seed may have at once.
    pub seed_upload_limit: u32,
    /// How long a triggered seed has to register.
    pub seed_deadline: Duration,
    /// For how long a seed's failure keeps its task from being seeded again.
    pub seed_retry: Duration,
    /// Parent lists and ledger entries that follow each other faster are sent together.
    pub push_gap: Duration,
    /// For how long a parent that a peer of ours has used up is not offered to it again.
    pub reschedule_block: Duration,
    /// Priority of applications whose downloads name none.
    pub applications: BTreeMap<String, Priority>,
    /// Time between two collections.
    pub gc_interval: Duration,
    /// A running peer without a stream or a piece for so long is gone.
    pub piece_ttl: Duration,
    /// A Dragonfly peer that nothing was heard of for so long is gone.
    pub peer_ttl: Duration,
    /// Peers of one task above which Dragonfly's finished and idle ones are forgotten.
    pub peer_limit: usize,
    /// A task without peers is forgotten, ledger and all, after so long.
    pub task_ttl: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            fresh: false,
            startup_grace: Duration::from_secs(2),
            lease_pieces: 8,
            lease_silence: Duration::from_secs(10),
            hold_silence: Duration::from_secs(6),
            probe_interval: Duration::from_secs(30),
            probe_retry: Duration::from_secs(1),
            probe_misses: 2,
            repair_after: Duration::from_secs(60),
            unknown_host_wait: Duration::from_secs(2),
            back_to_source_after: Duration::from_secs(10),
            refuse_after: Duration::from_secs(30),
            back_to_source_limit: 200,
            answer_limit: 5,
            parent_limit: 3,
            our_parent_limit: 16,
            upload_limit: 200,
            seed_upload_limit: 2000,
            seed_deadline: Duration::from_secs(10),
            seed_retry: Duration::from_secs(30 * 60),
            push_gap: Duration::from_millis(50),
            reschedule_block: Duration::from_secs(5),
            applications: BTreeMap::new(),
            gc_interval: Duration::from_secs(10),
            piece_ttl: Duration::from_secs(30 * 60),
            peer_ttl: Duration::from_secs(24 * 3600),
            peer_limit: 300,
            task_ttl: Duration::from_secs(30 * 60),
        }
    }
}
