//! Clients that may not ask the origin, at a scheduler that is Dragonfly's.

use std::net::SocketAddr;

use damselfly_api::common::v2 as common;
use damselfly_api::scheduler::v2::announce_peer_response::Response as Say;
use damselfly_api::scheduler::v2::scheduler_server::{Scheduler, SchedulerServer};
use damselfly_api::scheduler::v2::{
    AnnounceHostRequest, AnnouncePeerResponse, NormalTaskResponse, StatTaskRequest,
};
use damselfly_core::download::LostClient;
use damselfly_core::{Crc, Geometry, PieceSet, RangeSpec, TaskKey};
use damselfly_storage::{Facts, NewTask};
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::codegen::BoxStream;
use tonic::{Response, Status, Streaming};

use super::*;
use crate::config::Overrides;
use crate::daemon::{Daemon, DaemonOptions};
use crate::progress::ProgressEvent;
use crate::task::request::OriginRequest;
use crate::tasks::{ASK, TasksMsg, Wish};
use crate::testing::{self, daemon, key};

const SOON: Duration = Duration::from_secs(20);
const CONTENT: &[u8] = b"a short content";

/// Knows one task at most, names one parent, and writes down the lengths it is told.
struct Theirs {
    task: Option<common::Task>,
    parent: common::Peer,
    told: mpsc::Sender<Option<u64>>,
}

#[tonic::async_trait]
impl Scheduler for Theirs {
    async fn announce_host(&self, _: tonic::Request<AnnounceHostRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn stat_task(&self, _: tonic::Request<StatTaskRequest>) -> Result<Response<common::Task>, Status> {
        self.task.clone().map(Response::new).ok_or_else(|| Status::not_found("task not found"))
    }

    async fn announce_peer(
        &self,
        request: tonic::Request<Streaming<AnnouncePeerRequest>>,
    ) -> Result<Response<BoxStream<AnnouncePeerResponse>>, Status> {
        let (mut requests, told, parent) = (request.into_inner(), self.told.clone(), self.parent.clone());
        let (answers, stream) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok(Some(AnnouncePeerRequest { request: Some(request), .. })) = requests.message().await
            {
                match request {
                    Request::RegisterPeerRequest(register) => {
                        told.send(register.download.unwrap().actual_content_length).await.unwrap();
                        let normal = NormalTaskResponse { candidate_parents: vec![parent.clone()] };
                        let response = Some(Say::NormalTaskResponse(normal));
                        drop(answers.send(Ok(AnnouncePeerResponse { response, ..Default::default() })).await);
                    }
                    Request::DownloadPeerFinishedRequest(_) | Request::DownloadPeerFailedRequest(_) => break,
                    _ => {}
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

async fn serve(theirs: Theirs) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder()
        .add_service(SchedulerServer::new(theirs))
        .add_service(health)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

/// A daemon that joins a scheduler elsewhere.
async fn joined(scheduler: SocketAddr) -> (tempfile::TempDir, Daemon) {
    let home = tempfile::tempdir().unwrap();
    let overrides = Overrides {
        join: vec![scheduler.to_string()],
        hostname: Some("child".to_owned()),
        ..Overrides::default()
    };
    let config = testing::config("", home.path(), overrides);
    let daemon = Daemon::start(config, DaemonOptions::default()).await.unwrap();
    daemon.engine().cluster.ready().await;
    (home, daemon)
}

/// Puts the whole content into a daemon's store, and says how Dragonfly's scheduler names that daemon.
fn holds_all(parent: &Daemon, key: &TaskKey) -> common::Peer {
    let content = parent.engine().store.get_or_create(key, NewTask::default()).unwrap();
    let geometry = Geometry::derived(CONTENT.len() as u64).unwrap();
    content.set_facts(Facts { geometry: Some(geometry), ..Facts::default() }).unwrap();
    content.reserve(&PieceSet::full(1)).unwrap();
    let mut slot = content.slot(0).unwrap();
    slot.write_at(0, CONTENT).unwrap();
    slot.commit(Crc::of(CONTENT)).unwrap();
    let host = common::Host {
        id: "127.0.0.1-parent".to_owned(),
        ip: "127.0.0.1".to_owned(),
        port: parent.ports().grpc.port().into(),
        ..common::Host::default()
    };
    common::Peer { id: "parent".to_owned(), host: Some(host), ..common::Peer::default() }
}

/// Downloads without leave to ask the origin, to the end.
async fn download(daemon: &Daemon, key: &TaskKey) -> ProgressEvent {
    let content = daemon.engine().store.get_or_create(key, NewTask::default()).unwrap();
    let wish = Box::new(Wish {
        range: RangeSpec::Whole,
        may_use_origin: false,
        deadline: None,
        request: Some(Arc::new(OriginRequest {
            url: url::Url::parse("http://127.0.0.1:1/x").unwrap(),
            headers: Vec::new(),
            piece_length: None,
        })),
        download: Arc::new(common::Download { url: "http://127.0.0.1:1/x".to_owned(), ..Default::default() }),
    });
    let tasks = &daemon.engine().tasks;
    let mut member = tasks.ask(ASK, |reply| TasksMsg::Join(content, wish, reply)).await.unwrap().unwrap();
    let end = async {
        loop {
            let event = member.events.next().await;
            if matches!(event, ProgressEvent::Ready(..) | ProgressEvent::Failed(..)) {
                return event;
            }
        }
    };
    tokio::time::timeout(SOON, end).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_the_scheduler_knows_is_fetched_from_its_peers() {
    let (_parents_home, parent) = daemon("").await;
    let key = key('b');
    let peer = holds_all(&parent, &key);
    let (told, mut lengths) = mpsc::channel(8);
    let task = common::Task { content_length: CONTENT.len() as u64, piece_count: 1, ..Default::default() };
    let scheduler = serve(Theirs { task: Some(task), parent: peer, told }).await;
    let (_home, child) = joined(scheduler).await;
    let end = download(&child, &key).await;
    assert!(matches!(end, ProgressEvent::Ready(..)), "{end:?}");
    let content = child.engine().store.get(&key).unwrap();
    assert_eq!(content.crc(0), Some(Crc::of(CONTENT)));
    assert_eq!(lengths.recv().await, Some(Some(CONTENT.len() as u64)), "registered with the length");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_the_scheduler_does_not_know_is_not_registered_without_its_length() {
    let (told, mut lengths) = mpsc::channel(8);
    let scheduler = serve(Theirs { task: None, parent: common::Peer::default(), told }).await;
    let (_home, child) = joined(scheduler).await;
    let end = download(&child, &key('c')).await;
    let ProgressEvent::Failed(_, LostClient::NoSource(why)) = end else { panic!("{end:?}") };
    assert!(why.contains("does not know the content's length"), "{why}");
    assert!(lengths.try_recv().is_err(), "a task without a length would be wrong for everybody");
}
