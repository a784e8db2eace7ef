//! A pause holds: nothing is written, whoever asks and whatever restarts.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use damselfly_tests::OriginServer;
use damselfly_tests::origin::Behaviour;
use rustix::process::Signal;

use crate::node::{Node, ended};

const LENGTH: u64 = 32 << 20;
/// From the end of `dfctl pause` on, content may be written for so long.
const GRACE: Duration = Duration::from_millis(100);
/// How long nothing must happen.
const QUIET: Duration = Duration::from_millis(700);

/// The store's content files, which are what a fetch writes to.
fn content_files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(content_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "data") {
            found.push(path);
        }
    }
    found
}

/// The last write to content.
fn written(home: &Path) -> SystemTime {
    let files = content_files(&home.join("store"));
    let [file] = &files[..] else { panic!("one task has one content file: {files:?}") };
    std::fs::metadata(file).unwrap().modified().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlives_the_daemon() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(LENGTH, 1);
    origin.set(&blob, Behaviour { rate: Some(8 << 20), ..Behaviour::default() });
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(home.path(), &[]).await;
    let mut waiting = node.getting(&blob.url, "f", &[]).spawn().unwrap();
    origin.wait_until(&blob, |counts| counts.body_bytes >= LENGTH / 2).await.unwrap();
    let id = node.told(&["status"]).await["tasks"][0]["id"].as_str().unwrap().to_owned();

    assert_eq!(node.dfctl(&["pause", &id]).await.code, Some(0));
    let paused_at = SystemTime::now();
    tokio::time::sleep(QUIET).await;
    let last = written(home.path());
    assert!(
        last <= paused_at + GRACE,
        "content was written {:?} after the pause",
        last.duration_since(paused_at)
    );
    let status = node.told(&["status"]).await;
    assert_eq!(
        (status["tasks"][0]["state"].clone(), status["tasks"][0]["clients"].clone()),
        ("paused".into(), 1.into())
    );
    assert!(waiting.try_wait().unwrap().is_none(), "its download waits");
    let held = status["tasks"][0]["pieces_held"].as_u64().unwrap();
    assert!((1..8).contains(&held), "{status}");

    node.server.signal(Signal::TERM);
    assert_eq!(node.server.ends().await.code(), Some(0));
    assert_ne!(ended(waiting).await.code, Some(0));
    let node = Node::start(home.path(), &[]).await;
    // Opening the store gives back the room of pieces that were not finished.
    let (sent, last) = (origin.counts(&blob).body_bytes, written(home.path()));
    let mut waiting = node.getting(&blob.url, "f", &[]).spawn().unwrap();
    tokio::time::sleep(QUIET).await;
    assert_eq!(origin.counts(&blob).body_bytes, sent, "a paused task fetches nothing");
    assert_eq!(written(home.path()), last);
    assert_eq!(node.told(&["status"]).await["tasks"][0]["state"], "paused");
    assert!(waiting.try_wait().unwrap().is_none(), "its download waits");

    assert_eq!(node.dfctl(&["resume", &id]).await.code, Some(0));
    let done = ended(waiting).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    blob.pattern.check_file(node.output("f")).unwrap();
}
