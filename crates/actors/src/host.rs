//! What this host says of itself.

mod meters;

use std::sync::Arc;

use damselfly_api::common::v2 as common;
use damselfly_storage::Usage;

use crate::config::{Config, SeedType};
use crate::engine::{Identity, Ports};
pub(crate) use meters::Meters;

/// What does not change while the daemon runs, and the meters of what does.
#[derive(Clone, Debug)]
pub struct HostFacts {
    identity: Identity,
    ports: Ports,
    config: Arc<Config>,
    meters: Arc<Meters>,
}

impl HostFacts {
    /// The facts of this daemon.
    #[must_use]
    pub fn new(identity: Identity, ports: Ports, config: Arc<Config>) -> Self {
        let meters = Arc::new(Meters::new(identity.ip));
        Self { identity, ports, config, meters }
    }

    /// The announcement, with fresh figures of memory, disk and load; traffic and load are averages since the announcement
    /// before. `disk` is absent where nothing is kept for others.
    #[must_use]
    pub fn announce(&self, disk: Option<Usage>) -> common::Host {
        let port = i32::from(self.ports.grpc.port());
        let name = match (std::env::var("POD_NAMESPACE"), std::env::var("POD_NAME")) {
            (Ok(namespace), Ok(pod)) => format!("{namespace}-{pod}"),
            _ => self.identity.hostname.clone(),
        };
        let limit = self.config.upload.bandwidth_limit;
        let network = common::Network {
            location: self.config.host.location.clone(),
            idc: self.config.host.idc.clone(),
            ..self.meters.network(limit, self.meters.traffic())
        };
        common::Host {
            id: self.identity.host_id.to_string(),
            r#type: match self.config.seed_peer {
                Some(SeedType::Super) => 1,
                Some(SeedType::Normal) | None => 0,
            },
            hostname: self.identity.hostname.clone(),
            ip: self.identity.ip.to_string(),
            port,
            download_port: port,
            os: std::env::consts::OS.to_owned(),
            platform: std::env::consts::OS.to_owned(),
            platform_family: "unix".to_owned(),
            kernel_version: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: Some(self.meters.cpu()),
            memory: Some(self.meters.memory()),
            network: Some(network),
            disk: disk.map(|usage| common::Disk {
                total: usage.total,
                free: usage.free,
                used: usage.used,
                used_percent: percent(usage.used, usage.total),
                ..common::Disk::default()
            }),
            build: Some(common::Build {
                git_version: env!("CARGO_PKG_VERSION").to_owned(),
                platform: Some(std::env::consts::ARCH.to_owned()),
                ..common::Build::default()
            }),
            scheduler_cluster_id: self.config.host.scheduler_cluster_id.unwrap_or_default(),
            disable_shared: self.config.upload.disable_shared,
            name,
            tcp_port: self.ports.vortex.port().into(),
            incarnation: Some(self.identity.incarnation),
            ..common::Host::default()
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a percentage needs no more than 53 bits")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}
