//! Connections: the pool of connections to other hosts, one Connection actor per address.
//!
//! Callers ask the pool for a lane; the pool passes the question on to the address's actor, which dials in the
//! background and answers when a lane is there. Content never comes by here: a lane is lent, and bytes flow between its
//! socket and storage.

mod connection;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use damselfly_transport::tcp::DialOptions;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::kit::{Board, Faults, Seat, cell_of};
pub(crate) use connection::LANES_NEAR;
pub use connection::Lent;
use connection::{Connection, ConnectionArgs, ConnectionMsg, LaneReply};

/// gRPC channels kept at a time; the least recently used one goes.
const MAX_CHANNELS: usize = 256;

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

#[cfg(test)]
mod tests;
