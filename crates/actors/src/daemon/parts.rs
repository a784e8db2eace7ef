//! Making the daemon's parts, in the order in which they need each other.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use damselfly_core::HostId;
use damselfly_core::download::Config as MachineConfig;
use damselfly_scheduler_client::{
    Cluster, ClusterOptions, Dynconfig, DynconfigError, Holdings, HostProvider, ManagerSource, Order, Source,
};
use damselfly_source::Origin;
use damselfly_storage::Store;
use damselfly_transport::tcp::{Deadlines, DialOptions, ServerOptions, SocketOptions, UploadCounters};
use damselfly_transport::{BufferPool, TokenBucket};
use ractor::Actor;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{DaemonOptions, StartError, collector};
use crate::announcer;
use crate::clock::Clock;
use crate::config::{
    AddressInputs, Addresses, Config, CongestionControl, EmbeddedScheduler, SchedulerSource, default_route,
    route_to,
};
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

/// Memory for receive and send buffers together.
const BUFFER_BUDGET: u64 = 64 << 20;

/// The parts of a daemon, ready to be supervised.
pub(super) struct Parts {
    pub(super) engine: Arc<Engine>,
    pub(super) ports: Ports,
    pub(super) scheduler: Option<SocketAddr>,
    pub(super) tree: GroupArgs,
}

struct Sockets {
    grpc: Bound,
    vortex: Bound,
    health: Bound,
    metrics: Bound,
    scheduler: Option<Bound>,
}

/// Whom the daemon asks, and whether it answers itself.
struct Scheduling {
    source: Option<Source>,
    /// The dynconfig file, where there is one: its block list counts whoever schedules.
    file: Option<PathBuf>,
    embed: EmbeddedScheduler,
    addresses: Addresses,
    joined: Vec<SocketAddr>,
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// The dynconfig file. One that cannot be understood is refused: going on without it would be another cluster.
fn dynconfig(config: &Config) -> Result<Option<Dynconfig>, StartError> {
    match Dynconfig::read(&config.dynconfig.path) {
        Ok(dynconfig) => Ok(Some(dynconfig)),
        Err(DynconfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            if config.dynconfig.named {
                tracing::warn!(file = %config.dynconfig.path.display(), "dynconfig not found, going on without");
            }
            Ok(None)
        }
        Err(why) => Err(StartError::Dynconfig(why)),
    }
}

async fn scheduling(config: &Config) -> Result<Scheduling, StartError> {
    let dynconfig = dynconfig(config)?;
    let file = dynconfig.is_some().then(|| config.dynconfig.path.clone());
    let named = dynconfig.filter(|dynconfig| dynconfig.addr.is_some() || !dynconfig.addrs.is_empty());
    let choice = SchedulerSource::decide(
        &config.join,
        config.manager.addr.as_deref(),
        named.map(|_| config.dynconfig.path.clone()),
    );
    let mut joined = Vec::new();
    for target in &config.join {
        // A name that cannot be resolved now is tried again at every refresh.
        joined.extend(target.resolve().await.unwrap_or_default());
    }
    let route = match joined.first() {
        Some(first) => route_to(*first).ok(),
        None => default_route(),
    };
    let addresses = Addresses::decide(AddressInputs {
        listen: config.listen,
        joins: choice != SchedulerSource::Own,
        host_ip: config.host.ip,
        server_ip: config.upload.listen.ip,
        route,
        ipv6: config.ipv6,
    })?;
    let own = SocketAddr::new(addresses.announce, config.scheduler.listen.port.number);
    let embed = EmbeddedScheduler::decide(config.scheduler.embedded, &choice, own, &joined);
    let source = match choice {
        SchedulerSource::Join(targets) => Some(match &file {
            Some(file) => Source::JoinWithBlocks { targets, file: file.clone() },
            None => Source::Join(targets),
        }),
        SchedulerSource::Manager(addr) => Some(Source::Manager(Box::new(ManagerSource {
            addr,
            tls: config.manager.tls.clone(),
            scheduler_tls: config.scheduler.tls.clone(),
            idc: config.host.idc.clone(),
            location: config.host.location.clone(),
            scheduler_cluster_id: config.host.scheduler_cluster_id.unwrap_or_default(),
            commit: env!("CARGO_PKG_VERSION").to_owned(),
        }))),
        SchedulerSource::Dynconfig(path) => Some(Source::File(path)),
        SchedulerSource::Own => None,
    };
    Ok(Scheduling { source, file, embed, addresses, joined })
}

fn bind(
    config: &Config,
    scheduling: &mut Scheduling,
    remembered: Option<u16>,
) -> Result<Sockets, StartError> {
    let ip = scheduling.addresses.bind;
    let scheduler = match scheduling.embed {
        EmbeddedScheduler::No => None,
        EmbeddedScheduler::Yes => Some(Bound::bind("the scheduler", config.scheduler.listen, ip, None)?),
        EmbeddedScheduler::IfFree(_) => {
            let mut listen = config.scheduler.listen;
            listen.port.named = true;
            Bound::bind("the scheduler", listen, ip, None).ok()
        }
    };
    Ok(Sockets {
        grpc: Bound::bind("gRPC", config.upload.listen, ip, remembered)?,
        vortex: Bound::bind("Vortex TCP", config.storage.tcp, ip, None)?,
        health: Bound::bind("health", config.health, ip, None)?,
        metrics: Bound::bind("metrics", config.metrics, ip, None)?,
        scheduler,
    })
}

/// The hostname others see. Two daemons on one host must differ: the one whose default port was taken adds its port, and
/// keeps that name, so that its content is found again after a restart.
fn identity(config: &Config, grpc: SocketAddr, ip: IpAddr, remembered: Option<u16>) -> Identity {
    let hostname = config
        .host
        .hostname
        .clone()
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    let listen = config.upload.listen.port;
    let moved = !listen.named && grpc.port() != listen.number;
    let hostname = match remembered.or(moved.then_some(grpc.port())) {
        Some(port) if config.host.hostname.is_none() => format!("{hostname}-{port}"),
        _ => hostname,
    };
    let seed = config.seed_peer.is_some();
    Identity { host_id: HostId::new(ip, &hostname, seed), hostname, ip, seed, incarnation: rand::random() }
}

fn remembered_port(file: &Path) -> Option<u16> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn dial_options(config: &Config) -> DialOptions {
    DialOptions {
        deadlines: Deadlines { turn: config.download.piece_timeout, ..Deadlines::default() },
        socket: socket_options(config),
        ..DialOptions::new(true)
    }
}

fn socket_options(config: &Config) -> SocketOptions {
    let congestion = match config.download.congestion_control {
        CongestionControl::Auto | CongestionControl::Bbr => "bbr",
        CongestionControl::Cubic => "cubic",
    };
    SocketOptions { congestion: Some(congestion.to_owned()), ..SocketOptions::default() }
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
        buffers: BufferPool::new(BUFFER_BUDGET, BufferPool::DEFAULT_SIZE),
        limits: Limits {
            download: limit(config.download.bandwidth_limit),
            origin: limit(config.download.back_to_source_bandwidth_limit),
            upload: Arc::new(limit(config.upload.bandwidth_limit)),
        },
        metrics: Arc::new(Metrics::new()),
        live: Live::default(),
        known: Known::default(),
        uploads: Uploads::default(),
        receipts: Receipts::default(),
        board: Board::default(),
        faults: options.faults,
        config,
    }))
}

/// The machine with what the configuration says of it.
fn machine_config(config: &Config) -> MachineConfig {
    let machine = MachineConfig::default();
    let most = config.download.concurrent_piece_count.max(1) as usize;
    let retries = config.backend.max_retries;
    MachineConfig {
        max_schedule_count: config.scheduler.max_schedule_count,
        max_in_flight: most,
        origin_window: machine.origin_window.min(most),
        origin_window_shared: machine.origin_window_shared.min(most),
        origin_tries: retries.map_or(machine.origin_tries, |retries| retries.saturating_add(1)),
        ..machine
    }
}

/// A limit of hundreds of gigabits is none; leaving it out saves every buffer a visit.
fn limit(bytes_per_second: u64) -> TokenBucket {
    TokenBucket::new((bytes_per_second < 50_000_000_000).then_some(bytes_per_second))
}

pub(crate) fn store_options(config: &Config) -> damselfly_storage::Options {
    damselfly_storage::Options {
        dir: config.storage.dir.clone(),
        keep: config.storage.keep,
        capacity: config.gc.disk_threshold,
        high_percent: config.gc.disk_high_percent,
        low_percent: config.gc.disk_low_percent,
        task_ttl: config.gc.task_ttl,
    }
}

fn origin_options(config: &Config) -> damselfly_source::Options {
    damselfly_source::Options {
        extra_headers: config.backend.request_header.clone().into_iter().collect(),
        ..damselfly_source::Options::default()
    }
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
