//! Which daemon a client talks to: the one at `-e`, else the user's own, else the system's.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use damselfly_actors::config::client_sockets;
use damselfly_transport::local::{Pool, PoolChannel, PoolOptions, Purpose};
use thiserror::Error;

use crate::exit::Exit;
use crate::failure::Failure;

/// Our daemon says so in its answers' metadata; then it keeps the output clean itself.
const OURS_KEY: &str = "x-damselfly";

/// Whether the daemon that answered with this metadata is one of ours.
pub(crate) fn is_ours(metadata: &tonic::metadata::MetadataMap) -> bool {
    metadata.contains_key(OURS_KEY)
}

/// Open connections to a daemon, or to the engine in this process.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// For calls, which share connections.
    pub channel: PoolChannel,
    /// For streams of content, each of which has a connection of its own.
    pub content: PoolChannel,
    /// Where they lead.
    pub at: At,
}

impl Daemon {
    /// The daemon, or the engine, to which `channel` leads.
    #[must_use]
    pub fn new(channel: PoolChannel, at: At) -> Self {
        Self { content: channel.for_content(), channel, at }
    }
}

/// Where connections lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// To the daemon at this socket.
    Socket(PathBuf),
    /// To the engine in this process, which is in the swarm of these schedulers.
    Here(Vec<SocketAddr>),
}

/// No daemon could be reached.
#[derive(Debug, Error)]
pub struct ConnectError {
    /// Every socket that was tried, and why it failed.
    tried: Vec<(PathBuf, io::Error)>,
}

impl ConnectError {
    /// Where nobody answered, in few words.
    #[must_use]
    pub fn tried(&self) -> String {
        let mut text = "none answers at ".to_owned();
        for (index, (socket, why)) in self.tried.iter().enumerate() {
            text.push_str(if index > 0 { " or " } else { "" });
            text.push_str(&socket.display().to_string());
            // That nothing is there, or nobody behind it, is what is usual.
            if !matches!(why.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
                // A String takes every write.
                let _written = write!(text, " ({why})");
            }
        }
        text
    }
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for (socket, why) in &self.tried {
            write!(f, "{separator}can not connect {why}, please check the unix socket {}", socket.display())?;
            separator = "; ";
        }
        let denied = |(_, why): &(PathBuf, io::Error)| why.kind() == io::ErrorKind::PermissionDenied;
        if self.tried.iter().any(denied) {
            let uid = rustix::process::geteuid().as_raw();
            return write!(
                f,
                "; a daemon's socket does not permit uid {uid}: its owner may open it (download.server.socketMode)"
            );
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
    connect_within(explicit, PoolOptions::default()).await
}

/// The same, within other bounds than the usual.
///
/// # Errors
/// As [`connect`].
pub async fn connect_within(explicit: Option<&Path>, options: PoolOptions) -> Result<Daemon, ConnectError> {
    let mut tried = Vec::new();
    for socket in candidates(explicit) {
        match open(&socket, explicit.is_some(), options.clone()).await {
            Ok(pool) => return Ok(Daemon::new(pool.channel(Purpose::Call), At::Socket(socket))),
            Err(why) => tried.push((socket, why)),
        }
    }
    Err(ConnectError { tried })
}

/// The sockets to try, in order.
pub(crate) fn candidates(explicit: Option<&Path>) -> Vec<PathBuf> {
    match explicit {
        Some(explicit) => vec![explicit.to_owned()],
        None => client_sockets(rustix::process::geteuid().as_raw(), |name| std::env::var_os(name)),
    }
}

async fn open(socket: &Path, named: bool, options: PoolOptions) -> io::Result<Pool> {
    if !named {
        refuse_strangers(socket)?;
    }
    Pool::connect(socket, options).await.map_err(|error| error.source)
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

    #[test]
    fn a_socket_that_does_not_permit_needs_its_owner() {
        let error = |kind: io::ErrorKind| ConnectError { tried: vec![("/d.sock".into(), kind.into())] };
        let denied = error(io::ErrorKind::PermissionDenied).to_string();
        assert!(denied.contains("does not permit uid") && !denied.contains("start dfdaemon"), "{denied}");
        assert!(error(io::ErrorKind::NotFound).to_string().contains("start dfdaemon"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_error_names_every_socket() {
        let failure = Failure::from(connect(Some(Path::new("/nowhere/d.sock"))).await.unwrap_err());
        assert_eq!(failure.exit, Exit::NoDaemon);
        assert!(failure.message.contains("please check the unix socket /nowhere/d.sock"), "{failure}");
    }
}
