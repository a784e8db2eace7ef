//! One origin, a few daemons, real sockets and files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use damselfly_tests::OriginServer;
use damselfly_tests::swarm::Swarm;

const PIECE: u64 = 4 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_host_gets_every_size_whole() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 65 << 20] {
        let blob = origin.blob(length, length);
        let name = format!("out-{length}");
        let told = host.get(&blob.url, &name).await.unwrap();
        blob.pattern.check_file(host.path(&name)).unwrap();
        let receipt = host.receipt(&told).await.unwrap();
        assert_eq!((receipt.origin_bytes, receipt.peer_bytes), (length, 0));
        assert_eq!(told.pieces.len() as u64, length.div_ceil(PIECE));
        assert_eq!(origin.counts(&blob).body_bytes, length, "each byte leaves the origin once");
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_host_gets_every_piece_from_the_first() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(2, "").await.unwrap();
    for length in [1, PIECE + 1, 40 << 20] {
        let blob = origin.blob(length, 7);
        swarm.hosts[0].get(&blob.url, &format!("first-{length}")).await.unwrap();
        let told = swarm.hosts[1].get(&blob.url, &format!("second-{length}")).await.unwrap();
        blob.pattern.check_file(swarm.hosts[1].path(&format!("second-{length}"))).unwrap();
        let receipt = swarm.hosts[1].receipt(&told).await.unwrap();
        assert_eq!((receipt.origin_bytes, receipt.peer_bytes), (0, length));
        assert_eq!(origin.counts(&blob).body_bytes, length);
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_cold_hosts_at_once_take_the_content_from_the_origin_once() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(8, "").await.unwrap();
    let length = 96 << 20;
    let blob = origin.blob(length, 3);
    let downloads = swarm.hosts.iter().map(|host| host.get(&blob.url, "out"));
    for told in futures_util::future::join_all(downloads).await {
        told.unwrap();
    }
    for host in &swarm.hosts {
        blob.pattern.check_file(host.path("out")).unwrap();
    }
    let sent = origin.counts(&blob).body_bytes;
    assert!(sent * 100 <= length * 102, "{sent} bytes left the origin for {length} bytes of content");
    swarm.stop().await;
}
