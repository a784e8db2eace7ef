//! Serving gRPC: one way for the network and for the unix socket.
//!
//! Not tonic's server, for what that one does between the socket and the services: it gives a call that names a
//! `grpc-timeout` no longer than that until its response begins, and Dragonfly's clients put 10 s on calls that wait for
//! an origin. Here only the caller's own patience counts.

mod greeting;
mod quota;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use damselfly_transport::local::Caller;
use damselfly_transport::{TokenBucket, accept as listening};
use http::Request as HttpRequest;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower::ServiceExt as _;

use crate::config::RequestLimit;
use greeting::Greeting;
pub(crate) use quota::Quota;

/// Connections from the network served at a time; one more waits unaccepted.
const MAX_CONNECTIONS: usize = 4096;
/// How many of these one address may have; one more is closed.
const MAX_PER_ADDRESS: usize = MAX_CONNECTIONS / 4;
/// The longest request, in bytes: a child that asks for a million pieces by number stays below. Room for all that a
/// request announces is made before the rest of it has come, so without a bound five bytes would cost 4 GiB.
pub(crate) const MAX_REQUEST: usize = 16 << 20;
/// How long open streams may go on after the stop. Most end by themselves, because what they tell of has ended.
const DRAIN: Duration = Duration::from_secs(3);

/// What a server grants each of its connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Calls under way.
    pub(crate) streams: u32,
    /// Bytes that one call may keep in flight; a connection twice as many.
    pub(crate) window: u32,
    /// Bytes in one frame.
    pub(crate) frame: u32,
    /// Whether silent callers are asked if they still live.
    pub(crate) keep_alive: bool,
}

/// For other hosts: a host that fetches thousands of tasks follows each with a call of its own on one connection, and
/// nobody sends content here.
pub(crate) const NETWORK: Terms =
    Terms { streams: 16_384, window: 64 << 10, frame: 16 << 10, keep_alive: true };

/// For programs on this host: few calls, content, small beside the byte budget.
pub(crate) const LOCAL: Terms = Terms { streams: 256, window: 4 << 20, frame: 1 << 20, keep_alive: false };

/// Who is at the other end of a connection; travels with every request as what it holds.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// Another host's program, as [`CallFrom`].
    Network(SocketAddr),
    /// A program on this host, as `Arc<Caller>`.
    Local(Arc<Caller>),
}

/// The address a call over the network comes from; IPv4 is IPv4 however it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallFrom(pub(crate) IpAddr);

/// Ends the connection that a request came on, for one whose client takes nothing any more: what was written to it is
/// held until it ends.
#[derive(Clone, Debug)]
pub(crate) struct HangUp(pub(crate) CancellationToken);

/// Refuses what comes faster than a configured rate.
#[derive(Debug)]
struct Gate {
    rate: TokenBucket,
    waiting: Semaphore,
    limit: RequestLimit,
}

impl Gate {
    /// Waits its turn: at most as long as those who may wait before it take at that rate.
    async fn pass(&self) -> Result<(), Status> {
        let Ok(_waiting) = self.waiting.try_acquire() else {
            return Err(Status::resource_exhausted(format!(
                "server is overloaded: more than {} requests per second; try again later, or raise requestRateLimit",
                self.limit.rate
            )));
        };
        self.rate.acquire(1).await;
        Ok(())
    }
}

async fn gate(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    // A daemon that is busy is healthy all the same: schedulers that took it for dead would make matters worse.
    if !request.uri().path().starts_with("/grpc.health.v1.Health/")
        && let Err(status) = gate.pass().await
    {
        return status.into_http();
    }
    next.run(request).await
}

/// Puts a limit of requests before a server's services, where one is configured.
pub(crate) fn limited(router: Router, limit: Option<RequestLimit>) -> Router {
    let Some(limit) = limit else { return router };
    let (rate, waiting) = (TokenBucket::new(Some(limit.rate)), Semaphore::new(limit.waiting));
    router.layer(middleware::from_fn_with_state(Arc::new(Gate { rate, waiting, limit }), gate))
}

/// Accepts connections from the network and serves them until `stop`.
pub(crate) async fn accept(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let quota = Quota::new(MAX_PER_ADDRESS);
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, address)) => {
                    let Some(place) = quota.enter(address.ip().to_canonical()) else {
                        tracing::debug!(%address, "gRPC connection closed: its address has too many");
                        continue;
                    };
                    // Without it small answers wait for each other; the connection works all the same.
                    drop(stream.set_nodelay(true));
                    let served = serve(stream, Peer::Network(address), router.clone(), NETWORK, stop.clone());
                    connections.spawn(async move {
                        let _place = place;
                        served.await;
                    });
                }
                Err(why) => listening::pause("grpc", &why).await,
            },
            Some(_) = connections.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    drain(connections).await;
}

/// Lets connections that were told to stop end; what stays open too long is cut off.
pub(crate) async fn drain(mut connections: JoinSet<()>) {
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, ended).await.is_err() {
        tracing::debug!(open = connections.len(), "gRPC connections cut off at shutdown");
        connections.shutdown().await;
    }
}

/// Serves one connection until its peer hangs up or never begins to talk, or `stop` and the last answer.
pub(crate) async fn serve<S>(stream: S, peer: Peer, router: Router, terms: Terms, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let hang_up = CancellationToken::new();
    let hanging_up = HangUp(hang_up.clone());
    let service = hyper::service::service_fn(move |mut request: HttpRequest<Incoming>| {
        let extensions = request.extensions_mut();
        match &peer {
            Peer::Network(address) => drop(extensions.insert(CallFrom(address.ip().to_canonical()))),
            Peer::Local(caller) => drop(extensions.insert(Arc::clone(caller))),
        }
        extensions.insert(hanging_up.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(terms.window)
        .initial_connection_window_size(2 * terms.window)
        .max_frame_size(terms.frame)
        .max_concurrent_streams(terms.streams)
        .max_send_buf_size(1 << 20);
    if terms.keep_alive {
        builder
            .keep_alive_interval(Some(Duration::from_secs(300)))
            .keep_alive_timeout(Duration::from_secs(20));
    }
    let (stream, greeting) = Greeting::expect(stream);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = greeting.missed() => {
            tracing::debug!("gRPC connection closed: nothing came");
            return;
        }
        () = hang_up.cancelled() => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = hang_up.cancelled() => return,
            }
        }
    };
    if let Err(why) = ended {
        tracing::debug!(%why, "gRPC connection ended");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::post;
    use http::StatusCode;

    use super::*;

    async fn status(router: &Router, path: &str) -> Option<String> {
        let request = HttpRequest::post(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
    }

    fn router() -> Router {
        let answer = || async { "" };
        Router::new().route("/x/Call", post(answer)).route("/grpc.health.v1.Health/Check", post(answer))
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_too_fast_waits_and_what_does_not_fit_is_refused() {
        let limited = limited(router(), Some(RequestLimit { rate: 10, waiting: 2 }));
        let started = tokio::time::Instant::now();
        let mut calls = JoinSet::new();
        for _ in 0..4 {
            let router = limited.clone();
            calls.spawn(async move { status(&router, "/x/Call").await });
        }
        let answers = calls.join_all().await;
        let refused = answers.iter().flatten().filter(|status| *status == "8").count();
        assert_eq!((answers.len(), refused), (4, 1), "{answers:?}");
        assert!(started.elapsed() >= Duration::from_millis(100), "{:?}", started.elapsed());
        assert_eq!(status(&limited, "/grpc.health.v1.Health/Check").await, None);
    }

    #[tokio::test]
    async fn without_a_limit_nothing_is_refused() {
        let free = limited(router(), None);
        for _ in 0..100 {
            assert_eq!(status(&free, "/x/Call").await, None);
        }
    }

    /// Calls a server of `router` on the network and returns the answer's head, as a client that has no clock of its own.
    async fn call(
        router: Router,
        stop: &CancellationToken,
        timeout: &str,
    ) -> (JoinSet<()>, Response<Incoming>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut server = JoinSet::new();
        server.spawn(accept(listener, router, stop.clone()));
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut client, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = HttpRequest::post("http://daemon/x/Slow").header("grpc-timeout", timeout);
        let response = client.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
        // The connection ends with its last handle.
        tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(client)
        });
        (server, response)
    }

    #[tokio::test]
    async fn a_named_timeout_cuts_no_call() {
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            "late"
        };
        let stop = CancellationToken::new();
        // One millisecond.
        let (_server, response) = call(Router::new().route("/x/Slow", post(slow)), &stop, "1m").await;
        assert_eq!((response.status(), response.headers().get("grpc-status")), (StatusCode::OK, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_never_begins_to_talk_is_closed() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for said in [&preface[..0], &preface[..10], preface] {
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let peer = Peer::Network(([127, 0, 0, 1], 1).into());
            let served = tokio::spawn(serve(server, peer, router(), NETWORK, CancellationToken::new()));
            client.write_all(said).await.unwrap();
            let ended = tokio::time::timeout(Duration::from_secs(60), served).await;
            ended.expect("it held its place").unwrap();
            // What the server said of itself, then the end.
            client.read_to_end(&mut Vec::new()).await.unwrap();
        }
        // Who has begun may be silent: clients keep connections for later.
        let (client, server) = tokio::io::duplex(1 << 16);
        let peer = Peer::Network(([127, 0, 0, 1], 1).into());
        let mut terms = NETWORK;
        terms.keep_alive = false;
        let served = tokio::spawn(serve(server, peer, router(), terms, CancellationToken::new()));
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = builder.handshake(TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let request = HttpRequest::post("http://daemon/x/Call").body(Body::empty()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::OK);
        drop(sender);
        served.await.unwrap();
    }

    #[tokio::test]
    async fn requests_know_where_they_come_from_and_may_end_their_connection() {
        let from = |request: Request| {
            let from = request.extensions().get::<CallFrom>().copied();
            request.extensions().get::<HangUp>().unwrap().0.cancel();
            std::future::ready(format!("{from:?}"))
        };
        let (client, server) = tokio::io::duplex(1 << 16);
        let peer = Peer::Network("[::ffff:10.0.0.7]:1".parse().unwrap());
        let seen = Arc::new(parking_lot::Mutex::new(String::new()));
        let noted = Arc::clone(&seen);
        let router = Router::new().route(
            "/x/From",
            post(move |request: Request| {
                let noted = Arc::clone(&noted);
                async move { *noted.lock() = from(request).await }
            }),
        );
        let served = tokio::spawn(serve(server, peer, router, NETWORK, CancellationToken::new()));
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = builder.handshake(TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        let request = HttpRequest::post("http://daemon/x/From").body(Body::empty()).unwrap();
        // Answered or cut off: either way the connection ends.
        drop(sender.send_request(request).await);
        served.await.unwrap();
        assert_eq!(*seen.lock(), "Some(CallFrom(10.0.0.7))");
    }

    #[tokio::test]
    async fn streams_without_end_are_cut_off_when_the_server_stops() {
        let endless =
            || async { Body::from_stream(futures_util::stream::pending::<std::io::Result<&str>>()) };
        let stop = CancellationToken::new();
        let (server, response) = call(Router::new().route("/x/Slow", post(endless)), &stop, "1S").await;
        tokio::time::pause();
        stop.cancel();
        server.join_all().await;
        drop(response);
    }
}
