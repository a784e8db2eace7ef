//! Accepting local connections and telling them apart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::bind::{SocketFile, bind};
use super::caller::Judge;
use super::{BindError, BindOptions, DESCRIPTOR_MAGIC, HTTP2_MAGIC, LocalStream};
use crate::accept;

/// The sockets' send buffer: content travels in chunks of 1 MiB, and a full buffer costs a wake-up.
const SEND_BUFFER: usize = 1 << 20;

/// What a local connection turned out to be.
#[derive(Debug)]
pub enum Connection {
    /// HTTP/2, and with it gRPC; its first bytes are still to be read from it.
    Grpc(LocalStream),
    /// A descriptor will travel here; its first bytes, too, are still to be read.
    Descriptor(LocalStream),
}

/// The daemon's local socket. Dropped, it removes the socket file.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    file: SocketFile,
    options: BindOptions,
    judge: Arc<Judge>,
    /// Connections whose first bytes are awaited.
    greeting: JoinSet<Option<Connection>>,
}

impl Listener {
    /// Makes the socket file and listens.
    ///
    /// # Errors
    /// [`BindError::Live`] when another daemon serves it; otherwise what the kernel says.
    pub fn bind(options: BindOptions) -> Result<Self, BindError> {
        let (listener, file) = bind(&options)?;
        let failed = |source| BindError::Io { what: "listen on", path: options.path.clone(), source };
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        Ok(Self { listener, file, options, judge: Judge::new(), greeting: JoinSet::new() })
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.options.path
    }

    /// The next connection that has said what it is. Whoever says something else, or nothing within the deadline, is
    /// dropped. May be cancelled without losing a connection.
    pub async fn accept(&mut self) -> Connection {
        loop {
            let room = self.greeting.len() < self.options.max_waiting.max(1);
            tokio::select! {
                Some(greeted) = self.greeting.join_next() => {
                    if let Ok(Some(connection)) = greeted {
                        return connection;
                    }
                }
                accepted = self.listener.accept(), if room => match accepted {
                    Ok((stream, _)) => {
                        let greet = greet(stream, self.judge.clone(), self.options.first_bytes);
                        self.greeting.spawn(greet);
                    }
                    Err(error) => accept::pause("local", &error).await,
                },
            }
        }
    }

    /// Unlinks the socket now and returns its path; connections that stand are not affected.
    #[must_use]
    pub fn close(self) -> PathBuf {
        let Self { listener, file, options, .. } = self;
        drop((listener, file));
        options.path
    }
}

async fn greet(mut stream: UnixStream, judge: Arc<Judge>, deadline: Duration) -> Option<Connection> {
    let credentials = stream.peer_cred().ok()?;
    // At once, before the caller may have ended: a one-shot tool can be quick.
    let caller = Arc::new(judge.identify(credentials.uid(), credentials.gid(), credentials.pid()));
    let mut first = [0; 4];
    match tokio::time::timeout(deadline, stream.read_exact(&mut first)).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => return None,
    }
    if let Err(error) = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER) {
        tracing::trace!(%error, "local connection keeps its send buffer");
    }
    match first {
        HTTP2_MAGIC => Some(Connection::Grpc(LocalStream::new(stream, first, caller))),
        DESCRIPTOR_MAGIC => Some(Connection::Descriptor(LocalStream::new(stream, first, caller))),
        other => {
            tracing::debug!(first = ?other, uid = caller.uid, "local connection speaks neither gRPC nor ours");
            None
        }
    }
}
