//! A scheduler on loopback, and clients that speak to it message by message.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_api::damselfly::v1 as ours;
use damselfly_api::damselfly::v1::cluster_client::ClusterClient;
use damselfly_api::scheduler::v2 as scheduler;
use damselfly_scheduler::machine;
use damselfly_scheduler::service::{
    Config, CopyCall, GrpcOutbound, Outbound, OutboundError, SchedulerService,
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use scheduler::announce_peer_request::Request;
use scheduler::announce_peer_response::Response;
use scheduler::scheduler_client::SchedulerClient;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

pub(crate) const TASK: &str = "e2d0fe1585a63ec6009c8016ff8dda8b17719a637405a4e23c0ff81339148249";
pub(crate) const URL: &str = "https://example.com/model.bin";
pub(crate) const MIB: u64 = 1 << 20;

/// Remembers what it was asked.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) seeds: Mutex<Vec<(SocketAddr, common::Download)>>,
    pub(crate) copies: Mutex<Vec<(SocketAddr, CopyCall)>>,
    pub(crate) fail: bool,
}

impl Outbound for Recorder {
    fn trigger_seed(
        &self,
        address: SocketAddr,
        download: common::Download,
    ) -> BoxFuture<'_, Result<(), OutboundError>> {
        self.seeds.lock().push((address, download));
        if self.fail {
            return Box::pin(async move { Err(OutboundError::Silent { address }) });
        }
        // It lasts as long as the seed's download.
        Box::pin(std::future::pending())
    }

    fn copy(&self, address: SocketAddr, call: CopyCall) -> BoxFuture<'_, Result<(), OutboundError>> {
        self.copies.lock().push((address, call));
        let fail = self.fail;
        Box::pin(async move { if fail { Err(OutboundError::Silent { address }) } else { Ok(()) } })
    }

    fn probe(&self, _: SocketAddr) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }
}

/// A scheduler that runs until it is dropped.
pub(crate) struct Running {
    pub(crate) service: Arc<SchedulerService>,
    pub(crate) address: SocketAddr,
    pub(crate) outbound: Arc<Recorder>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) served: tokio::task::JoinHandle<()>,
}

pub(crate) async fn start(change: impl FnOnce(&mut machine::Config)) -> Running {
    start_with(change, Recorder::default()).await
}

pub(crate) async fn start_with(change: impl FnOnce(&mut machine::Config), outbound: Recorder) -> Running {
    let mut config = machine::Config { fresh: true, ..Default::default() };
    change(&mut config);
    let outbound = Arc::new(outbound);
    run(Config { machine: config, ..Config::default() }, outbound.clone(), outbound).await
}

/// One that calls other hosts itself.
pub(crate) async fn start_calling() -> Running {
    let machine = machine::Config { fresh: true, ..Default::default() };
    let outbound = Arc::new(GrpcOutbound::default());
    run(Config { machine, ..Config::default() }, outbound, Arc::default()).await
}

/// With a queue of so many messages, and so much time for a stream's first one.
pub(crate) async fn start_strict(queue: usize, first_message: Duration) -> Running {
    let machine = machine::Config { fresh: true, ..Default::default() };
    let outbound = Arc::<Recorder>::default();
    run(Config { machine, queue, first_message, ..Config::default() }, outbound.clone(), outbound).await
}

async fn run(config: Config, calls: Arc<dyn Outbound>, outbound: Arc<Recorder>) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = Config { address: address.to_string(), ring: vec![address.to_string()], ..config };
    let service = SchedulerService::start(config, calls);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = service.clone();
    let served = tokio::spawn(async move {
        let shutdown = async move {
            stopped.await.ok();
        };
        serving.serve(listener, shutdown).await.unwrap();
    });
    Running { service, address, outbound, stop: Some(stop), served }
}

impl Running {
    /// Waits until the scheduler has got so far: streams are not ordered among each other.
    pub(crate) async fn until(&self, reached: impl Fn(&machine::Snapshot) -> bool) {
        for _ in 0..1000 {
            if reached(&self.service.snapshot()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never reached: {:?}", self.service.snapshot());
    }

    pub(crate) async fn client(&self) -> SchedulerClient<Channel> {
        SchedulerClient::connect(format!("http://{}", self.address)).await.unwrap()
    }

    pub(crate) async fn announce(&self, host: common::Host) {
        let request = scheduler::AnnounceHostRequest { host: Some(host), interval: None };
        self.client().await.announce_host(request).await.unwrap();
    }

    /// Opens an announce stream and says nothing yet.
    pub(crate) async fn open(&self, host: &str, peer: &str) -> Stream {
        let (requests, receiver) = mpsc::channel(64);
        let response = self.client().await.announce_peer(ReceiverStream::new(receiver)).await.unwrap();
        Stream {
            host: host.to_owned(),
            peer: peer.to_owned(),
            requests: Some(requests),
            responses: response.into_inner(),
        }
    }

    /// Opens an announce stream and registers.
    pub(crate) async fn register(&self, host: &str, peer: &str, download: common::Download) -> Stream {
        let stream = self.open(host, peer).await;
        let register = scheduler::RegisterPeerRequest { download: Some(download), restate: None };
        stream.say(Request::RegisterPeerRequest(register)).await;
        stream
    }

    /// Opens a Hold stream and says nothing yet.
    pub(crate) async fn open_hold(&self) -> Hold {
        let (requests, receiver) = mpsc::channel(64);
        let mut client = ClusterClient::connect(format!("http://{}", self.address)).await.unwrap();
        Hold { requests, responses: client.hold(ReceiverStream::new(receiver)).await.unwrap().into_inner() }
    }

    pub(crate) async fn hold(&self, host: common::Host, incarnation: u64) -> Hold {
        let hello = ours::Hello { host: Some(host), incarnation, version: "test".into() };
        let hold = self.open_hold().await;
        hold.say(ours::hold_request::Request::Hello(hello)).await;
        hold
    }
}

/// A Hold stream.
pub(crate) struct Hold {
    pub(crate) requests: mpsc::Sender<ours::HoldRequest>,
    pub(crate) responses: Streaming<ours::HoldResponse>,
}

impl Hold {
    pub(crate) async fn say(&self, request: ours::hold_request::Request) {
        self.requests.send(ours::HoldRequest { request: Some(request) }).await.unwrap();
    }
}

/// An announce stream.
pub(crate) struct Stream {
    pub(crate) host: String,
    pub(crate) peer: String,
    pub(crate) requests: Option<mpsc::Sender<scheduler::AnnouncePeerRequest>>,
    pub(crate) responses: Streaming<scheduler::AnnouncePeerResponse>,
}

impl Stream {
    pub(crate) fn message(&self, request: Option<Request>) -> scheduler::AnnouncePeerRequest {
        scheduler::AnnouncePeerRequest {
            host_id: self.host.clone(),
            task_id: TASK.into(),
            peer_id: self.peer.clone(),
            request,
            ..Default::default()
        }
    }

    pub(crate) async fn send(&self, message: scheduler::AnnouncePeerRequest) {
        self.requests.as_ref().unwrap().send(message).await.unwrap();
    }

    pub(crate) async fn say(&self, request: Request) {
        self.send(self.message(Some(request))).await;
    }

    pub(crate) async fn started(&self) {
        self.say(Request::DownloadPeerStartedRequest(Default::default())).await;
    }

    /// Reports pieces of 4 MiB from the origin; the CRC is the piece's number plus 100.
    pub(crate) async fn origin_pieces(&self, pieces: impl IntoIterator<Item = u32>) {
        for number in pieces {
            let request =
                scheduler::DownloadPieceBackToSourceFinishedRequest { piece: Some(piece(number, None)) };
            self.say(Request::DownloadPieceBackToSourceFinishedRequest(request)).await;
        }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<scheduler::AnnouncePeerResponse>, Status> {
        tokio::time::timeout(Duration::from_secs(20), self.responses.message())
            .await
            .expect("no message came")
    }

    /// The next message that has an arm, ours' facts aside.
    pub(crate) async fn answer(&mut self) -> Response {
        loop {
            let message = self.next().await.unwrap().expect("the stream ended");
            if let Some(response) = message.response {
                return response;
            }
        }
    }

    pub(crate) async fn facts(&mut self) -> ours::Facts {
        loop {
            let message = self.next().await.unwrap().expect("the stream ended");
            if let Some(facts) = message.facts {
                return facts;
            }
        }
    }

    pub(crate) async fn parents(&mut self) -> Vec<common::Peer> {
        match self.answer().await {
            Response::NormalTaskResponse(response) => response.candidate_parents,
            other => panic!("expected parents, got {other:?}"),
        }
    }

    pub(crate) async fn lease(&mut self) -> ours::Lease {
        loop {
            if let Response::NeedBackToSourceResponse(response) = self.answer().await {
                return response.lease.expect("ours get leases");
            }
        }
    }

    pub(crate) async fn error(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended well"),
                Err(status) => return status,
            }
        }
    }

    pub(crate) async fn assert_ends_well(&mut self) {
        while self.next().await.expect("the stream ends with OK").is_some() {}
    }
}

pub(crate) fn piece(number: u32, parent: Option<&str>) -> common::Piece {
    common::Piece {
        number,
        parent_id: parent.map(str::to_owned),
        offset: u64::from(number) * 4 * MIB,
        length: 4 * MIB,
        digest: format!("crc32:{}", number + 100),
        cost: Some(prost_types::Duration { seconds: 0, nanos: 5_000_000 }),
        created_at: Some(Default::default()),
        ..Default::default()
    }
}

pub(crate) fn host(name: &str) -> common::Host {
    common::Host {
        id: name.to_owned(),
        hostname: name.to_owned(),
        ip: "127.0.0.1".into(),
        port: 4000,
        download_port: 4000,
        network: Some(common::Network { max_tx_bandwidth: 1 << 30, ..Default::default() }),
        ..Default::default()
    }
}

pub(crate) fn our_host(name: &str, incarnation: u64) -> common::Host {
    common::Host { tcp_port: 4005, incarnation: Some(incarnation), ..host(name) }
}

/// As our daemon registers: it does not know the length yet.
pub(crate) fn download() -> common::Download {
    common::Download {
        url: URL.into(),
        request_header: [("authorization".to_owned(), "secret".to_owned())].into(),
        output_path: Some("/tmp/out".into()),
        ..Default::default()
    }
}

/// As Dragonfly's daemon registers: it has asked the origin.
pub(crate) fn download_of(pieces: u64) -> common::Download {
    common::Download {
        actual_content_length: Some(pieces * 4 * MIB),
        actual_piece_length: Some(4 * MIB),
        actual_piece_count: Some(pieces),
        ..download()
    }
}
