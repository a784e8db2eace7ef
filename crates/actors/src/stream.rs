//! ProgressStream: one waiting client, as an actor.
//!
//! It joins the task, follows its progress with a cursor and sends its client what the client asked for: a message per
//! piece, with or without content, or the content in order. When everything wanted is held it finishes the output and
//! checks the digest, so that the end of a stream without an error means "done". It is a child of the registry, not of
//! the supervisor, and outlives the supervisor's panic. A client that goes away, or takes nothing for too long, ends it;
//! nobody waits for a client.

mod confirm;
mod deliver;
mod item;
mod join;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use damselfly_core::{Digest, Geometry, RangeSpec, TaskKey};
use damselfly_storage::{Facts, NewTask, TaskContent};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

use crate::engine::Engine;
use crate::kit::Seat;
use crate::metrics::{Flow, Metrics, Mode, TaskLabels};
use crate::output::Output;
use crate::patience;
use crate::tasks::Wish;
pub(crate) use deliver::part;
pub use item::{Item, Started};
pub use verdict::status_of;
pub(crate) use verdict::storage;

/// How long a client may take nothing before its stream is given up.
const STALLED: Duration = Duration::from_secs(600);

/// How the client wants the content told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// A message per piece, as they come.
    Pieces {
        /// Whether each carries its content.
        content: bool,
    },
    /// The content itself, in order.
    Ordered,
    /// Nothing: the task is wanted, not its story.
    Silent,
}

/// What one client wants.
pub struct StreamArgs {
    /// The daemon's shared parts.
    pub engine: Arc<Engine>,
    /// The task.
    pub key: TaskKey,
    /// How the task is made if it does not exist.
    pub new: NewTask,
    /// How the content is cut, where the scheduler said so beforehand: as for tasks without an origin.
    pub geometry: Option<Geometry>,
    /// On whose behalf: one of the task's users as soon as they are let in. `None` is nobody this host knows.
    pub owner: Option<u32>,
    /// What of it, and how to get it.
    pub wish: Wish,
    /// How to tell.
    pub telling: Telling,
    /// Where the content goes in the file system.
    pub output: Option<Output>,
    /// What the whole content must be.
    pub digest: Option<Digest>,
    /// Where to send.
    pub out: mpsc::Sender<Result<Item, Status>>,
    /// Labels of its metrics.
    pub labels: TaskLabels,
    /// Its seat on the board.
    pub seat: Seat,
}

impl std::fmt::Debug for StreamArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamArgs")
            .field("key", &self.key)
            .field("telling", &self.telling)
            .finish_non_exhaustive()
    }
}

impl StreamArgs {
    /// Sends one item; an error means that the client is gone or stalled, and that nothing else needs to be sent.
    async fn send(&self, item: Item) -> Result<(), Status> {
        let who = format!("the client of {} task {}", self.key.kind, self.key.id);
        match patience::wait(STALLED, &who, "to take what is there", self.out.send(Ok(item))).await {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(Status::cancelled("client went away")),
            None => {
                Err(Status::deadline_exceeded(format!("client took nothing for {} s", STALLED.as_secs())))
            }
        }
    }

    /// How content comes to a local client; `None` when it gets none.
    fn mode(&self) -> Option<Mode> {
        match (&self.output, self.telling) {
            (Some(Output::Path(_)), _) => Some(Mode::Path),
            (Some(Output::Descriptor(_)), _) => Some(Mode::Fd),
            (None, Telling::Ordered | Telling::Pieces { content: true }) => Some(Mode::Stream),
            (None, Telling::Pieces { content: false } | Telling::Silent) => None,
        }
    }

    fn whole(&self) -> bool {
        self.wish.range == RangeSpec::Whole
    }

    fn open(&self) -> Result<Arc<TaskContent>, Status> {
        let create = || self.engine.store.get_or_create(&self.key, self.new.clone());
        let opened = || tokio::task::block_in_place(create).map_err(|why| storage(&why));
        let mut content = opened()?;
        if let Some(geometry) = self.geometry {
            if content.geometry().is_some_and(|known| known != geometry) {
                // What is left here of an earlier import under this id is not what the scheduler speaks of.
                let deleted = tokio::task::block_in_place(|| self.engine.store.delete(&self.key));
                deleted.map_err(|why| storage(&why))?;
                content = opened()?;
            }
            let facts = Facts { geometry: Some(geometry), ..Facts::default() };
            tokio::task::block_in_place(|| content.set_facts(facts)).map_err(|why| storage(&why))?;
        }
        if confirm::may_share(self, &content) {
            return Ok(content);
        }
        // Left by a download that got nothing, from a mistyped URL for instance.
        let delete = || self.engine.store.delete(&self.key);
        if content.pieces().is_empty() && tokio::task::block_in_place(delete).is_ok() {
            let content = opened()?;
            if confirm::may_share(self, &content) {
                return Ok(content);
            }
        }
        Err(confirm::elsewhere(self))
    }
}

/// Counts a download as under way until dropped, however its stream ends.
struct UnderWay<'a>(&'a Metrics, TaskLabels);

impl<'a> UnderWay<'a> {
    fn begin(metrics: &'a Metrics, labels: &TaskLabels) -> Self {
        metrics.downloading.get_or_create(labels).inc();
        Self(metrics, labels.clone())
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.downloading.get_or_create(&self.1).dec();
    }
}

/// The actor.
#[derive(Debug)]
pub struct ProgressStream;

impl Actor for ProgressStream {
    type Msg = ();
    type State = Box<StreamArgs>;
    type Arguments = StreamArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        args: StreamArgs,
    ) -> Result<Box<StreamArgs>, ActorProcessingErr> {
        myself.cast(())?;
        Ok(Box::new(args))
    }

    async fn handle(
        &self,
        myself: ActorRef<()>,
        (): (),
        args: &mut Box<StreamArgs>,
    ) -> Result<(), ActorProcessingErr> {
        args.engine.faults.point("progress-stream");
        let metrics = Arc::clone(&args.engine.metrics);
        metrics.downloads.get_or_create(&args.labels).inc();
        let under_way = UnderWay::begin(&metrics, &args.labels);
        let (out, began) = (args.out.clone(), Instant::now());
        let result = tokio::select! {
            biased;
            result = Box::pin(deliver::deliver(args)) => result,
            () = out.closed() => Err(Status::cancelled("client went away")),
        };
        drop(under_way);
        if let Some(mode) = args.mode() {
            metrics.transfers.ended(Flow::Export, mode, result.as_ref().ok().copied(), began.elapsed());
        }
        if let Err(status) = result {
            metrics.download_failures.get_or_create(&args.labels).inc();
            tracing::info!(key = %args.key, code = ?status.code(), why = status.message(), "client not served");
            args.engine.remove_blank(&args.key);
            // A client that is gone cannot be told.
            drop(args.out.send_timeout(Err(status), STALLED).await);
        }
        myself.stop(None);
        Ok(())
    }
}
