//! What the tests of lanes and servers share.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use damselfly_core::{Content, Crc, Geometry, Kind, PieceSpan, TaskId};
use damselfly_transport::tcp::{
    DialOptions, FetchError, Lane, PieceBody, PieceProvider, ProviderError, Served, ServedFuture,
    ServerOptions, serve,
};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub const ID: &str = "e2d0fe1585a63ec6009c8016ff8dda8b17719a637405a4e23c0ff81339148249";

pub fn task() -> TaskId {
    TaskId::parse(ID).expect("an id")
}

/// Bytes in which no stretch repeats within a few MiB.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

pub enum Store {
    File(Arc<std::fs::File>),
    Memory(Bytes),
}

/// Serves one task cut into small pieces; can be made to fail in various ways.
pub struct Pieces {
    pub geometry: Geometry,
    pub bytes: Bytes,
    pub store: Store,
    pub missing: Option<u32>,
    pub failing: Option<u32>,
    pub panicking: Option<u32>,
    pub shift: u64,
    pub digest: Option<String>,
    /// Pieces are answered only while this is true.
    pub open: watch::Sender<bool>,
    pub guards: Arc<AtomicUsize>,
    pub asked: AtomicUsize,
    pub asked_now: Notify,
    pub dropped_unread: AtomicBool,
}

impl Pieces {
    pub fn new(length: usize, piece_length: u64, in_file: bool) -> Self {
        let bytes = Bytes::from(noise(length));
        let store = if in_file {
            let mut file = tempfile::tempfile().expect("a temporary file");
            file.write_all(&bytes).expect("room");
            Store::File(Arc::new(file))
        } else {
            Store::Memory(bytes.clone())
        };
        Self {
            geometry: Geometry::new(length as u64, piece_length).expect("a geometry"),
            bytes,
            store,
            missing: None,
            failing: None,
            panicking: None,
            shift: 0,
            digest: None,
            open: watch::Sender::new(true),
            guards: Arc::default(),
            asked: AtomicUsize::new(0),
            asked_now: Notify::new(),
            dropped_unread: AtomicBool::new(false),
        }
    }

    pub fn span(&self, number: u32) -> PieceSpan {
        self.geometry.piece(number).expect("a piece")
    }

    pub fn expected(&self, number: u32) -> Bytes {
        let span = self.span(number);
        self.bytes.slice(span.offset as usize..(span.offset + span.length) as usize)
    }
}

/// Counts how many pieces are being sent.
struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl PieceProvider for Pieces {
    fn piece<'a>(&'a self, kind: Kind, id: &'a TaskId, number: u32) -> ServedFuture<'a> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.asked_now.notify_one();
            let mut open = self.open.subscribe();
            open.wait_for(|open| *open).await.expect("the sender lives");
            assert!(self.panicking != Some(number), "told to panic");
            if self.failing == Some(number) {
                return Err(ProviderError("disk on fire".to_owned()));
            }
            let known = kind == Kind::Standard && *id == task() && self.missing != Some(number);
            let Some(span) = self.geometry.piece(number).filter(|_| known) else {
                return Ok(None);
            };
            let content = match &self.store {
                Store::File(file) => {
                    Content::File { file: file.clone(), offset: span.offset, length: span.length }
                }
                Store::Memory(_) => Content::Bytes(self.expected(number)),
            };
            self.guards.fetch_add(1, Ordering::SeqCst);
            let digest = Crc::of(&self.expected(number)).to_string();
            Ok(Some(Served {
                content,
                offset: span.offset + self.shift,
                digest: self.digest.clone().unwrap_or(digest),
                parent_id: String::new(),
                cost: Duration::ZERO,
                created_at: 1_700_000_000,
                guard: Box::new(Guard(self.guards.clone())),
            }))
        })
    }
}

/// A server of this process.
pub struct Running {
    pub address: SocketAddr,
    pub pieces: Arc<Pieces>,
    pub shutdown: CancellationToken,
    pub ended: tokio::task::JoinHandle<()>,
}

pub async fn start(pieces: Pieces, options: ServerOptions) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (pieces, shutdown) = (Arc::new(pieces), CancellationToken::new());
    let ended = tokio::spawn(serve(listener, pieces.clone(), options, shutdown.clone()));
    Running { address, pieces, shutdown, ended }
}

pub async fn dial(address: SocketAddr, ours: bool) -> Lane {
    Lane::dial(address, DialOptions::new(ours)).await.expect("somebody listens")
}

pub async fn fetch(lane: &Lane, span: PieceSpan) -> Result<Vec<u8>, FetchError> {
    receive(lane.request(Kind::Standard, &task(), span).expect("usable"), 100_000).await
}

/// Reads until the buffer is full or the piece ends.
pub async fn fill(body: &mut PieceBody, buffer: &mut [u8]) -> Result<usize, FetchError> {
    let mut filled = 0;
    while filled < buffer.len() && body.remaining() > 0 {
        filled += body.read(&mut buffer[filled..]).await?;
    }
    Ok(filled)
}

pub async fn receive(
    ticket: damselfly_transport::tcp::Ticket,
    buffer_size: usize,
) -> Result<Vec<u8>, FetchError> {
    let mut body = ticket.response().await?;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; buffer_size];
    loop {
        let read = body.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..read]);
    }
    if let Some(crc) = body.crc() {
        assert_eq!(crc, Crc::of(&bytes));
    }
    body.finish()?;
    Ok(bytes)
}
