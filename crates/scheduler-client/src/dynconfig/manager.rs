//! The list of schedulers as Dragonfly's manager gives it.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use damselfly_api::common::v2::Host;
use damselfly_api::manager::v2::manager_client::ManagerClient;
use damselfly_api::manager::v2::{ListSchedulersRequest, Scheduler, SourceType};
use tonic::transport::{Channel, Uri};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{DynconfigError, Found, RawClientConfig, from_yaml};
use crate::TlsFiles;
use crate::channel::{ANSWER, MAX_ANSWER, Tls, channel, lazy};
use crate::handle::timed;

/// A manager and what it wants to know.
#[derive(Clone, Debug, Default)]
pub struct ManagerSource {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub addr: String,
    /// For the connection to it, instead of the system's certificates.
    pub tls: Option<TlsFiles>,
    /// For connections to the schedulers it lists, whose health decides.
    pub scheduler_tls: Option<TlsFiles>,
    /// The host's data centre.
    pub idc: Option<String>,
    /// The host's location.
    pub location: Option<String>,
    /// The cluster to ask for; 0 lets the manager choose.
    pub scheduler_cluster_id: u64,
    /// The daemon's commit; not empty.
    pub commit: String,
}

impl ManagerSource {
    pub(super) async fn find(&self, host: &Host, seed: bool, version: &str) -> Result<Found, DynconfigError> {
        let schedulers = self.list(host, seed, version).await?;
        let mut found = Found::default();
        let mut reachable = Vec::new();
        for scheduler in schedulers {
            match address(&scheduler) {
                Some(address) => reachable.push((address, scheduler)),
                None => found.warnings.push(format!(
                    "the manager lists a scheduler at {}:{}, which is no address",
                    scheduler.ip, scheduler.port
                )),
            }
        }
        let Some(cluster) = self.first_healthy_cluster(&reachable).await else {
            return Err(self.failed("it lists no scheduler for this host".to_owned()));
        };
        let of_cluster: Vec<_> =
            reachable.iter().filter(|(_, scheduler)| scheduler.scheduler_cluster_id == cluster).collect();
        found.schedulers =
            of_cluster.iter().map(|(address, _)| (*address, address.ip().to_string())).collect();
        let config = of_cluster.iter().find_map(|(_, scheduler)| scheduler.scheduler_cluster.as_ref());
        if let Some(config) = config {
            let json = if seed { &config.seed_client_config } else { &config.client_config };
            match block_list(json) {
                Ok(blocks) => found.blocks = Some(blocks),
                Err(why) => {
                    found.warnings.push(format!(
                        "the block list stays what it was: the manager's client configuration: {why}"
                    ));
                }
            }
        }
        Ok(found)
    }

    async fn list(&self, host: &Host, seed: bool, version: &str) -> Result<Vec<Scheduler>, DynconfigError> {
        let channel = self.channel()?;
        let mut health = HealthClient::new(channel.clone());
        let check = health.check(timed(HealthCheckRequest { service: String::new() }));
        let answer = self.wait(check).await?;
        if answer.status() != ServingStatus::Serving {
            return Err(self.failed("it is not serving".to_owned()));
        }
        let source = if seed { SourceType::SeedPeerSource } else { SourceType::PeerSource };
        let request = ListSchedulersRequest {
            source_type: source.into(),
            hostname: host.hostname.clone(),
            ip: host.ip.clone(),
            idc: self.idc.clone(),
            location: self.location.clone(),
            version: version.to_owned(),
            commit: self.commit.clone(),
            scheduler_cluster_id: self.scheduler_cluster_id,
        };
        let mut client = ManagerClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        Ok(self.wait(client.list_schedulers(timed(request))).await?.schedulers)
    }

    fn channel(&self) -> Result<Channel, DynconfigError> {
        let https = self.addr.starts_with("https://");
        let tls = match &self.tls {
            Some(files) => Some(Tls::read(files).map_err(|error| self.failed(error.to_string()))?),
            None if https => Some(Tls::system()),
            None => None,
        };
        let uri =
            if tls.is_some() { self.addr.replacen("http://", "https://", 1) } else { self.addr.clone() };
        let name = Uri::from_str(&uri).ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
        lazy(&uri, &name, tls.as_ref()).map_err(|error| self.failed(error.to_string()))
    }

    async fn wait<A>(
        &self,
        call: impl Future<Output = Result<tonic::Response<A>, tonic::Status>>,
    ) -> Result<A, DynconfigError> {
        match tokio::time::timeout(ANSWER, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failed(format!("{:?}: {}", status.code(), status.message()))),
            Err(_) => Err(self.failed(format!("no answer within {} s", ANSWER.as_secs()))),
        }
    }

    fn failed(&self, why: String) -> DynconfigError {
        DynconfigError::Manager { addr: damselfly_core::redact::url(&self.addr), why }
    }

    /// The cluster of the first scheduler that is healthy, asked in the manager's order; of the first at all when none
    /// is, so that its schedulers are waited for.
    async fn first_healthy_cluster(&self, schedulers: &[(SocketAddr, Scheduler)]) -> Option<u64> {
        let first = schedulers.first().map(|(_, scheduler)| scheduler.scheduler_cluster_id)?;
        if schedulers.iter().all(|(_, scheduler)| scheduler.scheduler_cluster_id == first) {
            return Some(first);
        }
        let tls = self.scheduler_tls.as_ref().and_then(|files| Tls::read(files).ok());
        for (address, scheduler) in schedulers {
            let Ok(channel) = channel(*address, &address.ip().to_string(), tls.as_ref()) else { continue };
            let mut health = HealthClient::new(channel);
            let check = health.check(timed(HealthCheckRequest { service: String::new() }));
            if let Ok(Ok(answer)) = tokio::time::timeout(ANSWER, check).await
                && answer.get_ref().status() == ServingStatus::Serving
            {
                return Some(scheduler.scheduler_cluster_id);
            }
        }
        Some(first)
    }
}

fn address(scheduler: &Scheduler) -> Option<SocketAddr> {
    let port = u16::try_from(scheduler.port).ok().filter(|&port| port != 0)?;
    let ip: IpAddr = scheduler.ip.parse().ok()?;
    Some(SocketAddr::new(ip.to_canonical(), port))
}

fn block_list(json: &[u8]) -> Result<super::BlockList, String> {
    let text = std::str::from_utf8(json).map_err(|error| error.to_string())?;
    if text.trim().is_empty() {
        return Ok(super::BlockList::default());
    }
    from_yaml::<Option<RawClientConfig>>(text)?.unwrap_or_default().compile()
}
