//! Tasks: the registry. One live supervisor per (kind, id); later callers join the one that runs.
//!
//! It also holds what must outlive a supervisor: the clients' wishes (attached again when a supervisor crashed, once),
//! the clients' [`ProgressStream`](crate::stream::ProgressStream) actors, and announce sessions saying farewell.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use damselfly_core::download::{Client, ClientId, HeadersId};
use damselfly_core::{PeerId, RangeSpec, TaskKey, Tick};
use damselfly_storage::{Pin, StoreError, TaskContent};
use damselfly_transport::TokenBucket;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};

use crate::engine::Engine;
use crate::kit::{Seat, cell_of};
use crate::known::Sources;
use crate::progress::{Cursor, Progress, ProgressEvent};
use crate::stream::{ProgressStream, StreamArgs};
use crate::task::request::OriginRequest;
use crate::task::{Control, Joining, TaskArgs, TaskMsg, TaskState, TaskSupervisor};

/// How long a question to the registry may take.
pub const ASK: Duration = Duration::from_secs(5);
/// Runs of one supervisor: the first, and one more after a crash.
const RUNS: u32 = 2;
/// Tasks that may run at a time.
const MAX_TASKS: usize = 10_000;

/// What a client wants when it joins.
#[derive(Clone, Debug)]
pub struct Wish {
    /// What of the content.
    pub range: RangeSpec,
    /// Whether the origin may be asked for it.
    pub may_use_origin: bool,
    /// When it gives up.
    pub deadline: Option<Tick>,
    /// Its way to the origin; `None` where the task has none.
    pub request: Option<Arc<OriginRequest>>,
    /// Its download as it came.
    pub download: Arc<damselfly_api::common::v2::Download>,
}

impl Wish {
    /// Equal for clients that show the origin the same, and for all of a task that has none.
    #[must_use]
    pub fn headers(&self) -> HeadersId {
        self.request.as_ref().map_or(HeadersId(0), |request| request.headers_id())
    }
}

/// A client's place in a task. Dropping it leaves the task.
#[derive(Debug)]
pub struct Membership {
    /// The client.
    pub client: ClientId,
    /// What happens from here on.
    pub events: Cursor,
    /// The download's name. The first client of a task is known by the peer's own; others add to it, so that each
    /// finds its own receipt.
    pub peer_id: PeerId,
    key: TaskKey,
    tasks: crate::kit::Address<TasksMsg>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.tasks.cast(TasksMsg::Leave(self.key.clone(), self.client));
    }
}

/// Why a client cannot join.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum JoinError {
    /// Too many tasks run.
    #[error("{MAX_TASKS} tasks are running already; try again when some have finished")]
    TooMany,
    /// The task was deleted between being looked up and being joined.
    #[error("the task was deleted meanwhile; try again")]
    Gone,
    /// The supervisor could not be started.
    #[error("cannot start the task's supervisor: {0}")]
    Start(String),
}

/// The registry's messages.
#[derive(Debug)]
pub enum TasksMsg {
    /// A client joins a task, which starts if it does not run.
    Join(Arc<TaskContent>, Box<Wish>, RpcReplyPort<Result<Membership, JoinError>>),
    /// A client leaves.
    Leave(TaskKey, ClientId),
    /// The user intervenes; answered with whether a supervisor runs.
    Control(TaskKey, Control, RpcReplyPort<bool>),
    /// Start a stream for a client.
    Stream(Box<StreamArgs>),
    /// Answered with how many tasks run.
    Count(RpcReplyPort<usize>),
}

#[derive(Debug)]
struct Entry {
    supervisor: ActorRef<TaskMsg>,
    content: Arc<TaskContent>,
    progress: Arc<Progress>,
    peer_id: PeerId,
    limit: Arc<TokenBucket>,
    clients: HashMap<ClientId, Joining>,
    /// Whether a client bears the peer's own name.
    named: bool,
    crashes: u32,
    /// Held from the first run to the end of the last, so that nothing is collected between two.
    _pin: Pin,
}

/// The registry's state.
pub struct TasksState {
    engine: Arc<Engine>,
    entries: HashMap<TaskKey, Entry>,
    keys: HashMap<ActorId, TaskKey>,
    next_client: u64,
    seat: Seat,
}

impl std::fmt::Debug for TasksState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TasksState").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

/// The registry.
#[derive(Debug)]
pub struct Tasks;

impl TasksState {
    async fn join(
        &mut self,
        myself: &ActorRef<TasksMsg>,
        content: Arc<TaskContent>,
        wish: Wish,
    ) -> Result<Membership, JoinError> {
        let key = content.key().clone();
        self.next_client += 1;
        let client = ClientId(self.next_client);
        let joining = Joining {
            client: Client {
                id: client,
                range: wish.range,
                headers: wish.headers(),
                may_use_origin: wish.may_use_origin,
                deadline: wish.deadline,
            },
            request: wish.request,
            download: wish.download,
        };
        if !self.entries.contains_key(&key) {
            if self.entries.len() >= MAX_TASKS {
                return Err(JoinError::TooMany);
            }
            let pin = tokio::task::block_in_place(|| content.pin()).map_err(|why| match why {
                StoreError::Gone(_) => JoinError::Gone,
                why => JoinError::Start(why.to_string()),
            })?;
            let (progress, limit) =
                (Progress::new(), Arc::new(TokenBucket::new(self.engine.known.limit(&key))));
            let peer_id = self.engine.identity.new_peer();
            let mut args = self.args(&content, &progress, &peer_id, &limit, Vec::new());
            args.piece_length = joining.piece_length();
            let supervisor = self.start(myself, args).await?;
            let entry = Entry {
                supervisor,
                content,
                progress,
                peer_id,
                limit,
                clients: HashMap::new(),
                named: false,
                crashes: 0,
                _pin: pin,
            };
            self.entries.insert(key.clone(), entry);
        }
        let entry = self.entries.get_mut(&key).ok_or_else(|| JoinError::Start("task vanished".to_owned()))?;
        let membership = Membership {
            client,
            events: entry.progress.follow(),
            peer_id: if entry.named {
                format!("{}-{}", entry.peer_id, client.0).into()
            } else {
                entry.peer_id.clone()
            },
            key,
            tasks: self.engine.tasks.clone(),
        };
        entry.named = true;
        entry.clients.insert(client, joining.clone());
        // If the supervisor is ending, its end finds the client unserved and another run takes it in.
        drop(entry.supervisor.cast(TaskMsg::Join(Box::new(joining))));
        Ok(membership)
    }

    fn args(
        &self,
        content: &Arc<TaskContent>,
        progress: &Arc<Progress>,
        peer_id: &PeerId,
        limit: &Arc<TokenBucket>,
        clients: Vec<Joining>,
    ) -> TaskArgs {
        let key = content.key();
        TaskArgs {
            engine: Arc::clone(&self.engine),
            content: Arc::clone(content),
            progress: Arc::clone(progress),
            peer_id: peer_id.clone(),
            piece_length: clients.first().and_then(Joining::piece_length),
            clients,
            limit: Arc::clone(limit),
            path: format!("daemon/tasks/{} {}", key.kind, &key.id.as_str()[..key.id.as_str().len().min(12)]),
        }
    }

    async fn start(
        &mut self,
        myself: &ActorRef<TasksMsg>,
        args: TaskArgs,
    ) -> Result<ActorRef<TaskMsg>, JoinError> {
        let key = args.content.key().clone();
        let peer_id = args.peer_id.clone();
        self.engine.live.insert(&key, &peer_id);
        let spawned = Actor::spawn_linked(None, TaskSupervisor, args, myself.get_cell()).await;
        let (supervisor, _) = spawned.map_err(|why| {
            self.engine.live.remove(&key, &peer_id);
            JoinError::Start(why.to_string())
        })?;
        self.keys.insert(supervisor.get_id(), key);
        Ok(supervisor)
    }

    fn leave(&mut self, key: &TaskKey, client: ClientId) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.clients.remove(&client).is_some()
        {
            drop(entry.supervisor.cast(TaskMsg::Leave(client)));
        }
    }

    /// A supervisor ended: on purpose, or by a crash.
    async fn ended(&mut self, myself: &ActorRef<TasksMsg>, key: TaskKey, event: SupervisionEvent) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let left = match event {
            SupervisionEvent::ActorTerminated(_, Some(mut state), _) => state.take::<TaskState>().ok(),
            SupervisionEvent::ActorFailed(_, why) => {
                tracing::error!(%key, %why, crashes = entry.crashes + 1, "task supervisor crashed");
                None
            }
            _ => None,
        };
        let mut crashed = false;
        let unserved: Vec<Joining> = match &left {
            Some(state) => {
                let late = |joining: &&Joining| !state.joined().contains(&joining.client.id);
                entry.clients.values().filter(late).cloned().collect()
            }
            // Crashed, or killed: whoever was served already hears nothing of a second time.
            None => {
                entry.crashes += 1;
                crashed = entry.crashes >= RUNS;
                if crashed { Vec::new() } else { entry.clients.values().cloned().collect() }
            }
        };
        if unserved.is_empty() {
            let progress = Arc::clone(&entry.progress);
            self.forget(&key);
            if crashed {
                progress.publish(ProgressEvent::Crashed);
            }
            // The former supervisor leaves the board only now: whoever watches it sees the task gone.
            drop(left);
            return;
        }
        self.engine.live.remove(&key, &entry.peer_id);
        // Another run is another peer to the scheduler.
        entry.peer_id = self.engine.identity.new_peer();
        let (content, progress) = (Arc::clone(&entry.content), Arc::clone(&entry.progress));
        let (peer_id, limit) = (entry.peer_id.clone(), Arc::clone(&entry.limit));
        let args = self.args(&content, &progress, &peer_id, &limit, unserved);
        match self.start(myself, args).await {
            Ok(supervisor) => {
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.supervisor = supervisor;
                }
            }
            Err(why) => {
                tracing::error!(%key, %why, "cannot restart task");
                self.forget(&key);
                progress.publish(ProgressEvent::Crashed);
            }
        }
    }

    /// A task runs no more. Its last pin may go with it, which gives room back on the disk, and so does the task when
    /// nothing became known of its content; only then is it over.
    fn forget(&mut self, key: &TaskKey) {
        let Some(entry) = self.entries.remove(key) else { return };
        let peer_id = entry.peer_id.clone();
        tokio::task::block_in_place(|| drop(entry));
        self.engine.remove_blank(key);
        if let Some(view) = self.engine.live.view(key) {
            let sources =
                Sources { origin: view.origin_bytes, peers: view.peer_bytes, local: view.local_bytes };
            self.engine.known.ran(key, sources);
        }
        self.engine.live.remove(key, &peer_id);
    }
}

impl Actor for Tasks {
    type Msg = TasksMsg;
    type State = TasksState;
    type Arguments = Arc<Engine>;

    async fn pre_start(
        &self,
        _: ActorRef<TasksMsg>,
        engine: Arc<Engine>,
    ) -> Result<TasksState, ActorProcessingErr> {
        // After a crash of this registry no supervisor lives.
        engine.live.clear();
        let seat = engine.board.sit("daemon/tasks");
        Ok(TasksState { engine, entries: HashMap::new(), keys: HashMap::new(), next_client: 0, seat })
    }

    async fn handle(
        &self,
        myself: ActorRef<TasksMsg>,
        message: TasksMsg,
        state: &mut TasksState,
    ) -> Result<(), ActorProcessingErr> {
        state.engine.faults.point("tasks");
        match message {
            TasksMsg::Join(content, wish, reply) => {
                let joined = state.join(&myself, content, *wish).await;
                drop(reply.send(joined));
            }
            TasksMsg::Leave(key, client) => state.leave(&key, client),
            TasksMsg::Control(key, control, reply) => {
                let entry = state.entries.get(&key);
                let sent =
                    entry.is_some_and(|entry| entry.supervisor.cast(TaskMsg::Control(control)).is_ok());
                drop(reply.send(sent));
            }
            TasksMsg::Stream(args) => {
                drop(Actor::spawn_linked(None, ProgressStream, *args, myself.get_cell()).await?);
            }
            TasksMsg::Count(reply) => drop(reply.send(state.entries.len())),
        }
        state.seat.show(format!("{} running", state.entries.len()));
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<TasksMsg>,
        event: SupervisionEvent,
        state: &mut TasksState,
    ) -> Result<(), ActorProcessingErr> {
        // Streams and sessions end unheard: a stream that crashes drops its sender, which its client sees.
        if let Some(key) = cell_of(&event).and_then(|id| state.keys.remove(&id)) {
            state.ended(&myself, key, event).await;
            state.seat.show(format!("{} running", state.entries.len()));
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<TasksMsg>,
        state: &mut TasksState,
    ) -> Result<(), ActorProcessingErr> {
        // Supervisors end with their registry; whoever waits for what they fetch must hear of it.
        state.engine.live.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
