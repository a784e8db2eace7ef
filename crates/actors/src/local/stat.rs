//! Looking at tasks and deleting them.

use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_api::dfdaemon::v2::StatLocalTaskResponse;
use damselfly_core::{Kind, TaskKey};
use damselfly_storage::{StoreError, TaskContent};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::engine::Engine;
use crate::metrics::Call;
use crate::request::key;

/// How long a supervisor that nobody waits for may take to end before its task is said to be in use.
const ENDING: Duration = Duration::from_secs(2);

/// A task in the scheduler's eyes.
///
/// # Errors
/// The scheduler's NOT_FOUND and everything else as INTERNAL, as Dragonfly's daemon answers; UNAVAILABLE without one.
pub(crate) async fn stat_task(engine: &Engine, id: &str) -> Result<common::Task, Status> {
    let answer = at_scheduler(engine, id).await;
    engine.metrics.called(Call::StatTask, &answer);
    answer
}

async fn at_scheduler(engine: &Engine, id: &str) -> Result<common::Task, Status> {
    let TaskKey { id, .. } = key(Kind::Standard, id)?;
    let handle = engine.scheduler(&id)?;
    handle
        .stat_task(engine.identity.host_id.as_str(), &id)
        .await
        .map_err(|why| Status::internal(why.to_string()))
}

/// A task as this host has it.
///
/// # Errors
/// NOT_FOUND when it does not.
pub(crate) fn stat_local(engine: &Engine, id: &str) -> Result<StatLocalTaskResponse, Status> {
    let answer = here(engine, id);
    engine.metrics.called(Call::StatLocalTask, &answer);
    answer
}

fn here(engine: &Engine, id: &str) -> Result<StatLocalTaskResponse, Status> {
    let key = key(Kind::Standard, id)?;
    let content = engine.store.get(&key);
    content
        .map(|content| describe(engine, &content))
        .ok_or_else(|| Status::not_found(format!("local task not found: {id}")))
}

/// Every standard task of this host.
#[must_use]
pub(crate) fn list_local(engine: &Engine) -> Vec<StatLocalTaskResponse> {
    engine.metrics.called(Call::ListLocalTasks, &Ok::<(), Status>(()));
    let all = engine.store.list();
    all.iter()
        .filter(|content| content.key().kind == Kind::Standard)
        .map(|content| describe(engine, content))
        .collect()
}

fn describe(engine: &Engine, content: &Arc<TaskContent>) -> StatLocalTaskResponse {
    let meta = content.meta();
    let uploads = engine.uploads.of(content.key());
    StatLocalTaskResponse {
        task_id: content.key().id.to_string(),
        piece_length: meta.geometry.map(|geometry| geometry.piece_length()),
        content_length: meta.geometry.map(|geometry| geometry.content_length()),
        response_header: meta.headers,
        uploading_count: uploads.now.into(),
        uploaded_count: uploads.ever,
        created_at: Some(meta.created_at.into()),
        updated_at: Some(meta.updated_at.into()),
        prefetched_at: None,
        failed_at: None,
        finished_at: meta.finished_at.map(Into::into),
    }
}

/// Deletes a task here; its scheduler forgets that this host had it.
///
/// # Errors
/// NOT_FOUND when this host does not have it, FAILED_PRECONDITION while it is in use.
pub(crate) async fn delete(engine: &Engine, key: &TaskKey) -> Result<(), Status> {
    let answer = remove(engine, key).await;
    engine.metrics.called(Call::DeleteTask, &answer);
    answer?;
    if let Some(handle) = engine.cluster.pick(&key.id)
        && let Err(why) = handle.delete_task(engine.identity.host_id.as_str(), &key.id).await
    {
        // Ours learns it from the tombstone as well; Dragonfly's forgets the peer by its own rules.
        tracing::info!(%key, %why, "scheduler not told of the deletion");
    }
    Ok(())
}

/// Deletes a task here.
///
/// # Errors
/// As [`delete`].
pub(crate) async fn delete_local(engine: &Engine, key: &TaskKey) -> Result<(), Status> {
    let answer = remove(engine, key).await;
    engine.metrics.called(Call::DeleteLocalTask, &answer);
    answer
}

/// Deletes a task's content here and says so to schedulers of ours.
///
/// # Errors
/// As [`delete`].
pub(crate) async fn remove(engine: &Engine, key: &TaskKey) -> Result<(), Status> {
    let delete = || tokio::task::block_in_place(|| engine.store.delete(key));
    let mut deleted = delete();
    if matches!(deleted, Err(StoreError::InUse { .. }))
        && let Some(over) = ending(engine, key)
    {
        // Its last client has what it wanted: the supervisor only has to put its things away.
        drop(tokio::time::timeout(ENDING, over.cancelled()).await);
        deleted = delete();
    }
    match deleted {
        Ok(_) => {
            engine.uploads.forget(key);
            engine.known.forget(key);
            engine.holdings.changed();
            Ok(())
        }
        Err(why @ StoreError::Unknown(_)) => Err(Status::not_found(why.to_string())),
        Err(why @ StoreError::InUse { .. }) => Err(Status::failed_precondition(why.to_string())),
        Err(why) => Err(Status::internal(why.to_string())),
    }
}

/// The end of a supervisor that nobody waits for.
fn ending(engine: &Engine, key: &TaskKey) -> Option<CancellationToken> {
    let over = engine.live.until_over(key)?;
    engine.live.view(key).is_none_or(|view| view.clients == 0).then_some(over)
}
