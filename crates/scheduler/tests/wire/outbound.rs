//! The calls that a scheduler makes.

use std::net::SocketAddr;
use std::sync::Arc;

use damselfly_api::common::v2::Download;
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_scheduler::service::{GrpcOutbound, Outbound, OutboundError};
use dfdaemon::dfdaemon_upload_server::{DfdaemonUpload, DfdaemonUploadServer};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tonic::codegen::BoxStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::kit::download;

#[derive(Clone, Default)]
struct Seed {
    asked: Arc<Mutex<Vec<Download>>>,
    fail: bool,
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
}

async fn serve(seed: Seed) -> SocketAddr {
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
