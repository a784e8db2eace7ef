//! The tools' side of the local socket.

use std::error::Error as _;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

/// Receive windows in bytes: what the daemon may send ahead of a slow reader, per stream and per connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Content comes in frames of up to this many bytes; with HTTP/2's default of 16 KiB framing would cost more than copying.
const FRAME: u32 = 1 << 20;
const RECEIVE_BUFFER: usize = 1 << 20;

/// No daemon at that socket.
#[derive(Debug, Error)]
#[error("cannot connect to the daemon at {path}: {source}")]
pub struct ConnectError {
    /// The socket.
    pub path: PathBuf,
    /// The kernel's reason; not found and refused mean that no daemon runs.
    #[source]
    pub source: io::Error,
}

/// Opens a gRPC channel over the daemon's local socket: one connection, which does not come back when it ends.
///
/// A piece with its content is one message, so clients must lift tonic's limit: `max_decoding_message_size(usize::MAX)`.
///
/// # Errors
/// When nobody listens.
pub async fn connect(path: &Path) -> Result<Channel, ConnectError> {
    connect_guarded(path, ()).await
}

/// The same; `guard` is dropped with the connection, whoever ends it.
pub(super) async fn connect_guarded<G>(path: &Path, guard: G) -> Result<Channel, ConnectError>
where
    G: Send + Unpin + 'static,
{
    let failed = |source| ConnectError { path: path.to_owned(), source };
    // By hand, because tonic hides the kernel's reason three levels deep.
    let stream = open(path).await.map_err(failed)?;
    let mut only = Some(TokioIo::new(Guarded { stream, _guard: guard }));
    let connector = tower::service_fn(move |_: Uri| {
        let ended = || io::Error::new(io::ErrorKind::NotConnected, "the connection has ended");
        std::future::ready(only.take().ok_or_else(ended))
    });
    let connected = endpoint("http://localhost").connect_with_connector(connector).await;
    connected.map_err(|error| failed(io::Error::other(error)))
}

/// A channel for content on this host, still without a connection. `name` is a URL that is only shown.
#[must_use]
pub fn endpoint(name: &'static str) -> Endpoint {
    Endpoint::from_static(name)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
}

/// Whether the call failed on its way rather than at the daemon.
#[must_use]
pub fn is_broken_connection(status: &Status) -> bool {
    status.source().is_some() && !matches!(status.code(), Code::OutOfRange | Code::Unimplemented)
}

async fn open(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path).await?;
    if let Err(error) = rustix::net::sockopt::set_socket_recv_buffer_size(&stream, RECEIVE_BUFFER) {
        tracing::trace!(%error, "local connection keeps its receive buffer");
    }
    Ok(stream)
}

/// A socket, and what is to be dropped with it.
struct Guarded<G> {
    stream: UnixStream,
    _guard: G,
}

impl<G: Unpin> AsyncRead for Guarded<G> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<G: Unpin> AsyncWrite for Guarded<G> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
