//! A parent made of their crates. Like Dragonfly's it ends SyncPieces when all pieces asked for are told, answers one
//! request for each connection, and closes it. What schedulers order of it is handed to the test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use damselfly_core::{ByteRange, Crc, Geometry, Kind, PieceSpan};
use damselfly_tests::Pattern;
use damselfly_transport::vortex::{PieceMeta, REQUEST_LENGTH};
use dragonfly_api::common::v2::{
    CacheTask, Host, Network, Peer, PersistentCachePeer, PersistentCacheTask, PersistentTask, Task,
};
use dragonfly_api::dfdaemon::v2::dfdaemon_upload_server::{DfdaemonUpload, DfdaemonUploadServer};
use dragonfly_api::dfdaemon::v2::{
    DeleteCacheTaskRequest, DeletePersistentCacheTaskRequest, DeletePersistentTaskRequest, DeleteTaskRequest,
    DownloadCachePieceRequest, DownloadCachePieceResponse, DownloadCacheTaskRequest,
    DownloadCacheTaskResponse, DownloadPersistentCacheTaskRequest, DownloadPersistentCacheTaskResponse,
    DownloadPersistentTaskRequest, DownloadPersistentTaskResponse, DownloadTaskRequest, DownloadTaskResponse,
    ListTaskEntriesRequest, ListTaskEntriesResponse, StatCacheTaskRequest, StatLocalTaskRequest,
    StatLocalTaskResponse, StatPersistentCacheTaskRequest, StatPersistentTaskRequest, StatTaskRequest,
    SyncCachePiecesRequest, SyncCachePiecesResponse, SyncHostRequest, SyncPersistentCachePiecesRequest,
    SyncPersistentCachePiecesResponse, SyncPersistentPiecesRequest, SyncPersistentPiecesResponse,
    SyncPiecesRequest, SyncPiecesResponse, UpdatePersistentCacheTaskRequest, UpdatePersistentTaskRequest,
};
use prost_wkt_types::{Duration as Span, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use vortex_protocol::Vortex;

use crate::service::{Running, serve, service};
use crate::vortex::content;

/// What children did at a parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Pieces served, in order.
    pub served: Vec<u32>,
    /// What Dragonfly's parents are not made for.
    pub wrong: Vec<String>,
}

/// What a scheduler ordered.
#[derive(Debug)]
pub enum Order {
    /// Make a copy. The call lives until its sender is dropped.
    Download(
        DownloadPersistentCacheTaskRequest,
        mpsc::Sender<Result<DownloadPersistentCacheTaskResponse, Status>>,
    ),
    /// Keep the copy, or no longer.
    Update(UpdatePersistentCacheTaskRequest),
    /// Delete the copy.
    Delete(DeletePersistentCacheTaskRequest),
}

/// A running parent of theirs.
#[derive(Debug)]
pub struct TheirParent {
    name: String,
    running: Running,
    content: Arc<Holding>,
    orders: Mutex<mpsc::Receiver<Order>>,
}

/// How long a test waits for an order.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Holding {
    /// Made beforehand, so that serving never makes a child wait.
    pieces: Vec<(PieceMeta, Bytes)>,
    geometry: Geometry,
    vortex: SocketAddr,
    seen: watch::Sender<Seen>,
}

impl TheirParent {
    /// Starts one that holds all of `pattern`, as every task it is asked for.
    ///
    /// # Panics
    /// When loopback has no port.
    pub async fn start(pattern: Pattern) -> Self {
        Self::named("theirs", pattern).await
    }

    /// The same on a host of this name.
    ///
    /// # Panics
    /// When loopback has no port.
    pub async fn named(name: &str, pattern: Pattern) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let geometry = Geometry::derived(pattern.length).expect("a geometry");
        let content = Arc::new(Holding {
            pieces: pieces(pattern, geometry),
            geometry,
            vortex: listener.local_addr().expect("bound"),
            seen: watch::Sender::default(),
        });
        let (ordered, orders) = mpsc::channel(100);
        let service = DfdaemonUploadServer::new(Service { holding: content.clone(), ordered });
        let running = serve(Routes::new(service)).await;
        let (holding, stop) = (content.clone(), running.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(one_answer(holding.clone(), stream));
            }
        }));
        Self { name: name.to_owned(), running, content, orders: Mutex::new(orders) }
    }

    /// The next order.
    ///
    /// # Panics
    /// When none comes in time.
    pub async fn order(&self) -> Order {
        let mut orders = self.orders.lock().await;
        let next = tokio::time::timeout(DEADLINE, orders.recv()).await;
        next.expect("an order in time").expect("the server runs")
    }

    /// Whether an order has come that nobody has looked at.
    pub async fn is_ordered(&self) -> bool {
        !self.orders.lock().await.is_empty()
    }

    /// The host that it announces.
    #[must_use]
    pub fn host(&self) -> Host {
        let port = i32::from(self.running.address.port());
        Host {
            id: format!("127.0.0.1-{}", self.name),
            hostname: self.name.clone(),
            ip: "127.0.0.1".to_owned(),
            port,
            download_port: port,
            network: Some(Network { max_tx_bandwidth: 10_000_000_000, ..Network::default() }),
            ..Host::default()
        }
    }

    /// As a peer of a persistent cache task, as a scheduler of theirs names it.
    #[must_use]
    pub fn cache_peer(&self, task: PersistentCacheTask) -> PersistentCachePeer {
        let now = Some(Timestamp { seconds: 1_700_000_000, nanos: 0 });
        PersistentCachePeer {
            id: self.peer_id(),
            persistent: true,
            state: "Succeeded".to_owned(),
            cost: Some(Span { seconds: 1, nanos: 0 }),
            task: Some(task),
            host: Some(self.host()),
            created_at: now,
            updated_at: now,
            ..PersistentCachePeer::default()
        }
    }

    fn peer_id(&self) -> String {
        format!("127.0.0.1-{}-8f3c5b1e-0000-4000-8000-000000000000", self.name)
    }

    /// What its children did so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.content.seen.borrow().clone()
    }

    /// The parent as a scheduler of theirs names it.
    #[must_use]
    pub fn peer(&self, task: &str, url: &str) -> Peer {
        let now = Some(Timestamp { seconds: 1_700_000_000, nanos: 0 });
        let task = Task {
            id: task.to_owned(),
            url: url.to_owned(),
            state: "Succeeded".to_owned(),
            content_length: self.content.geometry.content_length(),
            piece_count: self.content.geometry.piece_count(),
            created_at: now,
            updated_at: now,
            ..Task::default()
        };
        Peer {
            id: self.peer_id(),
            state: "Succeeded".to_owned(),
            cost: Some(Span { seconds: 1, nanos: 0 }),
            task: Some(task),
            host: Some(self.host()),
            created_at: now,
            updated_at: now,
            ..Peer::default()
        }
    }
}

fn pieces(pattern: Pattern, geometry: Geometry) -> Vec<(PieceMeta, Bytes)> {
    let spans = (0..geometry.piece_count()).filter_map(|number| geometry.piece(number));
    let made = spans.map(|span| {
        let bytes = Bytes::from(pattern.bytes(ByteRange { start: span.offset, length: span.length }));
        let meta = PieceMeta {
            digest: Crc::of(&bytes).to_string(),
            created_at: 1_700_000_000,
            ..PieceMeta::new(span.number, span.offset, span.length)
        };
        (meta, bytes)
    });
    made.collect()
}

/// Reads one request, answers and closes. What a Dragonfly parent could not cope with is noted.
async fn one_answer(holding: Arc<Holding>, mut stream: TcpStream) {
    let mut packet = vec![0; REQUEST_LENGTH];
    if stream.read_exact(&mut packet).await.is_err() {
        // Opened and closed without a request.
        return;
    }
    let wrong = |what: String| holding.seen.send_modify(|seen| seen.wrong.push(what));
    let (kind, number) = match Vortex::try_from(Bytes::from(packet)) {
        Ok(Vortex::DownloadPiece(_, request)) => (Kind::Standard, request.piece_number()),
        Ok(Vortex::DownloadPersistentCachePiece(_, request)) => {
            (Kind::PersistentCache, request.piece_number())
        }
        other => return wrong(format!("no request for a piece: {other:?}")),
    };
    let Some((meta, bytes)) = holding.pieces.get(number as usize) else {
        return wrong(format!("piece {number} does not exist"));
    };
    let (most, last) = bytes.split_at(bytes.len() - 1);
    let sent = async {
        stream.write_all(&content(kind, meta.clone())).await?;
        stream.write_all(most).await?;
        match stream.try_read(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(0) => wrong(format!("piece {number}: half-closed")),
            other => wrong(format!("piece {number}: went on with {other:?}")),
        }
        stream.write_all(last).await
    };
    match sent.await {
        Ok(()) => holding.seen.send_modify(|seen| seen.served.push(number)),
        Err(error) => wrong(format!("piece {number}: {error}")),
    }
}

struct Service {
    holding: Arc<Holding>,
    ordered: mpsc::Sender<Order>,
}

impl Service {
    /// The places of the pieces asked for, all at once.
    fn places<T: Send + 'static>(
        &self,
        (host, task, numbers): (&str, &str, Vec<u32>),
        place: impl Fn(PieceSpan, SocketAddr) -> T,
    ) -> Result<BoxStream<T>, Status> {
        if host.is_empty() || task.is_empty() || numbers.is_empty() {
            return Err(Status::invalid_argument("a host, a task and pieces"));
        }
        let spans = numbers.into_iter().filter_map(|number| self.holding.geometry.piece(number));
        let places: Vec<_> = spans.map(|span| Ok(place(span, self.holding.vortex))).collect();
        Ok(Box::pin(tokio_stream::iter(places)))
    }

    async fn ordered(&self, order: Order) {
        // A test that has ended wants none.
        drop(self.ordered.send(order).await);
    }
}

service! {
    impl DfdaemonUpload for Service {
        type SyncPiecesStream = BoxStream<SyncPiecesResponse>;

        async fn sync_pieces(
            &self,
            request: Request<SyncPiecesRequest>,
        ) -> Result<Response<Self::SyncPiecesStream>, Status> {
            let request = request.into_inner();
            let asked = (&*request.host_id, &*request.task_id, request.interested_piece_numbers);
            let places = self.places(asked, |span, vortex| SyncPiecesResponse {
                number: span.number,
                offset: span.offset,
                length: span.length,
                ip: vortex.ip().to_string(),
                tcp_port: Some(vortex.port().into()),
                quic_port: None,
            })?;
            Ok(Response::new(places))
        }

        type SyncPersistentCachePiecesStream = BoxStream<SyncPersistentCachePiecesResponse>;

        async fn sync_persistent_cache_pieces(
            &self,
            request: Request<SyncPersistentCachePiecesRequest>,
        ) -> Result<Response<Self::SyncPersistentCachePiecesStream>, Status> {
            let request = request.into_inner();
            let asked = (&*request.host_id, &*request.task_id, request.interested_piece_numbers);
            let places = self.places(asked, |span, vortex| SyncPersistentCachePiecesResponse {
                number: span.number,
                offset: span.offset,
                length: span.length,
                ip: vortex.ip().to_string(),
                tcp_port: Some(vortex.port().into()),
                quic_port: None,
            })?;
            Ok(Response::new(places))
        }

        type DownloadPersistentCacheTaskStream = BoxStream<DownloadPersistentCacheTaskResponse>;

        async fn download_persistent_cache_task(
            &self,
            request: Request<DownloadPersistentCacheTaskRequest>,
        ) -> Result<Response<Self::DownloadPersistentCacheTaskStream>, Status> {
            let (responses, stream) = mpsc::channel(8);
            self.ordered(Order::Download(request.into_inner(), responses)).await;
            Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
        }

        async fn update_persistent_cache_task(
            &self,
            request: Request<UpdatePersistentCacheTaskRequest>,
        ) -> Result<Response<()>, Status> {
            self.ordered(Order::Update(request.into_inner())).await;
            Ok(Response::new(()))
        }

        async fn delete_persistent_cache_task(
            &self,
            request: Request<DeletePersistentCacheTaskRequest>,
        ) -> Result<Response<()>, Status> {
            self.ordered(Order::Delete(request.into_inner())).await;
            Ok(Response::new(()))
        }

        type SyncHostStream = BoxStream<Host>;

        async fn sync_host(&self, _: Request<SyncHostRequest>) -> Result<Response<Self::SyncHostStream>, Status> {
            let network = Network { max_tx_bandwidth: 10_000_000_000, tx_bandwidth: Some(0), ..Network::default() };
            let host = Host { network: Some(network), ..Host::default() };
            let mut ticks = tokio::time::interval(Duration::from_secs(1));
            let (samples, stream) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                while samples.send(Ok(host.clone())).await.is_ok() {
                    ticks.tick().await;
                }
            });
            Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(stream))))
        }
    }
    unary {
        stat_task(StatTaskRequest) -> Task;
        stat_local_task(StatLocalTaskRequest) -> StatLocalTaskResponse;
        list_task_entries(ListTaskEntriesRequest) -> ListTaskEntriesResponse;
        delete_task(DeleteTaskRequest) -> ();
        stat_cache_task(StatCacheTaskRequest) -> CacheTask;
        delete_cache_task(DeleteCacheTaskRequest) -> ();
        download_cache_piece(DownloadCachePieceRequest) -> DownloadCachePieceResponse;
        update_persistent_task(UpdatePersistentTaskRequest) -> ();
        stat_persistent_task(StatPersistentTaskRequest) -> PersistentTask;
        delete_persistent_task(DeletePersistentTaskRequest) -> ();
        stat_persistent_cache_task(StatPersistentCacheTaskRequest) -> PersistentCacheTask;
    }
    streams {
        download_task(DownloadTaskRequest) -> DownloadTaskStream of DownloadTaskResponse;
        download_cache_task(DownloadCacheTaskRequest) -> DownloadCacheTaskStream of DownloadCacheTaskResponse;
        sync_cache_pieces(SyncCachePiecesRequest) -> SyncCachePiecesStream of SyncCachePiecesResponse;
        download_persistent_task(DownloadPersistentTaskRequest)
            -> DownloadPersistentTaskStream of DownloadPersistentTaskResponse;
        sync_persistent_pieces(SyncPersistentPiecesRequest)
            -> SyncPersistentPiecesStream of SyncPersistentPiecesResponse;
    }
}
