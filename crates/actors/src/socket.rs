//! The unix socket's service: accepts callers and serves them gRPC, each knowing who calls.

use std::sync::Arc;

use axum::Router;
use damselfly_transport::local::{BindOptions, Caller, Connection, Listener};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::config::Config;
use crate::daemon::StartError;
use crate::engine::Engine;
use crate::grpc::{self, Peer, Quota};
use crate::kit::ServiceArgs;
use crate::local::{self, Descriptors, StatusFacts};

/// Connections of callers served at a time; one more waits unaccepted.
const MAX_CONNECTIONS: usize = 1024;
/// How many of these one user may have, so that nobody keeps the others out; one more is closed.
const MAX_PER_USER: usize = MAX_CONNECTIONS / 2;

fn options(config: &Config) -> BindOptions {
    let mut options = BindOptions::new(&config.download.socket);
    options.mode = config.download.socket_mode;
    // A directory that the user named is the user's own affair.
    options.private_directory =
        config.directories.private_socket_dir && config.download.socket == config.directories.socket;
    options
}

/// Binds the socket, so that it accepts from now on, and makes its service.
///
/// # Errors
/// When another daemon lives on the socket, or it cannot be made.
pub(crate) fn service(
    engine: &Arc<Engine>,
    facts: Arc<StatusFacts>,
    common: Routes,
    stop: &CancellationToken,
) -> Result<ServiceArgs, StartError> {
    let first = Arc::new(Mutex::new(Some(Listener::bind(options(&engine.config))?)));
    let router = grpc::limited(local::router(engine, facts, common), engine.config.download.requests);
    let (config, descriptors) = (Arc::clone(&engine.config), Arc::clone(&engine.descriptors));
    Ok(ServiceArgs {
        name: "grpc-local",
        path: "daemon/listeners/grpc-local".to_owned(),
        board: engine.board.clone(),
        faults: engine.faults.clone(),
        stop: stop.clone(),
        run: ServiceArgs::run(move |stop| {
            let (first, router, config) = (Arc::clone(&first), router.clone(), Arc::clone(&config));
            let descriptors = Arc::clone(&descriptors);
            async move {
                let bound = first.lock().take();
                let listener = match bound {
                    Some(listener) => listener,
                    None => Listener::bind(options(&config)).map_err(|why| why.to_string())?,
                };
                accept(listener, router, descriptors, stop).await;
                Ok(())
            }
        }),
    })
}

async fn accept(
    mut listener: Listener,
    router: Router,
    descriptors: Arc<Descriptors>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let quota = Quota::new(MAX_PER_USER);
    loop {
        tokio::select! {
            connection = listener.accept(), if connections.len() < MAX_CONNECTIONS => match connection {
                Connection::Grpc(stream) => {
                    let caller = Arc::clone(stream.caller());
                    let Some(place) = quota.enter(caller.uid) else {
                        tracing::warn!(uid = caller.uid, "connection closed: this user has {MAX_PER_USER} others");
                        continue;
                    };
                    let served = serve(stream, caller, router.clone(), stop.clone());
                    connections.spawn(async move {
                        let _place = place;
                        served.await;
                    });
                }
                // Short, each with its deadlines, and of no use without a token: of these each user has few.
                Connection::Descriptor(stream) => {
                    let descriptors = Arc::clone(&descriptors);
                    connections.spawn(async move { descriptors.receive(stream).await });
                }
            },
            Some(_) = connections.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    grpc::drain(connections).await;
}

/// Serves one caller until it hangs up, or `stop` and its last answer.
pub(crate) async fn serve<S>(stream: S, caller: Arc<Caller>, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    grpc::serve(stream, Peer::Local(caller), router, grpc::LOCAL, stop).await;
}
