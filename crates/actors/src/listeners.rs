//! The daemon's listeners: sockets bound once, served by services that are restarted when they fail.

mod http;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use damselfly_api::dfdaemon::v2::dfdaemon_upload_server::DfdaemonUploadServer;
use damselfly_transport::tcp::{PieceProvider, ServerOptions, UploadCounters};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::config::Listen;
use crate::engine::{Engine, Ports};
use crate::grpc;
use crate::kit::ServiceArgs;
use crate::upload::UploadService;
use crate::upload::provider::Provider;

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({what}): {source}; free the port or name another one")]
pub struct BindError {
    what: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// A bound socket that can be served again after its service failed.
#[derive(Clone, Debug)]
pub struct Bound(Arc<StdListener>);

impl Bound {
    /// Binds. A default port that is taken gives way to `second`, then to any free one; a named one never does.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub fn bind(
        what: &'static str,
        listen: Listen,
        ip: IpAddr,
        second: Option<u16>,
    ) -> Result<Self, BindError> {
        let ip = listen.ip.unwrap_or(ip);
        let wanted = SocketAddr::new(ip, listen.port.number);
        let fallbacks = second.into_iter().chain([0]).filter(|_| !listen.port.named);
        let mut failed = None;
        for port in std::iter::once(listen.port.number).chain(fallbacks) {
            match listener(SocketAddr::new(ip, port)) {
                Ok(listener) => return Ok(Self(Arc::new(listener))),
                Err(why) => {
                    failed.get_or_insert(why);
                }
            }
        }
        let source = failed.unwrap_or_else(|| io::Error::other("no port to try"));
        Err(BindError { what, address: wanted, source })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// The socket for tokio, once per run of its service.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn listener(&self) -> io::Result<TcpListener> {
        TcpListener::from_std(self.0.try_clone()?)
    }
}

fn listener(address: SocketAddr) -> io::Result<StdListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the old connections' last packets.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// What every listener's service has in common.
fn service(
    engine: &Engine,
    name: &'static str,
    stop: &CancellationToken,
    run: impl Fn(CancellationToken) -> futures_util::future::BoxFuture<'static, Result<(), String>>
    + Send
    + Sync
    + 'static,
) -> ServiceArgs {
    ServiceArgs {
        name,
        path: format!("daemon/listeners/{name}"),
        board: engine.board.clone(),
        faults: engine.faults.clone(),
        stop: stop.clone(),
        run: ServiceArgs::run(run),
    }
}

/// Vortex over TCP.
pub fn vortex(
    engine: &Arc<Engine>,
    bound: Bound,
    options: ServerOptions,
    stop: &CancellationToken,
) -> ServiceArgs {
    let provider: Arc<dyn PieceProvider> = Arc::new(Provider(Arc::clone(engine)));
    service(engine, "vortex-tcp", stop, move |stop| {
        let (bound, provider, options) = (bound.clone(), Arc::clone(&provider), options.clone());
        Box::pin(async move {
            let listener = bound.listener().map_err(|why| why.to_string())?;
            damselfly_transport::tcp::serve(listener, provider, options, stop).await;
            Ok(())
        })
    })
}

/// gRPC on the network.
pub fn upload(
    engine: &Arc<Engine>,
    bound: Bound,
    ports: Ports,
    common: Routes,
    stop: &CancellationToken,
) -> ServiceArgs {
    let upload = DfdaemonUploadServer::new(UploadService::new(Arc::clone(engine), ports))
        .max_decoding_message_size(grpc::MAX_REQUEST);
    let router = grpc::limited(common.add_service(upload).into_axum_router(), engine.config.upload.requests);
    service(engine, "grpc", stop, move |stop| {
        let (bound, router) = (bound.clone(), router.clone());
        Box::pin(async move {
            let listener = bound.listener().map_err(|why| why.to_string())?;
            grpc::accept(listener, router, stop).await;
            Ok(())
        })
    })
}

/// A small HTTP service.
fn small(
    engine: &Arc<Engine>,
    name: &'static str,
    bound: Bound,
    router: Router,
    stop: &CancellationToken,
) -> ServiceArgs {
    service(engine, name, stop, move |stop| {
        let (bound, router) = (bound.clone(), router.clone());
        Box::pin(async move {
            let listener = bound.listener().map_err(|why| why.to_string())?;
            http::serve(listener, router, stop).await;
            Ok(())
        })
    })
}

/// `GET /healthy`.
pub fn health(engine: &Arc<Engine>, bound: Bound, stop: &CancellationToken) -> ServiceArgs {
    small(engine, "health", bound, Router::new().route("/healthy", get(|| async { StatusCode::OK })), stop)
}

/// `GET /metrics`; `DELETE` has the counters begin at zero.
pub fn metrics(
    engine: &Arc<Engine>,
    bound: Bound,
    counters: Arc<UploadCounters>,
    stop: &CancellationToken,
) -> ServiceArgs {
    let shared = Arc::clone(engine);
    let (resetting, figures) = (Arc::clone(engine), Arc::clone(&counters));
    let reset = move || {
        resetting.metrics.reset(figures.figures());
        std::future::ready(StatusCode::OK)
    };
    let page = move || {
        let (engine, counters) = (Arc::clone(&shared), Arc::clone(&counters));
        async move {
            let usage = engine.store.usage();
            let (disk, uploading) = ((usage.total, usage.used), engine.uploads.in_flight());
            let text = engine.metrics.render(disk, counters.figures(), uploading);
            let text = text.map_err(|why| (StatusCode::INTERNAL_SERVER_ERROR, why.to_string()))?;
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            Ok::<_, (StatusCode, String)>(([(header::CONTENT_TYPE, kind)], text))
        }
    };
    small(engine, "metrics", bound, Router::new().route("/metrics", get(page).delete(reset)), stop)
}
