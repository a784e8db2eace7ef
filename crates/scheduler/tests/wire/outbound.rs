//! The calls that a scheduler makes.

use std::net::SocketAddr;
use std::sync::Arc;

use damselfly_api::common::v2::Download;
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_core::TaskId;
use damselfly_scheduler::machine::Copy;
use damselfly_scheduler::service::{CopyCall, GrpcOutbound, Outbound, OutboundError};
use dfdaemon::dfdaemon_upload_server::{DfdaemonUpload, DfdaemonUploadServer};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tonic::codegen::BoxStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::kit::{TASK, download};

/// What a daemon was asked about its copy of a persistent cache task.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Asked {
    Fetch(dfdaemon::DownloadPersistentCacheTaskRequest),
    Update(dfdaemon::UpdatePersistentCacheTaskRequest),
    Delete(dfdaemon::DeletePersistentCacheTaskRequest),
}

/// A daemon that remembers what it was asked.
#[derive(Clone, Default)]
pub(crate) struct Seed {
    pub(crate) asked: Arc<Mutex<Vec<Download>>>,
    pub(crate) copies: Arc<Mutex<Vec<Asked>>>,
    pub(crate) fail: bool,
}

impl Seed {
    fn answer(&self, asked: Asked) -> Result<(), Status> {
        self.copies.lock().push(asked);
        if self.fail { Err(Status::internal("disk full")) } else { Ok(()) }
    }
}

#[tonic::async_trait]
impl DfdaemonUpload for Seed {
    async fn download_task(
        &self,
        request: Request<dfdaemon::DownloadTaskRequest>,
    ) -> Result<Response<BoxStream<dfdaemon::DownloadTaskResponse>>, Status> {
        self.asked.lock().extend(request.into_inner().download);
        let mut answers = vec![Ok(dfdaemon::DownloadTaskResponse::default())];
        if self.fail {
            answers.push(Err(Status::internal("disk full")));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    async fn download_persistent_cache_task(
        &self,
        request: Request<dfdaemon::DownloadPersistentCacheTaskRequest>,
    ) -> Result<Response<BoxStream<dfdaemon::DownloadPersistentCacheTaskResponse>>, Status> {
        let ended = self.answer(Asked::Fetch(request.into_inner()));
        let started = Ok(dfdaemon::DownloadPersistentCacheTaskResponse::default());
        let answers = [started].into_iter().chain(ended.err().map(Err));
        Ok(Response::new(Box::pin(tokio_stream::iter(answers.collect::<Vec<_>>()))))
    }

    async fn update_persistent_cache_task(
        &self,
        request: Request<dfdaemon::UpdatePersistentCacheTaskRequest>,
    ) -> Result<Response<()>, Status> {
        self.answer(Asked::Update(request.into_inner())).map(Response::new)
    }

    async fn delete_persistent_cache_task(
        &self,
        request: Request<dfdaemon::DeletePersistentCacheTaskRequest>,
    ) -> Result<Response<()>, Status> {
        self.answer(Asked::Delete(request.into_inner())).map(Response::new)
    }
}

pub(crate) async fn serve(seed: Seed) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder()
        .add_service(DfdaemonUploadServer::new(seed))
        .add_service(health)
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);
    address
}

/// An address where nobody listens.
async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_seed_is_asked_and_followed_to_the_end() {
    let seed = Seed::default();
    let address = serve(seed.clone()).await;
    GrpcOutbound::default().trigger_seed(address, download()).await.unwrap();
    assert_eq!(seed.asked.lock()[..], [download()]);
}

#[tokio::test]
async fn a_seeds_failure_and_absence_are_told_apart() {
    let outbound = GrpcOutbound::default();
    let address = serve(Seed { fail: true, ..Seed::default() }).await;
    let failed = outbound.trigger_seed(address, download()).await.unwrap_err();
    assert!(matches!(failed, OutboundError::Failed { .. }), "{failed}");
    let absent = outbound.trigger_seed(nowhere().await, download()).await.unwrap_err();
    assert!(matches!(absent, OutboundError::Connect { .. }), "{absent}");
}

#[tokio::test]
async fn a_probe_finds_the_living() {
    let outbound = GrpcOutbound::default();
    assert!(outbound.probe(serve(Seed::default()).await).await);
    assert!(!outbound.probe(nowhere().await).await);
}

#[tokio::test]
async fn a_copy_is_fetched_kept_and_deleted_as_dragonfly_knows_it() {
    let (outbound, daemon) = (GrpcOutbound::default(), Seed::default());
    let call = |copy| CopyCall { task: TaskId::parse(TASK).unwrap(), copy };
    let fetch = || Copy::Fetch { tag: Some("t".to_owned()), application: Some("app".to_owned()) };
    let address = serve(daemon.clone()).await;
    for copy in [fetch(), Copy::Promote, Copy::Delete] {
        outbound.copy(address, call(copy)).await.unwrap();
    }
    let task_id = || TASK.to_owned();
    let expected = [
        Asked::Fetch(dfdaemon::DownloadPersistentCacheTaskRequest {
            task_id: task_id(),
            persistent: true,
            tag: Some("t".to_owned()),
            application: Some("app".to_owned()),
            ..Default::default()
        }),
        Asked::Update(dfdaemon::UpdatePersistentCacheTaskRequest {
            task_id: task_id(),
            persistent: true,
            remote_ip: None,
        }),
        Asked::Delete(dfdaemon::DeletePersistentCacheTaskRequest { task_id: task_id(), remote_ip: None }),
    ];
    assert_eq!(daemon.copies.lock()[..], expected);
    let address = serve(Seed { fail: true, ..Seed::default() }).await;
    for copy in [fetch(), Copy::Promote, Copy::Delete] {
        let failed = outbound.copy(address, call(copy)).await.unwrap_err();
        assert!(matches!(failed, OutboundError::Failed { .. }), "{failed}");
    }
}
