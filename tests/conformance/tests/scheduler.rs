//! A daemon made of their crate at our scheduler: the dialogues of Dragonfly's daemons, and that every answer is one
//! that Dragonfly's validation would let pass.

use std::time::Duration;

use damselfly_conformance::{TASK, channel, rules};
use damselfly_tests::swarm::TestScheduler;
use dragonfly_api::common::v2::{Download, Host, Network, Peer, Piece};
use dragonfly_api::scheduler::v2::announce_peer_request::Request as Ask;
use dragonfly_api::scheduler::v2::announce_peer_response::Response as Say;
use dragonfly_api::scheduler::v2::scheduler_client::SchedulerClient;
use dragonfly_api::scheduler::v2::{
    AnnounceHostRequest, AnnouncePeerRequest, DeleteHostRequest, DeleteTaskRequest,
    DownloadPeerBackToSourceFinishedRequest, DownloadPeerBackToSourceStartedRequest,
    DownloadPeerFinishedRequest, DownloadPeerStartedRequest, DownloadPieceBackToSourceFinishedRequest,
    DownloadPieceFinishedRequest, ListHostsRequest, RegisterPeerRequest, ReschedulePeerRequest,
    StatPeerRequest, StatTaskRequest,
};
use prost_wkt_types::{Duration as Span, Timestamp};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Go's servers send headers with the first message, so Dragonfly's daemons wait that long for it.
const FIRST: Duration = Duration::from_secs(10);
const PIECE: u64 = 4 << 20;
const COUNT: u32 = 3;

struct Daemon {
    client: SchedulerClient<Channel>,
    host: String,
}

fn host(name: &str) -> Host {
    Host {
        id: format!("127.0.0.1-{name}"),
        hostname: name.to_owned(),
        ip: "127.0.0.1".to_owned(),
        port: 4000,
        download_port: 4000,
        network: Some(Network { max_tx_bandwidth: 10_000_000_000, ..Network::default() }),
        ..Host::default()
    }
}

impl Daemon {
    async fn connect(scheduler: &TestScheduler, name: &str) -> Self {
        let client = SchedulerClient::new(channel(scheduler.addr()).await);
        Self { client, host: host(name).id }
    }

    async fn announced(scheduler: &TestScheduler, name: &str) -> Self {
        let mut daemon = Self::connect(scheduler, name).await;
        let interval = Some(Span { seconds: 300, nanos: 0 });
        daemon.client.announce_host(AnnounceHostRequest { host: Some(host(name)), interval }).await.unwrap();
        daemon
    }

    /// Registers a download, waiting for headers as long as Dragonfly's daemons do.
    async fn register(&mut self, download: Download) -> Result<Stream, Status> {
        let (requests, stream) = mpsc::channel(100);
        let peer = format!("{}-peer", self.host);
        let mut stream =
            Stream { requests, responses: None, host: self.host.clone(), peer, requested: stream.into() };
        stream.say(Ask::RegisterPeerRequest(RegisterPeerRequest { download: Some(download) })).await;
        let requests = stream.requested.take().expect("not yet open");
        let opened = timeout(FIRST, self.client.announce_peer(ReceiverStream::new(requests))).await;
        stream.responses = Some(opened.expect("headers in time")?.into_inner());
        Ok(stream)
    }
}

struct Stream {
    requests: mpsc::Sender<AnnouncePeerRequest>,
    requested: Option<mpsc::Receiver<AnnouncePeerRequest>>,
    responses: Option<Streaming<dragonfly_api::scheduler::v2::AnnouncePeerResponse>>,
    host: String,
    peer: String,
}

impl Stream {
    async fn say(&self, request: Ask) {
        let message = AnnouncePeerRequest {
            host_id: self.host.clone(),
            task_id: TASK.to_owned(),
            peer_id: self.peer.clone(),
            request: Some(request),
        };
        rules::request(&message).expect("the test speaks properly");
        self.requests.send(message).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<Say>, Status> {
        let responses = self.responses.as_mut().expect("open");
        let Some(message) = timeout(FIRST, responses.message()).await.expect("an answer in time")? else {
            return Ok(None);
        };
        rules::response(&message).unwrap_or_else(|rule| panic!("{rule} missing or wrong in {message:?}"));
        Ok(message.response)
    }

    async fn answer(&mut self) -> Say {
        self.next().await.unwrap().expect("an answer")
    }

    async fn parents(&mut self) -> Vec<Peer> {
        match self.answer().await {
            Say::NormalTaskResponse(normal) => normal.candidate_parents,
            other => panic!("{other:?}"),
        }
    }

    async fn fetch_from_origin(&mut self) {
        self.say(Ask::DownloadPeerBackToSourceStartedRequest(
            DownloadPeerBackToSourceStartedRequest::default(),
        ))
        .await;
        for number in 0..COUNT {
            let piece = Some(piece(number, None));
            let finished = DownloadPieceBackToSourceFinishedRequest { piece };
            self.say(Ask::DownloadPieceBackToSourceFinishedRequest(finished)).await;
        }
        let finished = DownloadPeerBackToSourceFinishedRequest {};
        self.say(Ask::DownloadPeerBackToSourceFinishedRequest(finished)).await;
    }
}

fn download() -> Download {
    Download {
        url: "https://example.com/model".to_owned(),
        priority: 6,
        actual_content_length: Some(PIECE * u64::from(COUNT)),
        actual_piece_length: Some(PIECE),
        actual_piece_count: Some(COUNT.into()),
        concurrent_piece_count: Some(8),
        ..Download::default()
    }
}

fn piece(number: u32, parent: Option<&Peer>) -> Piece {
    Piece {
        number,
        parent_id: parent.map(|parent| parent.id.clone()),
        offset: u64::from(number) * PIECE,
        length: PIECE,
        digest: format!("crc32:{}", 907_060_870 + number),
        traffic_type: Some(parent.is_some().into()),
        cost: Some(Span { seconds: 0, nanos: 5_000_000 }),
        created_at: Some(Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        ..Piece::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_healthy_by_the_empty_name() {
    let scheduler = TestScheduler::start().unwrap();
    let mut health = HealthClient::new(channel(scheduler.addr()).await);
    let status = health.check(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    assert_eq!(status.status(), tonic_health::ServingStatus::Serving.into());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_daemon_fetches_from_the_origin_and_the_next_from_it() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    let mut b = Daemon::announced(&scheduler, "b").await;

    let mut first = a.register(download()).await.unwrap();
    assert!(matches!(first.answer().await, Say::NeedBackToSourceResponse(_)));
    first.fetch_from_origin().await;
    assert_eq!(first.next().await.unwrap(), None, "the stream ends well, at once");

    let stat = StatTaskRequest { host_id: a.host.clone(), task_id: TASK.to_owned() };
    let task = a.client.stat_task(stat).await.unwrap().into_inner();
    assert_eq!((task.id.as_str(), task.state.as_str()), (TASK, "Succeeded"));
    assert_eq!((task.content_length, task.piece_count), (PIECE * u64::from(COUNT), COUNT));

    let mut second = b.register(download()).await.unwrap();
    let parents = second.parents().await;
    assert_eq!(parents.len(), 1);
    let parent = &parents[0];
    let parent_host = parent.host.as_ref().unwrap();
    assert_eq!(
        (parent.id.as_str(), parent_host.ip.as_str(), parent_host.port),
        (first.peer.as_str(), "127.0.0.1", 4000)
    );
    second.say(Ask::DownloadPeerStartedRequest(DownloadPeerStartedRequest {})).await;
    for number in 0..COUNT {
        let piece = Some(piece(number, Some(parent)));
        second.say(Ask::DownloadPieceFinishedRequest(DownloadPieceFinishedRequest { piece })).await;
    }
    let finished = DownloadPeerFinishedRequest {};
    second.say(Ask::DownloadPeerFinishedRequest(finished)).await;
    assert_eq!(second.next().await.unwrap(), None, "the stream ends well, without a word unasked");

    let stat =
        StatPeerRequest { host_id: b.host.clone(), task_id: TASK.to_owned(), peer_id: second.peer.clone() };
    assert_eq!(b.client.stat_peer(stat).await.unwrap().into_inner().state, "Succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_may_start_again_after_rescheduling() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    let mut first = a.register(download()).await.unwrap();
    assert!(matches!(first.answer().await, Say::NeedBackToSourceResponse(_)));
    first.fetch_from_origin().await;
    assert_eq!(first.next().await.unwrap(), None);

    let mut b = Daemon::announced(&scheduler, "b").await;
    let mut second = b.register(download()).await.unwrap();
    let parents = second.parents().await;
    second.say(Ask::DownloadPeerStartedRequest(DownloadPeerStartedRequest {})).await;
    let description = Some("not all pieces are downloaded from parent".to_owned());
    second
        .say(Ask::ReschedulePeerRequest(ReschedulePeerRequest { candidate_parents: parents, description }))
        .await;
    // Nobody else has it, so it may fetch from the origin.
    assert!(matches!(second.answer().await, Say::NeedBackToSourceResponse(_)));
    second.fetch_from_origin().await;
    assert_eq!(second.next().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_task_and_metadata_are_answered_so() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    let empty = Download { actual_content_length: Some(0), actual_piece_count: Some(0), ..download() };
    let mut stream = a.register(empty).await.unwrap();
    assert!(matches!(stream.answer().await, Say::EmptyTaskResponse(_)));
    stream.say(Ask::DownloadPeerStartedRequest(DownloadPeerStartedRequest {})).await;
    stream.say(Ask::DownloadPeerFinishedRequest(DownloadPeerFinishedRequest {})).await;
    assert_eq!(stream.next().await.unwrap(), None);

    let mut b = Daemon::announced(&scheduler, "b").await;
    let mut stream = b.register(Download { metadata_only: true, ..download() }).await.unwrap();
    assert!(matches!(stream.answer().await, Say::MetadataOnlyResponse(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_not_found() {
    let scheduler = TestScheduler::start().unwrap();
    let mut stranger = Daemon::connect(&scheduler, "stranger").await;
    let refused = match stranger.register(download()).await {
        Err(status) => status,
        Ok(mut stream) => stream.next().await.unwrap_err(),
    };
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    let stat = StatTaskRequest { host_id: stranger.host.clone(), task_id: TASK.to_owned() };
    assert_eq!(stranger.client.stat_task(stat).await.unwrap_err().code(), Code::NotFound);
    let delete = DeleteTaskRequest { host_id: stranger.host.clone(), task_id: TASK.to_owned() };
    assert_eq!(stranger.client.delete_task(delete).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_listed_until_they_leave() {
    let scheduler = TestScheduler::start().unwrap();
    let mut a = Daemon::announced(&scheduler, "a").await;
    let b = Daemon::announced(&scheduler, "b").await;
    let listed = a.client.list_hosts(ListHostsRequest::default()).await.unwrap().into_inner().hosts;
    let mut ids: Vec<_> = listed.iter().map(|host| host.id.clone()).collect();
    ids.sort();
    assert_eq!(ids, [a.host.clone(), b.host.clone()]);
    listed.iter().for_each(|host| rules::host(host).unwrap());
    a.client.delete_host(DeleteHostRequest { host_id: b.host.clone() }).await.unwrap();
    let listed = a.client.list_hosts(ListHostsRequest::default()).await.unwrap().into_inner().hosts;
    assert_eq!(listed.len(), 1);
}
