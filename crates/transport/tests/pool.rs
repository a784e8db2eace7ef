//! The tools' pool of connections, against a daemon that comes, goes and hangs. Time is virtual where it matters: it
//! passes when nobody has anything left to do.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_api::dfdaemon::v2::{
    DownloadTaskRequest, DownloadTaskResponse, ListLocalTasksRequest, ListLocalTasksResponse,
};
use damselfly_transport::framed::{self, FrameWriter};
use damselfly_transport::local::{
    BindOptions, Connection, Counters, Listener, Pool, PoolChannel, PoolError, PoolOptions, Purpose,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, Streaming};

const LIST: &str = "/dfdaemon.v2.DfdaemonDownload/ListLocalTasks";
const DOWNLOAD: &str = "/dfdaemon.v2.DfdaemonDownload/DownloadTask";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// What a daemon saw.
#[derive(Default)]
struct Seen {
    /// The calls by connection, in the order of its accepting.
    calls: Mutex<BTreeMap<usize, Vec<String>>>,
    /// The answers to DownloadTask, which never end by themselves.
    streams: Mutex<Vec<FrameWriter>>,
    /// Connections of a lower number are not answered any more.
    frozen: Mutex<usize>,
    /// How many connections there are.
    open: watch::Sender<usize>,
}

impl Seen {
    fn calls(&self) -> Vec<Vec<String>> {
        self.calls.lock().values().cloned().collect()
    }
}

/// Dropped, it breaks every connection and removes its socket.
struct Daemon {
    seen: Arc<Seen>,
    _serving: JoinSet<()>,
}

impl Daemon {
    fn start(path: &Path) -> Self {
        let mut listener = Listener::bind(BindOptions::new(path.to_owned())).expect("free");
        let seen = Arc::new(Seen::default());
        let mut serving = JoinSet::new();
        let shared = seen.clone();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let Connection::Grpc(stream) = listener.accept().await else { panic!("no descriptors here") };
                shared.calls.lock().insert(number, Vec::new());
                shared.open.send_modify(|open| *open += 1);
                let open = Open(shared.clone());
                connections.spawn(async move {
                    let seen = open.0.clone();
                    let service = tower::service_fn(move |request: http::Request<_>| {
                        answer(seen.clone(), number, request.uri().path().to_owned())
                    });
                    let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
                    let service = TowerToHyperService::new(service);
                    let _how = builder.serve_connection(TokioIo::new(stream), service).await;
                    drop(open);
                });
            }
        });
        Self { seen, _serving: serving }
    }
}

struct Open(Arc<Seen>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

async fn answer(
    seen: Arc<Seen>,
    number: usize,
    path: String,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    seen.calls.lock().entry(number).or_default().push(path.clone());
    if number < *seen.frozen.lock() {
        pending::<()>().await;
    }
    let (mut writer, response) = framed::response(4);
    match path.as_str() {
        LIST => {
            writer.message(&ListLocalTasksResponse::default()).await.expect("room");
            writer.end(Ok(()));
        }
        DOWNLOAD => seen.streams.lock().push(writer),
        // It has no health service, as a daemon need not.
        _ => return Ok(framed::refusal(Status::unimplemented(path))),
    }
    Ok(response)
}

struct Stage {
    _dir: tempfile::TempDir,
    path: PathBuf,
    daemon: Option<Daemon>,
    pool: Pool,
}

impl Stage {
    async fn new(options: PoolOptions) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("d.sock");
        let daemon = Daemon::start(&path);
        let pool = Pool::connect(&path, options).await.expect("listening");
        Self { _dir: dir, path, daemon: Some(daemon), pool }
    }

    fn seen(&self) -> Arc<Seen> {
        self.daemon.as_ref().expect("running").seen.clone()
    }

    /// The daemon dies, and everybody notices.
    async fn stop(&mut self) {
        self.daemon = None;
        settle().await;
    }

    fn start(&mut self) {
        self.daemon = Some(Daemon::start(&self.path));
    }

    async fn list(&self) -> Result<(), Status> {
        list(self.pool.channel(Purpose::Call)).await
    }

    async fn stream(&self) -> Streaming<DownloadTaskResponse> {
        let mut client = DfdaemonDownloadClient::new(self.pool.channel(Purpose::Content));
        client.download_task(DownloadTaskRequest::default()).await.expect("begun").into_inner()
    }
}

async fn list(channel: PoolChannel) -> Result<(), Status> {
    let mut client = DfdaemonDownloadClient::new(channel);
    client.list_local_tasks(ListLocalTasksRequest::default()).await.map(drop)
}

/// Virtual time passes only when nobody has anything left to do.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

fn bound(max_connections: usize) -> PoolOptions {
    PoolOptions { max_connections, ..PoolOptions::default() }
}

#[tokio::test(start_paused = true)]
async fn calls_go_over_one_connection_and_nothing_else_travels() {
    let stage = Stage::new(bound(100)).await;
    // A slow start does not age it.
    sleep(Duration::from_secs(30)).await;
    for _ in 0..3 {
        stage.list().await.expect("answered");
    }
    assert_eq!(stage.seen().calls(), [[LIST; 3]]);
    assert_eq!(stage.pool.counters(), Counters { opened: 1, reused: 2, ..Counters::default() });
}

#[tokio::test(start_paused = true)]
async fn many_calls_at_a_time_share_few_connections() {
    let stage = Stage::new(bound(100)).await;
    let calls: JoinSet<_> = (0..100).map(|_| list(stage.pool.channel(Purpose::Call))).collect();
    assert!(calls.join_all().await.iter().all(Result::is_ok));
    let calls = stage.seen().calls();
    assert_eq!(calls.iter().map(Vec::len).sum::<usize>(), 100);
    assert_eq!(calls.len(), 2, "no more than 64 on one");
}

#[tokio::test(start_paused = true)]
async fn every_content_stream_has_a_connection_of_its_own() {
    let stage = Stage::new(bound(100)).await;
    let first = stage.stream().await;
    let second = stage.stream().await;
    stage.list().await.expect("answered");
    stage.list().await.expect("answered");
    assert_eq!(stage.seen().calls(), [vec![DOWNLOAD], vec![DOWNLOAD], vec![LIST; 2]]);
    // What is over is used again, whether it came to its end or was dropped.
    drop(second);
    stage.seen().streams.lock().remove(0).end(Ok(()));
    let mut first = first;
    assert!(first.message().await.expect("a good end").is_none());
    let _third = stage.stream().await;
    let _fourth = stage.stream().await;
    let _fifth = stage.stream().await;
    assert_eq!(stage.seen().calls().len(), 3);
    assert_eq!(stage.pool.counters(), Counters { opened: 3, reused: 4, ..Counters::default() });
}

#[tokio::test(start_paused = true)]
async fn what_nobody_uses_is_closed_when_its_time_is_over() {
    let stage = Stage::new(bound(100)).await;
    let stream = stage.stream().await;
    stage.list().await.expect("answered");
    let (begun, mut open) = (Instant::now(), stage.seen().open.subscribe());
    open.wait_for(|open| *open == 1).await.expect("a daemon");
    assert_eq!(begun.elapsed().as_secs(), PoolOptions::default().idle_timeout.as_secs());
    assert_eq!(stage.pool.counters(), Counters { opened: 2, evicted: 1, ..Counters::default() });
    // What is in use stays, however long; the time counts from its end.
    sleep(Duration::from_secs(600)).await;
    assert_eq!(*open.borrow_and_update(), 1);
    drop(stream);
    let begun = Instant::now();
    open.wait_for(|open| *open == 0).await.expect("a daemon");
    assert_eq!(begun.elapsed().as_secs(), PoolOptions::default().idle_timeout.as_secs());
    stage.list().await.expect("opened again");
    let counters = stage.pool.counters();
    assert_eq!(counters, Counters { opened: 3, evicted: 2, ..Counters::default() }, "nothing was lost");
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_was_restarted_is_found_again() {
    let mut stage = Stage::new(bound(100)).await;
    let mut stream = stage.stream().await;
    stage.list().await.expect("answered");
    stage.stop().await;
    assert!(stream.message().await.is_err());
    stage.start();
    // It is known that the connections are gone: no call is tried on one of them.
    stage.list().await.expect("answered by the new one");
    let _stream = stage.stream().await;
    assert_eq!(stage.seen().calls(), [[LIST, DOWNLOAD]]);
    let counters = Counters { opened: 3, reused: 1, lost: 2, reconnects: 1, ..Counters::default() };
    assert_eq!(stage.pool.counters(), counters);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_is_slow_to_come_back_is_waited_for() {
    let mut stage = Stage::new(bound(100)).await;
    stage.stop().await;
    let (path, begun) = (stage.path.clone(), Instant::now());
    let starting = tokio::spawn(async move {
        sleep(Duration::from_millis(200)).await;
        Daemon::start(&path)
    });
    stage.list().await.expect("the third try finds it");
    assert_eq!(begun.elapsed().as_millis(), 300);
    drop(starting.await);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_is_gone_is_said_so_with_socket_and_reason() {
    let mut stage = Stage::new(bound(100)).await;
    stage.stop().await;
    let begun = Instant::now();
    // Together, because the second waits for the first one's connection.
    let (one, other) = tokio::join!(stage.pool.lease(Purpose::Call), stage.list());
    assert_eq!(begun.elapsed().as_millis(), 700);
    let error = one.expect_err("nobody");
    assert!(matches!(error, PoolError::Unreachable { tries: 4, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(stage.path.to_str().expect("UTF-8")) && text.contains("No such file"), "{text}");
    let status = other.expect_err("nobody");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, text.as_str()));
    assert!(damselfly_transport::local::is_broken_connection(&status));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_hangs_is_noticed_before_it_is_used_again() {
    let stage = Stage::new(bound(100)).await;
    stage.list().await.expect("answered");
    sleep(Duration::from_secs(2)).await;
    stage.list().await.expect("any answer to the check is one");
    assert_eq!(stage.seen().calls(), [[LIST, HEALTH, LIST]]);
    *stage.seen().frozen.lock() = 1;
    sleep(Duration::from_secs(2)).await;
    let begun = Instant::now();
    stage.list().await.expect("over another connection");
    assert_eq!(begun.elapsed(), PoolOptions::default().check_timeout);
    assert_eq!(stage.seen().calls(), [vec![LIST, HEALTH, LIST, HEALTH], vec![LIST]]);
    let counters = Counters { opened: 2, reused: 1, checks_failed: 1, reconnects: 1, ..Counters::default() };
    assert_eq!(stage.pool.counters(), counters);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_failed_on_its_way_casts_suspicion_on_its_connection() {
    let stage = Stage::new(bound(100)).await;
    *stage.seen().frozen.lock() = 1;
    let mut client = DfdaemonDownloadClient::new(stage.pool.channel(Purpose::Call));
    let mut request = tonic::Request::new(ListLocalTasksRequest::default());
    request.set_timeout(Duration::from_millis(100));
    client.list_local_tasks(request).await.expect_err("no answer");
    // At once, but not without looking.
    stage.list().await.expect("over another connection");
    assert_eq!(stage.seen().calls(), [vec![LIST, HEALTH], vec![LIST]]);
}

#[tokio::test(start_paused = true)]
async fn at_the_bound_streams_wait_and_are_refused_when_it_takes_too_long() {
    let stage = Stage::new(bound(2)).await;
    let streams = (stage.stream().await, stage.stream().await);
    let begun = Instant::now();
    let error = stage.pool.lease(Purpose::Content).await.expect_err("all are in use");
    assert_eq!(begun.elapsed(), PoolOptions::default().wait);
    assert!(matches!(error, PoolError::Full { max: 2, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(stage.path.to_str().expect("UTF-8")) && text.contains("maxConnections"), "{text}");
    assert_eq!(Status::from(error).code(), Code::ResourceExhausted);
    // A call goes beside a stream.
    stage.list().await.expect("answered");
    // Who gives up waiting is skipped; who waits gets what becomes free.
    let wait = || {
        let pool = stage.pool.clone();
        tokio::spawn(async move { pool.lease(Purpose::Content).await })
    };
    let (gone, next) = (wait(), wait());
    settle().await;
    gone.abort();
    drop(streams.0);
    let lease = next.await.expect("no panic").expect("free");
    // One of them was for who went at that very moment.
    let counters = Counters { opened: 2, reused: 3, refused: 1, ..Counters::default() };
    assert_eq!(stage.pool.counters(), counters);
    assert_eq!(stage.seen().calls().len(), 2);
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn with_the_pool_its_connections_go() {
    let stage = Stage::new(bound(100)).await;
    stage.list().await.expect("answered");
    let (seen, stream) = (stage.seen(), stage.stream().await);
    let mut open = seen.open.subscribe();
    let Stage { _dir, daemon, pool, .. } = stage;
    drop(pool);
    settle().await;
    assert_eq!(*open.borrow_and_update(), 1, "a stream under way ends in its own time");
    drop(stream);
    open.wait_for(|open| *open == 0).await.expect("a daemon");
    drop(daemon);
}
