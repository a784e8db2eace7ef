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

type LaneReply = RpcReplyPort<Result<Lane, Arc<LaneError>>>;

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
            seat: self.args.board.sit(format!("daemon/connections/tcp {address}")),
        };
        let (connection, _) = Actor::spawn_linked(None, Connection, args, myself.get_cell()).await?;
        self.addresses.insert(connection.get_id(), (address, ours));
        self.by_address.insert((address, ours), connection.clone());
        Ok(connection)
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
            ConnectionsMsg::Channel { address, reply } => drop(reply.send(state.channel(address)?)),
        }
        state.seat.show(format!("{} addresses, {} channels", state.by_address.len(), state.channels.len()));
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<ConnectionsMsg>,
        event: SupervisionEvent,
        state: &mut ConnectionsState,
    ) -> Result<(), ActorProcessingErr> {
        let gone = cell_of(&event).and_then(|id| state.addresses.remove(&id));
        gone.and_then(|key| state.by_address.remove(&key));
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
    /// Nobody asked for a while.
    Idle,
}

/// What a connection needs to start.
#[derive(Debug)]
pub struct ConnectionArgs {
    address: SocketAddr,
    ours: bool,
    dial: DialOptions,
    faults: Faults,
    seat: Seat,
}

/// A connection's state.
#[derive(Debug)]
pub struct ConnectionState {
    args: ConnectionArgs,
    lanes: Vec<Lane>,
    dialing: usize,
    waiting: VecDeque<LaneReply>,
    idle: Timer,
}

/// One address's lanes: dials them, keeps the usable ones, lends them, retires when idle.
#[derive(Debug)]
pub struct Connection;

impl ConnectionState {
    /// How many lanes the distance asks for.
    fn most(&self) -> usize {
        let far = self.lanes.iter().filter_map(Lane::rtt).any(|rtt| rtt >= FAR);
        if far { LANES_FAR } else { LANES_NEAR }
    }

    fn lease(&mut self, myself: &ActorRef<ConnectionMsg>, reply: LaneReply) {
        if !self.args.ours {
            if self.waiting.len() < MAX_WAITING {
                self.waiting.push_back(reply);
                self.dial(myself);
            }
            return;
        }
        self.lanes.retain(Lane::is_usable);
        let least = self.lanes.iter().min_by_key(|lane| lane.in_flight()).cloned();
        let room = self.lanes.len() + self.dialing < self.most();
        match least {
            Some(lane) if lane.in_flight() < DEPTH || !room => drop(reply.send(Ok(lane))),
            other => {
                // A busy lane serves now; the new one serves those who come when it stands.
                match other {
                    Some(lane) => drop(reply.send(Ok(lane))),
                    None if self.waiting.len() < MAX_WAITING => self.waiting.push_back(reply),
                    None => {}
                }
                if room {
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

    fn dialed(&mut self, result: Result<Lane, LaneError>) {
        self.dialing -= 1;
        match result {
            Ok(lane) if self.args.ours => {
                for reply in self.waiting.drain(..) {
                    drop(reply.send(Ok(lane.clone())));
                }
                self.lanes.push(lane);
            }
            Ok(lane) => {
                while let Some(reply) = self.waiting.pop_front() {
                    if !reply.is_closed() {
                        drop(reply.send(Ok(lane)));
                        break;
                    }
                }
            }
            Err(why) if self.args.ours => {
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
}

impl Actor for Connection {
    type Msg = ConnectionMsg;
    type State = ConnectionState;
    type Arguments = ConnectionArgs;

    async fn pre_start(
        &self,
        _: ActorRef<ConnectionMsg>,
        args: ConnectionArgs,
    ) -> Result<ConnectionState, ActorProcessingErr> {
        Ok(ConnectionState {
            args,
            lanes: Vec::new(),
            dialing: 0,
            waiting: VecDeque::new(),
            idle: Timer::default(),
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
                state.lease(&myself, reply);
                state.idle.set(&myself, Instant::now() + IDLE, ConnectionMsg::Idle);
            }
            ConnectionMsg::Dialed(result) => state.dialed(result),
            ConnectionMsg::Idle => myself.stop(None),
        }
        let busy: usize = state.lanes.iter().map(Lane::in_flight).sum();
        state.args.seat.show(format!(
            "{} lanes, {busy} requests, {} dialing",
            state.lanes.len(),
            state.dialing
        ));
        Ok(())
    }
}
