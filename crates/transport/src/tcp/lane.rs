//! A child's connection to one parent.
//!
//! Requests are written at once and answers come in the same order, so whoever waits for an answer must first wait
//! for those before it. The right to read travels along a chain: each [`Ticket`] holds the receiver of a oneshot
//! channel through which its predecessor hands over the read half, and the sender to its successor. A ticket or body
//! that is dropped halfway drops the read half with it, and all behind it learn that the lane is broken. Nobody
//! queues on a lock.

mod body;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use damselfly_core::{Kind, PieceSpan, TaskId};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{DialOptions, LaneError};
use crate::vortex::{REQUEST_LENGTH, Request};

pub use body::{PieceBody, Ticket};

/// The right to read, and what was read too far.
#[derive(Debug)]
struct Turn {
    reader: OwnedReadHalf,
    carried: BytesMut,
}

/// What all handles, tickets and bodies of one lane share. The write half lives here so that it is shut down, which
/// Dragonfly's parents take for the end, only when nobody reads any more.
#[derive(Debug)]
struct Shared {
    peer: SocketAddr,
    options: DialOptions,
    /// Outside of the lock, so that the socket can be watched. Written to under it, to keep the requests in order.
    writer: OwnedWriteHalf,
    /// Cancelled when the lane takes no request any more.
    broken: CancellationToken,
    in_flight: AtomicUsize,
    rtt_micros: AtomicU64,
    asking: Mutex<Asking>,
}

#[derive(Debug)]
struct Asking {
    /// What the next ticket waits on.
    tail: oneshot::Receiver<Turn>,
    packet: u8,
    requests: u64,
    idle_since: Instant,
}

impl Shared {
    fn poison(&self) {
        self.broken.cancel();
    }

    fn observe_rtt(&self, sample: Duration) {
        let sample = u64::try_from(sample.as_micros()).unwrap_or(u64::MAX).max(1);
        self.rtt_micros.fetch_min(sample, Ordering::Relaxed);
    }

    /// One request fewer is unanswered.
    fn answered(&self) {
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.asking.lock().idle_since = Instant::now();
        }
    }

    fn broken(&self, why: impl Into<String>) -> LaneError {
        LaneError::Broken { peer: self.peer, why: why.into() }
    }
}

/// One connection to a parent; clones are handles on the same connection.
#[derive(Clone, Debug)]
pub struct Lane(Arc<Shared>);

impl Lane {
    /// Connects to a parent's Vortex address.
    ///
    /// # Errors
    /// When the connection is refused or does not stand within the dial deadline.
    pub async fn dial(peer: SocketAddr, options: DialOptions) -> Result<Self, LaneError> {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let failed = |source| LaneError::Dial { peer, source };
        let socket = if peer.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.map_err(failed)?;
        options.socket.apply_to_dialler(&socket, peer).map_err(failed)?;
        let started = Instant::now();
        let after = options.deadlines.dial;
        let stream = tokio::time::timeout(after, socket.connect(peer)).await;
        let stream = stream.map_err(|_| LaneError::DialTimeout { peer, after })?.map_err(failed)?;
        let lane = Self::over(stream, peer, options);
        lane.0.observe_rtt(started.elapsed());
        tracing::debug!(%peer, ours = lane.0.options.ours, rtt = ?lane.rtt(), "lane opened");
        Ok(lane)
    }

    fn over(stream: TcpStream, peer: SocketAddr, options: DialOptions) -> Self {
        let (reader, writer) = stream.into_split();
        let (hand_over, tail) = oneshot::channel();
        // The receiver is alive right here, so the first turn cannot be lost.
        drop(hand_over.send(Turn { reader, carried: BytesMut::new() }));
        Self(Arc::new(Shared {
            peer,
            options,
            writer,
            broken: CancellationToken::new(),
            in_flight: AtomicUsize::new(0),
            rtt_micros: AtomicU64::new(u64::MAX),
            asking: Mutex::new(Asking { tail, packet: 0, requests: 0, idle_since: Instant::now() }),
        }))
    }

    /// Sends the request for a piece now; the ticket's answer comes after those of all earlier tickets.
    ///
    /// Never waits: 74 bytes go into the socket's buffer, or the lane is busy.
    ///
    /// # Errors
    /// [`LaneError::Broken`] when the connection is closed, poisoned, or a stranger's that had its one request;
    /// [`LaneError::Busy`] when too much is in flight; [`LaneError::Request`] for an id that cannot travel.
    pub fn request(&self, kind: Kind, task: &TaskId, piece: PieceSpan) -> Result<Ticket, LaneError> {
        let shared = &self.0;
        let mut asking = shared.asking.lock();
        self.check(&mut asking)?;
        let in_flight = shared.in_flight.load(Ordering::Acquire);
        if in_flight >= shared.options.max_in_flight {
            return Err(LaneError::Busy { peer: shared.peer, in_flight });
        }
        let request = Request { id: asking.packet, kind, task: task.clone(), piece: piece.number };
        let bytes = request.encode()?;
        match shared.writer.try_write(&bytes) {
            Ok(REQUEST_LENGTH) => {}
            Ok(written) => {
                shared.poison();
                return Err(shared.broken(format!("only {written} bytes of a request went out")));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(LaneError::Busy { peer: shared.peer, in_flight });
            }
            Err(error) => {
                shared.poison();
                return Err(shared.broken(error.to_string()));
            }
        }
        asking.packet = asking.packet.wrapping_add(1);
        asking.requests += 1;
        let (next, tail) = oneshot::channel();
        let turn = std::mem::replace(&mut asking.tail, tail);
        shared.in_flight.fetch_add(1, Ordering::AcqRel);
        Ok(Ticket::new(shared.clone(), kind, piece, turn, next))
    }

    /// Whether another request may be sent: neither broken, nor closed by the parent while idle, nor used up.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.check(&mut self.0.asking.lock()).is_ok()
    }

    fn check(&self, asking: &mut Asking) -> Result<(), LaneError> {
        let shared = &self.0;
        if shared.broken.is_cancelled() {
            return Err(shared.broken("it was closed, or an answer on it was abandoned or went wrong"));
        }
        if !shared.options.ours && asking.requests > 0 {
            return Err(shared.broken("it had its one request, and this parent takes no more"));
        }
        // While idle the turn waits in the channel: look at the socket, which is silent unless the parent closed it.
        match asking.tail.try_recv() {
            Ok(turn) => {
                let state = turn.reader.try_read(&mut [0]);
                let (hand_over, tail) = oneshot::channel();
                asking.tail = tail;
                // The receiver was just stored.
                drop(hand_over.send(turn));
                let why = match state {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => error.to_string(),
                    Ok(0) => "closed by the parent".to_owned(),
                    Ok(_) => "the parent sent what nobody asked for".to_owned(),
                };
                shared.poison();
                Err(shared.broken(why))
            }
            Err(oneshot::error::TryRecvError::Empty) => Ok(()),
            Err(oneshot::error::TryRecvError::Closed) => {
                shared.poison();
                Err(shared.broken("an answer on it was abandoned"))
            }
        }
    }

    /// Returns when the lane takes no request any more: the parent closed its side, or the lane was closed or broke here.
    /// Answers on their way still come. Who keeps idle lanes lets this one go then, and so ends the connection, which a
    /// parent that stops waits for.
    ///
    /// Reads nothing and needs no turn, so requests go on beside it. While it is awaited, the connection stays open.
    pub async fn ended(&self) {
        let shared = &self.0;
        // Of all the kernel says of a socket, exactly the parent's end (or the connection's) wakes a waiter of this
        // interest: content does not, and urgent data, which would, is asked of the kernel by nobody.
        let closed = shared.writer.ready(Interest::PRIORITY);
        tokio::select! {
            // An error is the runtime's end.
            _ = closed => shared.poison(),
            () = shared.broken.cancelled() => {}
        }
    }

    /// How many requests are unanswered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::Acquire)
    }

    /// Since when nothing has been in flight; `None` while something is.
    #[must_use]
    pub fn idle_since(&self) -> Option<Instant> {
        let asking = self.0.asking.lock();
        (self.in_flight() == 0).then_some(asking.idle_since)
    }

    /// Lets nobody use the lane any more. What is in flight goes on; the connection ends with the last handle.
    pub fn close(&self) {
        self.0.poison();
    }

    /// The round trip to the parent: the shortest of the handshake and of all answers that were ready at once.
    ///
    /// The kernel's own figure (`TCP_INFO`) is not reachable without unsafe code.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        let micros = self.0.rtt_micros.load(Ordering::Relaxed);
        (micros != u64::MAX).then(|| Duration::from_micros(micros))
    }

    /// The parent's address.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// Whether the parent was said to be ours.
    #[must_use]
    pub fn ours(&self) -> bool {
        self.0.options.ours
    }
}
