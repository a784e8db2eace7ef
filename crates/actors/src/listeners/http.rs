//! Serving the small HTTP pages, to few clients at a time and to none that is silent.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use damselfly_transport::accept;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::grpc;

/// Connections served at a time; one more waits unaccepted.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may take to send a request's head, the first or the next.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one connection may last, however much it asks or however slowly it reads.
const LIFETIME: Duration = Duration::from_secs(600);

/// Accepts connections and serves them until `stop`.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let served = connection(stream, router.clone(), stop.clone());
                    connections.spawn(async move {
                        if tokio::time::timeout(LIFETIME, served).await.is_err() {
                            tracing::debug!("HTTP connection closed: it is too old");
                        }
                    });
                }
                Err(why) => accept::pause("http", &why).await,
            },
            Some(_) = connections.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    grpc::drain(connections).await;
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        router.clone().oneshot(request.map(Body::new))
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(why) = ended {
        tracing::debug!(%why, "HTTP connection ended");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn silent_clients_do_not_keep_others_out_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = Router::new().route("/healthy", get(|| async { "fine" }));
        let server = tokio::spawn(serve(listener, router, stop.clone()));
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        let mut answer = [0; 15];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        assert!(begun.elapsed() < LIFETIME, "they are closed for their silence, not for their age");
        stop.cancel();
        server.await.unwrap();
    }
}
