use std::sync::Arc;
use std::time::Duration;

use damselfly_api::dfdaemon::v2::dfdaemon_upload_client::DfdaemonUploadClient;
use damselfly_api::dfdaemon::v2::{self as dfdaemon, SyncHostRequest, SyncPiecesRequest};
use damselfly_core::TaskKey;
use damselfly_core::download::Validator;
use damselfly_transport::tcp::PieceProvider as _;
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use super::provider::Provider;
use crate::daemon::Daemon;
use crate::testing::{daemon, empty, hold, key};

const SOON: Duration = Duration::from_secs(20);

async fn client(daemon: &Daemon) -> DfdaemonUploadClient<Channel> {
    let channel = Endpoint::from_shared(format!("http://{}", daemon.ports().grpc)).unwrap().connect().await;
    DfdaemonUploadClient::new(channel.unwrap())
}

fn interest(key: &TaskKey, numbers: impl IntoIterator<Item = u32>) -> SyncPiecesRequest {
    SyncPiecesRequest {
        host_id: "child".to_owned(),
        task_id: key.id.to_string(),
        interested_piece_numbers: numbers.into_iter().collect(),
    }
}

async fn next(stream: &mut Streaming<dfdaemon::SyncPiecesResponse>) -> Option<dfdaemon::SyncPiecesResponse> {
    tokio::time::timeout(SOON, stream.message()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_are_told_as_asked_and_then_as_they_come() {
    let (_home, daemon) = daemon("").await;
    let (engine, key) = (daemon.engine(), key('a'));
    let content = empty(&engine.store, &key, 100_000, None);
    for number in [0, 7, 99_999] {
        hold(&content, number);
    }
    engine.live.insert(&key, &"p".into());
    let mut client = client(&daemon).await;
    // In its own order, a piece named twice, and one that cannot be.
    let asked = [99_999, 7, 7, 200_000].into_iter().chain(1..90_000);
    let response = client.sync_pieces(interest(&key, asked)).await.unwrap();
    assert!(response.metadata().contains_key("x-damselfly"));
    let mut stream = response.into_inner();
    let first = next(&mut stream).await.unwrap();
    assert_eq!((first.number, first.offset, first.length), (99_999, 99_999, 1));
    assert_eq!((first.ip.as_str(), first.tcp_port), ("127.0.0.1", Some(daemon.ports().vortex.port().into())));
    assert_eq!(next(&mut stream).await.unwrap().number, 7);
    for number in [89_999, 5, 64] {
        hold(&content, number);
        assert_eq!(next(&mut stream).await.unwrap().number, number);
    }
    // Its end means that nothing more is here.
    engine.live.remove(&key, &"p".into());
    assert_eq!(next(&mut stream).await, None);
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_does_not_run_is_told_once_and_another_version_ends_the_story() {
    let (_home, daemon) = daemon("").await;
    let (engine, key) = (daemon.engine(), key('a'));
    let content = empty(&engine.store, &key, 10, None);
    hold(&content, 3);
    hold(&content, 4);
    let mut client = client(&daemon).await;
    let told: Vec<_> = client.sync_pieces(interest(&key, 0..10)).await.unwrap().into_inner().collect().await;
    assert_eq!(told.len(), 2);

    engine.live.insert(&key, &"p".into());
    let mut stream = client.sync_pieces(interest(&key, 4..10)).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().number, 4);
    // The first change of all that this stream meets.
    content.begin_generation(2, Validator::default()).unwrap();
    assert_eq!(next(&mut stream).await, None);

    let unknown = client.sync_pieces(interest(&crate::testing::key('b'), 0..1)).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message().ends_with("not found")), (Code::Internal, true));
    let request = SyncPiecesRequest { task_id: "x".to_owned(), ..interest(&key, 0..1) };
    assert_eq!(client.sync_pieces(request).await.unwrap_err().code(), Code::InvalidArgument);
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_hangs_up_is_not_told_any_more() {
    let (_home, daemon) = daemon("").await;
    let (engine, key) = (daemon.engine(), key('a'));
    let content = empty(&engine.store, &key, 10, None);
    engine.live.insert(&key, &"p".into());
    let held = Arc::strong_count(&content);
    let mut client = client(&daemon).await;
    let stream = client.sync_pieces(interest(&key, 0..10)).await.unwrap();
    assert!(Arc::strong_count(&content) > held);
    drop(stream);
    let mut wait = tokio::time::interval(Duration::from_millis(5));
    let gone = async {
        while Arc::strong_count(&content) > held {
            wait.tick().await;
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_tell_their_traffic() {
    let (_home, daemon) = daemon("upload: {bandwidthLimit: 1000}").await;
    let mut client = client(&daemon).await;
    let mut stream = client.sync_host(SyncHostRequest::default()).await.unwrap().into_inner();
    let network = stream.message().await.unwrap().unwrap().network.unwrap();
    assert_eq!((network.max_tx_bandwidth, network.max_rx_bandwidth), (8000, 8000));
    assert!(network.tx_bandwidth.is_some() && network.rx_bandwidth.is_some());
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_local_callers_is_refused_over_the_network() {
    let (_home, daemon) = daemon("").await;
    let mut client = client(&daemon).await;
    let ask = |download| dfdaemon::DownloadTaskRequest { download };
    let url = "http://127.0.0.1:1/x".to_owned();
    let with = |change: fn(&mut damselfly_api::common::v2::Download)| {
        let mut download = damselfly_api::common::v2::Download { url: url.clone(), ..Default::default() };
        change(&mut download);
        Some(download)
    };
    for (download, code) in [
        (None, Code::InvalidArgument),
        (with(|download| download.output_path = Some("/etc/passwd".to_owned())), Code::PermissionDenied),
        (with(|download| download.need_piece_content = true), Code::Unimplemented),
        (with(|download| download.url = "ftp://x/y".to_owned()), Code::InvalidArgument),
    ] {
        let refused = client.download_task(ask(download.clone())).await.unwrap_err();
        assert_eq!(refused.code(), code, "{download:?}: {refused}");
    }
    let absent = dfdaemon::StatLocalTaskRequest { task_id: "a".repeat(64), ..Default::default() };
    assert_eq!(client.stat_local_task(absent).await.unwrap_err().code(), Code::NotFound);
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_limits_of_requests_hold_on_the_network() {
    let (_home, daemon) = daemon("upload: {server: {requestRateLimit: 1, requestBufferSize: 1}}").await;
    let client = client(&daemon).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = client.clone();
        let request = dfdaemon::StatLocalTaskRequest { task_id: "a".repeat(64), ..Default::default() };
        calls.spawn(async move { client.stat_local_task(request).await.unwrap_err() });
    }
    let answers = calls.join_all().await;
    let refused: Vec<_> = answers.iter().filter(|status| status.code() == Code::ResourceExhausted).collect();
    assert!(!refused.is_empty() && refused.len() < answers.len(), "{answers:?}");
    assert!(refused[0].message().starts_with("server is overloaded: "), "{}", refused[0].message());
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_is_being_fetched_is_waited_for() {
    let (_home, daemon) = daemon("").await;
    let (engine, key) = (daemon.engine(), key('a'));
    let content = empty(&engine.store, &key, 3, None);
    hold(&content, 0);
    let provider = Provider(Arc::clone(engine));
    let served = provider.piece(key.kind, &key.id, 0).await.unwrap().unwrap();
    assert_eq!((served.offset, served.content.len()), (0, 1));
    assert_eq!((engine.uploads.of(&key).now, engine.uploads.in_flight()), (1, 1));
    drop(served);
    assert_eq!(engine.uploads.of(&key).ever, 1);
    assert!(provider.piece(key.kind, &key.id, 1).await.unwrap().is_none(), "nobody fetches it");

    engine.live.insert(&key, &"p".into());
    let waiting = |number| {
        let (provider, key) = (provider.clone(), key.clone());
        tokio::spawn(async move { provider.piece(key.kind, &key.id, number).await.unwrap().is_some() })
    };
    let (comes, never) = (waiting(1), waiting(2));
    tokio::task::yield_now().await;
    hold(&content, 1);
    assert!(tokio::time::timeout(SOON, comes).await.unwrap().unwrap());
    engine.live.remove(&key, &"p".into());
    assert!(!tokio::time::timeout(SOON, never).await.unwrap().unwrap());

    // What a task that runs does not mean to fetch is not waited for.
    engine.live.insert(&key, &"p".into());
    let (mut wanted, peer) = (damselfly_core::PieceSet::full(3), "p".into());
    let paused = waiting(2);
    tokio::task::yield_now().await;
    engine.live.plan(&key, &peer, true, Some(&wanted));
    assert!(!tokio::time::timeout(SOON, paused).await.unwrap().unwrap());
    engine.live.plan(&key, &peer, false, Some(&wanted));
    let unwanted = waiting(2);
    tokio::task::yield_now().await;
    wanted.remove(2);
    engine.live.plan(&key, &peer, false, Some(&wanted));
    assert!(!tokio::time::timeout(SOON, unwanted).await.unwrap().unwrap());
    assert!(!tokio::time::timeout(SOON, waiting(2)).await.unwrap().unwrap());
    assert!(tokio::time::timeout(SOON, waiting(1)).await.unwrap().unwrap(), "what is held is served");
    let absent = crate::testing::key('b');
    assert!(provider.piece(absent.kind, &absent.id, 0).await.unwrap().is_none());
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_shares_nothing_has_nothing() {
    let (_home, daemon) = daemon("upload: {disableShared: true}").await;
    let (engine, key) = (daemon.engine(), key('a'));
    hold(&empty(&engine.store, &key, 1, None), 0);
    let provider = Provider(Arc::clone(engine));
    assert!(provider.piece(key.kind, &key.id, 0).await.unwrap().is_none());
    let refused = client(&daemon).await.sync_pieces(interest(&key, 0..1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    daemon.kill().await;
}
