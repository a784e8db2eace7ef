//! One address: dials its lanes, lends them, and lets them go when they end or nobody uses them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use damselfly_transport::tcp::{DialOptions, Lane, LaneError};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{ConnectionsMsg, counted};
use crate::kit::{Faults, Seat, Timer};

/// Requests that may be under way on one lane: the second waits in the parent's socket while the first is answered, so
/// that no round trip passes between two pieces.
const DEPTH: usize = 2;
/// Below this round-trip time four lanes fill any link; above, the socket buffer holds each one back. At 20 ms eight were
/// slower than four (`docs/benchmarks.md`): the last piece of the slowest lane is waited for.
const FAR: Duration = Duration::from_millis(50);
pub(crate) const LANES_NEAR: usize = 4;
const LANES_FAR: usize = 8;
/// Callers that may wait for a lane of one address.
const MAX_WAITING: usize = 256;
/// A connection that nobody asked for this long is retired.
pub(super) const IDLE: Duration = Duration::from_secs(60);
pub(super) type LaneReply = RpcReplyPort<Result<Lent, Arc<LaneError>>>;

/// A lane on loan. Until it is dropped it counts as a request on its lane, so that borrowers who have not asked yet do not
/// all get the same one: drop it once the request is sent.
#[derive(Clone, Debug)]
pub struct Lent {
    lane: Lane,
    pub(super) _claim: Arc<()>,
}

impl std::ops::Deref for Lent {
    type Target = Lane;

    fn deref(&self) -> &Lane {
        &self.lane
    }
}

/// A connection's messages.
#[derive(Debug)]
pub(super) enum ConnectionMsg {
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
pub(super) struct ConnectionArgs {
    pub(super) address: SocketAddr,
    pub(super) ours: bool,
    pub(super) dial: DialOptions,
    pub(super) faults: Faults,
    pub(super) pool: ActorRef<ConnectionsMsg>,
    pub(super) seat: Seat,
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
pub(super) struct ConnectionState {
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
pub(super) struct Connection;

impl ConnectionState {
    /// Whether the lanes that stand are long.
    fn is_far(&self) -> bool {
        // The least of all, because a busy machine can only make a round trip look longer.
        let rtt = self.lanes.iter().filter_map(|kept| kept.lane.rtt()).min();
        rtt.is_some_and(|rtt| rtt >= FAR)
    }

    /// How many lanes the distance asks for.
    fn most(&self) -> usize {
        if self.is_far() { LANES_FAR } else { LANES_NEAR }
    }

    /// How many requests a lane takes before another lane is better. A far one is held back by its buffers: there, and
    /// while others are about to stand, none takes a second one.
    fn depth(&self) -> usize {
        if self.is_far() || self.dialing > 0 { 1 } else { DEPTH }
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
        let depth = self.depth();
        match self.least_busy() {
            Some(kept) if kept.load() < depth || !room => drop(reply.send(Ok(kept.lend()))),
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
                // It may have shown that the parent is far, and that more lanes are needed.
                let wanted = self.waiting.len().min(self.most());
                while self.is_far() && self.lanes.len() + self.dialing < wanted {
                    self.dial(myself);
                }
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
        let depth = self.depth();
        while let Some(lent) = self.least_busy().filter(|kept| all || kept.load() < depth).map(Kept::lend)
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
        let since = self.lanes.iter().filter_map(|kept| kept.lane.idle_since()).chain([self.asked]);
        let next = since.filter(|since| !old(*since)).min().unwrap_or(now);
        self.idle.set(myself, next + IDLE, ConnectionMsg::Idle);
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
