//! Eviction and TTL: one incremental pass over the store every interval.

use std::sync::Arc;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::kit::ServiceArgs;

/// The collector's service.
pub(super) fn service(engine: &Arc<Engine>, stop: &CancellationToken) -> ServiceArgs {
    let shared = Arc::clone(engine);
    ServiceArgs {
        name: "collector",
        path: "daemon/collector".to_owned(),
        board: engine.board.clone(),
        faults: engine.faults.clone(),
        stop: stop.clone(),
        run: ServiceArgs::run(move |stop| run(Arc::clone(&shared), stop)),
    }
}

async fn run(engine: Arc<Engine>, stop: CancellationToken) -> Result<(), String> {
    let mut passes = tokio::time::interval(engine.config.gc.interval);
    passes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = passes.tick() => {}
            () = stop.cancelled() => return Ok(()),
        }
        let collected = tokio::task::block_in_place(|| engine.store.collect(engine.store.now()));
        if collected.more {
            passes.reset_immediately();
        }
        engine.uploads.retain(|key| engine.store.get(key).is_some());
        engine.known.retain(|key| engine.store.get(key).is_some());
        if collected.expired.is_empty() && collected.evicted.is_empty() {
            continue;
        }
        let (expired, evicted) = (collected.expired.len(), collected.evicted.len());
        tracing::info!(expired, evicted, freed = collected.freed, "tasks collected");
        engine.holdings.changed();
        for key in collected.expired.iter().chain(&collected.evicted) {
            tell(&engine, key).await;
        }
    }
}

/// Dragonfly's schedulers learn of an evicted task only by this call; ours by Hold as well.
async fn tell(engine: &Engine, key: &damselfly_core::TaskKey) {
    let Some(handle) = engine.cluster.pick(&key.id).filter(|handle| !handle.ours()) else { return };
    if let Err(why) = handle.delete_task(engine.identity.host_id.as_str(), &key.id).await {
        tracing::debug!(%key, %why, "scheduler not told of the eviction");
    }
}
