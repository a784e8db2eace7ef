//! Settings of sockets, lanes and servers, with their defaults.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

use super::SendPath;
use crate::{BufferPool, TokenBucket};

/// The congestion controls to try, in this order, for a connection that stays within the host. Nothing is congested
/// there, and those that pace, such as BBR, spend a timer on every few packets: with BBR a GiB over loopback took 0.84
/// CPU seconds from file to file, with cubic 0.46.
const LOCAL_CONGESTION: [&str; 2] = ["cubic", "reno"];

/// What both sides set on their sockets.
#[derive(Clone, Debug)]
pub struct SocketOptions {
    /// The congestion control to ask the kernel for; where it is not offered the kernel's default stays, silently.
    /// Within the host another one is used: see [`LOCAL_CONGESTION`].
    pub congestion: Option<String>,
    /// `SO_RCVBUF` in bytes. `None` (the default) leaves the kernel's auto-tuning on, which is nearly always better.
    pub receive_buffer: Option<usize>,
    /// `SO_SNDBUF` in bytes; `None` as above.
    pub send_buffer: Option<usize>,
    /// How long a connection is silent before it is probed.
    pub keepalive_idle: Duration,
    /// Between two probes.
    pub keepalive_interval: Duration,
    /// How many unanswered probes end it.
    pub keepalive_probes: u32,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            congestion: Some("bbr".to_owned()),
            receive_buffer: None,
            send_buffer: None,
            keepalive_idle: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(3),
            keepalive_probes: 3,
        }
    }
}

impl SocketOptions {
    /// Sets everything on a socket that will connect to `peer`. Buffer sizes count from the next connect on.
    ///
    /// # Errors
    /// When the kernel refuses an option other than the congestion control.
    pub(super) fn apply_to_dialler(&self, socket: &impl AsFd, peer: SocketAddr) -> io::Result<()> {
        self.apply(socket)?;
        if peer.ip().is_loopback() {
            choose(socket, LOCAL_CONGESTION);
        } else {
            choose(socket, self.congestion.as_deref());
        }
        Ok(())
    }

    /// Sets everything on a listening socket, for accepted ones to inherit. They start as connections within the host,
    /// because a pacing that was begun does not end when the congestion control is changed.
    ///
    /// # Errors
    /// When the kernel refuses an option other than the congestion control.
    pub(super) fn apply_to_listener(&self, socket: &impl AsFd) -> io::Result<ListenerOptions> {
        self.apply(socket)?;
        let default = sockopt::tcp_congestion(socket).ok();
        choose(socket, LOCAL_CONGESTION);
        Ok(ListenerOptions { distant: self.congestion.clone().into_iter().chain(default).collect() })
    }

    fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, self.keepalive_idle)?;
        sockopt::set_tcp_keepintvl(socket, self.keepalive_interval)?;
        sockopt::set_tcp_keepcnt(socket, self.keepalive_probes)?;
        if let Some(bytes) = self.receive_buffer {
            sockopt::set_socket_recv_buffer_size(socket, bytes)?;
        }
        if let Some(bytes) = self.send_buffer {
            sockopt::set_socket_send_buffer_size(socket, bytes)?;
        }
        Ok(())
    }
}

/// What a listener's accepted sockets still need.
#[derive(Clone, Debug)]
pub(super) struct ListenerOptions {
    /// The congestion controls for connections that leave the host, the best first.
    distant: Vec<String>,
}

impl ListenerOptions {
    /// Settles the congestion control of an accepted connection, now that both of its ends are known.
    pub(super) fn settle(&self, stream: &TcpStream) {
        let (Ok(ours), Ok(theirs)) = (stream.local_addr(), stream.peer_addr()) else {
            return; // It is gone already.
        };
        if ours.ip() != theirs.ip() && !theirs.ip().to_canonical().is_loopback() {
            choose(stream, self.distant.iter().map(String::as_str));
        }
    }
}

/// Sets the first of `names` that the kernel offers.
fn choose<'a>(socket: &impl AsFd, names: impl IntoIterator<Item = &'a str>) {
    for name in names {
        match sockopt::set_tcp_congestion(socket, name) {
            Ok(()) => return,
            Err(error) => tracing::trace!(congestion = %name, %error, "congestion control not offered"),
        }
    }
}

/// How long a lane waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For the connection to stand.
    pub dial: Duration,
    /// For a ticket's turn, that is for the answers before it. Generous: each of those has its own deadlines.
    pub turn: Duration,
    /// From the turn to the end of the metadata. A parent may be downloading the piece itself meanwhile.
    pub first_byte: Duration,
    /// For the next bytes of a piece.
    pub stall: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            dial: Duration::from_secs(2),
            turn: Duration::from_secs(360),
            first_byte: Duration::from_secs(60),
            stall: Duration::from_secs(15),
        }
    }
}

/// How a lane is opened.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// Whether the parent is known to be ours. If not, the lane takes a single request.
    pub ours: bool,
    /// How many requests may be unanswered at a time.
    pub max_in_flight: usize,
    /// How long to wait for what.
    pub deadlines: Deadlines,
    /// The socket's settings.
    pub socket: SocketOptions,
}

impl DialOptions {
    /// The defaults towards a parent that is ours, or is not known to be.
    #[must_use]
    pub fn new(ours: bool) -> Self {
        Self { ours, max_in_flight: 32, deadlines: Deadlines::default(), socket: SocketOptions::default() }
    }
}

/// How pieces are served.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// How many connections are served at a time; above, the newcomer waits for one to end or to become idle.
    pub max_connections: usize,
    /// How long a connection may stay without a request.
    pub idle: Duration,
    /// For the rest of a request once its first byte is there.
    pub request: Duration,
    /// For a piece that is still being downloaded.
    pub piece: Duration,
    /// For a child that takes no bytes.
    pub stall: Duration,
    /// For uploads in flight at shutdown.
    pub grace: Duration,
    /// How bytes get from the content into the socket.
    pub send: SendPath,
    /// The upload limit of this host, shared with other transports.
    pub limit: Arc<TokenBucket>,
    /// Where buffers for [`SendPath::Buffered`] come from.
    pub pool: BufferPool,
    /// What is counted.
    pub counters: Arc<UploadCounters>,
    /// The sockets' settings.
    pub socket: SocketOptions,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            idle: Duration::from_secs(120),
            request: Duration::from_secs(10),
            piece: Duration::from_secs(720),
            stall: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            send: SendPath::default(),
            limit: Arc::new(TokenBucket::unlimited()),
            pool: BufferPool::new(64 << 20, BufferPool::DEFAULT_SIZE),
            counters: Arc::default(),
            socket: SocketOptions::default(),
        }
    }
}

/// What a server has done, for metrics. All but the last count up from the start.
#[derive(Debug, Default)]
pub struct UploadCounters {
    pub(super) bytes: AtomicU64,
    pub(super) pieces: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) connections: AtomicU64,
}

/// [`UploadCounters`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UploadFigures {
    /// Piece bytes sent, those of unfinished pieces included.
    pub bytes: u64,
    /// Pieces sent whole.
    pub pieces: u64,
    /// Requests that ended otherwise.
    pub failures: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections open now.
    pub connections: u64,
}

impl UploadCounters {
    /// The figures now.
    #[must_use]
    pub fn figures(&self) -> UploadFigures {
        UploadFigures {
            bytes: self.bytes.load(Ordering::Relaxed),
            pieces: self.pieces.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            accepted: self.accepted.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// Whether the kernel lets this process choose `name`.
    fn offered(name: &str) -> bool {
        let socket = TcpSocket::new_v4().expect("a socket");
        sockopt::set_tcp_congestion(&socket, name).is_ok()
    }

    async fn accepted(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let address = listener.local_addr().expect("bound");
        let (child, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (child.expect("listening"), accepted.expect("a child").0)
    }

    #[tokio::test]
    async fn accepted_sockets_inherit_the_listeners_options() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let settings = SocketOptions::default().apply_to_listener(&listener).expect("known options");
        let (_child, accepted) = accepted(&listener).await;
        settings.settle(&accepted);
        assert!(sockopt::tcp_nodelay(&accepted).expect("readable"));
        assert!(sockopt::socket_keepalive(&accepted).expect("readable"));
        assert_eq!(sockopt::tcp_keepidle(&accepted).expect("readable"), Duration::from_secs(5));
        assert_eq!(sockopt::tcp_keepintvl(&accepted).expect("readable"), Duration::from_secs(3));
        assert_eq!(sockopt::tcp_keepcnt(&accepted).expect("readable"), 3);
    }

    #[tokio::test]
    async fn a_connection_within_the_host_is_never_paced() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let settings = SocketOptions::default().apply_to_listener(&listener).expect("known options");
        let (_child, accepted) = accepted(&listener).await;
        settings.settle(&accepted);
        let dialler = TcpSocket::new_v4().expect("a socket");
        let peer = listener.local_addr().expect("bound");
        SocketOptions::default().apply_to_dialler(&dialler, peer).expect("known options");
        if LOCAL_CONGESTION.into_iter().any(offered) {
            for used in [sockopt::tcp_congestion(&accepted), sockopt::tcp_congestion(&dialler)] {
                assert!(LOCAL_CONGESTION.contains(&used.expect("readable").as_str()));
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_leaves_the_host_gets_what_was_asked_for_or_the_kernels_own() {
        let distant = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 1));
        let kernels = sockopt::tcp_congestion(TcpSocket::new_v4().expect("a socket")).expect("readable");
        for (asked, used) in [("reno", "reno"), ("pigeon", kernels.as_str())] {
            let options = SocketOptions { congestion: Some(asked.to_owned()), ..SocketOptions::default() };
            let dialler = TcpSocket::new_v4().expect("a socket");
            options.apply_to_dialler(&dialler, distant).expect("known options");
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let settings = options.apply_to_listener(&listener).expect("known options");
            let (_child, accepted) = accepted(&listener).await;
            // No other host is at hand: what settle would choose for one.
            choose(&accepted, settings.distant.iter().map(String::as_str));
            if offered(used) {
                assert_eq!(sockopt::tcp_congestion(&dialler).expect("readable"), used);
                assert_eq!(sockopt::tcp_congestion(&accepted).expect("readable"), used);
            }
        }
    }

    #[test]
    fn buffer_sizes_are_set() {
        let options = SocketOptions {
            receive_buffer: Some(1 << 16),
            send_buffer: Some(1 << 17),
            ..SocketOptions::default()
        };
        let socket = TcpSocket::new_v4().expect("a socket");
        options.apply(&socket).expect("known options");
        // The kernel doubles what is asked for, up to its limits.
        assert!(sockopt::socket_recv_buffer_size(&socket).expect("readable") >= 1 << 16);
        assert!(sockopt::socket_send_buffer_size(&socket).expect("readable") >= 1 << 17);
    }
}
