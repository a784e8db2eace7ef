//! Persistent cache tasks: what of them is here, and importing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_api::dfdaemon::v2::write_persistent_cache_task_request::Request as Write;
use damselfly_core::{Digest, Kind, TaskId, TaskKey};
use damselfly_storage::{StoreError, TaskContent};
use damselfly_transport::local::{Caller, Direction};
use tokio_stream::StreamExt as _;
use tonic::codegen::BoxStream;
use tonic::{Code, Status};

use super::{Asking, may_change, owner, stat as standard};
use crate::engine::Engine;
use crate::import::{self, FileSource, Importer, Input, Next, Stream, Wanted};
use crate::metrics::Mode;
use crate::output::refused;
use crate::request::{self, at_scheduler, unknown};
use crate::stream::storage;
use crate::task::wire;

/// How long the import of a file may take when its client names no timeout, as in Dragonfly's tools.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A task in the scheduler's eyes.
///
/// # Errors
/// NOT_FOUND for one that is not known there; UNAVAILABLE without a scheduler.
pub(crate) async fn stat(engine: &Engine, id: &str) -> Result<common::PersistentCacheTask, Status> {
    at_scheduler(engine, &key(id)?.id).await
}

/// Every persistent cache task of the cluster, as its own scheduler knows it.
///
/// # Errors
/// UNAVAILABLE without a scheduler; UNIMPLEMENTED for one of Dragonfly's.
pub(super) async fn list(engine: &Arc<Engine>) -> Result<BoxStream<common::PersistentCacheTask>, Status> {
    let schedulers = engine.cluster.healthy();
    if schedulers.is_empty() {
        return Err(Status::unavailable("no scheduler can be reached"));
    }
    let mut lists = Vec::new();
    for scheduler in schedulers {
        let address = scheduler.address();
        let list = scheduler.list_persistent_cache_tasks().await.map_err(|why| match why.code() {
            Some(Code::Unimplemented) => Status::unimplemented(format!(
                "the scheduler at {address} is not Damselfly's and does not list imported content"
            )),
            _ => Status::unavailable(why.to_string()),
        })?;
        let engine = Arc::clone(engine);
        // What a task was before it came to another scheduler is not asked for.
        lists.push(list.filter(move |task| {
            match task {
                Ok(task) => TaskId::parse(&task.id)
                    .is_ok_and(|id| engine.cluster.pick(&id).is_some_and(|owner| owner.address() == address)),
                Err(_) => true,
            }
        }));
    }
    let none: BoxStream<_> = Box::pin(tokio_stream::empty());
    Ok(lists.into_iter().fold(none, |all, list| Box::pin(all.chain(list))))
}

fn key(id: &str) -> Result<TaskKey, Status> {
    request::key(Kind::PersistentCache, id)
}

/// A task as this host has it.
///
/// # Errors
/// NOT_FOUND when it does not.
pub(super) fn stat_local(
    engine: &Engine,
    id: &str,
) -> Result<dfdaemon::StatLocalPersistentCacheTaskResponse, Status> {
    let content = engine.store.get(&key(id)?);
    content
        .map(|content| describe(engine, &content))
        .ok_or_else(|| Status::not_found(format!("local persistent cache task not found: {id}")))
}

/// Every persistent cache task of this host.
pub(super) fn list_local(engine: &Engine) -> Vec<dfdaemon::StatLocalPersistentCacheTaskResponse> {
    let all = engine.store.list();
    let all = all.iter().filter(|content| content.key().kind == Kind::PersistentCache);
    all.map(|content| describe(engine, content)).collect()
}

fn describe(engine: &Engine, content: &Arc<TaskContent>) -> dfdaemon::StatLocalPersistentCacheTaskResponse {
    let meta = content.meta();
    let uploads = engine.uploads.of(content.key());
    dfdaemon::StatLocalPersistentCacheTaskResponse {
        task_id: content.key().id.to_string(),
        persistent: meta.persistent,
        ttl: wire::duration(meta.ttl),
        piece_length: meta.geometry.map(|geometry| geometry.piece_length()),
        content_length: meta.geometry.map(|geometry| geometry.content_length()),
        uploading_count: uploads.now.into(),
        uploaded_count: uploads.ever,
        created_at: Some(meta.created_at.into()),
        updated_at: Some(meta.updated_at.into()),
        failed_at: None,
        finished_at: meta.finished_at.map(Into::into),
    }
}

/// Makes this host's copy a replica, which is on the device and not evicted, or an ordinary one.
///
/// # Errors
/// NOT_FOUND when there is no copy, FAILED_PRECONDITION when it is not complete.
pub(crate) fn keep(engine: &Engine, key: &TaskKey, persistent: bool) -> Result<(), Status> {
    let content = engine.store.get(key);
    let content = content
        .ok_or_else(|| Status::not_found(format!("local persistent cache task not found: {}", key.id)))?;
    if persistent && !content.is_complete() {
        return Err(Status::failed_precondition(format!(
            "this host's copy of persistent cache task {} is not complete",
            key.id
        )));
    }
    tokio::task::block_in_place(|| replica(&content, persistent)).map_err(|why| storage(&why))?;
    engine.holdings.changed();
    Ok(())
}

/// A replica counts only once it is on the device.
pub(crate) fn replica(content: &TaskContent, persistent: bool) -> Result<(), StoreError> {
    content.set_persistent(persistent)?;
    if persistent { content.sync() } else { Ok(()) }
}

/// Deletes a task and all its copies.
///
/// # Errors
/// PERMISSION_DENIED for who neither imported nor fetched it; NOT_FOUND; FAILED_PRECONDITION while it is in use here.
pub(super) async fn delete(engine: &Engine, caller: &Caller, id: &str) -> Result<(), Status> {
    let key = key(id)?;
    may_change(engine, caller, &key)?;
    let handle = engine.scheduler(&key.id)?;
    let there = handle.delete_persistent_cache_task(engine.identity.host_id.as_str(), &key.id).await;
    // The scheduler has this host delete its copy as well; who asks here wants it gone when the call returns.
    let here = match standard::remove(engine, &key).await {
        Err(why) if why.code() == Code::NotFound => false,
        Err(why) => return Err(why),
        Ok(()) => true,
    };
    match there {
        Err(why) if !(here && why.code() == Some(Code::NotFound)) => Err(unknown(&key.id, &why)),
        _ => Ok(()),
    }
}

/// Imports a file that the caller may read.
///
/// # Errors
/// When the caller may not, the request makes no sense, or as [`Importer::finish`].
pub(super) async fn upload(
    engine: &Arc<Engine>,
    asking: &Asking,
    request: dfdaemon::UploadPersistentCacheTaskRequest,
) -> Result<common::PersistentCacheTask, Status> {
    let caller = &asking.caller;
    let access = request::access(engine, asking);
    let file = access.open_input(Path::new(&request.path)).await.map_err(|why| refused(&why))?;
    let source = FileSource::new(file, request.path.clone(), caller, false);
    let length = source.length().await?;
    let timeout = request::timeout(request.timeout).unwrap_or(DEFAULT_TIMEOUT);
    let wanted = Wanted { content_length: Some(length), ..Wanted::of_upload(request, owner(caller))? };
    import::run(engine, wanted, PathInput(source), Some(timeout)).await
}

/// A file, opened as the caller.
struct PathInput(FileSource);

impl Input for PathInput {
    const MODE: Mode = Mode::Path;

    async fn pour(self, importer: &mut Importer) -> Result<Option<Digest>, Status> {
        importer.read(self.0).await?;
        Ok(None)
    }
}

/// Imports what the client streams, or a file that it handed over, from `started` on.
///
/// # Errors
/// As [`upload`]; INVALID_ARGUMENT for messages out of order; ABORTED when the stream ends without `finished`.
pub(super) async fn write(
    engine: &Arc<Engine>,
    asking: &Asking,
    mut stream: Stream,
) -> Result<dfdaemon::WritePersistentCacheTaskResponse, Status> {
    let caller = &asking.caller;
    let Next::Message(Write::Started(started)) = import::next(&mut stream).await? else {
        return Err(Status::invalid_argument("the stream does not begin with `started`"));
    };
    let mut wanted = Wanted::of_stream(started, owner(caller))?;
    let task = match asking.descriptor(engine, Direction::FromClient)? {
        None => import::run(engine, wanted, StreamInput(stream), None).await?,
        Some(file) => {
            let source = FileSource::new(file, "the file".to_owned(), caller, true);
            let length = source.length().await?;
            if wanted.content_length.is_some_and(|announced| announced != length) {
                return Err(Status::aborted("the file changed while it was handed over; import it at rest"));
            }
            wanted.content_length = Some(length);
            import::run(engine, wanted, HandedOver { source, stream }, None).await?
        }
    };
    Ok(dfdaemon::WritePersistentCacheTaskResponse { task_id: task.id.clone(), task: Some(task) })
}

/// A file that the client handed over. The stream says only that this is all.
struct HandedOver {
    source: FileSource,
    stream: Stream,
}

impl Input for HandedOver {
    const MODE: Mode = Mode::Fd;

    async fn pour(self, importer: &mut Importer) -> Result<Option<Digest>, Status> {
        importer.read(self.source).await?;
        StreamInput(self.stream).pour(importer).await
    }
}

/// A client's stream from its second message on.
struct StreamInput(Stream);

impl Input for StreamInput {
    const MODE: Mode = Mode::Stream;

    async fn pour(mut self, importer: &mut Importer) -> Result<Option<Digest>, Status> {
        loop {
            match import::next(&mut self.0).await? {
                Next::Content(bytes) => importer.write(&bytes)?,
                // Its content has been written.
                Next::Message(Write::Chunk(_)) => {}
                Next::Message(Write::Finished(finished)) => {
                    return request::digest(finished.digest.as_deref());
                }
                Next::Message(Write::Started(_)) => {
                    return Err(Status::invalid_argument("`started` comes once"));
                }
                Next::End => {
                    return Err(Status::aborted("the stream ended without `finished`: nothing was imported"));
                }
            }
        }
    }
}
