use std::time::Duration;

use damselfly_api::dfdaemon::v2::dfdaemon_upload_server::{DfdaemonUpload, DfdaemonUploadServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use damselfly_api::dfdaemon::v2::SyncPiecesResponse;

use super::*;
use crate::testing::{daemon, key};

const SOON: Duration = Duration::from_secs(20);

type Told = mpsc::Sender<Result<SyncPiecesResponse, Status>>;

/// A parent whose words the test puts into its mouth.
struct Puppet(mpsc::Sender<Told>);

#[tonic::async_trait]
impl DfdaemonUpload for Puppet {
    async fn sync_pieces(
        &self,
        _: Request<SyncPiecesRequest>,
    ) -> Result<Response<BoxStream<SyncPiecesResponse>>, Status> {
        let (tx, rx) = mpsc::channel(64);
        self.0.send(tx).await.map_err(|_| Status::internal("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

type Heard = (FromParent, Option<SocketAddr>);

/// A supervisor that passes on what it hears.
struct Scribe;

impl Actor for Scribe {
    type Msg = TaskMsg;
    type State = mpsc::Sender<Heard>;
    type Arguments = Self::State;

    async fn pre_start(
        &self,
        _: ActorRef<TaskMsg>,
        heard: Self::State,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(heard)
    }

    async fn handle(
        &self,
        _: ActorRef<TaskMsg>,
        message: TaskMsg,
        heard: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let TaskMsg::Parent(_, what, vortex) = message {
            heard.send((what, vortex)).await?;
        }
        Ok(())
    }
}

struct Stage {
    home: tempfile::TempDir,
    daemon: crate::daemon::Daemon,
    calls: mpsc::Receiver<Told>,
    heard: mpsc::Receiver<Heard>,
    watch: ActorRef<()>,
}

async fn stage(yaml: &str, interest: Vec<u32>) -> Stage {
    let (home, daemon) = daemon(yaml).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let grpc = listener.local_addr().unwrap();
    let (calling, calls) = mpsc::channel(4);
    let server = tonic::transport::Server::builder()
        .add_service(DfdaemonUploadServer::new(Puppet(calling)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    let (hearing, heard) = mpsc::channel(64);
    let (supervisor, _) = Actor::spawn(None, Scribe, hearing).await.unwrap();
    let args = WatchArgs {
        engine: Arc::clone(daemon.engine()),
        task: key('a'),
        parent: Parent {
            id: "parent".into(),
            host: "host".into(),
            grpc,
            vortex: None,
            ours: false,
            complete: false,
        },
        interest,
        geometry: Geometry::new(10, 1).ok(),
        supervisor: supervisor.clone(),
        seat: daemon.engine().board.sit("watch"),
    };
    let (watch, _) = Actor::spawn(None, ParentWatch, args).await.unwrap();
    Stage { home, daemon, calls, heard, watch }
}

impl Stage {
    async fn call(&mut self) -> Told {
        tokio::time::timeout(SOON, self.calls.recv()).await.unwrap().unwrap()
    }

    async fn hear(&mut self) -> Heard {
        tokio::time::timeout(SOON, self.heard.recv()).await.unwrap().unwrap()
    }

    async fn end(self) {
        self.daemon.kill().await;
        drop(self.home);
    }
}

fn piece(number: u32) -> Result<SyncPiecesResponse, Status> {
    Ok(SyncPiecesResponse {
        number,
        offset: number.into(),
        length: 1,
        ip: "10.0.0.9".to_owned(),
        tcp_port: Some(4005),
        quic_port: None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_piece_is_passed_on_once_with_the_place_where_it_is_served() {
    let mut stage = stage("", vec![0, 1, 2]).await;
    let call = stage.call().await;
    call.send(piece(1)).await.unwrap();
    let place = Some("10.0.0.9:4005".parse().unwrap());
    assert_eq!(stage.hear().await, (FromParent::Has(vec![1]), place));
    for number in [1, 1, 7, 1, 2] {
        call.send(piece(number)).await.unwrap();
    }
    assert_eq!(stage.hear().await, (FromParent::Has(vec![2]), place));
    drop(call);
    assert_eq!(stage.hear().await, (FromParent::Ended, None));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_whose_pieces_lie_elsewhere_is_told_of() {
    let mut stage = stage("", vec![0]).await;
    let call = stage.call().await;
    call.send(piece(0).map(|piece| SyncPiecesResponse { offset: 5, ..piece })).await.unwrap();
    assert!(matches!(stage.hear().await.0, FromParent::Mismatch(_)));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_fails_or_falls_silent_is_lost() {
    let mut broken = stage("", vec![0]).await;
    broken.call().await.send(Err(Status::internal("task failed"))).await.unwrap();
    assert_eq!(broken.hear().await.0, FromParent::Lost("SyncPieces: task failed".to_owned()));
    broken.end().await;

    let mut silent = stage("download: {collectedPieceTimeout: 50ms}", vec![0]).await;
    let _call = silent.call().await;
    let (FromParent::Lost(why), _) = silent.hear().await else { panic!() };
    assert!(why.contains("no word of a piece"), "{why}");
    silent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_watch_hangs_up() {
    let mut stage = stage("", vec![0, 1]).await;
    let call = stage.call().await;
    call.send(piece(0)).await.unwrap();
    stage.hear().await;
    stage.watch.kill();
    tokio::time::timeout(SOON, call.closed()).await.unwrap();
    stage.end().await;
}
