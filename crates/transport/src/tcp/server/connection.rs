//! One child's connection.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Served, Server};
use crate::tcp::send::Outlet;
use crate::vortex::{
    CodecError, ErrorCode, ErrorPacket, HEADER_LENGTH, Header, PieceMeta, REQUEST_LENGTH, Request,
};

/// How long a connection that is closed from this side is drained: closing it with unread requests would reset it,
/// and a reset takes bytes with it that the child has not read yet.
const LINGER: Duration = Duration::from_secs(2);

/// How long a connection is left alone after an answer even when others want its place: the answer may still be
/// on its way, and the next request too.
const WARM: Duration = Duration::from_millis(250);

/// What was read where a request was due.
enum Asked {
    Request(Request),
    /// Not a request, or the end of the child or the server: close without an answer.
    Nothing,
    /// Nothing for a while: close at once.
    Idle,
    /// A request in form, but for no possible task.
    Invalid(u8, CodecError),
}

/// Answers until the child or the server has had enough.
pub(super) async fn run(server: &Server, mut stream: TcpStream) {
    let Ok(peer) = stream.peer_addr() else {
        return; // gone before it was looked at
    };
    let mut answered = 0u64;
    loop {
        let asked = ask(server, &mut stream, answered > 0).await;
        let outlet = Outlet { stream: &stream, options: &server.options };
        let goes_on = match asked {
            Ok(Asked::Request(request)) => answer(server, &outlet, peer, &request).await,
            Ok(Asked::Invalid(id, error)) => {
                let refused =
                    refuse(server, &outlet, id, ErrorCode::InvalidArgument, error.to_string()).await;
                refused.map(|()| false)
            }
            Ok(Asked::Nothing) => Ok(false),
            Ok(Asked::Idle) => return,
            Err(error) => Err(error),
        };
        match goes_on {
            Ok(true) => answered += 1,
            Ok(false) => break,
            Err(error) => {
                tracing::debug!(%peer, %error, "piece connection ended");
                return;
            }
        }
    }
    if stream.shutdown().await.is_ok() {
        // Whether it ends or not, this was all that could be done.
        timeout(LINGER, drain(&mut stream)).await.unwrap_or_default();
    }
}

async fn drain(stream: &mut TcpStream) {
    let mut waste = [0; 1024];
    while stream.read(&mut waste).await.is_ok_and(|read| read > 0) {}
}

/// Ends when a connection that has been idle for a moment should give way to a new one.
async fn make_room(server: &Server) {
    tokio::time::sleep(WARM).await;
    server.room.notified().await;
}

/// Reads the next request. `warm` connections, which had one already, give way when room is needed.
async fn ask(server: &Server, stream: &mut TcpStream, warm: bool) -> io::Result<Asked> {
    let options = &server.options;
    let mut bytes = [0; REQUEST_LENGTH];
    let first = tokio::select! {
        biased;
        () = server.shutdown.cancelled() => return Ok(Asked::Nothing),
        first = timeout(options.idle, stream.read(&mut bytes)) => first,
        () = make_room(server), if warm => return Ok(Asked::Idle),
    };
    let Ok(first) = first else {
        return Ok(Asked::Idle);
    };
    let mut have = first?;
    let rest = timeout(options.request, async {
        while have > 0 && have < REQUEST_LENGTH {
            if have >= HEADER_LENGTH
                && let Some(head) = bytes.first_chunk::<HEADER_LENGTH>()
                && Request::check_header(Header::decode(*head)).is_err()
            {
                return Ok(false);
            }
            match stream.read(&mut bytes[have..]).await? {
                0 => return Ok(false),
                more => have += more,
            }
        }
        io::Result::Ok(have == REQUEST_LENGTH)
    });
    match rest.await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) | Err(_) => return Ok(Asked::Nothing),
        Ok(Err(error)) => return Err(error),
    }
    Ok(match Request::decode(&bytes) {
        Ok(request) => Asked::Request(request),
        Err(error @ CodecError::TaskId(_)) => Asked::Invalid(bytes[0], error),
        Err(_) => Asked::Nothing,
    })
}

/// Ends when the connection does: the child reset it, or vanished. That the child's writing side has ended says nothing,
/// because Dragonfly's children close theirs after the request and wait. A child that closed altogether looks the same
/// at first; but its kernel forgets the connection within a minute and answers the next keepalive probe with a reset.
async fn broken(stream: &TcpStream) -> io::Error {
    let ready = stream.ready(Interest::ERROR).await;
    let error = ready.err().or_else(|| stream.take_error().unwrap_or_else(Some));
    error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
}

/// Answers one request; says whether the connection can take another.
async fn answer(
    server: &Server,
    outlet: &Outlet<'_>,
    peer: SocketAddr,
    request: &Request,
) -> io::Result<bool> {
    let Request { id, kind, task, piece } = request;
    // What is there already is sent even at shutdown; what is not is not waited for then.
    let found = tokio::select! {
        biased;
        found = timeout(server.options.piece, server.provider.piece(*kind, task, *piece)) => found,
        error = broken(outlet.stream) => {
            server.options.counters.failures.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        () = server.shutdown.cancelled() => {
            let message = "failed to get piece: this parent is shutting down; ask another".to_owned();
            refuse(server, outlet, *id, ErrorCode::Internal, message).await?;
            return Ok(false);
        }
    };
    let (code, message) = match found {
        Ok(Ok(Some(served))) => {
            return match send(outlet, request, served).await {
                Ok(()) => {
                    server.options.counters.pieces.fetch_add(1, Ordering::Relaxed);
                    Ok(true)
                }
                Err(error) => {
                    server.options.counters.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%peer, %kind, %task, piece, %error, "upload broke off");
                    Err(error)
                }
            };
        }
        Ok(Ok(None)) => (ErrorCode::NotFound, format!("piece {task}-{piece} not found")),
        Ok(Err(error)) => (ErrorCode::Internal, error.to_string()),
        Err(_) => {
            let waited = server.options.piece;
            (ErrorCode::Internal, format!("failed to get piece: it was not complete within {waited:?}"))
        }
    };
    tracing::debug!(%peer, %kind, %task, piece, ?code, message, "piece refused");
    refuse(server, outlet, *id, code, message).await?;
    Ok(true)
}

async fn refuse(
    server: &Server,
    outlet: &Outlet<'_>,
    id: u8,
    code: ErrorCode,
    message: String,
) -> io::Result<()> {
    server.options.counters.failures.fetch_add(1, Ordering::Relaxed);
    let mut packet = BytesMut::new();
    ErrorPacket { code, message }.encode(id, &mut packet);
    outlet.head(&packet, false).await
}

async fn send(outlet: &Outlet<'_>, request: &Request, served: Served) -> io::Result<()> {
    let Served { content, offset, digest, parent_id, cost, created_at, guard } = served;
    let meta = PieceMeta {
        digest,
        parent_id,
        cost,
        created_at,
        ..PieceMeta::new(request.piece, offset, content.len())
    };
    let mut head = BytesMut::new();
    meta.encode(request.id, request.kind, &mut head).map_err(io::Error::other)?;
    outlet.head(&head, !content.is_empty()).await?;
    outlet.content(&content).await?;
    drop(guard);
    Ok(())
}
