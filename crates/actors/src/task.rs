//! TaskSupervisor: one per active task. It performs what the Download machine decides.
//!
//! ```text
//!   clients ── Join/Leave ──┐                         ┌── SchedulerSession  (announce stream)
//!   user ──── Pause/… ──────┤    ┌───────────────┐    ├── ParentWatch × n   (SyncPieces)
//!   timer ─── Tick ─────────┼──▶ │ Download::step │ ──▶│── PieceFetch × n
//!   children ─ casts, ends ─┘    └───────────────┘    └── progress log, storage
//! ```
//!
//! It owns the machine, the children and the task's announce dialogue; it never touches content. Its handler turns a
//! message into events, steps the machine and performs the effects in order. It stops when the machine finishes; what
//! reached its mailbox too late is found and retried by the registry of tasks. A panic costs this run: the registry
//! starts another from what storage holds, and the clients are attached again.

pub mod fetch;
pub mod policy;
pub mod request;
pub mod session;
pub mod watch;
pub mod wire;

mod perform;
mod status;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use damselfly_api::common::v2::Download as DownloadProto;
use damselfly_core::download::{
    AttemptId, Client, ClientId, Config as MachineConfig, Download, Event, FailureKind, FromAttempt,
    FromParent, FromScheduler, HeadersId, Held, Outcome,
};
use damselfly_core::{PeerId, PieceSet, TaskKey};
use damselfly_storage::TaskContent;
use damselfly_transport::TokenBucket;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::engine::Engine;
use crate::kit::{Seat, Timer, cell_of};
use crate::progress::Progress;
use fetch::{FetchState, Lore, Report, failure};
use request::OriginRequest;
use session::SessionMsg;
pub use status::{ParentView, TaskView};
use wire::{Dialogue, Parent};

/// A client as the supervisor needs it.
#[derive(Clone, Debug)]
pub struct Joining {
    /// Its wish.
    pub client: Client,
    /// Its way to the origin; `None` where the task has none.
    pub request: Option<Arc<OriginRequest>>,
    /// Its download as it came, for registering at the scheduler.
    pub download: Arc<DownloadProto>,
}

impl Joining {
    /// Bytes per piece where the user named them.
    #[must_use]
    pub fn piece_length(&self) -> Option<u64> {
        self.request.as_ref().and_then(|request| request.piece_length)
    }
}

/// What a user may do to a running task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Stop fetching; clients wait.
    Pause,
    /// Go on.
    Resume,
    /// Fail every client.
    Cancel,
    /// Fetch at most this many bytes per second; `None` lifts the limit.
    Limit(Option<u64>),
}

/// A supervisor's messages.
#[derive(Debug)]
pub enum TaskMsg {
    /// A client joins.
    Join(Box<Joining>),
    /// A client leaves, satisfied or not.
    Leave(ClientId),
    /// The user intervenes.
    Control(Control),
    /// The scheduler said something; parents come with their addresses.
    Scheduler(Vec<FromScheduler>, Vec<Parent>),
    /// A parent said something, perhaps where its pieces are served.
    Parent(PeerId, FromParent, Option<SocketAddr>),
    /// An attempt has news in its report.
    Nudge(AttemptId),
    /// The machine's deadline came.
    Tick,
}

/// What a supervisor needs to start. Whoever starts it keeps the content pinned until it has ended.
pub struct TaskArgs {
    /// The daemon's shared parts.
    pub engine: Arc<Engine>,
    /// Where the content lives.
    pub content: Arc<TaskContent>,
    /// Where its story is told.
    pub progress: Arc<Progress>,
    /// This download's name as a peer.
    pub peer_id: PeerId,
    /// The clients that are there from the start.
    pub clients: Vec<Joining>,
    /// Bytes per piece where the user named them; the same for all clients, because it counts for the task's id.
    pub piece_length: Option<u64>,
    /// The task's own speed limit; outlives the run.
    pub limit: Arc<TokenBucket>,
    /// Where it shows itself in the tree.
    pub path: String,
}

impl std::fmt::Debug for TaskArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskArgs").field("key", self.content.key()).finish_non_exhaustive()
    }
}

/// Content bytes of one run, by where they came from.
#[derive(Clone, Debug, Default)]
struct Tally {
    origin: u64,
    peers: u64,
    local: u64,
    parents: HashMap<PeerId, (u32, u64)>,
}

#[derive(Clone, Debug)]
enum Kid {
    Fetch(AttemptId),
    Watch(PeerId),
    Session,
}

#[derive(Debug)]
struct Running {
    report: Arc<Report>,
    cancel: CancellationToken,
    seen: u64,
}

/// A supervisor's state; also what it leaves behind when it stops.
pub struct TaskState {
    args: TaskArgs,
    key: TaskKey,
    machine: Download,
    dialogue: Dialogue,
    session: Option<ActorRef<SessionMsg>>,
    watches: HashMap<PeerId, ActorRef<()>>,
    kids: HashMap<ActorId, Kid>,
    attempts: HashMap<AttemptId, Running>,
    lore: Arc<Lore>,
    standstill: status::Standstill,
    parents: HashMap<PeerId, Parent>,
    requests: HashMap<HeadersId, Arc<OriginRequest>>,
    download: Arc<DownloadProto>,
    /// What room was made for.
    reserved: PieceSet,
    timer: Timer,
    joined: HashSet<ClientId>,
    finished: Option<Outcome>,
    tally: Tally,
    span: tracing::Span,
    seat: Seat,
    /// When the pieces that are missing were last counted, and how many there were.
    counted: Option<(tokio::time::Instant, u32)>,
}

impl std::fmt::Debug for TaskState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskState")
            .field("key", &self.key)
            .field("finished", &self.finished)
            .finish_non_exhaustive()
    }
}

impl TaskState {
    /// Clients that this run took in: everybody else who asked must be given another run.
    #[must_use]
    pub fn joined(&self) -> &HashSet<ClientId> {
        &self.joined
    }

    fn new(args: TaskArgs) -> Self {
        let meta = args.content.meta();
        let pieces = args.content.pieces();
        let held = Held {
            geometry: meta.geometry,
            crcs: pieces.iter().filter_map(|number| Some((number, args.content.crc(number)?))).collect(),
            pieces,
            validator: meta.validator.clone(),
            generation: meta.generation,
            paused: meta.paused,
        };
        let key = args.content.key().clone();
        let scheduler = args.engine.cluster.pick(&key.id);
        let config = MachineConfig {
            foreign_scheduler: scheduler.is_some_and(|scheduler| !scheduler.ours()),
            piece_length: args.piece_length,
            fingerprint: args.peer_id.fingerprint(),
            ..args.engine.machine.clone()
        };
        let machine = Download::new(config, held, args.engine.clock.now());
        let dialogue = Dialogue {
            host_id: args.engine.identity.host_id.clone(),
            task_id: key.id.to_string(),
            peer_id: args.peer_id.clone(),
        };
        let span = tracing::info_span!("task", kind = %key.kind, id = %key.id, peer = %args.peer_id, url = %meta.url_redacted);
        Self {
            key,
            machine,
            dialogue,
            session: None,
            watches: HashMap::new(),
            kids: HashMap::new(),
            attempts: HashMap::new(),
            lore: Arc::default(),
            standstill: status::Standstill::default(),
            parents: HashMap::new(),
            requests: HashMap::new(),
            download: Arc::default(),
            reserved: PieceSet::default(),
            timer: Timer::default(),
            joined: HashSet::new(),
            finished: None,
            tally: Tally { local: meta.held_bytes, ..Tally::default() },
            span,
            seat: args.engine.board.sit(&args.path),
            counted: None,
            args,
        }
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.args.engine
    }

    /// Steps the machine through `events` and whatever performing their effects brings up.
    async fn feed(&mut self, myself: &ActorRef<TaskMsg>, events: Vec<Event>) {
        let mut queue = std::collections::VecDeque::from(events);
        while let Some(event) = queue.pop_front() {
            if self.finished.is_some() {
                break;
            }
            tracing::trace!(?event, "event");
            for effect in self.machine.step(event, self.args.engine.clock.now()) {
                tracing::trace!(?effect, "effect");
                queue.extend(self.perform(myself, effect).await);
            }
        }
        match (self.finished.is_some(), self.machine.deadline()) {
            (true, _) => myself.stop(None),
            (false, Some(tick)) => {
                self.timer.set(myself, self.args.engine.clock.instant(tick), TaskMsg::Tick)
            }
            (false, None) => self.timer.clear(),
        }
        self.publish();
    }

    fn join(&mut self, joining: Joining) -> Event {
        self.joined.insert(joining.client.id);
        if let Some(request) = joining.request {
            self.requests.insert(joining.client.headers, request);
        }
        if self.download.url.is_empty() {
            self.download = joining.download;
        }
        Event::Join(joining.client)
    }

    fn control(&mut self, control: Control) -> Vec<Event> {
        match control {
            Control::Pause => vec![Event::Pause],
            Control::Resume => vec![Event::Resume],
            Control::Cancel => vec![Event::Cancel],
            Control::Limit(rate) => {
                self.args.limit.set_rate(rate);
                Vec::new()
            }
        }
    }

    fn tick(&mut self) -> Event {
        self.timer.clear();
        let mut progress = Vec::new();
        for (id, running) in &mut self.attempts {
            let bytes = running.report.bytes.load(Ordering::Relaxed);
            if bytes != running.seen {
                running.seen = bytes;
                progress.push((*id, bytes));
            }
        }
        Event::Tick { progress }
    }

    fn drain(&self, attempt: AttemptId) -> Vec<Event> {
        let Some(running) = self.attempts.get(&attempt) else { return Vec::new() };
        running.report.take().into_iter().map(|what| Event::Attempt(attempt, what)).collect()
    }

    fn events(&mut self, message: TaskMsg) -> Vec<Event> {
        match message {
            TaskMsg::Join(joining) => vec![self.join(*joining)],
            TaskMsg::Leave(client) => vec![Event::Leave(client)],
            TaskMsg::Control(control) => self.control(control),
            TaskMsg::Scheduler(said, parents) => {
                for parent in parents {
                    self.learn_parent(parent);
                }
                said.into_iter().map(Event::Scheduler).collect()
            }
            TaskMsg::Parent(id, what, vortex) => {
                if let (Some(parent), Some(vortex)) = (self.parents.get_mut(&id), vortex) {
                    parent.vortex = Some(vortex);
                }
                vec![Event::Parent(id, what)]
            }
            TaskMsg::Nudge(attempt) => self.drain(attempt),
            TaskMsg::Tick => vec![self.tick()],
        }
    }

    /// A parent named again may have forgotten its piece port; one that SyncPieces told stays.
    fn learn_parent(&mut self, parent: Parent) {
        let known = self.parents.get(&parent.id).and_then(|known| known.vortex);
        let parent = Parent { vortex: parent.vortex.or(known), ..parent };
        self.parents.insert(parent.id.clone(), parent);
    }

    /// What the end of a child means.
    fn ended(&mut self, event: SupervisionEvent) -> Vec<Event> {
        let Some(id) = cell_of(&event) else { return Vec::new() };
        let Some(kid) = self.kids.remove(&id) else { return Vec::new() };
        match kid {
            Kid::Fetch(attempt) => {
                let result = match event {
                    SupervisionEvent::ActorTerminated(_, Some(mut state), _) => {
                        match state.take::<FetchState>() {
                            Ok(FetchState::Over(result)) => result,
                            _ => Err(failure(FailureKind::Cancelled, "attempt stopped")),
                        }
                    }
                    SupervisionEvent::ActorFailed(_, why) => {
                        tracing::error!(parent: &self.span, attempt = attempt.0, %why, "piece fetch crashed");
                        Err(failure(FailureKind::Retry { after: None }, "piece fetch crashed"))
                    }
                    _ => Err(failure(FailureKind::Cancelled, "attempt stopped")),
                };
                let mut events = self.drain(attempt);
                self.attempts.remove(&attempt);
                events.push(Event::Attempt(attempt, FromAttempt::Over(result)));
                events
            }
            Kid::Watch(parent) => {
                // The parent may be watched anew already.
                if self.watches.get(&parent).is_some_and(|watch| watch.get_id() == id) {
                    self.watches.remove(&parent);
                }
                match event {
                    SupervisionEvent::ActorFailed(..) => {
                        vec![Event::Parent(parent, FromParent::Lost("its watch crashed".to_owned()))]
                    }
                    _ => Vec::new(),
                }
            }
            Kid::Session => {
                if self.session.as_ref().is_some_and(|session| session.get_id() == id) {
                    self.session = None;
                }
                match event {
                    SupervisionEvent::ActorFailed(..) => {
                        vec![Event::Scheduler(FromScheduler::Lost("announce session crashed".to_owned()))]
                    }
                    _ => Vec::new(),
                }
            }
        }
    }
}

/// The actor.
#[derive(Debug)]
pub struct TaskSupervisor;

impl Actor for TaskSupervisor {
    type Msg = TaskMsg;
    type State = TaskState;
    type Arguments = TaskArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<TaskMsg>,
        mut args: TaskArgs,
    ) -> Result<TaskState, ActorProcessingErr> {
        for joining in std::mem::take(&mut args.clients) {
            myself.cast(TaskMsg::Join(Box::new(joining)))?;
        }
        Ok(TaskState::new(args))
    }

    async fn handle(
        &self,
        myself: ActorRef<TaskMsg>,
        message: TaskMsg,
        state: &mut TaskState,
    ) -> Result<(), ActorProcessingErr> {
        state.engine().faults.point("task-supervisor");
        let events = state.events(message);
        let span = state.span.clone();
        state.feed(&myself, events).instrument(span).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<TaskMsg>,
        event: SupervisionEvent,
        state: &mut TaskState,
    ) -> Result<(), ActorProcessingErr> {
        let events = state.ended(event);
        let span = state.span.clone();
        state.feed(&myself, events).instrument(span).await;
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<TaskMsg>,
        state: &mut TaskState,
    ) -> Result<(), ActorProcessingErr> {
        for running in state.attempts.values() {
            running.cancel.cancel();
        }
        Ok(())
    }
}
