//! The embedded scheduler as a service of the tree.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use damselfly_scheduler::machine;
use damselfly_scheduler::service::{Config, GrpcOutbound, SchedulerService, ring_of};
use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::engine::Engine;
use crate::kit::ServiceArgs;
use crate::listeners::Bound;

/// Left in the store once a scheduler ran here, so that the next one waits for what may be restated.
const MARKER: &str = "scheduled";

/// Whether no earlier scheduler can have granted leases or learned of content behind this address: nobody else was ever
/// told of it, or none ever ran on this store.
fn is_fresh(engine: &Engine, joined: &[SocketAddr]) -> bool {
    if engine.config.listen.is_none() && joined.is_empty() {
        return true;
    }
    let marker = engine.config.storage.dir.join("damselfly-v1").join(MARKER);
    // Without the marker the next start is taken for the first, which costs at most a second fetch of a piece.
    !marker.try_exists().unwrap_or(true) && std::fs::write(marker, []).is_ok()
}

/// The embedded scheduler's service. Should it fail, a new one starts with what the daemons announce again.
pub(super) fn service(
    engine: &Arc<Engine>,
    bound: Bound,
    joined: &[SocketAddr],
    stop: &CancellationToken,
) -> Result<ServiceArgs, StartError> {
    let address = bound
        .address()
        .map_err(|source| StartError::System { what: "cannot read a socket's address", source })?;
    let own = SocketAddr::new(engine.identity.ip, address.port());
    let (ring, own) = (ring_of(own, joined), own.to_string());
    let fresh = AtomicBool::new(is_fresh(engine, joined));
    let repair_after = engine.config.replica_repair_delay;
    Ok(ServiceArgs {
        name: "scheduler",
        path: "daemon/scheduler".to_owned(),
        board: engine.board.clone(),
        faults: engine.faults.clone(),
        stop: stop.clone(),
        run: ServiceArgs::run(move |stop| {
            let machine = machine::Config {
                fresh: fresh.swap(false, Ordering::SeqCst),
                repair_after,
                ..machine::Config::default()
            };
            let config = Config { machine, address: own.clone(), ring: ring.clone(), ..Config::default() };
            let bound = bound.clone();
            async move {
                let listener = bound.listener().map_err(|why| why.to_string())?;
                let scheduler = SchedulerService::start(config, Arc::new(GrpcOutbound::default()));
                scheduler.serve(listener, stop.cancelled_owned()).await.map_err(|why| why.to_string())
            }
        }),
    })
}
