//! What all actors of one daemon share.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use damselfly_api::common::v2::{Download, Host};
use damselfly_core::download::Config as MachineConfig;
use damselfly_core::{HostId, Kind, PeerId, TaskId, TaskKey};
use damselfly_scheduler_client::{Action, Cluster, SchedulerHandle, Subject};
use damselfly_source::Origin;
use damselfly_storage::Store;
use damselfly_transport::{BufferPool, TokenBucket};
use tonic::Status;

use crate::clock::Clock;
use crate::config::Config;
use crate::connections::ConnectionsMsg;
use crate::holdings::StoreHoldings;
use crate::kit::{Address, Board, Faults};
use crate::known::Known;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::receipts::Receipts;
use crate::tasks::TasksMsg;
use crate::upload::Uploads;

/// Who this host is to others.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `<ip>-<hostname>`, seeds with `-seed`.
    pub host_id: HostId,
    /// The name others see; with the port added when a default port was taken.
    pub hostname: String,
    /// The announced address.
    pub ip: IpAddr,
    /// Whether this host is a seed.
    pub seed: bool,
    /// Drawn at every start.
    pub incarnation: u64,
}

impl Identity {
    /// A new peer id: one per download.
    #[must_use]
    pub fn new_peer(&self) -> PeerId {
        PeerId::new(self.ip, &self.hostname, rand::random(), self.seed)
    }
}

impl Engine {
    /// Whether dynconfig's block list lets a download through.
    ///
    /// # Errors
    /// PERMISSION_DENIED in Dragonfly's words.
    pub fn check_blocked(&self, download: &Download) -> Result<(), Status> {
        let subject = Subject {
            application: download.application.as_deref().unwrap_or_default(),
            url: &download.url,
            tag: download.tag.as_deref().unwrap_or_default(),
            priority: Some(download.priority),
        };
        self.check_listed(Kind::Standard, Action::Download, &subject)
    }

    /// Whether dynconfig's block list lets something be done with a kind of task.
    ///
    /// # Errors
    /// As [`Self::check_blocked`].
    pub(crate) fn check_listed(
        &self,
        kind: Kind,
        action: Action,
        subject: &Subject<'_>,
    ) -> Result<(), Status> {
        let what = match action {
            Action::Download => "download",
            Action::Upload => "upload",
        };
        self.cluster.block_list().check(kind, action, subject).map_err(|_| {
            self.metrics.blocked(kind);
            Status::permission_denied(format!("{what} rejected by blocklist policy"))
        })
    }

    /// The scheduler that a task belongs to.
    ///
    /// # Errors
    /// UNAVAILABLE while none is healthy.
    pub(crate) fn scheduler(&self, task: &TaskId) -> Result<SchedulerHandle, Status> {
        self.cluster.pick(task).ok_or_else(|| Status::unavailable("no scheduler can be reached"))
    }

    /// The hosts of the cluster as the healthy schedulers know them, by id.
    ///
    /// # Errors
    /// UNAVAILABLE when one of them does not say.
    pub(crate) async fn cluster_hosts(&self) -> Result<Vec<Host>, Status> {
        let mut hosts = Vec::new();
        for handle in self.cluster.healthy() {
            let listed = handle.list_hosts(None).await.map_err(|why| Status::unavailable(why.to_string()))?;
            hosts.extend(listed);
        }
        hosts.sort_by(|a, b| a.id.cmp(&b.id));
        hosts.dedup_by(|a, b| a.id == b.id);
        Ok(hosts)
    }

    /// Removes a task whose content nothing became known of, if the caller was the last who had to do with it.
    pub(crate) fn remove_blank(&self, key: &TaskKey) {
        let Some(content) = self.store.get(key) else { return };
        if let Err(why) = tokio::task::block_in_place(|| self.store.remove_blank(&content)) {
            tracing::warn!(%key, %why, "cannot remove a task of which nothing is known");
        }
    }
}

/// The daemon-wide speed limits.
#[derive(Debug)]
pub struct Limits {
    /// From peers and origins together.
    pub download: TokenBucket,
    /// From origins, on top.
    pub origin: TokenBucket,
    /// To children.
    pub upload: Arc<TokenBucket>,
}

/// Where the daemon can be reached.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// gRPC.
    pub grpc: SocketAddr,
    /// Vortex over TCP.
    pub vortex: SocketAddr,
    /// `/healthy`.
    pub health: SocketAddr,
    /// `/metrics`.
    pub metrics: SocketAddr,
}

/// The parts every actor of one daemon shares. Immutable; what changes inside has its own lock.
#[derive(Debug)]
pub struct Engine {
    /// Who this host is.
    pub identity: Identity,
    /// The configuration.
    pub config: Arc<Config>,
    /// What a task's machine is tuned with.
    pub machine: MachineConfig,
    /// The clock.
    pub clock: Clock,
    /// The store.
    pub store: Arc<Store>,
    /// What of it schedulers of ours are told.
    pub holdings: Arc<StoreHoldings>,
    /// Origins.
    pub origin: Origin,
    /// Schedulers.
    pub cluster: Arc<Cluster>,
    /// Whether there is any scheduler to be found.
    pub expects_scheduler: bool,
    /// Connections to other hosts.
    pub connections: Address<ConnectionsMsg>,
    /// The registry of tasks.
    pub tasks: Address<TasksMsg>,
    /// Receive buffers, under the byte budget.
    pub buffers: BufferPool,
    /// Speed limits.
    pub limits: Limits,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Running tasks.
    pub live: Live,
    /// What is known of the others.
    pub known: Known,
    /// Pieces on their way to children.
    pub uploads: Uploads,
    /// Uploads that are being written.
    pub(crate) imports: crate::import::Uploads,
    /// Files that callers handed over.
    pub(crate) descriptors: Arc<crate::local::Descriptors>,
    /// Receipts of recent downloads.
    pub receipts: Receipts,
    /// Live actors.
    pub board: Board,
    /// For tests.
    pub faults: Faults,
}
