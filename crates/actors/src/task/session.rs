//! SchedulerSession: the announce stream of one peer.
//!
//! Opens the stream when started, sends what the supervisor tells, and casts what the scheduler answers straight to
//! the supervisor. After a final message it outlives the supervisor for a moment: it is handed over to the registry of
//! tasks and ends when the scheduler has closed the stream, so that no client waits for that farewell.

use std::sync::Arc;
use std::time::Duration;

use damselfly_api::scheduler::v2::AnnouncePeerRequest;
use damselfly_api::scheduler::v2::announce_peer_request::Request;
use damselfly_core::download::FromScheduler;
use damselfly_core::{TaskKey, Tick};
use damselfly_scheduler_client::{ClientError, SchedulerHandle};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tonic::Code;

use super::{TaskMsg, policy, wire};
use crate::engine::Engine;
use crate::kit::{Seat, Timer};

/// How old a daemon is when it no longer waits for its schedulers to be found.
const STARTING: Duration = Duration::from_secs(3);
/// How long the scheduler may take to close the stream after a final message.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long one message may wait for the stream's flow control.
const SEND_DEADLINE: Duration = Duration::from_secs(10);

/// A session's messages.
#[derive(Debug)]
pub enum SessionMsg {
    /// Open the stream.
    Open,
    /// Send this.
    Tell(Box<AnnouncePeerRequest>),
    /// Send this, then wait for the scheduler to close.
    Farewell(Box<AnnouncePeerRequest>),
    /// The stream ended.
    Closed,
    /// The farewell took too long.
    Enough,
}

/// What a session needs to start.
#[derive(Debug)]
pub struct SessionArgs {
    /// The daemon's shared parts.
    pub engine: Arc<Engine>,
    /// The task.
    pub task: TaskKey,
    /// Whether this host's copy becomes a replica.
    pub persistent: bool,
    /// The message that registers the peer.
    pub register: Box<AnnouncePeerRequest>,
    /// Whether the message carries the content's length.
    pub geometry_known: bool,
    /// Who hears the answers.
    pub supervisor: ActorRef<TaskMsg>,
    /// Its seat on the board.
    pub seat: Seat,
}

/// A session's state.
#[derive(Debug)]
pub struct SessionState {
    args: SessionArgs,
    tx: Option<mpsc::Sender<AnnouncePeerRequest>>,
    reader: Option<AbortHandle>,
    farewell: Timer,
}

impl Drop for SessionState {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.abort();
        }
    }
}

/// The actor.
#[derive(Debug)]
pub struct SchedulerSession;

impl SessionState {
    fn say(&self, what: FromScheduler) {
        drop(self.args.supervisor.cast(TaskMsg::Scheduler(vec![what], Vec::new())));
    }

    /// The task's scheduler. A daemon that has just started gives its schedulers a moment to be found, so that its first
    /// task does not go to the origin alone.
    async fn pick(&self) -> Option<SchedulerHandle> {
        let engine = &self.args.engine;
        let young = STARTING.saturating_sub(engine.clock.now().since(Tick(0)));
        if engine.cluster.pick(&self.args.task.id).is_none() && engine.expects_scheduler {
            self.args.seat.show("waiting for a scheduler");
            drop(tokio::time::timeout(young, engine.cluster.ready()).await);
        }
        engine.cluster.pick(&self.args.task.id)
    }

    async fn open(&mut self, myself: &ActorRef<SessionMsg>) -> Result<(), FromScheduler> {
        let Some(handle) = self.pick().await else { return Err(FromScheduler::Absent) };
        let ours = handle.ours();
        self.args.seat.show(format!("registering with {}", handle.address()));
        if !ours && !self.args.geometry_known && policy::has_origin(self.args.task.kind) {
            self.learn_length(&handle).await?;
        }
        let register = (*self.args.register).clone();
        let lost = |why: ClientError| FromScheduler::Lost(why.to_string());
        let stream = policy::announce(&handle, self.args.task.kind, register, self.args.persistent);
        let stream = stream.await.map_err(lost)?;
        self.args.seat.show(format!("registered with {}", handle.address()));
        self.say(FromScheduler::Connected { ours });
        let (tx, mut rx) = (stream.tx, stream.rx);
        let (supervisor, session) = (self.args.supervisor.clone(), myself.clone());
        let reader = tokio::spawn(async move {
            let end = loop {
                match rx.next().await {
                    Ok(Some(response)) => {
                        let (said, parents) = wire::from_response(response);
                        drop(supervisor.cast(TaskMsg::Scheduler(said, parents)));
                    }
                    Ok(None) => break "scheduler closed the stream".to_owned(),
                    Err(why) => break why.to_string(),
                }
            };
            drop(supervisor.cast(TaskMsg::Scheduler(vec![FromScheduler::Lost(end)], Vec::new())));
            drop(session.cast(SessionMsg::Closed));
        });
        (self.tx, self.reader) = (Some(tx), Some(reader.abort_handle()));
        Ok(())
    }

    /// Asks Dragonfly's scheduler for the length before registering, for clients that may not ask the origin: a download
    /// without a length it would take for an empty one, and a task that it makes of that is wrong for everybody.
    async fn learn_length(&mut self, handle: &SchedulerHandle) -> Result<(), FromScheduler> {
        let Some(Request::RegisterPeerRequest(register)) = &mut self.args.register.request else {
            return Ok(());
        };
        let Some(download) = &mut register.download else { return Ok(()) };
        let host = self.args.engine.identity.host_id.as_str();
        let geometry = match handle.stat_task(host, &self.args.task.id).await {
            Ok(task) => wire::geometry_there(&task, download.piece_length),
            Err(why) if why.code() == Some(Code::NotFound) => None,
            Err(why) => return Err(FromScheduler::Lost(why.to_string())),
        };
        let Some(geometry) = geometry else {
            let why = "the scheduler is Dragonfly's and does not know the content's length: allow the origin, or \
                       try again when another host has the content";
            return Err(FromScheduler::Refused(why.to_owned()));
        };
        wire::set_geometry(download, geometry);
        self.say(FromScheduler::Length(geometry));
        Ok(())
    }

    /// Sends one message. A stream that takes none is broken, whether or not the other end has noticed.
    async fn send(&mut self, myself: &ActorRef<SessionMsg>, message: AnnouncePeerRequest) {
        let Some(tx) = &self.tx else { return };
        let Err(why) = tx.send_timeout(message, SEND_DEADLINE).await else { return };
        self.tx = None;
        if matches!(why, mpsc::error::SendTimeoutError::Timeout(_)) {
            self.say(FromScheduler::Lost(format!(
                "scheduler took nothing for {} s",
                SEND_DEADLINE.as_secs()
            )));
            myself.stop(None);
        }
        // Closed: the reader says so.
    }
}

impl Actor for SchedulerSession {
    type Msg = SessionMsg;
    type State = SessionState;
    type Arguments = SessionArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<SessionMsg>,
        args: SessionArgs,
    ) -> Result<SessionState, ActorProcessingErr> {
        myself.cast(SessionMsg::Open)?;
        Ok(SessionState { args, tx: None, reader: None, farewell: Timer::default() })
    }

    async fn handle(
        &self,
        myself: ActorRef<SessionMsg>,
        message: SessionMsg,
        state: &mut SessionState,
    ) -> Result<(), ActorProcessingErr> {
        state.args.engine.faults.point("scheduler-session");
        match message {
            SessionMsg::Open => {
                if let Err(why) = state.open(&myself).await {
                    state.say(why);
                    myself.stop(None);
                }
            }
            SessionMsg::Tell(message) => state.send(&myself, *message).await,
            SessionMsg::Farewell(message) => {
                state.args.seat.show("waiting for the scheduler's farewell");
                state.send(&myself, *message).await;
                state.tx = None;
                state.farewell.set(&myself, tokio::time::Instant::now() + FAREWELL, SessionMsg::Enough);
            }
            SessionMsg::Closed | SessionMsg::Enough => myself.stop(None),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
