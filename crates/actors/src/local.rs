//! The local plane: what programs on this host ask of the daemon over its unix socket.
//!
//! Two services share the socket, Dragonfly's DfdaemonDownload and our Local. Each connection is known by its caller,
//! whose credentials travel with every request. The two calls that carry content are framed by hand ([`framed`]) under
//! the paths of the generated service, so that no piece is ever held whole; everything else is generated code.

mod buffers;
mod control;
mod descriptors;
mod download;
mod framed;
pub(crate) mod message;
mod metadata;
mod own;
pub(crate) mod persistent_cache;
pub(crate) mod stat;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::routing::post;
use damselfly_api::damselfly::v1::local_server::LocalServer;
use damselfly_api::dfdaemon::v2::dfdaemon_download_server::DfdaemonDownloadServer;
use damselfly_core::TaskKey;
use damselfly_transport::BufferPool;
use damselfly_transport::local::Caller;
use tonic::Status;
use tonic::service::Routes;

use crate::engine::Engine;
use crate::grpc;
pub(crate) use descriptors::Descriptors;
pub use download::DownloadService;
pub(crate) use metadata::Asking;
pub use own::LocalService;
pub use status::Facts as StatusFacts;

/// Memory for content on its way to clients of the socket.
const STREAM_BUDGET: u64 = 32 << 20;

/// Everything the unix socket answers.
pub fn router(engine: &Arc<Engine>, facts: Arc<StatusFacts>, health: Routes) -> Router {
    let download = DfdaemonDownloadServer::new(DownloadService::new(Arc::clone(engine)))
        .max_decoding_message_size(grpc::MAX_REQUEST);
    let own = LocalServer::new(LocalService::new(Arc::clone(engine), facts));
    let framing = framed::Framing {
        engine: Arc::clone(engine),
        buffers: buffers::Buffers::new(BufferPool::new(STREAM_BUDGET, BufferPool::DEFAULT_SIZE)),
        patience: framed::PATIENCE,
    };
    let framed = Router::new()
        .route("/dfdaemon.v2.DfdaemonDownload/DownloadTask", post(framed::download_task))
        .route(
            "/dfdaemon.v2.DfdaemonDownload/DownloadPersistentCacheTask",
            post(framed::download_persistent_cache_task),
        )
        .route(
            "/dfdaemon.v2.DfdaemonDownload/ReadPersistentCacheTask",
            post(framed::read_persistent_cache_task),
        )
        .route(
            "/dfdaemon.v2.DfdaemonDownload/WritePersistentCacheTask",
            post(framed::write_persistent_cache_task),
        )
        .route("/damselfly.v1.Local/ReadTask", post(framed::read_task))
        .with_state(framing);
    health.add_service(download).add_service(own).into_axum_router().merge(framed)
}

/// Who sent this request. Every connection of the socket puts it there.
fn caller(extensions: &http::Extensions) -> Result<Arc<Caller>, Status> {
    extensions.get::<Arc<Caller>>().cloned().ok_or_else(|| Status::unauthenticated("caller unknown"))
}

fn caller_of<T>(request: &tonic::Request<T>) -> Result<Arc<Caller>, Status> {
    caller(request.extensions())
}

/// Who sent this request, and how it wants its files reached.
fn asking_of<T>(request: &tonic::Request<T>) -> Result<Asking, Status> {
    Asking::new(caller_of(request)?, &request.metadata().clone().into_headers())
}

/// On whose behalf content is fetched. A uid of another mount namespace names nobody here: it may be anybody's.
fn owner(caller: &Caller) -> Option<u32> {
    caller.native.then_some(caller.uid)
}

/// Deleting, pausing and the like need a uid that fetched or imported the task, the daemon's own, or root's.
fn may_change(engine: &Engine, caller: &Caller, key: &TaskKey) -> Result<(), Status> {
    let uid = caller.uid;
    if caller.native && (uid == 0 || uid == rustix::process::geteuid().as_raw()) {
        return Ok(());
    }
    let content = engine
        .store
        .get(key)
        .ok_or_else(|| Status::not_found(format!("local task not found: {}", key.id)))?;
    if caller.native && content.meta().owners.contains(&uid) {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "task {} was fetched by another user: only its users and root may change it",
        key.id
    )))
}
