//! The tools' side of the local socket.

use std::io;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

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

/// Opens a gRPC channel over the daemon's local socket. It reconnects by itself.
///
/// A piece with its content is one message, so clients must lift tonic's limit: `max_decoding_message_size(usize::MAX)`.
///
/// # Errors
/// When nobody listens.
pub async fn connect(path: &Path) -> Result<Channel, ConnectError> {
    let failed = |source| ConnectError { path: path.to_owned(), source };
    // Tried once by hand, because tonic hides the kernel's reason three levels deep.
    let mut first = Some(open(path).await.map_err(failed)?);
    let path = path.to_owned();
    let socket = path.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let (first, path) = (first.take(), socket.clone());
        async move {
            match first {
                Some(stream) => io::Result::Ok(TokioIo::new(stream)),
                None => Ok(TokioIo::new(open(&path).await?)),
            }
        }
    });
    let connected = endpoint("http://localhost").connect_with_connector(connector).await;
    connected.map_err(|error| ConnectError { path, source: io::Error::other(error) })
}

/// A channel for content on this host, still without a connection. `name` is a URL that is only shown.
#[must_use]
pub fn endpoint(name: &'static str) -> Endpoint {
    Endpoint::from_static(name)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
}

async fn open(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path).await?;
    if let Err(error) = rustix::net::sockopt::set_socket_recv_buffer_size(&stream, RECEIVE_BUFFER) {
        tracing::trace!(%error, "local connection keeps its receive buffer");
    }
    Ok(stream)
}
