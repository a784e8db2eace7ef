//! Making the daemon's parts, in the order in which they need each other.

mod options;
mod place;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use damselfly_scheduler_client::{Cluster, ClusterOptions, Holdings, HostProvider, Order, Source};
use damselfly_source::Origin;
use damselfly_storage::Store;
use damselfly_transport::BufferPool;
use damselfly_transport::tcp::{ServerOptions, UploadCounters};
use ractor::Actor;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{DaemonOptions, StartError, collector};
use crate::announcer;
use crate::clock::Clock;
use crate::config::Config;
use crate::connections::{Connections, ConnectionsArgs};
use crate::engine::{Engine, Identity, Limits, Ports};
use crate::holdings::StoreHoldings;
use crate::host::HostFacts;
use crate::kit::{Address, Board, Child, Faults, Group, GroupArgs, Roster, ServiceArgs};
use crate::known::Known;
use crate::listeners::{self, Bound};
use crate::live::Live;
use crate::local::StatusFacts;
use crate::metrics::Metrics;
use crate::receipts::Receipts;
use crate::socket;
use crate::tasks::Tasks;
use crate::upload::Uploads;
pub(crate) use options::store_options;
use options::{dial_options, limit, machine_config, origin_options, socket_options};
use place::{Scheduling, Sockets, bind, identity, remembered_port, scheduling};

/// Memory for receive and send buffers together.
const BUFFER_BUDGET: u64 = 64 << 20;
/// Bytes of each. Twice as large as suits sockets, because writers of one file wait for each other at every write: with
/// 256 KiB a GiB between two daemons of one host took 0.85 of its floor's CPU time, with this 0.80, with 1 MiB 0.96
/// (medians of seven, alternating).
const BUFFER_SIZE: usize = 512 << 10;

/// The parts of a daemon, ready to be supervised.
pub(super) struct Parts {
    pub(super) engine: Arc<Engine>,
    pub(super) ports: Ports,
    pub(super) scheduler: Option<SocketAddr>,
    pub(super) tree: GroupArgs,
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

struct Announcement {
    facts: HostFacts,
    store: Arc<Store>,
}

impl HostProvider for Announcement {
    fn host(&self) -> damselfly_api::common::v2::Host {
        self.facts.announce(Some(self.store.usage()))
    }
}

pub(super) async fn assemble(
    config: Config,
    options: DaemonOptions,
    stop: &CancellationToken,
) -> Result<Parts, StartError> {
    let config = Arc::new(config);
    let store = tokio::task::block_in_place(|| Store::open(store_options(&config)))?;
    let memory = config.storage.dir.join("damselfly-v1").join("port");
    let remembered = remembered_port(&memory);
    let mut scheduling = scheduling(&config).await?;
    let sockets = bind(&config, &mut scheduling, remembered)?;
    let at = |bound: &Bound| bound.address().map_err(system("cannot read a socket's address"));
    let ports = Ports {
        grpc: at(&sockets.grpc)?,
        vortex: at(&sockets.vortex)?,
        health: at(&sockets.health)?,
        metrics: at(&sockets.metrics)?,
    };
    let ip = scheduling.addresses.announce;
    let identity = identity(&config, ports.grpc, ip, remembered);
    let listen = config.upload.listen.port;
    if remembered.is_none() && !listen.named && ports.grpc.port() != listen.number {
        std::fs::write(&memory, ports.grpc.port().to_string())
            .map_err(system("cannot remember this daemon's port"))?;
    }
    let facts = HostFacts::new(identity.clone(), ports, Arc::clone(&config));
    let scheduler = sockets.scheduler.as_ref().map(at).transpose()?;
    let holdings = Arc::new(StoreHoldings::new(Arc::clone(&store), !config.upload.disable_shared));
    let (cluster, orders) = cluster(&config, &scheduling, scheduler, &facts, &store, &holdings)?;
    let engine = engine(
        config,
        identity,
        store,
        holdings,
        cluster,
        EngineOptions { faults: options.faults, expects_scheduler: true },
    )?;
    let tree = tree(&engine, sockets, ports, &scheduling, facts, orders, stop).await?;
    Ok(Parts { engine, ports, scheduler, tree })
}

/// What differs between a daemon's engine and one in a program.
pub(crate) struct EngineOptions {
    pub(crate) faults: Faults,
    pub(crate) expects_scheduler: bool,
}

/// The parts that all actors share.
pub(crate) fn engine(
    config: Arc<Config>,
    identity: Identity,
    store: Arc<Store>,
    holdings: Arc<StoreHoldings>,
    cluster: Cluster,
    options: EngineOptions,
) -> Result<Arc<Engine>, StartError> {
    Ok(Arc::new(Engine {
        machine: machine_config(&config),
        identity,
        clock: Clock::start(),
        store,
        holdings,
        origin: Origin::new(origin_options(&config)).map_err(StartError::Origin)?,
        cluster: Arc::new(cluster),
        expects_scheduler: options.expects_scheduler,
        connections: Address::new("connections"),
        tasks: Address::new("tasks"),
        buffers: BufferPool::new(BUFFER_BUDGET, BUFFER_SIZE),
        limits: Limits {
            download: limit(config.download.bandwidth_limit),
            origin: limit(config.download.back_to_source_bandwidth_limit),
            upload: Arc::new(limit(config.upload.bandwidth_limit)),
        },
        metrics: Arc::new(Metrics::new()),
        live: Live::default(),
        known: Known::default(),
        uploads: Uploads::default(),
        imports: crate::import::Uploads::default(),
        descriptors: Arc::default(),
        receipts: Receipts::default(),
        board: Board::default(),
        faults: options.faults,
        config,
    }))
}

fn cluster(
    config: &Config,
    scheduling: &Scheduling,
    own: Option<SocketAddr>,
    facts: &HostFacts,
    store: &Arc<Store>,
    holdings: &Arc<StoreHoldings>,
) -> Result<(Cluster, mpsc::Receiver<Order>), StartError> {
    let source = scheduling.source.clone().unwrap_or_else(|| {
        let own = own.map(|own| damselfly_scheduler_client::Target {
            host: scheduling.addresses.announce.to_string(),
            port: own.port(),
        });
        let targets = own.into_iter().collect();
        match &scheduling.file {
            Some(file) => Source::JoinWithBlocks { targets, file: file.clone() },
            None => Source::Join(targets),
        }
    });
    Cluster::new(ClusterOptions {
        source,
        host: Arc::new(Announcement { facts: facts.clone(), store: Arc::clone(store) }),
        holdings: Arc::clone(holdings) as Arc<dyn Holdings>,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        announce_interval: config.scheduler.announce_interval,
        refresh_interval: config.dynconfig.refresh_interval,
        tls: config.scheduler.tls.clone(),
        seed: config.seed_peer.is_some(),
    })
    .map_err(StartError::Cluster)
}

async fn tree(
    engine: &Arc<Engine>,
    sockets: Sockets,
    ports: Ports,
    scheduling: &Scheduling,
    facts: HostFacts,
    orders: mpsc::Receiver<Order>,
    stop: &CancellationToken,
) -> Result<GroupArgs, StartError> {
    let counters: Arc<UploadCounters> = Arc::default();
    let embedded = sockets.scheduler.is_some();
    let status =
        Arc::new(StatusFacts { host: facts, started_at: SystemTime::now(), embedded_scheduler: embedded });
    let mut children = Vec::new();
    if let Some(bound) = sockets.scheduler {
        children.push(Child::service(super::scheduler::service(engine, bound, &scheduling.joined, stop)?));
    }
    children.push(connections(engine));
    children.push(tasks(engine));
    children.push(Child::service(orders_service(engine, orders, stop)));
    children.push(Child::service(collector::service(engine, stop)));

    let vortex = ServerOptions {
        limit: Arc::clone(&engine.limits.upload),
        pool: engine.buffers.clone(),
        counters: Arc::clone(&counters),
        socket: socket_options(&engine.config),
        // Shutdown has waited for uploads before; less than a group waits for its children.
        grace: Duration::from_secs(3),
        ..ServerOptions::default()
    };
    let common = common_routes().await;
    let served = vec![
        Child::service(listeners::vortex(engine, sockets.vortex, vortex, stop)),
        Child::service(listeners::upload(engine, sockets.grpc, ports, common.clone(), stop)),
        Child::service(socket::service(engine, status, common, stop)?),
        Child::service(listeners::health(engine, sockets.health, stop)),
        Child::service(listeners::metrics(engine, sockets.metrics, counters, stop)),
    ];
    let (board, faults, ending) = (engine.board.clone(), engine.faults.clone(), stop.clone());
    children.push(Child::new("listeners", move |parent| {
        let args = GroupArgs {
            path: "daemon/listeners".to_owned(),
            children: served.clone(),
            roster: Roster::default(),
            board: board.clone(),
            faults: faults.clone(),
            stop: ending.clone(),
        };
        async move { Ok(Actor::spawn_linked(None, Group, args, parent).await?.0.get_cell()) }
    }));
    // Last, so that whoever is sent here is served.
    children.extend(announcer::children(engine, stop));
    Ok(GroupArgs {
        path: "daemon".to_owned(),
        children,
        roster: Roster::default(),
        board: engine.board.clone(),
        faults: Faults::default(),
        stop: stop.clone(),
    })
}

/// Health and reflection, on the network and on the unix socket.
pub(crate) async fn common_routes() -> Routes {
    let (reporter, health) = tonic_health::server::health_reporter();
    // Every service listed here answers from its first request on.
    for name in ["", "dfdaemon.v2.DfdaemonUpload", "dfdaemon.v2.DfdaemonDownload"] {
        reporter.set_service_status(name, tonic_health::ServingStatus::Serving).await;
    }
    let routes = Routes::new(health);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(damselfly_api::FILE_DESCRIPTOR_SET)
        .build_v1();
    match reflection {
        Ok(reflection) => routes.add_service(reflection),
        Err(why) => {
            tracing::error!(%why, "no gRPC reflection");
            routes
        }
    }
}

pub(crate) fn connections(engine: &Arc<Engine>) -> Child {
    let args = ConnectionsArgs {
        dial: dial_options(&engine.config),
        board: engine.board.clone(),
        faults: engine.faults.clone(),
    };
    let address = engine.connections.clone();
    Child::new("connections", move |parent| {
        let (args, address) = (args.clone(), address.clone());
        async move {
            let (actor, _) = Actor::spawn_linked(None, Connections, args, parent).await?;
            address.set(actor.clone());
            Ok(actor.get_cell())
        }
    })
}

pub(crate) fn tasks(engine: &Arc<Engine>) -> Child {
    let engine = Arc::downgrade(engine);
    Child::new("tasks", move |parent| {
        let engine = engine.upgrade();
        async move {
            let Some(engine) = engine else { return Err(ractor::SpawnErr::ActorAlreadyStarted) };
            let address = engine.tasks.clone();
            let (actor, _) = Actor::spawn_linked(None, Tasks, engine, parent).await?;
            address.set(actor.clone());
            Ok(actor.get_cell())
        }
    })
}

/// Carries out the schedulers' orders.
fn orders_service(
    engine: &Arc<Engine>,
    orders: mpsc::Receiver<Order>,
    stop: &CancellationToken,
) -> ServiceArgs {
    let orders = Arc::new(Mutex::new(orders));
    let shared = Arc::clone(engine);
    ServiceArgs {
        name: "orders",
        path: "daemon/orders".to_owned(),
        board: engine.board.clone(),
        faults: engine.faults.clone(),
        stop: stop.clone(),
        run: ServiceArgs::run(move |stop| {
            let (orders, engine) = (Arc::clone(&orders), Arc::clone(&shared));
            async move { crate::orders::run(&engine, &mut *orders.lock().await, stop).await }
        }),
    }
}
