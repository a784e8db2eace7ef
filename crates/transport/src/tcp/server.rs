//! A parent's side: accepts children and answers their requests.

mod connection;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use damselfly_core::{Content, Kind, TaskId};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ServerOptions;
use crate::accept;

/// A piece to be sent.
pub struct Served {
    /// Exactly the piece's bytes.
    pub content: Content,
    /// The piece's first byte, counted from the start of the task's content.
    pub offset: u64,
    /// `crc32:<decimal>`, or empty.
    pub digest: String,
    /// The peer this host had the piece from; empty if from the origin or an import.
    pub parent_id: String,
    /// How long this host took to get the piece.
    pub cost: Duration,
    /// When this host had the piece, in seconds since 1970.
    pub created_at: i64,
    /// Dropped after the last byte has gone into the socket; keeps the content from being evicted.
    pub guard: Box<dyn Send + Sync>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Served({} bytes at {}, {:?})", self.content.len(), self.offset, self.digest)
    }
}

/// Why a piece that may exist cannot be served; its text travels to the child.
#[derive(Debug, Error)]
#[error("failed to get piece: {0}")]
pub struct ProviderError(
    /// What failed, without secrets and without local paths.
    pub String,
);

/// What [`PieceProvider::piece`] returns.
pub type ServedFuture<'a> = Pin<Box<dyn Future<Output = Result<Option<Served>, ProviderError>> + Send + 'a>>;

/// Where a server's pieces come from.
pub trait PieceProvider: Send + Sync + 'static {
    /// The piece, verified. A piece that is being downloaded may be waited for (the server has a deadline);
    /// `None` means that this host does not have it and is not about to.
    fn piece<'a>(&'a self, kind: Kind, task: &'a TaskId, piece: u32) -> ServedFuture<'a>;
}

/// What the connections of one server share.
struct Server {
    provider: Arc<dyn PieceProvider>,
    options: ServerOptions,
    shutdown: CancellationToken,
    /// Tells one idle connection to make room.
    room: Notify,
}

/// Serves pieces to whoever connects, until `shutdown`; then lets the answers in flight end, at most for the grace
/// period, and returns.
///
/// Every accepted connection may send any number of requests, ahead of the answers too; they are answered in order.
/// A child that shuts down its writing side is still answered. Bytes that are no request end the connection.
pub async fn serve(
    listener: TcpListener,
    provider: Arc<dyn PieceProvider>,
    options: ServerOptions,
    shutdown: CancellationToken,
) {
    // Accepted sockets inherit all of this.
    let settings = options.socket.apply_to_listener(&listener);
    if let Err(error) = &settings {
        tracing::warn!(%error, "piece server runs without its socket options");
    }
    let slots = Arc::new(Semaphore::new(options.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let grace = options.grace;
    let server = Arc::new(Server { provider, options, shutdown: shutdown.clone(), room: Notify::new() });
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) => {
                let Some(slot) = slot(&server, &slots).await else {
                    break;
                };
                if let Ok(settings) = &settings {
                    settings.settle(&stream);
                }
                connections.spawn(connect(server.clone(), stream, slot));
            }
            Err(error) => refused(&server, &error).await,
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(grace, async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    });
    if drained.await.is_err() {
        tracing::warn!(uploads = connections.len(), ?grace, "uploads cut off at shutdown");
        connections.shutdown().await;
    }
}

/// Room for one more connection; `None` at shutdown.
async fn slot(server: &Server, slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    if let Ok(slot) = slots.clone().try_acquire_owned() {
        return Some(slot);
    }
    server.room.notify_one();
    tokio::select! {
        () = server.shutdown.cancelled() => None,
        slot = slots.clone().acquire_owned() => slot.ok(),
    }
}

async fn connect(server: Arc<Server>, stream: TcpStream, slot: OwnedSemaphorePermit) {
    let counters = &server.options.counters;
    counters.accepted.fetch_add(1, Ordering::Relaxed);
    counters.connections.fetch_add(1, Ordering::Relaxed);
    let _open = Open { server: &server, _slot: slot };
    connection::run(&server, stream).await;
}

/// Counts a connection as open until dropped, however its task ends.
struct Open<'a> {
    server: &'a Server,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.server.options.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn refused(server: &Server, error: &io::Error) {
    if !accept::concerns_one(error) {
        server.room.notify_one();
    }
    accept::pause("vortex", error).await;
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a piece connection panicked; its child will ask again");
    }
}
