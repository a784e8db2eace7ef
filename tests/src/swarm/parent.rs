//! A parent that is no daemon: it tells the scheduler that it holds a task, and serves it with a vice.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use damselfly_api::common::v2::Host;
use damselfly_api::damselfly::v1 as ours;
use damselfly_api::damselfly::v1::cluster_client::ClusterClient;
use damselfly_api::damselfly::v1::hold_request::Request as Say;
use damselfly_api::dfdaemon::v2::dfdaemon_upload_server::{DfdaemonUpload, DfdaemonUploadServer};
use damselfly_api::dfdaemon::v2::{SyncPiecesRequest, SyncPiecesResponse};
use damselfly_core::{Algorithm, ByteRange, Content, Geometry, Hasher, Kind, PieceSet, TaskId};
use damselfly_transport::tcp::{self, PieceProvider, Served, ServedFuture, ServerOptions};
use futures_util::StreamExt as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::proxy::{Direction, Faults, Strike};
use crate::{Pattern, Proxy, Waited, wait};

/// What is wrong with a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vice {
    /// Nothing.
    None,
    /// One byte of every piece is wrong; the digest is the right piece's.
    WrongByte,
    /// One byte of every piece is wrong, and the digest agrees with it.
    FalseWitness,
    /// The digest is left out.
    Mute,
    /// One byte of every piece is wrong, and the digest is left out.
    MuteWrongByte,
    /// Every piece is one byte too short.
    Short,
    /// Every piece is one byte too long.
    Long,
    /// Every piece says that it lies one byte further on.
    Shifted,
    /// SyncPieces tells of pieces that are one byte too short.
    WrongNews,
    /// Requests are taken and never answered.
    Silent,
    /// It has nothing after all.
    Absent,
    /// It has nothing of what SyncPieces tells.
    Boastful,
    /// What happens to each connection's bytes after that many.
    Struck(Strike),
}

/// A running fake parent. Dropping it ends it.
#[derive(Debug)]
pub struct FakeParent {
    asked: Arc<watch::Sender<u64>>,
    _proxy: Option<Proxy>,
    _hold: mpsc::Sender<ours::HoldRequest>,
    _running: DropGuard,
}

struct Liar {
    pattern: Pattern,
    geometry: Geometry,
    vice: Vice,
    asked: Arc<watch::Sender<u64>>,
    vortex: SocketAddr,
    held: PieceSet,
}

impl Liar {
    fn serve(&self, number: u32) -> Option<Served> {
        let span = self.geometry.piece(number).filter(|_| self.held.contains(number))?;
        let mut bytes = self.pattern.bytes(ByteRange { start: span.offset, length: span.length });
        let crc = |bytes: &[u8]| {
            let mut hasher = Hasher::new(Algorithm::Crc32);
            hasher.update(bytes);
            hasher.finish().to_string()
        };
        let mut digest = crc(&bytes);
        let mut offset = span.offset;
        match self.vice {
            Vice::WrongByte => bytes[0] ^= 1,
            Vice::FalseWitness => {
                bytes[0] ^= 1;
                digest = crc(&bytes);
            }
            Vice::Mute => digest.clear(),
            Vice::MuteWrongByte => {
                bytes[0] ^= 1;
                digest.clear();
            }
            Vice::Short => drop(bytes.pop()),
            Vice::Long => bytes.push(0),
            Vice::Shifted => offset += 1,
            Vice::None | Vice::WrongNews | Vice::Silent | Vice::Absent | Vice::Boastful | Vice::Struck(_) => {
            }
        }
        Some(Served {
            content: Content::Bytes(bytes.into()),
            offset,
            digest,
            parent_id: String::new(),
            cost: Duration::ZERO,
            created_at: 0,
            guard: Box::new(()),
        })
    }
}

impl PieceProvider for Liar {
    fn piece<'a>(&'a self, _: Kind, _: &'a TaskId, piece: u32) -> ServedFuture<'a> {
        self.asked.send_modify(|asked| *asked += 1);
        Box::pin(async move {
            match self.vice {
                Vice::Silent => std::future::pending().await,
                Vice::Absent | Vice::Boastful => Ok(None),
                _ => Ok(self.serve(piece)),
            }
        })
    }
}

struct News(Arc<Liar>);

#[tonic::async_trait]
impl DfdaemonUpload for News {
    async fn sync_pieces(
        &self,
        request: Request<SyncPiecesRequest>,
    ) -> Result<Response<BoxStream<SyncPiecesResponse>>, Status> {
        let liar = Arc::clone(&self.0);
        if liar.vice == Vice::Absent {
            return Err(Status::internal("task not found"));
        }
        let less = u64::from(liar.vice == Vice::WrongNews);
        let numbers = request.into_inner().interested_piece_numbers;
        let pieces = numbers.into_iter().filter(move |number| liar.held.contains(*number));
        let liar = Arc::clone(&self.0);
        let pieces = pieces.filter_map(move |number| {
            let span = liar.geometry.piece(number)?;
            Some(Ok(SyncPiecesResponse {
                number,
                offset: span.offset,
                length: span.length - less,
                ip: liar.vortex.ip().to_string(),
                tcp_port: Some(liar.vortex.port().into()),
                quic_port: None,
            }))
        });
        // Stays open, as that of a daemon that is still downloading.
        Ok(Response::new(Box::pin(futures_util::stream::iter(pieces).chain(futures_util::stream::pending()))))
    }
}

impl FakeParent {
    /// Starts one that claims to hold all of `pattern` as `task`.
    ///
    /// # Errors
    /// When a port cannot be bound or the scheduler does not take it.
    pub async fn start(
        scheduler: SocketAddr,
        task: &TaskId,
        pattern: Pattern,
        vice: Vice,
    ) -> io::Result<Self> {
        let geometry = Geometry::derived(pattern.length).map_err(io::Error::other)?;
        Self::holding(scheduler, task, pattern, PieceSet::full(geometry.piece_count()), vice).await
    }

    /// Starts one that claims to hold `held` of `pattern` as `task`.
    ///
    /// # Errors
    /// As [`FakeParent::start`].
    pub async fn holding(
        scheduler: SocketAddr,
        task: &TaskId,
        pattern: Pattern,
        held: PieceSet,
        vice: Vice,
    ) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let geometry = Geometry::derived(pattern.length).map_err(io::Error::other)?;
        let (grpc, vortex) =
            (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
        let (grpc_at, mut vortex_at) = (grpc.local_addr()?, vortex.local_addr()?);
        let mut proxy = None;
        if let Vice::Struck(strike) = vice {
            let between = Proxy::start(vortex_at).await?;
            between.set(Direction::ToClient, Faults::strike(strike));
            vortex_at = between.addr();
            proxy = Some(between);
        }
        let asked = Arc::new(watch::Sender::new(0));
        let bitmap = held.to_bytes();
        let liar = Liar { pattern, geometry, vice, asked: Arc::clone(&asked), vortex: vortex_at, held };
        let (liar, stop) = (Arc::new(liar), CancellationToken::new());
        let provider = Arc::clone(&liar) as Arc<dyn PieceProvider>;
        let options = ServerOptions { grace: Duration::ZERO, ..ServerOptions::default() };
        tokio::spawn(tcp::serve(vortex, provider, options, stop.clone()));
        let server = tonic::transport::Server::builder()
            .add_service(DfdaemonUploadServer::new(News(liar)))
            .serve_with_incoming_shutdown(TcpListenerStream::new(grpc), stop.clone().cancelled_owned());
        tokio::spawn(server);

        let name = format!("fake{number}");
        let host = Host {
            id: format!("127.0.0.1-{name}"),
            hostname: name,
            ip: "127.0.0.1".to_owned(),
            port: grpc_at.port().into(),
            download_port: grpc_at.port().into(),
            tcp_port: vortex_at.port().into(),
            incarnation: Some(number),
            ..Host::default()
        };
        let hello = ours::Hello { host: Some(host), incarnation: number, version: "fake".to_owned() };
        let holding = ours::Holding {
            kind: ours::TaskKind::Standard.into(),
            id: task.to_string(),
            content_length: Some(pattern.length),
            piece_length: geometry.piece_length(),
            bitmap,
            ..ours::Holding::default()
        };
        let holdings = ours::Holdings { holdings: vec![holding], last: true };
        let hold = hold(scheduler, [Say::Hello(hello), Say::Holdings(holdings)]).await?;
        Ok(Self { asked, _proxy: proxy, _hold: hold, _running: stop.drop_guard() })
    }

    /// How many pieces were asked of it.
    #[must_use]
    pub fn asked(&self) -> u64 {
        *self.asked.borrow()
    }

    /// Waits until it was asked for `count` pieces.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn is_asked(&self, count: u64) -> Result<u64, Waited> {
        wait::until(&self.asked, |asked| *asked >= count).await
    }
}

/// Opens a Hold stream, says `first` and keeps beating; the scheduler has taken it all in when this returns.
async fn hold(
    scheduler: SocketAddr,
    first: impl IntoIterator<Item = Say>,
) -> io::Result<mpsc::Sender<ours::HoldRequest>> {
    let client = ClusterClient::connect(format!("http://{scheduler}")).await;
    let mut client = client.map_err(io::Error::other)?;
    let (tx, rx) = mpsc::channel(16);
    for request in first {
        tx.try_send(ours::HoldRequest { request: Some(request) }).map_err(io::Error::other)?;
    }
    let mut responses = client.hold(ReceiverStream::new(rx)).await.map_err(io::Error::other)?.into_inner();
    let beats = tx.downgrade();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(2));
        for seq in 0.. {
            tokio::select! {
                _ = ticks.tick() => {}
                end = responses.message() => if !matches!(end, Ok(Some(_))) { return },
            }
            let Some(beats) = beats.upgrade() else { return };
            let beat = ours::HoldRequest { request: Some(Say::Beat(ours::Beat { seq })) };
            if beats.send(beat).await.is_err() {
                return;
            }
        }
    });
    Ok(tx)
}
