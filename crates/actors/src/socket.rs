//! The unix socket's service: accepts callers and serves them gRPC, each knowing who calls.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use damselfly_transport::local::{BindOptions, Caller, Connection, Listener};
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::ServiceExt as _;

use crate::config::Config;
use crate::daemon::StartError;
use crate::engine::Engine;
use crate::kit::ServiceArgs;
use crate::local::{self, StatusFacts};

/// Connections of callers served at a time; one more waits unaccepted.
const MAX_CONNECTIONS: usize = 1024;
/// What one connection may keep in flight: enough for a local client, small beside the byte budget.
const WINDOW: u32 = 4 << 20;
const FRAME: u32 = 1 << 20;

fn options(config: &Config) -> BindOptions {
    let mut options = BindOptions::new(&config.download.socket);
    options.mode = config.download.socket_mode;
    if config.directories.private_socket_dir {
        options.directory_mode = 0o700;
    }
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
    let router = local::router(engine, facts, common);
    let config = Arc::clone(&engine.config);
    Ok(ServiceArgs {
        name: "grpc-local",
        path: "daemon/listeners/grpc-local".to_owned(),
        board: engine.board.clone(),
        faults: engine.faults.clone(),
        stop: stop.clone(),
        run: ServiceArgs::run(move |stop| {
            let (first, router, config) = (Arc::clone(&first), router.clone(), Arc::clone(&config));
            async move {
                let bound = first.lock().take();
                let listener = match bound {
                    Some(listener) => listener,
                    None => Listener::bind(options(&config)).map_err(|why| why.to_string())?,
                };
                accept(listener, router, stop).await;
                Ok(())
            }
        }),
    })
}

async fn accept(mut listener: Listener, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            connection = listener.accept(), if connections.len() < MAX_CONNECTIONS => match connection {
                Connection::Grpc(stream) => {
                    let caller = Arc::clone(stream.caller());
                    connections.spawn(serve(stream, caller, router.clone(), stop.clone()));
                }
                // Nothing of this daemon is handed over by descriptor yet.
                Connection::Descriptor(stream) => drop(stream),
            },
            Some(_) = connections.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves one caller until it hangs up, or `stop` and its last answer.
pub(crate) async fn serve<S>(stream: S, caller: Arc<Caller>, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&caller));
        router.clone().oneshot(request.map(Body::new))
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(256)
        .max_send_buf_size(FRAME as usize);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(why) = ended {
        tracing::debug!(%why, "local connection ended");
    }
}
