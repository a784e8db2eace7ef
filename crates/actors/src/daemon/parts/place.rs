//! A daemon's place: whom it asks, what it listens on, and its name.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use damselfly_core::HostId;
use damselfly_scheduler_client::{Dynconfig, DynconfigError, ManagerSource, Source};

use crate::config::{
    AddressInputs, Addresses, Config, EmbeddedScheduler, SchedulerSource, default_route, route_to,
};
use crate::daemon::StartError;
use crate::engine::Identity;
use crate::listeners::Bound;

/// What a daemon listens on, the unix socket aside.
pub(super) struct Sockets {
    pub(super) grpc: Bound,
    pub(super) vortex: Bound,
    pub(super) health: Bound,
    pub(super) metrics: Bound,
    pub(super) scheduler: Option<Bound>,
}

/// Whom the daemon asks, and whether it answers itself.
pub(super) struct Scheduling {
    pub(super) source: Option<Source>,
    /// The dynconfig file, where there is one: its block list counts whoever schedules.
    pub(super) file: Option<PathBuf>,
    pub(super) embed: EmbeddedScheduler,
    pub(super) addresses: Addresses,
    pub(super) joined: Vec<SocketAddr>,
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

/// What configuration, dynconfig and flags together say of the daemon's schedulers and addresses.
pub(super) async fn scheduling(config: &Config) -> Result<Scheduling, StartError> {
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

/// Binds what is listened on. Whether a scheduler runs here may turn out only when its port is found taken.
pub(super) fn bind(
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
pub(super) fn identity(config: &Config, grpc: SocketAddr, ip: IpAddr, remembered: Option<u16>) -> Identity {
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

/// The port an earlier start had to move to.
pub(super) fn remembered_port(file: &Path) -> Option<u16> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}
