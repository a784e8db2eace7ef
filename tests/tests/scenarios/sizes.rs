//! Content of every length, told or not, whole or in part.

use damselfly_core::ByteRange;
use damselfly_tests::OriginServer;
use damselfly_tests::origin::Behaviour;
use damselfly_tests::swarm::{Swarm, download, task_of, to_file, with_header, with_range};

use crate::PIECE;

#[tokio::test(flavor = "multi_thread")]
async fn content_of_unknown_length_is_fetched_once_and_passed_on() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(2, "").await.unwrap();
    for length in [0, 1, PIECE, 2 * PIECE + 77] {
        let blob = origin.blob(length, 5);
        origin.set(&blob, Behaviour::chunked());
        let name = format!("out-{length}");
        for (host, from_origin) in swarm.hosts.iter().zip([length, 0]) {
            let told = host.get(&blob.url, &name).await.unwrap();
            blob.pattern.check_file(host.path(&name)).unwrap();
            let receipt = host.receipt(&told).await.unwrap();
            assert_eq!((receipt.origin_bytes, receipt.peer_bytes), (from_origin, length - from_origin));
        }
        assert_eq!(origin.counts(&blob).body_bytes, length);
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_cold_hosts_share_one_fetch_of_unknown_length() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let blob = origin.blob(2 * PIECE + 1, 6);
    origin.set(&blob, Behaviour::chunked());
    let (first, second) =
        tokio::join!(swarm.hosts[0].get(&blob.url, "out"), swarm.hosts[1].get(&blob.url, "out"));
    first.unwrap();
    second.unwrap();
    for host in &swarm.hosts {
        blob.pattern.check_file(host.path("out")).unwrap();
    }
    assert_eq!(origin.counts(&blob).body_bytes, blob.pattern.length);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_without_ranges_is_read_once_and_passed_on() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(2, "").await.unwrap();
    for length in [0, 1, 3 * PIECE + 5] {
        let blob = origin.blob(length, 8);
        origin.set(&blob, Behaviour::without_ranges());
        let name = format!("out-{length}");
        for host in &swarm.hosts {
            host.get(&blob.url, &name).await.unwrap();
            blob.pattern.check_file(host.path(&name)).unwrap();
        }
        assert_eq!(origin.counts(&blob).body_bytes, length);
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_around_a_piece_travel_from_host_to_host() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(2, "").await.unwrap();
    for length in [0, PIECE - 1, PIECE, 2 * PIECE - 1, 2 * PIECE + 1] {
        let blob = origin.blob(length, 9);
        let name = format!("out-{length}");
        swarm.hosts[0].get(&blob.url, &name).await.unwrap();
        let told = swarm.hosts[1].get(&blob.url, &name).await.unwrap();
        blob.pattern.check_file(swarm.hosts[1].path(&name)).unwrap();
        let receipt = swarm.hosts[1].receipt(&told).await.unwrap();
        assert_eq!((receipt.origin_bytes, receipt.peer_bytes), (0, length));
        assert_eq!(origin.counts(&blob).body_bytes, length);
    }
    swarm.stop().await;
}

/// Ways to ask for bytes `start..start + length`.
enum Ask {
    Header,
    Field,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_gives_exactly_its_bytes_and_does_not_complete_the_task() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    for (index, ask) in [Ask::Header, Ask::Field].into_iter().enumerate() {
        let blob = origin.blob(3 * PIECE, 10 + index as u64);
        let (start, length) = (PIECE + 100, 5000);
        let (part, whole) = (host.path(&format!("part-{index}")), format!("whole-{index}"));
        let asked = match ask {
            Ask::Header => {
                let range = format!("bytes={start}-{}", start + length - 1);
                with_header(to_file(&blob.url, &part), "Range", &range)
            }
            Ask::Field => with_range(to_file(&blob.url, &part), start, length),
        };
        let task = task_of(&asked);
        let told = host.download(asked).await.unwrap();
        let range = ByteRange { start, length };
        blob.pattern.check_range(range, std::fs::File::open(&part).unwrap()).unwrap();
        let started = told.started.unwrap();
        let shown = started.range.map(|range| (range.start, range.length));
        assert_eq!((started.content_length, shown), (3 * PIECE, Some((start, length))));
        assert_eq!(told.pieces.iter().map(|piece| piece.number).collect::<Vec<_>>(), [1]);
        let stat = host.stat(&task).await.unwrap();
        assert_eq!((stat.finished_at, stat.content_length), (None, Some(3 * PIECE)));
        let before = origin.counts(&blob).body_bytes;
        assert!(before < PIECE + 2, "{before} bytes were fetched for one piece and a look at the length");

        let told = host.get(&blob.url, &whole).await.unwrap();
        blob.pattern.check_file(host.path(&whole)).unwrap();
        assert_eq!(origin.counts(&blob).body_bytes - before, 2 * PIECE, "only the rest is fetched");
        let receipt = host.receipt(&told).await.unwrap();
        assert_eq!((receipt.origin_bytes, receipt.local_bytes), (2 * PIECE, PIECE));
        assert!(host.stat(&task).await.unwrap().finished_at.is_some());
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_at_the_edges_are_exact_and_those_outside_are_refused() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(2 * PIECE + 10, 12);
    let last = blob.pattern.length - 1;
    let cases = [
        ("bytes=0-0".to_owned(), 0, 1),
        (format!("bytes={}-{}", PIECE - 1, PIECE), PIECE - 1, 2),
        (format!("bytes={last}-"), last, 1),
        ("bytes=-3".to_owned(), last - 2, 3),
        (format!("bytes={}-{}", 2 * PIECE, last + 100), 2 * PIECE, 10),
    ];
    for (index, (header, start, length)) in cases.into_iter().enumerate() {
        let path = host.path(&format!("part-{index}"));
        host.download(with_header(to_file(&blob.url, &path), "range", &header)).await.unwrap();
        let range = ByteRange { start, length };
        blob.pattern.check_range(range, std::fs::File::open(&path).unwrap()).unwrap();
    }
    let path = host.path("nothing");
    for header in [format!("bytes={}-", last + 1), "bytes=5-2".to_owned(), "furlongs=1-2".to_owned()] {
        let asked = with_header(to_file(&blob.url, &path), "Range", &header);
        let status = host.download(asked).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{header}: {status:?}");
        assert!(!path.try_exists().unwrap());
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_served_by_a_peer_that_has_the_whole() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let blob = origin.blob(3 * PIECE, 13);
    swarm.hosts[0].download(download(&blob.url)).await.unwrap();
    let host = &swarm.hosts[1];
    let path = host.path("part");
    let told = host.download(with_range(to_file(&blob.url, &path), 2 * PIECE - 1, 2)).await.unwrap();
    let range = ByteRange { start: 2 * PIECE - 1, length: 2 };
    blob.pattern.check_range(range, std::fs::File::open(&path).unwrap()).unwrap();
    let receipt = host.receipt(&told).await.unwrap();
    assert_eq!((receipt.origin_bytes, receipt.peer_bytes), (0, 2 * PIECE));
    swarm.stop().await;
}
