//! From a request for a persistent cache task's content to a wish. Its facts come from the scheduler.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use damselfly_api::common::v2::{Download, PersistentCacheTask};
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_core::{ByteRange, Geometry, Kind, RangeSpec, TaskId, TaskKey};
use damselfly_scheduler_client::{Action, ClientError, Subject};
use damselfly_storage::NewTask;
use tonic::{Code, Status};

use super::{DEFAULT_TIMEOUT, Prepared, digest, key, timeout};
use crate::engine::Engine;
use crate::task::wire;
use crate::tasks::Wish;

/// What of a persistent cache task is wanted, and how.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    /// The task.
    pub(crate) task_id: String,
    /// What of it.
    pub(crate) range: RangeSpec,
    /// The tag the caller gave.
    pub(crate) tag: Option<String>,
    /// The application the caller gave.
    pub(crate) application: Option<String>,
    /// What the whole content must be, `<algorithm>:<encoded>`.
    pub(crate) digest: Option<String>,
    /// How long it may take; two hours unless it says so.
    pub(crate) timeout: Option<Duration>,
    /// The copy becomes a replica.
    pub(crate) persistent: bool,
}

impl From<dfdaemon::DownloadPersistentCacheTaskRequest> for Export {
    fn from(request: dfdaemon::DownloadPersistentCacheTaskRequest) -> Self {
        Self {
            task_id: request.task_id,
            range: RangeSpec::Whole,
            tag: request.tag,
            application: request.application,
            digest: request.digest,
            timeout: timeout(request.timeout),
            persistent: request.persistent,
        }
    }
}

impl From<dfdaemon::ReadPersistentCacheTaskRequest> for Export {
    fn from(request: dfdaemon::ReadPersistentCacheTaskRequest) -> Self {
        let range = request.range.map_or(RangeSpec::Whole, |range| {
            RangeSpec::Span(ByteRange { start: range.start, length: range.length })
        });
        Self { range, ..Self::whole(request.task_id) }
    }
}

impl Export {
    /// All of a task.
    pub(crate) fn whole(task_id: String) -> Self {
        Self {
            task_id,
            range: RangeSpec::Whole,
            tag: None,
            application: None,
            digest: None,
            timeout: None,
            persistent: false,
        }
    }
}

/// What the scheduler, or this host's store, says of a task.
struct Facts {
    geometry: Option<Geometry>,
    new: NewTask,
}

/// Checks a request and learns how the content is cut. `owner` becomes one of the task's users.
///
/// # Errors
/// INVALID_ARGUMENT; NOT_FOUND for a task that is not known, has expired or failed; UNAVAILABLE without a scheduler, or
/// while the length of an import under way is not known; PERMISSION_DENIED when the block list says so.
pub(crate) async fn prepare_export(
    engine: &Engine,
    export: Export,
    owner: Option<u32>,
) -> Result<Prepared, Status> {
    let key = key(Kind::PersistentCache, &export.task_id)?;
    let digest = digest(export.digest.as_deref())?;
    let (tag, application) = (export.tag.clone(), export.application.clone());
    let (tag, application) = (tag.unwrap_or_default(), application.unwrap_or_default());
    let subject = Subject { application: &application, url: "", tag: &tag, priority: None };
    engine.check_listed(Kind::PersistentCache, Action::Download, &subject)?;
    let labels = engine.metrics.labels(Kind::PersistentCache, &tag, &application, 0);
    let Facts { geometry, new } = facts(engine, &key, export.persistent).await?;
    let download =
        Download { tag: new.tag.clone(), application: new.application.clone(), ..Download::default() };
    let wish = Wish {
        range: export.range,
        may_use_origin: false,
        deadline: Some(engine.clock.now() + export.timeout.unwrap_or(DEFAULT_TIMEOUT)),
        request: None,
        download: Arc::new(download),
    };
    Ok(Prepared { key, new, geometry, owner, wish, digest, labels })
}

/// What is here whole needs nobody's word.
async fn facts(engine: &Engine, key: &TaskKey, persistent: bool) -> Result<Facts, Status> {
    if let Some(content) = engine.store.get(key)
        && content.is_complete()
    {
        let new = NewTask { persistent, ..NewTask::default() };
        return Ok(Facts { geometry: content.geometry(), new });
    }
    let task = at_scheduler(engine, &key.id).await?;
    let age = |created: SystemTime| SystemTime::now().duration_since(created).unwrap_or_default();
    let created = task.created_at.and_then(|created| SystemTime::try_from(created).ok());
    let ttl =
        wire::duration_from(task.ttl).map(|ttl| ttl.saturating_sub(created.map_or(Duration::ZERO, age)));
    if ttl == Some(Duration::ZERO) {
        return Err(Status::not_found(format!("persistent cache task {} has expired", key.id)));
    }
    Ok(Facts {
        geometry: Some(geometry(&task)?),
        new: NewTask {
            tag: task.tag,
            application: task.application,
            ttl,
            persistent,
            replica_target: task.persistent_replica_count,
            generation: Some(task.generation).filter(|generation| *generation > 0),
            ..NewTask::default()
        },
    })
}

/// A persistent cache task in its scheduler's eyes.
///
/// # Errors
/// NOT_FOUND for one that is not known there; UNAVAILABLE without a scheduler; INTERNAL for what else it answers.
pub(crate) async fn at_scheduler(engine: &Engine, id: &TaskId) -> Result<PersistentCacheTask, Status> {
    let handle = engine.scheduler(id)?;
    let answer = handle.stat_persistent_cache_task(engine.identity.host_id.as_str(), id).await;
    answer.map_err(|why| unknown(id, &why))
}

/// A scheduler's refusal of a task.
pub(crate) fn unknown(id: &TaskId, why: &ClientError) -> Status {
    match why.code() {
        Some(Code::NotFound) => Status::not_found(format!(
            "persistent cache task {id} is not known: it was never imported, has expired, or was deleted"
        )),
        Some(code @ (Code::AlreadyExists | Code::FailedPrecondition | Code::DeadlineExceeded)) => {
            Status::new(code, why.to_string())
        }
        _ => Status::internal(why.to_string()),
    }
}

fn geometry(task: &PersistentCacheTask) -> Result<Geometry, Status> {
    let id = &task.id;
    match task.state.as_str() {
        "Failed" => Err(Status::not_found(format!("the import of persistent cache task {id} failed"))),
        "Uploading" if task.content_length == 0 => Err(Status::unavailable(format!(
            "persistent cache task {id} is still being imported and its length is not known; try again later"
        ))),
        _ => Geometry::new(task.content_length, task.piece_length)
            .map_err(|why| Status::internal(format!("persistent cache task {id}: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_says_how_content_is_cut() {
        let task = |state: &str, content_length, piece_length| PersistentCacheTask {
            state: state.to_owned(),
            content_length,
            piece_length,
            ..PersistentCacheTask::default()
        };
        let cut = |state, length| geometry(&task(state, length, 4 << 20)).map(|cut| cut.piece_count());
        assert_eq!(cut("Succeeded", (4 << 20) + 1).unwrap(), 2);
        assert_eq!(cut("Succeeded", 0).unwrap(), 0);
        assert_eq!(cut("Uploading", 1).unwrap(), 1);
        assert_eq!(cut("Uploading", 0).unwrap_err().code(), Code::Unavailable);
        assert_eq!(cut("Failed", 1).unwrap_err().code(), Code::NotFound);
        assert_eq!(geometry(&task("Succeeded", 1, 0)).unwrap_err().code(), Code::Internal);
    }
}
