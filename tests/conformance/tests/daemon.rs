//! Real daemons of ours among Dragonfly's: their programs at our unix socket, their child at our ports, and our daemon
//! at a scheduler and a parent of theirs.

use std::collections::BTreeMap;
use std::time::Duration;

use damselfly_conformance::parent::TheirParent;
use damselfly_conformance::scheduler::{Conversation, Says, TheirScheduler};
use damselfly_conformance::vortex::{Answer, read_answer, request};
use damselfly_conformance::{channel, children, programs, rules};
use damselfly_core::{ByteRange, Crc, Geometry, Kind};
use damselfly_tests::origin::Blob;
use damselfly_tests::swarm::{Swarm, download, task_of};
use damselfly_tests::{OriginServer, Pattern};
use dragonfly_api::common::v2::{Download, Piece};
use dragonfly_api::dfdaemon::v2::download_task_response::Response as Told;
use dragonfly_api::dfdaemon::v2::{
    DeleteTaskRequest, DownloadTaskRequest, DownloadTaskStartedResponse, ListLocalTasksRequest,
    StatLocalTaskRequest, StatTaskRequest, SyncHostRequest, SyncPiecesRequest,
};
use dragonfly_api::scheduler::v2::announce_peer_request::Request as Ask;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const DEADLINE: Duration = Duration::from_secs(60);
const PIECE: u64 = 4 << 20;
const LENGTH: u64 = 5 * PIECE + 1;

/// What their clients ask for, as dfget does.
fn theirs(blob: &Blob) -> Download {
    let ours = download(&blob.url);
    Download {
        url: ours.url,
        tag: ours.tag,
        application: ours.application,
        priority: ours.priority,
        filtered_query_params: ours.filtered_query_params,
        ..Download::default()
    }
}

fn task(blob: &Blob) -> String {
    task_of(&download(&blob.url)).to_string()
}

/// Reads a download's stream as dfget does: the beginning first, then each piece once.
async fn told(
    mut stream: Streaming<dragonfly_api::dfdaemon::v2::DownloadTaskResponse>,
) -> Result<(DownloadTaskStartedResponse, BTreeMap<u32, Piece>), Status> {
    let mut started = None;
    let mut pieces = BTreeMap::new();
    while let Some(message) = timeout(DEADLINE, stream.message()).await.expect("a message in time")? {
        assert!(!message.host_id.is_empty() && !message.task_id.is_empty() && !message.peer_id.is_empty());
        match message.response.expect("an arm that they know") {
            Told::DownloadTaskStartedResponse(first) => {
                assert!(
                    started.replace(first).is_none() && pieces.is_empty(),
                    "the beginning comes once and first"
                );
            }
            Told::DownloadPieceFinishedResponse(finished) => {
                let piece = finished.piece.expect("a piece");
                assert!(started.is_some(), "the beginning comes first");
                assert!(pieces.insert(piece.number, piece).is_none(), "each piece comes once");
            }
        }
    }
    Ok((started.expect("a beginning"), pieces))
}

fn check_pieces(started: &DownloadTaskStartedResponse, pieces: &BTreeMap<u32, Piece>, pattern: Pattern) {
    let geometry = Geometry::derived(pattern.length).unwrap();
    assert_eq!(started.content_length, pattern.length);
    let wanted: Vec<u32> = started.pieces.iter().map(|piece| piece.number).collect();
    assert_eq!(wanted, (0..geometry.piece_count()).collect::<Vec<_>>());
    assert_eq!(pieces.keys().copied().collect::<Vec<_>>(), wanted);
    for (number, piece) in pieces {
        let span = geometry.piece(*number).unwrap();
        assert_eq!((piece.offset, piece.length), (span.offset, span.length));
        assert!(piece.cost.is_some() && piece.created_at.is_some());
        let content = pattern.bytes(ByteRange { start: span.offset, length: span.length });
        assert_eq!(piece.digest, Crc::of(&content).to_string());
        if let Some(received) = &piece.content {
            assert!(*received == content, "piece {number} has other bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn their_program_downloads_to_a_file_and_as_content() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let blob = origin.blob(LENGTH, 1);
    let host = &swarm.hosts[0];
    let mut client = programs(host).await;

    let output_path = Some(host.path("out").display().to_string());
    let to_file = DownloadTaskRequest { download: Some(Download { output_path, ..theirs(&blob) }) };
    let (started, pieces) = told(client.download_task(to_file).await.unwrap().into_inner()).await.unwrap();
    check_pieces(&started, &pieces, blob.pattern);
    assert!(!started.is_finished);
    blob.pattern.check_file(host.path("out")).unwrap();

    let content =
        DownloadTaskRequest { download: Some(Download { need_piece_content: true, ..theirs(&blob) }) };
    let (started, pieces) = told(client.download_task(content).await.unwrap().into_inner()).await.unwrap();
    check_pieces(&started, &pieces, blob.pattern);
    assert!(started.is_finished);
    assert!(pieces.values().all(|piece| piece.content.is_some()));
    assert_eq!(origin.counts(&blob).body_bytes, LENGTH, "it was fetched once");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn their_program_lists_and_deletes() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let blob = origin.blob(LENGTH, 2);
    let host = &swarm.hosts[0];
    let mut client = programs(host).await;
    let stat = StatLocalTaskRequest { task_id: task(&blob), ..Default::default() };
    assert_eq!(client.stat_local_task(stat.clone()).await.unwrap_err().code(), Code::NotFound);

    let request = DownloadTaskRequest { download: Some(theirs(&blob)) };
    told(client.download_task(request).await.unwrap().into_inner()).await.unwrap();
    let local = client.stat_local_task(stat.clone()).await.unwrap().into_inner();
    assert_eq!((local.task_id, local.content_length), (task(&blob), Some(LENGTH)));
    let listed = client.list_local_tasks(ListLocalTasksRequest::default()).await.unwrap().into_inner().tasks;
    assert_eq!(listed.iter().map(|task| task.task_id.clone()).collect::<Vec<_>>(), [task(&blob)]);
    let known = StatTaskRequest { task_id: task(&blob), ..Default::default() };
    assert_eq!(client.stat_task(known).await.unwrap().into_inner().content_length, LENGTH);

    let delete = DeleteTaskRequest { task_id: task(&blob), ..Default::default() };
    client.delete_task(delete).await.unwrap();
    assert_eq!(client.stat_local_task(stat).await.unwrap_err().code(), Code::NotFound);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn their_program_reads_why_an_origin_failed() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let url = format!("http://{}/nothing-here", origin.addr());
    let request = DownloadTaskRequest { download: Some(Download { url, priority: 6, ..Default::default() }) };
    let status = match programs(&swarm.hosts[0]).await.download_task(request).await {
        Err(status) => status,
        Ok(stream) => stream.into_inner().message().await.unwrap_err(),
    };
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().starts_with("backend error: "), "{}", status.message());
    let details = String::from_utf8(status.details().to_vec()).unwrap();
    assert!(details.starts_with('{') && details.contains(r#""status_code":404"#), "{details}");
    assert!(details.contains(r#""message":""#) && details.contains(r#""header":{"#), "{details}");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn their_child_fetches_every_piece() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let blob = origin.blob(LENGTH, 3);
    let host = &swarm.hosts[0];
    let mut client = children(host).await;

    // As a scheduler of theirs triggers a seed.
    let seed = Download { need_back_to_source: true, ..theirs(&blob) };
    let request = DownloadTaskRequest { download: Some(seed) };
    let (started, pieces) = told(client.download_task(request).await.unwrap().into_inner()).await.unwrap();
    check_pieces(&started, &pieces, blob.pattern);

    let geometry = Geometry::derived(LENGTH).unwrap();
    let numbers: Vec<u32> = (0..geometry.piece_count()).rev().collect();
    let mut request = tonic::Request::new(SyncPiecesRequest {
        host_id: "127.0.0.1-child".to_owned(),
        task_id: task(&blob),
        interested_piece_numbers: numbers.clone(),
    });
    // Dragonfly's children send this on streams that live for hours.
    request.set_timeout(Duration::from_secs(10));
    let mut places = client.sync_pieces(request).await.unwrap().into_inner();
    let mut announced = Vec::new();
    while let Some(place) = timeout(DEADLINE, places.message()).await.unwrap().unwrap() {
        let span = geometry.piece(place.number).unwrap();
        assert_eq!((place.offset, place.length), (span.offset, span.length));
        let mut stream =
            TcpStream::connect((place.ip.as_str(), u16::try_from(place.tcp_port.unwrap()).unwrap()))
                .await
                .unwrap();
        stream.write_all(&request_of(&blob, place.number)).await.unwrap();
        let (mut reader, writer) = stream.into_split();
        let Answer::Content(meta) = read_answer(Kind::Standard, &mut reader).await.unwrap() else {
            panic!("refused")
        };
        drop(writer);
        let mut bytes = Vec::new();
        timeout(DEADLINE, reader.read_to_end(&mut bytes)).await.unwrap().unwrap();
        blob.pattern.check(span.offset, &bytes).unwrap();
        assert_eq!((meta.piece, meta.offset, meta.length), (place.number, span.offset, bytes.len() as u64));
        assert_eq!(meta.digest, Crc::of(&bytes).to_string());
        announced.push(place.number);
    }
    assert_eq!(announced, numbers, "all that was asked for, in the order asked, and then the end");
    swarm.stop().await;
}

fn request_of(blob: &Blob, number: u32) -> bytes::Bytes {
    request(Kind::Standard, &task(blob), number)
}

#[tokio::test(flavor = "multi_thread")]
async fn their_child_learns_of_unknown_tasks_and_of_the_host() {
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let mut client = children(host).await;
    let unknown = SyncPiecesRequest {
        host_id: "127.0.0.1-child".to_owned(),
        task_id: damselfly_conformance::TASK.to_owned(),
        interested_piece_numbers: vec![0],
    };
    let refused = match client.sync_pieces(unknown).await {
        Err(status) => status,
        Ok(stream) => stream.into_inner().message().await.unwrap_err(),
    };
    assert_eq!(refused.code(), Code::Internal);

    let peers = SyncHostRequest { host_id: "127.0.0.1-child".to_owned(), peer_id: "a-peer".to_owned() };
    let mut samples = client.sync_host(peers).await.unwrap().into_inner();
    for _ in 0..2 {
        let sample = timeout(DEADLINE, samples.message()).await.unwrap().unwrap().unwrap();
        assert!(sample.network.unwrap().max_tx_bandwidth > 0);
    }

    let mut health = HealthClient::new(channel(host.daemon().ports().grpc).await);
    for service in ["", "dfdaemon.v2.DfdaemonUpload"] {
        let status =
            health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap().into_inner();
        assert_eq!(status.status(), tonic_health::ServingStatus::Serving.into(), "{service:?}");
    }
    swarm.stop().await;
}

/// The arms of a conversation, with repetitions counted.
fn arms(conversation: &Conversation) -> Vec<(&'static str, usize)> {
    let mut arms: Vec<(&str, usize)> = Vec::new();
    for message in conversation {
        let name = match message.request.as_ref().unwrap() {
            Ask::RegisterPeerRequest(_) => "register",
            Ask::DownloadPeerStartedRequest(_) => "started",
            Ask::DownloadPeerBackToSourceStartedRequest(_) => "origin started",
            Ask::DownloadPieceFinishedRequest(_) => "piece",
            Ask::DownloadPieceBackToSourceFinishedRequest(_) => "origin piece",
            Ask::DownloadPeerFinishedRequest(_) => "finished",
            Ask::DownloadPeerBackToSourceFinishedRequest(_) => "origin finished",
            _ => "other",
        };
        match arms.last_mut() {
            Some((last, count)) if *last == name => *count += 1,
            _ => arms.push((name, 1)),
        }
    }
    arms
}

#[tokio::test(flavor = "multi_thread")]
async fn our_daemon_fetches_from_the_origin_when_their_scheduler_says_so() {
    let origin = OriginServer::start().await.unwrap();
    let scheduler = TheirScheduler::start(Says::Origin).await;
    let mut swarm = Swarm::join(1, &[scheduler.address()], "").await.unwrap();
    let announced = scheduler.host().await;
    rules::host(&announced).unwrap();
    assert_eq!(announced.port, announced.download_port);
    assert!(announced.network.unwrap().max_tx_bandwidth > 0);

    let blob = origin.blob(LENGTH, 4);
    swarm.hosts[0].get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(swarm.hosts[0].path("out")).unwrap();
    let conversation = scheduler.conversation().await;
    for message in &conversation {
        rules::request(message).unwrap_or_else(|rule| panic!("{rule} missing or wrong in {message:?}"));
        assert_eq!((&message.host_id, &message.task_id), (&announced.id, &task(&blob)));
    }
    let expected = [("register", 1), ("origin started", 1), ("origin piece", 6), ("origin finished", 1)];
    assert_eq!(arms(&conversation), expected);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_daemon_fetches_from_their_parent() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(LENGTH, 5);
    let parent = TheirParent::start(blob.pattern).await;
    let peer = parent.peer(&task(&blob), &blob.url);
    let scheduler = TheirScheduler::start(Says::Parents(vec![peer.clone()])).await;
    let mut swarm = Swarm::join(1, &[scheduler.address()], "").await.unwrap();

    swarm.hosts[0].get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(swarm.hosts[0].path("out")).unwrap();
    let mut seen = parent.seen();
    seen.served.sort_unstable();
    assert_eq!(seen.wrong, [""; 0]);
    assert_eq!(seen.served, [0, 1, 2, 3, 4, 5], "each piece once, each on a connection of its own");

    let conversation = scheduler.conversation().await;
    for message in &conversation {
        rules::request(message).unwrap_or_else(|rule| panic!("{rule} missing or wrong in {message:?}"));
        if let Some(Ask::DownloadPieceFinishedRequest(finished)) = &message.request {
            assert_eq!(finished.piece.as_ref().unwrap().parent_id.as_deref(), Some(peer.id.as_str()));
        }
    }
    assert_eq!(arms(&conversation), [("register", 1), ("started", 1), ("piece", 6), ("finished", 1)]);
    // To register there a daemon must know the length, so it has looked at the origin.
    assert!(origin.counts(&blob).body_bytes < PIECE, "the content came from the parent");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_daemon_finishes_when_their_scheduler_breaks_the_stream() {
    let origin = OriginServer::start().await.unwrap();
    let scheduler = TheirScheduler::start(Says::Breaks).await;
    let mut swarm = Swarm::join(1, &[scheduler.address()], "").await.unwrap();
    let blob = origin.blob(LENGTH, 6);
    swarm.hosts[0].get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(swarm.hosts[0].path("out")).unwrap();
    assert_eq!(arms(&scheduler.conversation().await), [("register", 1)]);
    swarm.stop().await;
}
