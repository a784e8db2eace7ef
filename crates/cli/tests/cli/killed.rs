//! Daemons and downloads that are ended in the middle (promise I7): what was there is there, and is not fetched again.

use damselfly_tests::OriginServer;
use damselfly_tests::origin::{Behaviour, Blob};
use rustix::process::Signal;

use crate::node::{Node, ended, signal};

const PIECE: u64 = 4 << 20;
const LENGTH: u64 = 16 * PIECE + 5;
/// A lone host asks the origin for so many pieces at once.
const IN_FLIGHT: u64 = 4 * PIECE;

/// A blob that takes about a second.
fn slow(origin: &OriginServer, seed: u64) -> Blob {
    let blob = origin.blob(LENGTH, seed);
    origin.set(&blob, Behaviour { rate: Some(64 << 20), ..Behaviour::default() });
    blob
}

/// Nothing but what was on its way was fetched a second time.
fn fetched_once(origin: &OriginServer, blob: &Blob) {
    let sent = origin.counts(blob).body_bytes;
    assert!(
        sent <= LENGTH + IN_FLIGHT,
        "{sent} bytes left the origin for {LENGTH} and {IN_FLIGHT} in flight"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_anywhere_resumes() {
    let origin = OriginServer::start().await.unwrap();
    let home = tempfile::tempdir().unwrap();
    // The same points in every run, spread over the content.
    let point = |round: u64| 1 + damselfly_core::mix(round) % (LENGTH - 1);
    for round in 0..8 {
        let blob = slow(&origin, 100 + round);
        let node = Node::start(home.path(), &[]).await;
        let output = node.output("f");
        let download = node.getting(&blob.url, "f", &[]).spawn().unwrap();
        origin.wait_until(&blob, |counts| counts.body_bytes >= point(round)).await.unwrap();
        node.kill().await;
        let cut = ended(download).await;
        assert_eq!(cut.code, Some(3), "killed at {}: {cut:?}", point(round));
        assert!(!output.try_exists().unwrap(), "an output is complete or not there");

        let node = Node::start(home.path(), &[]).await;
        let json = node.got(&blob.url, "f").await;
        blob.pattern.check_file(&output).unwrap();
        fetched_once(&origin, &blob);
        let told = json["origin_bytes"].as_u64().unwrap() + json["local_bytes"].as_u64().unwrap();
        assert_eq!(told, LENGTH, "{json}");
        std::fs::remove_file(&output).unwrap();
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_told_to_end_keeps_what_it_has() {
    let origin = OriginServer::start().await.unwrap();
    let blob = slow(&origin, 1);
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(home.path(), &[]).await;
    let download = node.getting(&blob.url, "f", &[]).spawn().unwrap();
    origin.wait_until(&blob, |counts| counts.body_bytes >= LENGTH / 2).await.unwrap();
    node.server.signal(Signal::TERM);
    assert_eq!(node.server.ends().await.code(), Some(0));
    assert_ne!(ended(download).await.code, Some(0));

    let node = Node::start(home.path(), &[]).await;
    assert!(node.outputs().is_empty(), "{:?}", node.outputs());
    node.got(&blob.url, "f").await;
    blob.pattern.check_file(node.output("f")).unwrap();
    fetched_once(&origin, &blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedulers_host_may_be_killed() {
    let origin = OriginServer::start().await.unwrap();
    let blob = slow(&origin, 2);
    let homes = tempfile::tempdir().unwrap();
    let first = Node::start(&homes.path().join("first"), &[]).await;
    let scheduler = first.scheduler().await;
    let second = Node::start(&homes.path().join("second"), &["--join", &scheduler]).await;
    let downloads = [&first, &second].map(|node| node.getting(&blob.url, "f", &[]).spawn().unwrap());
    origin.wait_until(&blob, |counts| counts.body_bytes >= LENGTH / 4).await.unwrap();
    first.kill().await;
    let [lost, survives] = downloads.map(ended);
    assert_eq!(lost.await.code, Some(3));
    let survives = survives.await;
    assert_eq!(survives.code, Some(0), "{survives:?}");
    blob.pattern.check_file(second.output("f")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_leaves_nothing_and_the_next_run_resumes() {
    let origin = OriginServer::start().await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(home.path(), &[]).await;
    for (seed, flags) in [(3, &[][..]), (4, &["--transfer-from-dfdaemon"])] {
        let blob = slow(&origin, seed);
        let download = node.getting(&blob.url, "f", flags).spawn().unwrap();
        origin.wait_until(&blob, |counts| counts.body_bytes >= LENGTH / 2).await.unwrap();
        signal(&download, Signal::INT);
        let cut = ended(download).await;
        assert_eq!(cut.code, Some(130), "{cut:?}");
        assert!(cut.stdout.contains("run the same command again, it resumes"), "{cut:?}");
        assert!(node.outputs().is_empty(), "{:?}", node.outputs());

        assert_eq!(node.get(&blob.url, "f", flags).await.code, Some(0));
        blob.pattern.check_file(node.output("f")).unwrap();
        assert_eq!(node.outputs(), ["f"]);
        fetched_once(&origin, &blob);
        std::fs::remove_file(node.output("f")).unwrap();
    }
}
