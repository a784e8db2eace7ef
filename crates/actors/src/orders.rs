//! Carrying out what schedulers of ours order over Hold.

use std::sync::Arc;
use std::time::Duration;

use damselfly_core::{Kind, TaskKey};
use damselfly_scheduler_client::{Command, Order};
use damselfly_storage::StoreError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::engine::Engine;
use crate::local::persistent_cache;
use crate::request::{self, Export};
use crate::stream::Telling;

/// Replicas fetched at a time; further orders wait, and the schedulers with them.
const REPLICATING: usize = 8;
/// How long a replica may take. Whoever ordered it gives up no sooner.
const PATIENCE: Duration = Duration::from_secs(2 * 60 * 60);

/// Takes orders until the cluster is gone or the daemon stops.
pub(crate) async fn run(
    engine: &Arc<Engine>,
    orders: &mut mpsc::Receiver<Order>,
    stop: CancellationToken,
) -> Result<(), String> {
    let mut replicating = JoinSet::new();
    loop {
        let order = tokio::select! {
            order = orders.recv(), if replicating.len() < REPLICATING => order,
            Some(_) = replicating.join_next() => continue,
            () = stop.cancelled() => return Ok(()),
        };
        let Some(order) = order else { return Ok(()) };
        match &order.command {
            Command::Drop { task, generation } => {
                let done = drop_copy(engine, task, *generation);
                order.done(done).await;
            }
            Command::Demote { task } => {
                let done = demote(engine, task);
                order.done(done).await;
            }
            Command::Replicate { task, .. } => {
                let (engine, task) = (Arc::clone(engine), task.clone());
                replicating.spawn(async move {
                    let done = replicate(&engine, &task).await;
                    order.done(done).await;
                });
            }
        }
    }
}

fn drop_copy(engine: &Engine, task: &TaskKey, generation: u64) -> Result<(), String> {
    if engine.store.get(task).is_some_and(|content| content.meta().generation > generation) {
        return Ok(());
    }
    let delete = || match engine.store.delete_everywhere(task) {
        // Whoever asked for the deletion may have been served already, and what this host remembers of it says too little.
        Err(StoreError::Unknown(_)) => engine.store.deleted_everywhere(task, generation),
        deleted => deleted.map(drop),
    };
    match tokio::task::block_in_place(delete) {
        Ok(()) => {
            engine.uploads.forget(task);
            engine.holdings.changed();
            Ok(())
        }
        Err(why) => Err(why.to_string()),
    }
}

/// Makes a replica an ordinary copy; where none is there is nothing to do.
fn demote(engine: &Engine, task: &TaskKey) -> Result<(), String> {
    match persistent_cache::keep(engine, task, false) {
        Err(why) if why.code() != Code::NotFound => Err(why.message().to_owned()),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// Fetches a task and keeps it as a replica, or makes the copy that is here one.
async fn replicate(engine: &Arc<Engine>, task: &TaskKey) -> Result<(), String> {
    if task.kind != Kind::PersistentCache {
        return Err(format!("{task} is not replicated: only persistent cache tasks are"));
    }
    let export = Export { persistent: true, timeout: Some(PATIENCE), ..Export::whole(task.id.to_string()) };
    let prepared = request::prepare_export(engine, export, None).await;
    let prepared = prepared.map_err(|why| why.message().to_owned())?;
    let mut items = request::start(engine, prepared, Telling::Silent, None);
    // Says nothing but how it ends.
    match items.recv().await {
        Some(Err(status)) => Err(status.message().to_owned()),
        Some(Ok(_)) | None if kept(engine, task) => Ok(()),
        Some(Ok(_)) | None => Err(format!("{task} was not fetched to its end; see the daemon's log")),
    }
}

fn kept(engine: &Engine, task: &TaskKey) -> bool {
    engine.store.get(task).is_some_and(|content| content.is_complete() && content.meta().persistent)
}
