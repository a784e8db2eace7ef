//! Servers of theirs: the traits that their crate generates have no defaults, so the methods that a test does not need are
//! filled in here, answering UNIMPLEMENTED.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;

/// Implements a service of theirs: first what the test needs, then the rest by name.
macro_rules! service {
    (
        impl $trait:ident for $type:ty { $($own:tt)* }
        unary { $($method:ident($request:ty) -> $response:ty;)* }
        streams { $($streaming:ident($input:ty) -> $stream:ident of $item:ty;)* }
    ) => {
        #[tonic::async_trait]
        impl $trait for $type {
            $($own)*

            $(async fn $method(
                &self,
                _: tonic::Request<$request>,
            ) -> Result<tonic::Response<$response>, tonic::Status> {
                Err(tonic::Status::unimplemented(stringify!($method)))
            })*

            $(type $stream = tonic::codegen::BoxStream<$item>;

            async fn $streaming(
                &self,
                _: tonic::Request<$input>,
            ) -> Result<tonic::Response<Self::$stream>, tonic::Status> {
                Err(tonic::Status::unimplemented(stringify!($streaming)))
            })*
        }
    };
}

pub(crate) use service;

/// A server on loopback that ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// Cancelled at the end; for what belongs to the server.
    pub stop: CancellationToken,
    _end: DropGuard,
}

/// Serves `services` and health.
///
/// # Panics
/// When loopback has no port.
pub async fn serve(services: Routes) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let stop = CancellationToken::new();
    // The whole server, named "", is healthy from the beginning.
    let (_, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder()
        .add_routes(services.add_service(health))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
    tokio::spawn(server);
    Running { address, _end: stop.clone().drop_guard(), stop }
}
