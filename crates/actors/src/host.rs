//! What this host says of itself.

use std::sync::Arc;

use damselfly_api::common::v2 as common;

use crate::config::{Config, SeedType};
use crate::engine::{Identity, Ports};

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub struct HostFacts {
    identity: Identity,
    ports: Ports,
    config: Arc<Config>,
    scheduler_ports: bool,
}

impl HostFacts {
    /// The facts of this daemon.
    #[must_use]
    pub fn new(identity: Identity, ports: Ports, config: Arc<Config>) -> Self {
        Self { identity, ports, config, scheduler_ports: true }
    }

    /// The announcement, with fresh figures of memory, disk and load.
    #[must_use]
    pub fn announce(&self, disk: (u64, u64)) -> common::Host {
        let port = i32::from(self.ports.grpc.port());
        let name = match (std::env::var("POD_NAMESPACE"), std::env::var("POD_NAME")) {
            (Ok(namespace), Ok(pod)) => format!("{namespace}-{pod}"),
            _ => self.identity.hostname.clone(),
        };
        let (total, used) = disk;
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
            cpu: Some(common::Cpu {
                logical_count: std::thread::available_parallelism()
                    .map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)),
                ..common::Cpu::default()
            }),
            memory: Some(memory()),
            network: Some(network(&self.config)),
            disk: Some(common::Disk {
                total,
                free: total.saturating_sub(used),
                used,
                used_percent: percent(used, total),
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
            tcp_port: if self.scheduler_ports { self.ports.vortex.port().into() } else { 0 },
            incarnation: Some(self.identity.incarnation),
            ..common::Host::default()
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a percentage needs no more than 53 bits")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// The network's limits in bits per second, as schedulers and children weigh this host by them.
#[must_use]
pub(crate) fn network(config: &Config) -> common::Network {
    let most = config.upload.bandwidth_limit.saturating_mul(8);
    common::Network {
        location: config.host.location.clone(),
        idc: config.host.idc.clone(),
        max_rx_bandwidth: most,
        max_tx_bandwidth: most,
        ..common::Network::default()
    }
}

fn memory() -> common::Memory {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit);
    let (total, free) = (info.totalram.saturating_mul(unit), info.freeram.saturating_mul(unit));
    common::Memory {
        total,
        available: free,
        used: total.saturating_sub(free),
        used_percent: percent(total.saturating_sub(free), total),
        free,
        ..common::Memory::default()
    }
}
