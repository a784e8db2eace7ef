//! Settings of sockets, lanes and servers, with their defaults.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::sockopt;

use super::SendPath;
use crate::{BufferPool, TokenBucket};

/// What both sides set on their sockets.
#[derive(Clone, Debug)]
pub struct SocketOptions {
    /// The congestion control to ask the kernel for; where it is not offered the kernel's default stays, silently.
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
    /// Sets everything on `socket`. Buffer sizes count from the next connect or listen on.
    ///
    /// # Errors
    /// When the kernel refuses an option other than the congestion control.
    pub fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
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
        if let Some(name) = &self.congestion
            && let Err(error) = sockopt::set_tcp_congestion(socket, name)
        {
            tracing::trace!(congestion = %name, %error, "congestion control not offered");
        }
        Ok(())
    }

    /// Whether the kernel lets this process choose `congestion` (true when none is asked for).
    #[must_use]
    pub fn congestion_offered(&self) -> bool {
        let Some(name) = &self.congestion else {
            return true;
        };
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
        socket.is_ok_and(|socket| sockopt::set_tcp_congestion(&socket, name).is_ok())
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
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn accepted_sockets_inherit_the_listeners_options() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        // Reno is built into every kernel, and hardly the default of any.
        let options = SocketOptions { congestion: Some("reno".to_owned()), ..SocketOptions::default() };
        options.apply(&listener).expect("known options");
        let _child = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        let (accepted, _) = listener.accept().expect("a child");
        assert!(sockopt::tcp_nodelay(&accepted).expect("readable"));
        assert!(sockopt::socket_keepalive(&accepted).expect("readable"));
        assert_eq!(sockopt::tcp_keepidle(&accepted).expect("readable"), Duration::from_secs(5));
        assert_eq!(sockopt::tcp_keepintvl(&accepted).expect("readable"), Duration::from_secs(3));
        assert_eq!(sockopt::tcp_keepcnt(&accepted).expect("readable"), 3);
        if options.congestion_offered() {
            assert_eq!(sockopt::tcp_congestion(&accepted).expect("readable"), "reno");
        }
    }

    #[test]
    fn what_the_kernel_does_not_offer_is_left_out_silently() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let before = sockopt::tcp_congestion(&listener).expect("readable");
        let options = SocketOptions {
            congestion: Some("pigeon".to_owned()),
            receive_buffer: Some(1 << 16),
            send_buffer: Some(1 << 17),
            ..SocketOptions::default()
        };
        assert!(!options.congestion_offered());
        options.apply(&listener).expect("known options");
        assert_eq!(sockopt::tcp_congestion(&listener).expect("readable"), before);
        // The kernel doubles what is asked for, up to its limits.
        assert!(sockopt::socket_recv_buffer_size(&listener).expect("readable") >= 1 << 16);
        assert!(sockopt::socket_send_buffer_size(&listener).expect("readable") >= 1 << 17);
    }
}
