//! Connections: the pool of connections to other hosts, one [`Connection`] actor per address.
//!
//! Callers ask the pool for a lane; the pool passes the question on to the address's actor, which dials in the
//! background and answers when a lane is there. Content never comes by here: a lane is lent, and bytes flow between its
//! socket and storage.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use damselfly_transport::tcp::{DialOptions, Lane, LaneError};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Channel, Endpoint};

use crate::kit::{Board, Faults, Seat, Timer, cell_of};

/// Requests that may be under way on one lane: the second waits in the parent's socket while the first is answered, so
/// that no round trip passes between two pieces.
const DEPTH: usize = 2;
/// Below this round-trip time four lanes fill any link; above, the socket buffer holds each one back.
const FAR: Duration = Duration::from_millis(10);
const LANES_NEAR: usize = 4;
const LANES_FAR: usize = 8;
/// Callers that may wait for a lane of one address.
const MAX_WAITING: usize = 256;
/// A connection that nobody asked for this long is retired.
const IDLE: Duration = Duration::from_secs(60);
/// gRPC channels kept at a time; the least recently used one goes.
const MAX_CHANNELS: usize = 256;

type LaneReply = RpcReplyPort<Result<Lent, Arc<LaneError>>>;

/// A lane on loan. Until it is dropped it counts as a request on its lane, so that borrowers who have not asked yet do not
/// all get the same one: drop it once the request is sent.
#[derive(Clone, Debug)]
pub struct Lent {
    lane: Lane,
    _claim: Arc<()>,
}

impl std::ops::Deref for Lent {
    type Target = Lane;

    fn deref(&self) -> &Lane {
        &self.lane
    }
}

/// The pool's messages.
#[derive(Debug)]
pub enum ConnectionsMsg {
    /// Lend a lane to a parent's piece port.
    Lease {
        /// Where.
        address: SocketAddr,
        /// Whether the parent is ours: only then is a lane used more than once.
        ours: bool,
        /// Answered when a lane is there, or cannot be had.
        reply: LaneReply,
    },
    /// Lend a gRPC channel; it connects when used.
    Channel {
        /// Where.
        address: SocketAddr,
        /// Answered at once.
        reply: RpcReplyPort<Channel>,
    },
    /// A connection was not asked for anything for a while: told by itself.
    Idle(ActorId),
}

/// `1 lane`, `2 addresses`: how many of something, for people.
fn counted(count: usize, what: &str) -> String {
    let ending = match count {
        1 => "",
        _ if what.ends_with('s') => "es",
        _ => "s",
    };
    format!("{count} {what}{ending}")
}

/// What the pool needs to start.
#[derive(Clone, Debug)]
pub struct ConnectionsArgs {
    /// How to dial.
    pub dial: DialOptions,
    /// Where it shows itself.
    pub board: Board,
    /// For tests.
    pub faults: Faults,
}

/// The pool's state.
#[derive(Debug)]
pub struct ConnectionsState {
    args: ConnectionsArgs,
    by_address: HashMap<(SocketAddr, bool), ActorRef<ConnectionMsg>>,
    addresses: HashMap<ActorId, (SocketAddr, bool)>,
    channels: HashMap<SocketAddr, (Channel, Instant)>,
    seat: Seat,
}

/// The pool.
#[derive(Debug)]
pub struct Connections;

impl ConnectionsState {
    async fn connection(
        &mut self,
        myself: &ActorRef<ConnectionsMsg>,
        address: SocketAddr,
        ours: bool,
    ) -> Result<ActorRef<ConnectionMsg>, ActorProcessingErr> {
        if let Some(connection) = self.by_address.get(&(address, ours)) {
            return Ok(connection.clone());
        }
        let args = ConnectionArgs {
            address,
            ours,
            dial: self.args.dial.clone(),
            faults: self.args.faults.clone(),
            pool: myself.clone(),
            seat: self.args.board.sit(format!("daemon/connections/tcp {address}")),
        };
        let (connection, _) = Actor::spawn_linked(None, Connection, args, myself.get_cell()).await?;
        self.addresses.insert(connection.get_id(), (address, ours));
        self.by_address.insert((address, ours), connection.clone());
        Ok(connection)
    }

    /// Lets an idle connection go. It is told only after it cannot be asked any more, so that no question is lost: what
    /// was asked before reaches it first.
    fn retire(&mut self, id: ActorId) {
        let Some(key) = self.addresses.get(&id) else { return };
        if let Some(connection) = self.by_address.get(key).filter(|connection| connection.get_id() == id) {
            drop(connection.cast(ConnectionMsg::Retire));
            self.by_address.remove(key);
        }
    }

    fn channel(&mut self, address: SocketAddr) -> Result<Channel, ActorProcessingErr> {
        let now = Instant::now();
        if let Some((channel, used)) = self.channels.get_mut(&address) {
            *used = now;
            return Ok(channel.clone());
        }
        if self.channels.len() >= MAX_CHANNELS {
            let oldest = self.channels.iter().min_by_key(|(_, (_, used))| *used).map(|(address, _)| *address);
            oldest.and_then(|oldest| self.channels.remove(&oldest));
        }
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(self.args.dial.deadlines.dial)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(300))
            .keep_alive_timeout(Duration::from_secs(20))
            .connect_lazy();
        self.channels.insert(address, (channel.clone(), now));
        Ok(channel)
    }
}

impl Actor for Connections {
    type Msg = ConnectionsMsg;
    type State = ConnectionsState;
    type Arguments = ConnectionsArgs;

    async fn pre_start(
        &self,
        _: ActorRef<ConnectionsMsg>,
        args: ConnectionsArgs,
    ) -> Result<ConnectionsState, ActorProcessingErr> {
        let seat = args.board.sit("daemon/connections");
        let (by_address, addresses, channels) = Default::default();
        Ok(ConnectionsState { args, by_address, addresses, channels, seat })
    }

    async fn handle(
        &self,
        myself: ActorRef<ConnectionsMsg>,
        message: ConnectionsMsg,
        state: &mut ConnectionsState,
    ) -> Result<(), ActorProcessingErr> {
        state.args.faults.point("connections");
        match message {
            ConnectionsMsg::Lease { address, ours, reply } => {
                let connection = state.connection(&myself, address, ours).await?;
                drop(connection.cast(ConnectionMsg::Lease(reply)));
            }
            ConnectionsMsg::Channel { address, reply } => match state.channel(address) {
                Ok(channel) => drop(reply.send(channel)),
                // Whoever asked is told that nobody answers; the pool is for the others.
                Err(why) => tracing::warn!(%address, %why, "no gRPC channel can be made to this address"),
            },
            ConnectionsMsg::Idle(id) => state.retire(id),
        }
        let (addresses, channels) = (state.by_address.len(), state.channels.len());
        state.seat.show(format!("{}, {}", counted(addresses, "address"), counted(channels, "channel")));
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<ConnectionsMsg>,
        event: SupervisionEvent,
        state: &mut ConnectionsState,
    ) -> Result<(), ActorProcessingErr> {
        let Some(id) = cell_of(&event) else { return Ok(()) };
        let Some(key) = state.addresses.remove(&id) else { return Ok(()) };
        // A retired one may have a successor.
        if state.by_address.get(&key).is_some_and(|connection| connection.get_id() == id) {
            state.by_address.remove(&key);
        }
        Ok(())
    }
}

/// A connection's messages.
#[derive(Debug)]
pub enum ConnectionMsg {
    /// Lend a lane.
    Lease(LaneReply),
    /// A dial ended.
    Dialed(Result<Lane, LaneError>),
    /// A lane takes no request any more: its parent closed it, or an answer on it was given up.
    Ended,
    /// Whoever still waits for a lane to be dialled shares those that stand.
    Patience,
    /// Time to look for lanes that nobody uses.
    Idle,
    /// Nobody asks any more: end when the last question is answered.
    Retire,
}

/// What a connection needs to start.
#[derive(Debug)]
pub struct ConnectionArgs {
    address: SocketAddr,
    ours: bool,
    dial: DialOptions,
    faults: Faults,
    pool: ActorRef<ConnectionsMsg>,
    seat: Seat,
}

#[derive(Debug)]
struct Kept {
    lane: Lane,
    /// One count for ourselves, and one for everybody who borrowed the lane and has not sent a request yet.
    claims: Arc<()>,
    /// Tells when the lane ends; keeps the connection open until it is dropped.
    _watch: AbortOnDropHandle<()>,
}

impl Kept {
    fn new(lane: Lane, myself: &ActorRef<ConnectionMsg>) -> Self {
        let (watched, myself) = (lane.clone(), myself.clone());
        let watch = tokio::spawn(async move {
            watched.ended().await;
            drop(myself.cast(ConnectionMsg::Ended));
        });
        Self { lane, claims: Arc::default(), _watch: AbortOnDropHandle::new(watch) }
    }

    /// Requests under way and to come.
    fn load(&self) -> usize {
        self.lane.in_flight() + Arc::strong_count(&self.claims) - 1
    }

    fn lend(&self) -> Lent {
        Lent { lane: self.lane.clone(), _claim: Arc::clone(&self.claims) }
    }
}

/// A connection's state.
#[derive(Debug)]
pub struct ConnectionState {
    args: ConnectionArgs,
    lanes: Vec<Kept>,
    dialing: usize,
    waiting: VecDeque<LaneReply>,
    asked: Instant,
    retiring: bool,
    idle: Timer,
    patience: Timer,
}

/// One address's lanes: dials them, keeps the usable ones, lends them, retires when idle.
#[derive(Debug)]
pub struct Connection;

impl ConnectionState {
    /// How many lanes the distance asks for.
    fn most(&self) -> usize {
        // The least of all, because a busy machine can only make a round trip look longer.
        let rtt = self.lanes.iter().filter_map(|kept| kept.lane.rtt()).min();
        if rtt.is_some_and(|rtt| rtt >= FAR) { LANES_FAR } else { LANES_NEAR }
    }

    fn least_busy(&self) -> Option<&Kept> {
        self.lanes.iter().min_by_key(|kept| kept.load())
    }

    /// Has the asker wait; one too many is told so.
    fn wait(&mut self, reply: LaneReply) -> bool {
        self.waiting.retain(|waiting| !waiting.is_closed());
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(reply);
            return true;
        }
        let busy = LaneError::Busy { peer: self.args.address, in_flight: self.waiting.len() };
        drop(reply.send(Err(Arc::new(busy))));
        false
    }

    fn lease(&mut self, myself: &ActorRef<ConnectionMsg>, reply: LaneReply) {
        if !self.args.ours {
            if self.wait(reply) {
                self.dial(myself);
            }
            return;
        }
        self.lanes.retain(|kept| kept.lane.is_usable());
        let room = self.lanes.len() + self.dialing < self.most();
        match self.least_busy() {
            Some(kept) if kept.load() < DEPTH || !room => drop(reply.send(Ok(kept.lend()))),
            Some(kept) => {
                // A busy lane serves now; the new one serves those who come when it stands.
                drop(reply.send(Ok(kept.lend())));
                self.dial(myself);
            }
            None => {
                if self.wait(reply) && room {
                    self.dial(myself);
                }
            }
        }
    }

    fn dial(&mut self, myself: &ActorRef<ConnectionMsg>) {
        self.dialing += 1;
        let (address, options, ours, myself) =
            (self.args.address, self.args.dial.clone(), self.args.ours, myself.clone());
        // Bounded by the dial deadline; a result for a dead actor is dropped with its socket.
        tokio::spawn(async move {
            let dialed = Lane::dial(address, DialOptions { ours, ..options }).await;
            drop(myself.cast(ConnectionMsg::Dialed(dialed)));
        });
    }

    fn dialed(&mut self, myself: &ActorRef<ConnectionMsg>, result: Result<Lane, LaneError>) {
        self.dialing -= 1;
        match result {
            Ok(lane) if self.args.ours => {
                let rtt = lane.rtt().unwrap_or_default();
                self.lanes.push(Kept::new(lane, myself));
                self.share(self.dialing == 0);
                if !self.waiting.is_empty() && !self.patience.is_set() {
                    // The other lanes were dialled at the same time: those not here by then have lost a packet.
                    let wait = (2 * rtt).max(Duration::from_millis(2));
                    self.patience.set(myself, Instant::now() + wait, ConnectionMsg::Patience);
                }
            }
            Ok(lane) => {
                self.waiting.retain(|waiting| !waiting.is_closed());
                if let Some(reply) = self.waiting.pop_front() {
                    drop(reply.send(Ok(Lent { lane, _claim: Arc::default() })));
                }
            }
            Err(why) if self.args.ours => {
                self.share(true);
                let why = Arc::new(why);
                for reply in self.waiting.drain(..) {
                    drop(reply.send(Err(Arc::clone(&why))));
                }
            }
            Err(why) => {
                if let Some(reply) = self.waiting.pop_front() {
                    drop(reply.send(Err(Arc::new(why))));
                }
            }
        }
    }

    /// Lends lanes that stand to those who wait: as far as they are not busy, or all of them.
    fn share(&mut self, all: bool) {
        self.lanes.retain(|kept| kept.lane.is_usable());
        while let Some(lent) = self.least_busy().filter(|kept| all || kept.load() < DEPTH).map(Kept::lend)
            && let Some(reply) = self.waiting.pop_front()
        {
            if !reply.is_closed() {
                drop(reply.send(Ok(lent)));
            }
        }
        if self.waiting.is_empty() {
            self.patience.clear();
        }
    }

    /// Lets go of lanes that nobody used for a while, and of the address when nobody asked for it either.
    fn tidy(&mut self, myself: &ActorRef<ConnectionMsg>) {
        let now = Instant::now();
        let old = |since: Instant| now.saturating_duration_since(since) >= IDLE;
        self.lanes.retain(|kept| {
            kept.lane.is_usable() && (kept.load() > 0 || !kept.lane.idle_since().is_some_and(old))
        });
        let unused = self.lanes.is_empty() && self.dialing == 0 && self.waiting.is_empty();
        if unused && old(self.asked) {
            // A dead pool takes its connections with it.
            drop(self.args.pool.cast(ConnectionsMsg::Idle(myself.get_id())));
        }
        self.idle.set(myself, now + IDLE, ConnectionMsg::Idle);
    }
}

impl Actor for Connection {
    type Msg = ConnectionMsg;
    type State = ConnectionState;
    type Arguments = ConnectionArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<ConnectionMsg>,
        args: ConnectionArgs,
    ) -> Result<ConnectionState, ActorProcessingErr> {
        let mut idle = Timer::default();
        idle.set(&myself, Instant::now() + IDLE, ConnectionMsg::Idle);
        Ok(ConnectionState {
            args,
            lanes: Vec::new(),
            dialing: 0,
            waiting: VecDeque::new(),
            asked: Instant::now(),
            retiring: false,
            idle,
            patience: Timer::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<ConnectionMsg>,
        message: ConnectionMsg,
        state: &mut ConnectionState,
    ) -> Result<(), ActorProcessingErr> {
        state.args.faults.point("connection");
        match message {
            ConnectionMsg::Lease(reply) => {
                state.asked = Instant::now();
                state.lease(&myself, reply);
            }
            ConnectionMsg::Dialed(result) => state.dialed(&myself, result),
            // An idle one must not be kept open: a parent that stops waits for its end.
            ConnectionMsg::Ended => state.lanes.retain(|kept| kept.lane.is_usable()),
            ConnectionMsg::Patience => {
                state.patience.clear();
                state.share(true);
            }
            ConnectionMsg::Idle => {
                state.idle.clear();
                state.tidy(&myself);
            }
            ConnectionMsg::Retire => state.retiring = true,
        }
        if state.retiring && state.waiting.is_empty() && state.dialing == 0 {
            myself.stop(None);
        }
        let busy: usize = state.lanes.iter().map(Kept::load).sum();
        let (lanes, requests) = (counted(state.lanes.len(), "lane"), counted(busy, "request"));
        state.args.seat.show(format!("{lanes}, {requests}, {} dialing", state.dialing));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
