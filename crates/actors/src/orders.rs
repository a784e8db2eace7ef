//! Carrying out what schedulers of ours order over Hold.

use std::sync::Arc;

use damselfly_scheduler_client::{Command, Order};
use damselfly_storage::StoreError;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;

/// Takes orders until the cluster is gone or the daemon stops.
pub(crate) async fn run(
    engine: &Arc<Engine>,
    orders: &mut mpsc::Receiver<Order>,
    stop: CancellationToken,
) -> Result<(), String> {
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            () = stop.cancelled() => return Ok(()),
        };
        let Some(order) = order else { return Ok(()) };
        let done = carry_out(engine, &order.command);
        order.done(done).await;
    }
}

fn carry_out(engine: &Engine, command: &Command) -> Result<(), String> {
    match command {
        Command::Drop { task, generation } => {
            let Some(content) = engine.store.get(task) else { return Ok(()) };
            if content.meta().generation > *generation {
                return Ok(());
            }
            match tokio::task::block_in_place(|| engine.store.delete(task)) {
                Ok(_) | Err(StoreError::Unknown(_)) => {
                    engine.uploads.forget(task);
                    engine.holdings.changed();
                    Ok(())
                }
                Err(why) => Err(why.to_string()),
            }
        }
        Command::Replicate { task, .. } => Err(format!("{task}: this daemon keeps no replicas yet")),
    }
}
