//! Importing content as a persistent cache task.
//!
//! ```text
//!   file, stream ──▶ Importer::write ──▶ storage::Import ──▶ finish: id, flush, place ──▶ scheduler: Started, Finished
//! ```
//!
//! Bytes are written once, where they stay; CRCs and the id are computed as they pass. The scheduler hears of an import
//! whose id follows from the content when all of it is here, of one with a given id at once, so that two hosts do not
//! import different content under it. What fails leaves nothing behind, here or there, but for uploads: imports that their
//! client can name and send the rest of. The store keeps what came of them, and the scheduler hears of them anew when they go on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use damselfly_api::common::v2::PersistentCacheTask;
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_api::dfdaemon::v2::write_persistent_cache_task_request::Request as Write;
use damselfly_core::{Digest, Kind};
use damselfly_scheduler_client::{Action, Subject};
use damselfly_storage::Import;
use damselfly_transport::framed::{FrameReader, Incoming};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::engine::Engine;
use crate::kit::Seat;
use crate::local::stat;
use crate::metrics::{Flow, Mode};
use crate::patience;
use crate::request::invalid;
use crate::stream::storage;
use announcement::{Announcement, offer};
pub(crate) use reading::FileSource;
use turns::Turn;
pub(crate) use turns::Uploads;
pub(crate) use wanted::Wanted;

mod announcement;
mod reading;
mod turns;
mod wanted;

/// How long a client may send nothing, and a file system give nothing.
const STALLED: Duration = Duration::from_secs(600);
/// The most content that a message may carry.
const LONGEST_CHUNK: u64 = 4 << 20;
/// How long replicas may take to come about when a client waits for them: longer than the scheduler waits, which knows more.
const REPLICATING: Duration = Duration::from_secs(11 * 60);

/// An import under way.
pub(crate) struct Importer {
    import: Import,
    announcement: Announcement,
    cancel: CancellationToken,
    /// The file that it is read from is not any more what was begun with: nobody can go on with it.
    changed: bool,
    /// Of an upload. After the import: the next client waits for its end.
    turn: Option<Turn>,
    seat: Seat,
}

impl Importer {
    /// Begins an import, or goes on with an upload that was cut off; one with a given id and a known length is announced
    /// to the scheduler, each time. When `cancel` is cancelled, [`Self::read`] ends early.
    ///
    /// # Errors
    /// PERMISSION_DENIED when the block list says so; FAILED_PRECONDITION when there are fewer hosts than replicas to
    /// wait for, or when nothing is kept that goes on where this begins; ABORTED when another client's import of it is
    /// being flushed; ALREADY_EXISTS when a live task has the given id; UNAVAILABLE without a scheduler; a failing disk.
    async fn begin(engine: &Arc<Engine>, wanted: Wanted, cancel: CancellationToken) -> Result<Self, Status> {
        let turn = match wanted.name() {
            Some(name) => Some(Turn::take(engine, name).await?),
            None => None,
        };
        let subject = Subject {
            application: wanted.application.as_deref().unwrap_or_default(),
            url: "",
            tag: wanted.tag.as_deref().unwrap_or_default(),
            priority: None,
        };
        engine.check_listed(Kind::PersistentCache, Action::Upload, &subject)?;
        let given = wanted.given_id()?;
        check_hosts(engine, wanted.ack).await?;
        let peer_id = engine.identity.new_peer();
        let seat = engine.board.sit(format!("daemon/import {peer_id}"));
        let (new, offset) = (wanted.to_storage(given.as_ref()), wanted.offset);
        let mut announcement = Announcement { engine: Arc::clone(engine), wanted, peer_id, at: None };
        // Without a length there is nothing to announce yet: then it is offered at its end.
        if let Some((id, geometry)) = given.zip(announcement.geometry_beforehand()) {
            announcement.started(&id, geometry).await?;
        }
        let store = &engine.store;
        let begun = tokio::task::block_in_place(|| match offset {
            0 => store.begin_import(new).map(Some),
            _ => store.resume_import(new, offset),
        });
        let status = match begun {
            Ok(Some(import)) => return Ok(Self { import, announcement, cancel, changed: false, turn, seat }),
            Ok(None) => Status::failed_precondition(format!(
                "the upload does not go on at byte {offset}: nothing is kept of it there; run the import again"
            )),
            Err(why) => storage(&why),
        };
        announcement.failed(&status).await;
        Err(status)
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when they do not fit, INVALID_ARGUMENT past the announced length, a failing disk.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Status> {
        tokio::task::block_in_place(|| self.import.write(bytes)).map_err(|why| storage(&why))?;
        self.seat.show(format!("{} bytes imported", self.import.written()));
        Ok(())
    }

    /// Writes what there is of a file beyond what is written already.
    ///
    /// # Errors
    /// CANCELLED when nobody waits for it any more; ABORTED when the file changes meanwhile; as [`Self::write`]; what the
    /// file's file system says.
    pub(crate) async fn read(&mut self, source: FileSource) -> Result<(), Status> {
        let mut reading = source.read(self.import.written());
        let cancel = self.cancel.clone();
        loop {
            let next = tokio::select! {
                next = reading.next() => next.inspect_err(|why| self.changed = why.code() == Code::Aborted)?,
                () = cancel.cancelled() => return Err(Status::cancelled("the client went away")),
            };
            let Some(chunk) = next else { return Ok(()) };
            self.write(chunk.bytes())?;
        }
    }

    /// The input ended before its end: the scheduler forgets it. What its client may go on with is kept, if it is not to
    /// blame. Returns the reason.
    async fn ended_early(self, why: Status) -> Status {
        let broke = matches!(
            why.code(),
            Code::Aborted
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Internal
                | Code::Unavailable
                | Code::Unknown
        );
        // The bytes first: who is told may try again at once.
        tokio::task::block_in_place(|| {
            if broke && !self.changed { drop(self.import) } else { self.import.discard() }
        });
        self.announcement.failed(&why).await;
        why
    }

    /// The content ends here: makes it a task, and has it replicated.
    ///
    /// # Errors
    /// What the store says of it: ALREADY_EXISTS for other content under a given id. What the scheduler says:
    /// DEADLINE_EXCEEDED when the replicas to wait for do not come about, which leaves the import as it is.
    pub(crate) async fn finish(self, digest: Option<Digest>) -> Result<PersistentCacheTask, Status> {
        let Self { import, mut announcement, turn, seat, .. } = self;
        seat.show("writing to the device");
        let imported = match tokio::task::block_in_place(|| import.finish(digest.as_ref())) {
            Ok(imported) => imported,
            Err(why) => {
                let status = storage(&why);
                announcement.failed(&status).await;
                return Err(status);
            }
        };
        // There is nothing any more to go on with.
        drop(turn);
        seat.show("telling the scheduler");
        let offered = offer(&mut announcement, &imported).await;
        // Only now: before, the scheduler would take this copy for one of whatever it knows under the id.
        announcement.engine.holdings.changed();
        if let Err(why) = &offered
            && why.code() != Code::DeadlineExceeded
            && !imported.existed
        {
            announcement.failed(why).await;
            let key = imported.content.key().clone();
            drop(imported);
            if let Err(why) = stat::remove(&announcement.engine, &key).await {
                tracing::warn!(%key, %why, "an import that was not offered stays until its time is over");
            }
        }
        offered
    }
}

/// Refuses to wait for more replicas than there are hosts, before anything is transferred.
async fn check_hosts(engine: &Engine, ack: u32) -> Result<(), Status> {
    if ack <= 1 {
        return Ok(());
    }
    let hosts = engine.cluster_hosts().await?;
    let keepers = hosts.iter().filter(|host| !host.disable_shared).count();
    if keepers < usize::try_from(ack).unwrap_or(usize::MAX) {
        return Err(Status::failed_precondition(format!(
            "{ack} replicas are to be waited for and the cluster has {} hosts: wait for fewer, or start more daemons",
            keepers
        )));
    }
    Ok(())
}

/// What a client streams.
pub(crate) type Stream = FrameReader<dfdaemon::WritePersistentCacheTaskRequest>;

/// What comes next of a stream.
pub(crate) enum Next {
    /// Bytes of a chunk.
    Content(Bytes),
    /// A message; a chunk's content has come before it.
    Message(Write),
    /// The end.
    End,
}

/// What comes next of a stream.
///
/// # Errors
/// INVALID_ARGUMENT for a message that says nothing, or a chunk that is too long; DEADLINE_EXCEEDED when nothing comes.
pub(crate) async fn next(stream: &mut Stream) -> Result<Next, Status> {
    loop {
        return match patience::wait(STALLED, "an import", "for its client to send", stream.next()).await {
            Some(Ok(None)) => Ok(Next::End),
            Some(Ok(Some(Incoming::Begin { length, .. }))) if length <= LONGEST_CHUNK => continue,
            Some(Ok(Some(Incoming::Begin { length, .. }))) => {
                Err(invalid(format!("a chunk has {length} bytes; send at most {LONGEST_CHUNK} at a time")))
            }
            Some(Ok(Some(Incoming::Content(bytes)))) => Ok(Next::Content(bytes)),
            Some(Ok(Some(Incoming::Message(message)))) => message
                .request
                .map(Next::Message)
                .ok_or_else(|| invalid("a message of the stream says nothing")),
            Some(Err(status)) => Err(status),
            None => {
                Err(Status::deadline_exceeded(format!("the client sent nothing for {} s", STALLED.as_secs())))
            }
        };
    }
}

/// Where an import's bytes come from.
pub(crate) trait Input: Send + 'static {
    /// How they come.
    const MODE: Mode;

    /// Writes all of them; returns the digest that they must have.
    fn pour(self, importer: &mut Importer) -> impl Future<Output = Result<Option<Digest>, Status>> + Send;
}

/// Imports in a task of its own, so that a client who goes away does not cut it off where the scheduler would not hear
/// of it, and a panic costs this import only. Without a `timeout` it may take as long as bytes come.
///
/// # Errors
/// As [`Importer::begin`] and [`Importer::finish`]; DEADLINE_EXCEEDED.
pub(crate) async fn run(
    engine: &Arc<Engine>,
    wanted: Wanted,
    input: impl Input,
    timeout: Option<Duration>,
) -> Result<PersistentCacheTask, Status> {
    let (mode, resumes, began) = (mode_of(&input), wanted.offset > 0, Instant::now());
    let imported = run_to_its_end(engine, wanted, input, timeout).await;
    let transfers = &engine.metrics.transfers;
    if resumes {
        transfers.resumed(mode);
    }
    let bytes = imported.as_ref().ok().map(|task| task.content_length);
    transfers.ended(Flow::Import, mode, bytes, began.elapsed());
    imported
}

fn mode_of<I: Input>(_: &I) -> Mode {
    I::MODE
}

async fn run_to_its_end(
    engine: &Arc<Engine>,
    wanted: Wanted,
    input: impl Input,
    timeout: Option<Duration>,
) -> Result<PersistentCacheTask, Status> {
    let cancel = CancellationToken::new();
    let (engine, cancelled) = (Arc::clone(engine), cancel.clone());
    let _cancel = cancel.drop_guard();
    let import = tokio::spawn(async move {
        engine.faults.point("import");
        let mut importer = Importer::begin(&engine, wanted, cancelled).await?;
        let yields = importer.turn.as_ref().map(Turn::yields).unwrap_or_default();
        let poured = tokio::select! {
            poured = input.pour(&mut importer) => poured,
            () = yields.cancelled() => {
                Err(Status::aborted("another client goes on with this import of the same file"))
            }
        };
        match poured {
            Ok(digest) => importer.finish(digest).await,
            Err(why) => Err(importer.ended_early(why).await),
        }
    });
    let ended = match timeout {
        Some(timeout) => tokio::time::timeout(timeout, import).await.map_err(|_| timeout),
        // A client that sends nothing is noticed, and one that goes away ends its stream.
        None => Ok(import.await),
    };
    match ended {
        Ok(Ok(imported)) => imported,
        Ok(Err(_)) => Err(Status::internal("the import crashed; see the daemon's log")),
        Err(timeout) => {
            Err(Status::deadline_exceeded(format!("the import did not end within {} s", timeout.as_secs())))
        }
    }
}

#[cfg(test)]
mod tests;
