//! Daemons made of their crate at our scheduler, with persistent cache tasks: import, export, what is ordered of them, and
//! that every answer is one that Dragonfly's validation would let pass.

use std::time::Duration;

use damselfly_api::scheduler::v2::scheduler_client::SchedulerClient as OurClient;
use damselfly_conformance::parent::{Order, TheirParent};
use damselfly_conformance::{TASK, channel, rules};
use damselfly_tests::Pattern;
use damselfly_tests::swarm::TestScheduler;
use dragonfly_api::common::v2::{PersistentCachePeer, PersistentCacheTask, Piece};
use dragonfly_api::scheduler::v2::announce_persistent_cache_peer_request::Request as Ask;
use dragonfly_api::scheduler::v2::announce_persistent_cache_peer_response::Response as Say;
use dragonfly_api::scheduler::v2::scheduler_client::SchedulerClient;
use dragonfly_api::scheduler::v2::{
    AnnounceHostRequest, AnnouncePersistentCachePeerRequest, AnnouncePersistentCachePeerResponse,
    DeleteHostRequest, DeletePersistentCachePeerRequest, DeletePersistentCacheTaskRequest,
    DownloadPersistentCachePeerFailedRequest, DownloadPersistentCachePeerFinishedRequest,
    DownloadPersistentCachePeerStartedRequest, DownloadPieceFailedRequest, DownloadPieceFinishedRequest,
    RegisterPersistentCachePeerRequest, ReschedulePersistentCachePeerRequest, StatPersistentCachePeerRequest,
    StatPersistentCacheTaskRequest, UploadPersistentCacheTaskFailedRequest,
    UploadPersistentCacheTaskFinishedRequest, UploadPersistentCacheTaskStartedRequest,
};
use prost_wkt_types::{Duration as Span, Timestamp};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// As long as Dragonfly's daemons wait for headers, which Go's servers send with the first message.
const FIRST: Duration = Duration::from_secs(10);
const PIECE: u64 = 4 << 20;
const CONTENT: Pattern = Pattern { seed: 7, length: 2 * PIECE + 1 };
const COUNT: u32 = 3;

/// A daemon: its server for orders, and its channel to the scheduler.
struct Daemon {
    client: SchedulerClient<Channel>,
    server: TheirParent,
    host: String,
}

impl Daemon {
    async fn announced(scheduler: &TestScheduler, name: &str) -> Self {
        let server = TheirParent::named(name, CONTENT).await;
        let mut client = SchedulerClient::new(channel(scheduler.addr()).await);
        let interval = Some(Span { seconds: 300, nanos: 0 });
        let host = server.host();
        let id = host.id.clone();
        client.announce_host(AnnounceHostRequest { host: Some(host), interval }).await.unwrap();
        Self { client, server, host: id }
    }

    fn peer(&self) -> String {
        format!("{}-peer", self.host)
    }

    fn started(&self, replicas: u64) -> UploadPersistentCacheTaskStartedRequest {
        UploadPersistentCacheTaskStartedRequest {
            host_id: self.host.clone(),
            task_id: TASK.to_owned(),
            peer_id: self.peer(),
            persistent_replica_count: replicas,
            tag: Some("tag".to_owned()),
            application: Some("app".to_owned()),
            piece_length: PIECE,
            content_length: CONTENT.length,
            piece_count: COUNT,
            ttl: Some(Span { seconds: 3600, nanos: 0 }),
        }
    }

    async fn start(&mut self, request: UploadPersistentCacheTaskStartedRequest) -> Result<(), Status> {
        self.client.upload_persistent_cache_task_started(request).await.map(drop)
    }

    async fn finish(&mut self) -> Result<PersistentCacheTask, Status> {
        let request = UploadPersistentCacheTaskFinishedRequest {
            host_id: self.host.clone(),
            task_id: TASK.to_owned(),
            peer_id: self.peer(),
        };
        let task = self.client.upload_persistent_cache_task_finished(request).await?.into_inner();
        rules::cache_task(&task).unwrap_or_else(|rule| panic!("{rule} missing or wrong in {task:?}"));
        Ok(task)
    }

    async fn import(&mut self, replicas: u64) {
        self.start(self.started(replicas)).await.unwrap();
        self.finish().await.unwrap();
    }

    async fn stat(&mut self) -> Result<PersistentCacheTask, Status> {
        let request = StatPersistentCacheTaskRequest { host_id: self.host.clone(), task_id: TASK.to_owned() };
        let task = self.client.stat_persistent_cache_task(request).await?.into_inner();
        rules::cache_task(&task).unwrap_or_else(|rule| panic!("{rule} missing or wrong in {task:?}"));
        Ok(task)
    }

    async fn stat_peer(&mut self) -> Result<PersistentCachePeer, Status> {
        let request = StatPersistentCachePeerRequest {
            host_id: self.host.clone(),
            task_id: TASK.to_owned(),
            peer_id: self.peer(),
        };
        let peer = self.client.stat_persistent_cache_peer(request).await?.into_inner();
        rules::cache_peer(&peer).unwrap_or_else(|rule| panic!("{rule} missing or wrong in {peer:?}"));
        Ok(peer)
    }

    async fn delete(&mut self) -> Result<(), Status> {
        let request =
            DeletePersistentCacheTaskRequest { host_id: self.host.clone(), task_id: TASK.to_owned() };
        self.client.delete_persistent_cache_task(request).await.map(drop)
    }

    /// Registers, waiting for headers as long as Dragonfly's daemons do.
    async fn register(&mut self, persistent: bool) -> Result<Dialogue, Status> {
        let (requests, stream) = mpsc::channel(100);
        let (host, peer) = (self.host.clone(), self.peer());
        let register = Ask::RegisterPersistentCachePeerRequest(RegisterPersistentCachePeerRequest {
            persistent,
            tag: Some(String::new()),
            application: Some(String::new()),
            piece_length: PIECE,
            output_path: (!persistent).then(|| "/tmp/out".to_owned()),
            concurrent_piece_count: Some(8),
            piece_count: COUNT.into(),
        });
        requests.send(message(&host, &peer, register)).await.unwrap();
        let call = self.client.announce_persistent_cache_peer(ReceiverStream::new(stream));
        let responses = timeout(FIRST, call).await.expect("headers in time")?.into_inner();
        Ok(Dialogue { requests, responses, host, peer })
    }

    /// Makes a copy as a Dragonfly daemon does, and returns the parents that it was offered.
    async fn copy(&mut self, persistent: bool) -> Vec<PersistentCachePeer> {
        let mut dialogue = self.register(persistent).await.unwrap();
        let parents = dialogue.parents().await;
        dialogue.fetch(&parents[0]).await;
        parents
    }

    /// The order for a copy that comes next, carried out.
    async fn makes_its_replica(&mut self) {
        let Order::Download(request, responses) = self.server.order().await else { panic!("no download") };
        assert_eq!((request.task_id.as_str(), request.persistent), (TASK, true));
        assert_eq!((request.tag.as_deref(), request.application.as_deref()), (Some("tag"), Some("app")));
        assert!(request.output_path.is_none() && !request.need_piece_content);
        self.copy(true).await;
        drop(responses);
        assert_eq!(self.stat().await.unwrap().current_persistent_replica_count, 2);
    }
}

fn message(host: &str, peer: &str, request: Ask) -> AnnouncePersistentCachePeerRequest {
    let message = AnnouncePersistentCachePeerRequest {
        host_id: host.to_owned(),
        task_id: TASK.to_owned(),
        peer_id: peer.to_owned(),
        request: Some(request),
    };
    rules::cache_request(&message).expect("the test speaks properly");
    message
}

/// One announce stream.
struct Dialogue {
    requests: mpsc::Sender<AnnouncePersistentCachePeerRequest>,
    responses: Streaming<AnnouncePersistentCachePeerResponse>,
    host: String,
    peer: String,
}

impl Dialogue {
    async fn say(&self, request: Ask) {
        self.requests.send(message(&self.host, &self.peer, request)).await.unwrap();
    }

    async fn started(&self) {
        self.say(Ask::DownloadPersistentCachePeerStartedRequest(
            DownloadPersistentCachePeerStartedRequest {},
        ))
        .await;
    }

    async fn next(&mut self) -> Result<Option<Say>, Status> {
        let Some(message) = timeout(FIRST, self.responses.message()).await.expect("an answer in time")?
        else {
            return Ok(None);
        };
        rules::cache_response(&message)
            .unwrap_or_else(|rule| panic!("{rule} missing or wrong in {message:?}"));
        Ok(message.response)
    }

    async fn parents(&mut self) -> Vec<PersistentCachePeer> {
        match self.next().await.unwrap().expect("an answer") {
            Say::NormalPersistentCacheTaskResponse(normal) => normal.candidate_cache_parents,
            other => panic!("{other:?}"),
        }
    }

    /// From Started to the end of the stream.
    async fn fetch(mut self, parent: &PersistentCachePeer) {
        self.started().await;
        for number in 0..COUNT {
            let piece = Some(Piece {
                number,
                parent_id: Some(parent.id.clone()),
                offset: u64::from(number) * PIECE,
                length: PIECE.min(CONTENT.length - u64::from(number) * PIECE),
                digest: format!("crc32:{}", 907_060_870 + number),
                traffic_type: Some(1),
                cost: Some(Span { seconds: 0, nanos: 5_000_000 }),
                created_at: Some(Timestamp { seconds: 1_700_000_000, nanos: 0 }),
                ..Piece::default()
            });
            self.say(Ask::DownloadPieceFinishedRequest(DownloadPieceFinishedRequest { piece })).await;
        }
        self.say(Ask::DownloadPersistentCachePeerFinishedRequest(
            DownloadPersistentCachePeerFinishedRequest {},
        ))
        .await;
        assert_eq!(self.next().await.unwrap(), None, "the stream ends well, without a word unasked");
    }
}

/// Why a registration is refused, at once or on the stream.
async fn refusal(registered: Result<Dialogue, Status>) -> Status {
    match registered {
        Err(status) => status,
        Ok(mut dialogue) => dialogue.next().await.unwrap_err(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_daemon_imports_and_another_exports() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    let mut b = Daemon::announced(&scheduler, "b").await;
    assert_eq!(a.stat().await.unwrap_err().code(), Code::NotFound);
    assert_eq!(refusal(b.register(false).await).await.code(), Code::NotFound);

    a.start(a.started(1)).await.unwrap();
    let uploading = b.stat().await.unwrap();
    assert_eq!((uploading.state.as_str(), uploading.current_persistent_replica_count), ("Uploading", 0));
    let taken = b.start(b.started(1)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken:?}");
    let task = a.finish().await.unwrap();
    assert_eq!((task.id.as_str(), task.state.as_str()), (TASK, "Succeeded"));
    assert_eq!((task.content_length, task.piece_length, task.piece_count), (CONTENT.length, PIECE, COUNT));
    assert_eq!((task.tag.as_deref(), task.application.as_deref()), (Some("tag"), Some("app")));
    assert_eq!((task.ttl.unwrap().seconds, task.persistent_replica_count), (3600, 1));
    assert_eq!((task.current_persistent_replica_count, task.current_replica_count), (1, 1));
    let taken = b.start(b.started(1)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken:?}");

    let parents = b.copy(false).await;
    assert_eq!(parents.len(), 1);
    let host = parents[0].host.as_ref().unwrap();
    assert_eq!((parents[0].id.as_str(), host.port), (a.peer().as_str(), a.server.host().port));
    let (theirs, mine) = (a.stat_peer().await.unwrap(), b.stat_peer().await.unwrap());
    assert_eq!((theirs.state.as_str(), theirs.persistent), ("Succeeded", true));
    assert_eq!((mine.state.as_str(), mine.persistent), ("Succeeded", false));
    assert!(parents[0].persistent && parents[0].task.as_ref().unwrap().content_length == CONTENT.length);
    let task = b.stat().await.unwrap();
    assert_eq!((task.current_persistent_replica_count, task.current_replica_count), (1, 2));
    // dfcache export has a tag and an application of its own, which are empty.
    assert_eq!((task.tag.as_deref(), task.application.as_deref()), (Some("tag"), Some("app")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_import_leaves_the_id_free() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    let mut b = Daemon::announced(&scheduler, "b").await;
    a.start(a.started(1)).await.unwrap();
    let failed = UploadPersistentCacheTaskFailedRequest {
        host_id: a.host.clone(),
        task_id: TASK.to_owned(),
        peer_id: a.peer(),
        description: Some("disk full".to_owned()),
    };
    a.client.upload_persistent_cache_task_failed(failed).await.unwrap();
    assert_eq!(a.stat().await.unwrap_err().code(), Code::NotFound);
    assert_ne!(a.finish().await.unwrap_err().code(), Code::Ok);
    b.import(1).await;
    assert_eq!(b.stat().await.unwrap().current_persistent_replica_count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_that_their_scheduler_would_refuse_are_refused() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    let good = a.started(1);
    let wrong = [
        UploadPersistentCacheTaskStartedRequest { host_id: String::new(), ..good.clone() },
        UploadPersistentCacheTaskStartedRequest { task_id: String::new(), ..good.clone() },
        UploadPersistentCacheTaskStartedRequest { peer_id: String::new(), ..good.clone() },
        UploadPersistentCacheTaskStartedRequest { persistent_replica_count: 0, ..good.clone() },
        UploadPersistentCacheTaskStartedRequest { piece_length: PIECE - 1, ..good.clone() },
        UploadPersistentCacheTaskStartedRequest { ttl: None, ..good.clone() },
    ];
    for request in wrong {
        assert!(rules::upload(&request).is_err(), "{request:?}");
        let refused = a.start(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{request:?}: {refused:?}");
    }
    let stranger =
        UploadPersistentCacheTaskStartedRequest { host_id: "127.0.0.1-stranger".to_owned(), ..good.clone() };
    assert_eq!(a.start(stranger).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(a.stat().await.unwrap_err().code(), Code::NotFound);
    a.start(good).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_content_has_no_parents() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    let mut b = Daemon::announced(&scheduler, "b").await;
    let empty = UploadPersistentCacheTaskStartedRequest { content_length: 0, piece_count: 0, ..a.started(1) };
    a.start(empty).await.unwrap();
    let task = a.finish().await.unwrap();
    assert_eq!((task.content_length, task.current_persistent_replica_count), (0, 1));
    let mut dialogue = b.register(false).await.unwrap();
    assert!(matches!(dialogue.next().await.unwrap(), Some(Say::EmptyPersistentCacheTaskResponse(_))));
    dialogue.started().await;
    let finished = DownloadPersistentCachePeerFinishedRequest {};
    dialogue.say(Ask::DownloadPersistentCachePeerFinishedRequest(finished)).await;
    assert_eq!(dialogue.next().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_parent_is_not_offered_again() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    let mut b = Daemon::announced(&scheduler, "b").await;
    let mut c = Daemon::announced(&scheduler, "c").await;
    a.import(1).await;
    let mut dialogue = b.register(false).await.unwrap();
    let parents = dialogue.parents().await;
    dialogue.started().await;
    let failed = DownloadPieceFailedRequest {
        piece_number: Some(0),
        parent_id: parents[0].id.clone(),
        temporary: true,
    };
    dialogue.say(Ask::DownloadPieceFailedRequest(failed)).await;
    c.copy(false).await;
    let description = Some("not all pieces are downloaded from parent".to_owned());
    let again = ReschedulePersistentCachePeerRequest { candidate_parents: parents, description };
    dialogue.say(Ask::ReschedulePersistentCachePeerRequest(again)).await;
    let parents = dialogue.parents().await;
    assert_eq!(parents.iter().map(|peer| peer.id.clone()).collect::<Vec<_>>(), [c.peer()]);
    // It says Started a second time, which Go's scheduler refuses.
    dialogue.fetch(&parents[0]).await;

    // Giving up ends the stream as well.
    let mut d = Daemon::announced(&scheduler, "d").await;
    let mut dialogue = d.register(false).await.unwrap();
    dialogue.parents().await;
    let failed = DownloadPersistentCachePeerFailedRequest { description: Some("no".to_owned()) };
    dialogue.say(Ask::DownloadPersistentCachePeerFailedRequest(failed)).await;
    assert_eq!(dialogue.next().await.unwrap(), None);
    assert_eq!(d.stat().await.unwrap().current_replica_count, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_ordered_of_daemons_and_made_anew_when_one_leaves() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    let mut b = Daemon::announced(&scheduler, "b").await;
    a.import(2).await;
    b.makes_its_replica().await;
    assert!(b.stat_peer().await.unwrap().persistent);

    let mut c = Daemon::announced(&scheduler, "c").await;
    assert!(!c.server.is_ordered().await, "there are enough");
    c.client.delete_host(DeleteHostRequest { host_id: a.host.clone() }).await.unwrap();
    c.makes_its_replica().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_made_anew_when_its_peer_is_deleted() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    a.import(2).await;
    let mut b = Daemon::announced(&scheduler, "b").await;
    b.makes_its_replica().await;
    let request = DeletePersistentCachePeerRequest {
        host_id: b.host.clone(),
        task_id: TASK.to_owned(),
        peer_id: b.peer(),
    };
    b.client.delete_persistent_cache_peer(request).await.unwrap();
    b.makes_its_replica().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_there_becomes_the_replica() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    let mut b = Daemon::announced(&scheduler, "b").await;
    let c = Daemon::announced(&scheduler, "c").await;
    a.import(1).await;
    b.copy(false).await;
    // Imported once more where it is, it is to be kept twice.
    a.import(2).await;
    let Order::Update(update) = b.server.order().await else { panic!("another order") };
    assert_eq!((update.task_id.as_str(), update.persistent), (TASK, true));
    // Our own importers can wait for replicas.
    let waiting = damselfly_api::scheduler::v2::UploadPersistentCacheTaskFinishedRequest {
        host_id: a.host.clone(),
        task_id: TASK.to_owned(),
        peer_id: a.peer(),
        ack: 2,
        crcs: Vec::new(),
        generation: 0,
    };
    let mut ours = OurClient::new(channel(scheduler.addr()).await);
    let task = ours.upload_persistent_cache_task_finished(waiting).await.unwrap().into_inner();
    assert_eq!(task.current_persistent_replica_count, 2);
    assert!(!c.server.is_ordered().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_is_ordered_of_everybody_who_has_a_copy() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    let mut b = Daemon::announced(&scheduler, "b").await;
    let c = Daemon::announced(&scheduler, "c").await;
    assert_eq!(b.delete().await.unwrap_err().code(), Code::NotFound);
    a.import(1).await;
    b.copy(false).await;
    b.delete().await.unwrap();
    for daemon in [&a, &b] {
        let Order::Delete(delete) = daemon.server.order().await else { panic!("another order") };
        assert_eq!(delete.task_id, TASK);
    }
    assert!(!c.server.is_ordered().await);
    for daemon in [&mut a, &mut b] {
        assert_eq!(daemon.stat().await.unwrap_err().code(), Code::NotFound);
        assert_eq!(refusal(daemon.register(false).await).await.code(), Code::NotFound);
    }
    b.import(1).await;
    assert_eq!(a.copy(false).await[0].id, b.peer());
}
