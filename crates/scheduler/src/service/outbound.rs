//! Calls that a scheduler makes to hosts.

use std::net::SocketAddr;
use std::time::Duration;

use damselfly_api::common::v2::Download;
use damselfly_api::dfdaemon::v2::dfdaemon_upload_client::DfdaemonUploadClient;
use damselfly_api::dfdaemon::v2::{
    DeletePersistentCacheTaskRequest, DownloadPersistentCacheTaskRequest, DownloadTaskRequest,
    UpdatePersistentCacheTaskRequest,
};
use damselfly_core::TaskId;
use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::machine::Copy;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a host may take to say that it is healthy.
const HEALTH: Duration = Duration::from_secs(3);
/// How long a daemon may be silent while it downloads.
const SEED_SILENCE: Duration = Duration::from_secs(360);
/// Calls under way at once.
const CALLS: usize = 256;

/// Why a host could not be called.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OutboundError {
    /// No connection came about.
    #[error(
        "cannot connect to {address}: check that the daemon runs and its gRPC port is reachable from here"
    )]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The host refused or failed.
    #[error("the daemon at {address} failed what it was asked to do: {}", source.message())]
    Failed {
        /// Which host.
        address: SocketAddr,
        /// What it said.
        source: Status,
    },
    /// The host says nothing.
    #[error("the daemon at {address} was silent for {SEED_SILENCE:?}")]
    Silent {
        /// Which host.
        address: SocketAddr,
    },
}

/// What a daemon is to do with its copy of a persistent cache task.
#[derive(Clone, Debug)]
pub struct CopyCall {
    /// The task.
    pub task: TaskId,
    /// What.
    pub copy: Copy,
}

/// How a scheduler reaches hosts.
pub trait Outbound: Send + Sync + 'static {
    /// Has the seed at `address` download `download`; completes when it has, or has failed to.
    fn trigger_seed(
        &self,
        address: SocketAddr,
        download: Download,
    ) -> BoxFuture<'_, Result<(), OutboundError>>;

    /// Has Dragonfly's daemon at `address` do something with its copy of a persistent cache task; completes when it has.
    fn copy(&self, address: SocketAddr, call: CopyCall) -> BoxFuture<'_, Result<(), OutboundError>>;

    /// Whether the daemon at `address` answers and is healthy. Completes within a few seconds.
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, bool>;
}

/// Plain gRPC.
#[derive(Debug)]
pub struct GrpcOutbound {
    calls: Semaphore,
}

impl Default for GrpcOutbound {
    fn default() -> Self {
        Self { calls: Semaphore::new(CALLS) }
    }
}

async fn connect(address: SocketAddr) -> Result<Channel, OutboundError> {
    let failed = |source| OutboundError::Connect { address, source };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(failed)?;
    endpoint.connect_timeout(CONNECT).tcp_nodelay(true).connect().await.map_err(failed)
}

impl Outbound for GrpcOutbound {
    fn trigger_seed(
        &self,
        address: SocketAddr,
        download: Download,
    ) -> BoxFuture<'_, Result<(), OutboundError>> {
        Box::pin(async move {
            let _permit = self.calls.acquire().await;
            let channel = connect(address).await?;
            let mut client = DfdaemonUploadClient::new(channel).max_decoding_message_size(super::MAX_MESSAGE);
            let failed = |source| OutboundError::Failed { address, source };
            let silent = |_| OutboundError::Silent { address };
            let request = DownloadTaskRequest { download: Some(download) };
            let call = timeout(SEED_SILENCE, client.download_task(request));
            let mut responses = call.await.map_err(silent)?.map_err(failed)?.into_inner();
            // The seed registers itself and speaks for itself; here only the end matters.
            while timeout(SEED_SILENCE, responses.message()).await.map_err(silent)?.map_err(failed)?.is_some()
            {
            }
            Ok(())
        })
    }

    fn copy(&self, address: SocketAddr, call: CopyCall) -> BoxFuture<'_, Result<(), OutboundError>> {
        Box::pin(async move {
            let _permit = self.calls.acquire().await;
            let channel = connect(address).await?;
            let mut client = DfdaemonUploadClient::new(channel).max_decoding_message_size(super::MAX_MESSAGE);
            let failed = |source| OutboundError::Failed { address, source };
            let silent = |_| OutboundError::Silent { address };
            let task_id = call.task.to_string();
            match call.copy {
                Copy::Fetch { tag, application } => {
                    let request = DownloadPersistentCacheTaskRequest {
                        task_id,
                        persistent: true,
                        tag,
                        application,
                        ..DownloadPersistentCacheTaskRequest::default()
                    };
                    let call = timeout(SEED_SILENCE, client.download_persistent_cache_task(request));
                    let mut responses = call.await.map_err(silent)?.map_err(failed)?.into_inner();
                    while timeout(SEED_SILENCE, responses.message())
                        .await
                        .map_err(silent)?
                        .map_err(failed)?
                        .is_some()
                    {}
                }
                Copy::Promote => {
                    let request =
                        UpdatePersistentCacheTaskRequest { task_id, persistent: true, remote_ip: None };
                    let call = timeout(SEED_SILENCE, client.update_persistent_cache_task(request));
                    call.await.map_err(silent)?.map_err(failed)?;
                }
                Copy::Delete => {
                    let request = DeletePersistentCacheTaskRequest { task_id, remote_ip: None };
                    let call = timeout(SEED_SILENCE, client.delete_persistent_cache_task(request));
                    call.await.map_err(silent)?.map_err(failed)?;
                }
            }
            Ok(())
        })
    }

    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let _permit = self.calls.acquire().await;
            let Ok(channel) = connect(address).await else { return false };
            let mut client = HealthClient::new(channel);
            let check = client.check(HealthCheckRequest { service: String::new() });
            let answer = timeout(HEALTH, check).await;
            answer.is_ok_and(|answer| {
                answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving)
            })
        })
    }
}
