//! The engine inside a program: `dfget` without a daemon.
//!
//! The same actors and the same services as in a daemon, but no listener, no shared store and no embedded scheduler. The
//! program talks to it over a connection that never leaves the process. The store is a directory beside the output; it
//! is locked, so that two programs do not fetch the same file into it, and what it holds lets the next run resume.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use damselfly_core::HostId;
use damselfly_scheduler_client::{
    Cluster, ClusterOptions, Departure, Holdings, HostProvider, SchedulerHandle, Source, Target,
};
use damselfly_storage::Store;
use damselfly_transport::local::{Caller, endpoint};
use hyper_util::rt::TokioIo;
use ractor::{Actor, ActorRef};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::announcer;
use crate::config::{Config, Directories, Overrides, default_route, route_to};
use crate::daemon::{StartError, parts};
use crate::engine::{Engine, Identity, Ports};
use crate::holdings::StoreHoldings;
use crate::host::HostFacts;
use crate::kit::{Faults, Group, GroupArgs, GroupMsg, Roster};
use crate::local::{self, StatusFacts};
use crate::socket;

/// How long schedulers that were named may take to be found before the download begins without.
const FIND: Duration = Duration::from_secs(3);
/// How long the farewell to them may take.
const LEAVE: Duration = Duration::from_secs(1);
/// Announced because a port must be; nobody is sent there, since the host shares nothing.
const NOMINAL: u16 = 4000;

/// An engine in this process.
#[derive(Debug)]
pub struct Embedded {
    engine: Arc<Engine>,
    channel: Channel,
    root: ActorRef<GroupMsg>,
    ended: JoinHandle<()>,
    stop: CancellationToken,
}

struct Announcement(HostFacts);

impl HostProvider for Announcement {
    fn host(&self) -> damselfly_api::common::v2::Host {
        self.0.announce(None)
    }
}

impl Embedded {
    /// Starts an engine whose store is in `dir`, joining the swarm of the schedulers in `join` if any are named.
    ///
    /// # Errors
    /// See [`StartError`]; the store is locked when another program fetches into the same directory.
    pub async fn start(dir: &Path, join: &[Target]) -> Result<Self, StartError> {
        let config = config(dir)?;
        let store = tokio::task::block_in_place(|| Store::open(parts::store_options(&config)))?;
        let identity = identity(join).await;
        let ports = Ports {
            grpc: SocketAddr::new(identity.ip, NOMINAL),
            vortex: SocketAddr::new(identity.ip, NOMINAL),
            health: SocketAddr::new(identity.ip, NOMINAL),
            metrics: SocketAddr::new(identity.ip, NOMINAL),
        };
        let facts = HostFacts::new(identity.clone(), ports, Arc::clone(&config));
        let holdings = Arc::new(StoreHoldings::new(Arc::clone(&store), false));
        let (cluster, _orders) = Cluster::new(ClusterOptions {
            source: Source::Join(join.to_vec()),
            host: Arc::new(Announcement(facts.clone())),
            holdings: Arc::clone(&holdings) as Arc<dyn Holdings>,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            announce_interval: config.scheduler.announce_interval,
            refresh_interval: config.dynconfig.refresh_interval,
            tls: None,
            seed: false,
        })
        .map_err(StartError::Cluster)?;
        let options = parts::EngineOptions { faults: Faults::default(), expects_scheduler: !join.is_empty() };
        let engine = parts::engine(config, identity, store, holdings, cluster, options)?;
        let embedded = Self::run(engine, facts).await?;
        if !join.is_empty() && tokio::time::timeout(FIND, embedded.engine.cluster.ready()).await.is_err() {
            tracing::warn!("no scheduler answers; going on without the swarm until one does");
        }
        Ok(embedded)
    }

    async fn run(engine: Arc<Engine>, facts: HostFacts) -> Result<Self, StartError> {
        let stop = CancellationToken::new();
        let mut children = vec![parts::connections(&engine), parts::tasks(&engine)];
        if engine.expects_scheduler {
            children.extend(announcer::children(&engine, &stop));
        }
        let tree = GroupArgs {
            path: "engine".to_owned(),
            children,
            roster: Roster::default(),
            board: engine.board.clone(),
            faults: Faults::default(),
            stop: stop.clone(),
        };
        let (root, ended) = Actor::spawn(None, Group, tree).await?;
        let status = StatusFacts { host: facts, started_at: SystemTime::now(), embedded_scheduler: false };
        let router = local::router(&engine, Arc::new(status), parts::common_routes().await);
        let system = |what| move |source| StartError::System { what, source };
        let (ours, theirs) = UnixStream::pair().map_err(system("cannot make a connection to the engine"))?;
        tokio::spawn(socket::serve(theirs, Arc::new(Caller::this_process()), router, stop.clone()));
        let mut ours = Some(TokioIo::new(ours));
        let channel = endpoint("http://engine")
            .connect_with_connector(tower::service_fn(move |_uri| {
                let stream = ours.take().ok_or_else(|| std::io::Error::other("the engine has stopped"));
                std::future::ready(stream)
            }))
            .await
            .map_err(|why| StartError::System {
                what: "cannot talk to the engine",
                source: std::io::Error::other(why),
            })?;
        Ok(Self { engine, channel, root, ended, stop })
    }

    /// The connection to the engine: every service of a daemon's unix socket answers on it.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The schedulers that answer now: the swarm this engine is part of.
    #[must_use]
    pub fn schedulers(&self) -> Vec<SocketAddr> {
        self.engine.cluster.healthy().iter().map(SchedulerHandle::address).collect()
    }

    /// Leaves the swarm and stops; what was fetched stays in the store. Returns whether that is anything.
    pub async fn shutdown(self) -> bool {
        if self.engine.expects_scheduler {
            self.engine.cluster.leave(Departure::ForGood, LEAVE).await;
        }
        self.stop.cancel();
        self.root.stop(None);
        drop(tokio::time::timeout(Duration::from_secs(10), self.ended).await);
        if let Err(why) = tokio::task::block_in_place(|| self.engine.store.shutdown()) {
            tracing::warn!(%why, "store not marked clean");
        }
        self.engine.store.list().iter().any(|task| !task.pieces().is_empty())
    }
}

/// Defaults with everything in `dir`, sharing nothing.
fn config(dir: &Path) -> Result<Arc<Config>, StartError> {
    let home =
        std::path::absolute(dir).map_err(|source| StartError::Directory { path: dir.to_owned(), source })?;
    let unusable = |why: String| StartError::System {
        what: "cannot use the engine's directory",
        source: std::io::Error::other(why),
    };
    let directories =
        Directories::decide(0, |_| None, Some(&home)).map_err(|why| unusable(why.to_string()))?;
    let overrides = Overrides { home: Some(home), ..Overrides::default() };
    let loaded = Config::parse("", Path::new("dfdaemon.yaml"), &overrides, directories);
    let mut config = loaded.map_err(|why| unusable(why.to_string()))?.config;
    config.upload.disable_shared = true;
    Ok(Arc::new(config))
}

/// A host of its own: it must not be taken for the daemon of the same machine.
async fn identity(join: &[Target]) -> Identity {
    let mut route = None;
    if let Some(first) = join.first() {
        let resolved = first.resolve().await.unwrap_or_default();
        route = resolved.first().and_then(|address| route_to(*address).ok()).or_else(default_route);
    }
    let ip = route.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let nodename = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hostname = format!("{nodename}-dfget-{}", std::process::id());
    Identity {
        host_id: HostId::new(ip, &hostname, false),
        hostname,
        ip,
        seed: false,
        incarnation: rand::random(),
    }
}
