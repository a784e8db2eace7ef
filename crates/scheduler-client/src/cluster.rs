//! The set of schedulers of one daemon.

mod announcer;
mod shared;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use damselfly_core::TaskId;
use tokio::sync::{mpsc, watch};

use crate::channel::Tls;
use crate::dynconfig::{BlockList, Source};
use crate::hold::{Holdings, Order};
use crate::member::drive;
use crate::{ClientError, HostProvider, SchedulerHandle, TlsFiles};

pub(crate) use shared::{Names, Shared};

/// Orders that may wait for the daemon; one more is declined.
const ORDERS: usize = 64;

/// What a cluster needs to know.
pub struct ClusterOptions {
    /// Where the schedulers are.
    pub source: Source,
    /// What is announced of this host.
    pub host: Arc<dyn HostProvider>,
    /// What this host holds.
    pub holdings: Arc<dyn Holdings>,
    /// The daemon's version, for people.
    pub version: String,
    /// How often the host is announced, above 0.
    pub announce_interval: Duration,
    /// How often the list of schedulers is looked up anew, above 0.
    pub refresh_interval: Duration,
    /// For connections to schedulers; plaintext without.
    pub tls: Option<TlsFiles>,
    /// The host is a seed: the seeds' block list counts.
    pub seed: bool,
}

impl std::fmt::Debug for ClusterOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterOptions").field("source", &self.source).finish_non_exhaustive()
    }
}

/// How a daemon leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It does not come back: its replicas are made good elsewhere.
    ForGood,
    /// It comes back with its content.
    Restarting {
        /// By when.
        back_within: Duration,
    },
}

/// One scheduler, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerInfo {
    /// Where it is.
    pub address: SocketAddr,
    /// It accepts `Hold`.
    pub ours: bool,
    /// It is asked for new tasks.
    pub healthy: bool,
    /// Why it is not.
    pub error: Option<String>,
}

/// The set of schedulers.
///
/// It spawns nothing. Whoever owns it runs [`Cluster::announce`], and one [`Cluster::hold`] for each of
/// [`Cluster::members`]; what these know is kept here, so each may be dropped and run anew at any time.
#[derive(Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
}

impl Cluster {
    /// A set in which no scheduler is known yet. The second value delivers the orders of schedulers of ours.
    ///
    /// # Errors
    /// When a TLS file cannot be read.
    pub fn new(options: ClusterOptions) -> Result<(Self, mpsc::Receiver<Order>), ClientError> {
        let tls = options.tls.as_ref().map(Tls::read).transpose()?;
        let (orders, order_rx) = mpsc::channel(ORDERS);
        Ok((Self { shared: Arc::new(Shared::new(options, tls, orders)) }, order_rx))
    }

    /// Looks the schedulers up and announces this host to them, again and again until the daemon leaves. `changed` is
    /// called whenever [`Cluster::members`] may answer differently. At most one of these runs at a time.
    pub async fn announce(&self, changed: impl FnMut()) {
        announcer::run(&self.shared, changed).await;
    }

    /// The schedulers that there should be a [`Cluster::hold`] with; none once the daemon leaves.
    #[must_use]
    pub fn members(&self) -> Vec<SocketAddr> {
        if self.shared.is_leaving() {
            return Vec::new();
        }
        self.shared.members().into_keys().collect()
    }

    /// Keeps up with one scheduler: greets it, stays in touch while it is healthy, tries again when it is not. Ends when
    /// the scheduler is no member any more and, after a farewell, when the daemon leaves. Dropping it ends the dialogue
    /// without one, and the scheduler is not asked until the next. At most one of these runs for each scheduler.
    pub async fn hold(&self, scheduler: SocketAddr) {
        let Some(member) = self.shared.members().remove(&scheduler) else { return };
        let _attended = self.shared.attended(&member);
        tokio::select! {
            () = drive(&self.shared, &member) => {}
            () = member.gone.notified() => {}
        }
    }

    /// The healthy scheduler that `task` belongs to: its owner on the ring, or the next healthy one clockwise. `None`
    /// while none is healthy and once the daemon leaves.
    #[must_use]
    pub fn pick(&self, task: &TaskId) -> Option<SchedulerHandle> {
        self.shared.pick(task)
    }

    /// Every healthy scheduler.
    #[must_use]
    pub fn healthy(&self) -> Vec<SchedulerHandle> {
        self.shared.handles()
    }

    /// Changes whenever [`Cluster::pick`] may answer differently: a scheduler became healthy, failed, restarted, came
    /// or went. Who holds a handle picks again, and registers anew when the new handle differs from the old one.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Returns as soon as one scheduler is healthy. Has no deadline of its own.
    pub async fn ready(&self) {
        let mut changes = self.changes();
        while self.shared.handles().is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Every scheduler, healthy or not.
    #[must_use]
    pub fn schedulers(&self) -> Vec<SchedulerInfo> {
        self.shared.infos()
    }

    /// What must not be downloaded or uploaded, as dynconfig or the manager said last.
    #[must_use]
    pub fn block_list(&self) -> Arc<BlockList> {
        Arc::clone(&self.shared.blocks.lock())
    }

    /// Looks the list of schedulers up anew now.
    pub fn refresh(&self) {
        self.shared.refresh.notify_one();
    }

    /// Tells every healthy scheduler that this host goes, and waits at most `deadline` for them to take note. Afterwards
    /// no scheduler is picked and none is announced to any more.
    pub async fn leave(&self, departure: Departure, deadline: Duration) {
        self.shared.leaving.send_replace(Some(departure));
        self.shared.changed();
        let mut attended = self.shared.attended.subscribe();
        let told = tokio::time::timeout(deadline, attended.wait_for(|count| *count == 0)).await;
        if told.is_err() {
            tracing::warn!(?deadline, "not every scheduler was told that this host leaves");
        }
    }
}
