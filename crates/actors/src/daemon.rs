//! The daemon: everything put together, started and stopped in order.

mod collector;
pub(crate) mod parts;
mod scheduler;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use damselfly_scheduler_client::{ClientError, Departure, DynconfigError};
use damselfly_source::SourceError;
use damselfly_storage::StoreError;
use ractor::{Actor, ActorRef, SpawnErr};
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{AddressError, Config};
use crate::engine::{Engine, Ports};
use crate::kit::{Faults, Group, GroupMsg};
use crate::listeners::BindError;

/// How long uploads in flight may go on at shutdown.
pub const GRACE: Duration = Duration::from_secs(30);

/// How long the schedulers may take to take note that this host goes.
const LEAVE: Duration = Duration::from_secs(5);

/// How long the actors may take to stop.
const STOP: Duration = Duration::from_secs(15);

/// How long [`Daemon::shutdown`] with [`GRACE`] may take, flushing the store aside: whoever runs daemons as a service must
/// allow more before killing one.
pub const LONGEST_END: Duration = LEAVE.saturating_add(GRACE).saturating_add(STOP);

/// Why a daemon does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A port is taken or forbidden.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The unix socket cannot be made.
    #[error(transparent)]
    Socket(#[from] damselfly_transport::local::BindError),
    /// No address can be announced.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The dynconfig file makes no sense.
    #[error(transparent)]
    Dynconfig(DynconfigError),
    /// The HTTP client cannot be made.
    #[error("cannot prepare for talking to origins: {0}")]
    Origin(#[source] SourceError),
    /// The scheduler's client cannot be made.
    #[error("cannot prepare for talking to schedulers: {0}")]
    Cluster(#[source] ClientError),
    /// A directory cannot be made.
    #[error("cannot create directory {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// An actor did not start.
    #[error("cannot start the supervision tree: {0}")]
    Tree(#[from] SpawnErr),
}

/// What a program adds to the configuration.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// Panics on purpose, for tests.
    pub faults: Faults,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    engine: Arc<Engine>,
    ports: Ports,
    scheduler: Option<SocketAddr>,
    root: ActorRef<GroupMsg>,
    ended: JoinHandle<()>,
    stop: CancellationToken,
}

impl Daemon {
    /// Starts a daemon. When this returns its sockets accept and it serves.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing keeps running then.
    pub async fn start(config: Config, options: DaemonOptions) -> Result<Self, StartError> {
        let stop = CancellationToken::new();
        let parts = parts::assemble(config, options, &stop).await?;
        let (root, ended) = Actor::spawn(None, Group, parts.tree).await?;
        Ok(Self { engine: parts.engine, ports: parts.ports, scheduler: parts.scheduler, root, ended, stop })
    }

    /// The parts its actors share.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Where it listens.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Where its embedded scheduler listens, if it runs one.
    #[must_use]
    pub fn scheduler(&self) -> Option<SocketAddr> {
        self.scheduler
    }

    /// The unix socket.
    #[must_use]
    pub fn socket(&self) -> &PathBuf {
        &self.engine.config.download.socket
    }

    /// Leaves the schedulers first, serves on until uploads have ended or `grace` is over, then stops everything and
    /// leaves the store marked clean.
    pub async fn shutdown(self, departure: Departure, grace: Duration) {
        tracing::info!(?departure, "leaving the schedulers");
        self.engine.cluster.leave(departure, LEAVE).await;
        tracing::info!(?grace, uploads = self.engine.uploads.in_flight(), "letting uploads in flight end");
        if tokio::time::timeout(grace, self.engine.uploads.ended()).await.is_err() {
            tracing::warn!(
                uploads = self.engine.uploads.in_flight(),
                "uploads cut off: the grace period is over"
            );
        }
        self.stop.cancel();
        self.root.stop(None);
        if tokio::time::timeout(STOP, self.ended).await.is_err() {
            tracing::warn!("actors still run after {} s; going on without them", STOP.as_secs());
        }
        if let Err(why) = tokio::task::block_in_place(|| self.engine.store.shutdown()) {
            tracing::error!(%why, "store not marked clean; pieces will be verified before their next use");
        }
        tracing::info!("stopped");
    }

    /// Kills every actor without farewell, as a crash would. The store is not marked clean, and its lock is free: the
    /// next daemon can start on it, whatever of this one somebody still holds. For tests.
    pub async fn kill(self) {
        self.root.kill();
        self.stop.cancel();
        let mut seats = self.engine.board.changes();
        let gone = async {
            drop(self.ended.await);
            // The root's end is not yet that of those below, and one of them may be in the middle of a write.
            drop(seats.wait_for(|seats| *seats == 0).await);
        };
        if tokio::time::timeout(STOP, gone).await.is_err() {
            tracing::warn!("actors still run {} s after they were killed", STOP.as_secs());
        }
        tokio::task::block_in_place(|| self.engine.store.abandon());
    }
}

#[cfg(test)]
mod tests;
