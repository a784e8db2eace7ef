//! Several clients of one task, what they ask and what they are told.

use damselfly_api::common::v2::{Download, TrafficType};
use damselfly_core::{Algorithm, ByteRange};
use damselfly_tests::OriginServer;
use damselfly_tests::origin::{Behaviour, Gate};
use damselfly_tests::swarm::{Swarm, download, to_file, with_range};
use tonic::Code;

use crate::PIECE;

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_at_once_share_every_fetch() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(3 * PIECE, 1);
    let gate = Gate::closed();
    origin.set(&blob, Behaviour::held_by(&gate));
    let (first, second) = (host.get(&blob.url, "a"), host.get(&blob.url, "b"));
    let open = async {
        gate.holds(1).await.unwrap();
        gate.open();
    };
    let (first, second, ()) = tokio::join!(first, second, open);
    let (first, second) = (first.unwrap(), second.unwrap());
    for name in ["a", "b"] {
        blob.pattern.check_file(host.path(name)).unwrap();
    }
    assert_eq!((first.pieces.len(), second.pieces.len()), (3, 3));
    assert_eq!(origin.counts(&blob).body_bytes, blob.pattern.length);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_different_ranges_get_each_its_own() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(4 * PIECE, 2);
    let gate = Gate::closed();
    origin.set(&blob, Behaviour::held_by(&gate));
    // Two pieces are wanted by both.
    let (one, other) =
        (ByteRange { start: 7, length: 2 * PIECE }, ByteRange { start: PIECE, length: 2 * PIECE });
    let asked =
        |range: ByteRange, name| with_range(to_file(&blob.url, &host.path(name)), range.start, range.length);
    let open = async {
        gate.holds(1).await.unwrap();
        gate.open();
    };
    let (first, second, ()) =
        tokio::join!(host.download(asked(one, "one")), host.download(asked(other, "other")), open);
    let numbers = |told: damselfly_tests::swarm::Told| {
        let mut numbers: Vec<_> = told.pieces.iter().map(|piece| piece.number).collect();
        numbers.sort_unstable();
        numbers
    };
    assert_eq!((numbers(first.unwrap()), numbers(second.unwrap())), (vec![0, 1, 2], vec![1, 2]));
    for (range, name) in [(one, "one"), (other, "other")] {
        blob.pattern.check_range(range, std::fs::File::open(host.path(name)).unwrap()).unwrap();
    }
    let sent = origin.counts(&blob).body_bytes;
    assert!(sent <= 3 * PIECE + 1, "{sent} bytes for three pieces");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_leaves_and_the_other_goes_on() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(3 * PIECE, 3);
    let gate = Gate::closed();
    origin.set(&blob, Behaviour { gate: Some((PIECE / 2, gate.clone())), ..Behaviour::default() });
    let mut leaving = host.open(to_file(&blob.url, &host.path("left"))).await.unwrap();
    leaving.started().await.unwrap();
    let mut staying = host.open(to_file(&blob.url, &host.path("stays"))).await.unwrap();
    staying.started().await.unwrap();
    drop(leaving);
    gate.open();
    staying.finish().await.unwrap();
    blob.pattern.check_file(host.path("stays")).unwrap();
    assert!(!host.path("left").try_exists().unwrap());
    assert_eq!(origin.counts(&blob).body_bytes, blob.pattern.length);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_client_leaves_and_the_next_finds_what_was_fetched() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(12 * PIECE, 4);
    origin.set(&blob, Behaviour { rate: Some(40 << 20), ..Behaviour::default() });
    let mut leaving = host.open(to_file(&blob.url, &host.path("left"))).await.unwrap();
    leaving.pieces(2).await.unwrap();
    drop(leaving);
    host.idles().await.unwrap();
    let fetched = origin.counts(&blob).body_bytes;
    assert!(fetched < blob.pattern.length, "nobody waits, and yet everything was fetched");
    let told = host.get(&blob.url, "stays").await.unwrap();
    blob.pattern.check_file(host.path("stays")).unwrap();
    let receipt = host.receipt(&told).await.unwrap();
    assert!(receipt.local_bytes >= 2 * PIECE, "{receipt:?}");
    assert_eq!(receipt.local_bytes + receipt.origin_bytes, blob.pattern.length);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_decide_whether_a_file_appears() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(PIECE + 3, 5);
    let ask = |digest: &str, name: &str| Download {
        digest: Some(digest.to_owned()),
        ..to_file(&blob.url, &host.path(name))
    };
    let wrong = format!("sha256:{}", "0".repeat(64));
    // Cold and warm.
    for round in 0..2 {
        let status = host.download(ask(&wrong, "wrong")).await.unwrap_err();
        let actual = blob.pattern.digest(Algorithm::Sha256);
        assert!(
            status.message().contains(&wrong) && status.message().contains(&actual),
            "{round}: {status:?}"
        );
        assert!(!host.path("wrong").try_exists().unwrap());
    }
    for algorithm in [Algorithm::Sha256, Algorithm::Md5, Algorithm::Crc32, Algorithm::Blake3] {
        let (digest, name) = (blob.pattern.digest(algorithm), format!("right-{algorithm:?}"));
        host.download(ask(&digest, &name)).await.unwrap();
        blob.pattern.check_file(host.path(&name)).unwrap();
    }
    let status = host.download(ask("sha256:123", "wrong")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(origin.counts(&blob).body_bytes, blob.pattern.length);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_client_of_a_complete_task_gets_local_pieces() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(2 * PIECE, 6);
    let first = host.get(&blob.url, "first").await.unwrap();
    assert!(!first.started.as_ref().unwrap().is_finished);
    assert!(first.pieces.iter().all(|piece| piece.traffic_type() == TrafficType::BackToSource));
    let requests = origin.counts(&blob).requests;
    let late = host.get(&blob.url, "late").await.unwrap();
    blob.pattern.check_file(host.path("late")).unwrap();
    assert!(late.started.as_ref().unwrap().is_finished);
    assert_eq!(late.pieces.len(), 2);
    assert!(late.pieces.iter().all(|piece| piece.traffic_type() == TrafficType::LocalPeer));
    assert_eq!(host.receipt(&late).await.unwrap().local_bytes, 2 * PIECE);
    assert_eq!(origin.counts(&blob).requests, requests, "public content is not asked for again");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_output_is_replaced_only_on_demand() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(1000, 7);
    let path = host.path("out");
    std::fs::write(&path, "precious").unwrap();
    let status = host.download(to_file(&blob.url, &path)).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert_eq!(origin.counts(&blob).requests, 0, "refused before anything is fetched");
    host.download(Download { overwrite: true, ..to_file(&blob.url, &path) }).await.unwrap();
    blob.pattern.check_file(&path).unwrap();
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_without_output_leaves_the_task_behind() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(PIECE + 1, 8);
    let told = host.download(download(&blob.url)).await.unwrap();
    assert_eq!(told.pieces.len(), 2);
    assert_eq!(host.receipt(&told).await.unwrap().transfer, "stream");
    host.get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(host.path("out")).unwrap();
    assert_eq!(origin.counts(&blob).body_bytes, blob.pattern.length);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_travels_in_the_messages_when_asked_for() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(2 * PIECE + 9, 9);
    // Cold and warm.
    for _ in 0..2 {
        let asked = Download { need_piece_content: true, ..download(&blob.url) };
        let told = host.download(asked).await.unwrap();
        blob.pattern.check_reader(&told.content()[..]).unwrap();
    }
    swarm.stop().await;
}
