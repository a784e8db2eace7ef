//! Which daemon a client talks to: the one at `-e`, else the user's own, else the system's.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use damselfly_actors::config::client_sockets;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::exit::Exit;
use crate::failure::Failure;

/// A unix socket connects at once or never; the time is for a daemon whose backlog is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Room for content in flight over the socket. Large frames are what makes it fast (measured: 256 frames of 16 KiB for
/// each chunk cost two thirds of the speed).
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const MAX_FRAME: u32 = 1 << 20;

/// An open connection to a daemon.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// The connection; cloning shares it.
    pub channel: Channel,
    /// The socket it goes through.
    pub socket: PathBuf,
}

/// No daemon could be reached.
#[derive(Debug, Error)]
pub struct ConnectError {
    /// Every socket that was tried, and why it failed.
    tried: Vec<(PathBuf, io::Error)>,
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for (socket, why) in &self.tried {
            write!(f, "{separator}can not connect {why}, please check the unix socket {}", socket.display())?;
            separator = "; ";
        }
        f.write_str("; start dfdaemon, or name its socket with -e")
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Failure::new("Connect Dfdaemon Failed!", Exit::NoDaemon, error)
    }
}

/// Connects to the first daemon that answers.
///
/// # Errors
/// [`ConnectError`] naming every socket that was tried.
pub async fn connect(explicit: Option<&Path>) -> Result<Daemon, ConnectError> {
    let mut tried = Vec::new();
    for socket in candidates(explicit) {
        match open(&socket, explicit.is_some()).await {
            Ok(channel) => return Ok(Daemon { channel, socket }),
            Err(why) => tried.push((socket, why)),
        }
    }
    Err(ConnectError { tried })
}

/// The sockets to try, in order.
fn candidates(explicit: Option<&Path>) -> Vec<PathBuf> {
    match explicit {
        Some(explicit) => vec![explicit.to_owned()],
        None => client_sockets(rustix::process::geteuid().as_raw(), |name| std::env::var_os(name)),
    }
}

async fn open(socket: &Path, named: bool) -> io::Result<Channel> {
    if !named {
        refuse_strangers(socket)?;
    }
    let stream =
        tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(socket)).await.map_err(|_elapsed| {
            io::Error::new(io::ErrorKind::TimedOut, "the daemon does not accept connections")
        })??;
    // The stream is already connected: tonic asks for it exactly once, because the channel never reconnects.
    let mut stream = Some(TokioIo::new(stream));
    Endpoint::from_static("http://[::]:50051")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .connect_with_connector(tower::service_fn(move |_uri| {
            let stream = stream.take().ok_or_else(|| io::Error::other("the daemon closed the connection"));
            std::future::ready(stream)
        }))
        .await
        .map_err(io::Error::other)
}

/// In a shared temporary directory anybody could have made a directory of the expected name, to be sent URLs and tokens.
fn refuse_strangers(socket: &Path) -> io::Result<()> {
    let Some(directory) = socket.parent().filter(|directory| directory.starts_with(std::env::temp_dir()))
    else {
        return Ok(());
    };
    let is_ours =
        directory.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"dragonfly-"));
    if !is_ours {
        return Ok(());
    }
    let found = std::fs::symlink_metadata(directory)?;
    let uid = rustix::process::geteuid().as_raw();
    if found.is_dir() && found.uid() == uid && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let mut text = format!("{} is not a private directory of uid {uid}", directory.display());
    // A String takes every write.
    let _written = write!(text, " (owner {}, mode {:o})", found.uid(), found.mode() & 0o7777);
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_explicit_socket_is_the_only_one() {
        assert_eq!(candidates(Some(Path::new("/x/y.sock"))), [PathBuf::from("/x/y.sock")]);
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let home = tempfile::Builder::new().prefix("dragonfly-").tempdir().unwrap();
        let socket = home.path().join("dfdaemon.sock");
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(refuse_strangers(&socket).is_ok());
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let refused = refuse_strangers(&socket).unwrap_err();
        assert!(refused.to_string().contains("mode 777"), "{refused}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_error_names_every_socket() {
        let failure = Failure::from(connect(Some(Path::new("/nowhere/d.sock"))).await.unwrap_err());
        assert_eq!(failure.exit, Exit::NoDaemon);
        assert!(failure.message.contains("please check the unix socket /nowhere/d.sock"), "{failure}");
    }
}
