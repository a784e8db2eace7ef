//! Imports whose daemon dies in the middle: the same command goes on where it was, and nothing half-imported is seen.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use damselfly_core::task_id::{ContentId, PersistentCacheHasher};
use damselfly_tests::Pattern;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::fake::Ended;
use crate::node::{Node, ended, names};

const MIB: u64 = 1 << 20;
/// What an upload is kept in.
const UNIT: u64 = 4 * MIB;
const LENGTH: u64 = 16 * UNIT + 5;

/// A file to import, outside the daemon's home.
fn file(dir: &Path, content: Pattern) -> PathBuf {
    let path = dir.join("model");
    std::fs::write(&path, content.to_vec()).unwrap();
    path
}

/// Nothing is seen of what is not complete.
async fn sees_nothing(node: &Node) {
    let listed = node.dfcache(&["ls", "--json"]).await;
    assert_eq!((listed.code, listed.stdout.trim()), (Some(0), "[]"), "{listed:?}");
}

/// Imports to a daemon that dies when it has written `end` bytes.
async fn cut(home: &Path, end: u64, arguments: &[&str]) -> Ended {
    let node = Node::start(home, &[]).await;
    sees_nothing(&node).await;
    node.server.dies_at(end);
    let cut = node.dfcache(arguments).await;
    assert!(cut.code == Some(3) && cut.stderr.contains("goes on where this one ended"), "at {end}: {cut:?}");
    died(node).await;
    cut
}

/// It died of what it was to die of.
async fn died(node: Node) {
    assert_eq!(node.server.ends().await.signal(), Some(Signal::XFSZ.as_raw()));
}

/// Imports to the end, and compares what comes out. Returns the byte that it went on at.
async fn complete(home: &Path, content: Pattern, arguments: &[&str]) -> u64 {
    let node = Node::start(home, &[]).await;
    sees_nothing(&node).await;
    let done = node.dfcache(&[arguments, &["--json"]].concat()).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let json: Value = serde_json::from_str(&done.stdout).unwrap();
    let mut hasher = PersistentCacheHasher::new(ContentId::Sha256);
    hasher.update(&content.to_vec());
    let id = hasher.finish(None, None, None).unwrap();
    assert_eq!(json["task_id"], id.as_str());
    let output = node.output("exported");
    let exported = node.dfcache(&["export", id.as_str(), "-O", output.to_str().unwrap()]).await;
    assert_eq!(exported.code, Some(0), "{exported:?}");
    content.check_file(&output).unwrap();
    assert!(uploads(home).is_empty(), "{:?}", uploads(home));
    node.kill().await;
    json["resumed_at"].as_u64().unwrap()
}

/// What is kept of imports that are not complete.
fn uploads(home: &Path) -> Vec<String> {
    let store = walk(home).into_iter().find(|path| path.ends_with("imports"));
    store.map(|imports| names(&imports)).unwrap_or_default()
}

/// All directories below one.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let dirs: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    let below: Vec<_> = dirs.iter().flat_map(|dir| walk(dir)).collect();
    [dirs, below].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_goes_on_after_its_daemon_died() {
    let homes = tempfile::tempdir().unwrap();
    for (seed, transfer) in [(1, "stream"), (2, "fd")] {
        let (home, content) = (homes.path().join(transfer), Pattern::new(seed, LENGTH));
        std::fs::create_dir(&home).unwrap();
        let path = file(homes.path(), content);
        let arguments = ["import", path.to_str().unwrap(), "--transfer", transfer];
        let mut verified = 0;
        for end in [3 * MIB, UNIT + 1, 5 * UNIT + MIB, 16 * UNIT + 4] {
            let cut = cut(&home, end, &arguments).await;
            let going_on = format!("going on at {}.0 MiB", verified / MIB);
            assert_eq!(cut.stderr.contains(&going_on), verified > 0, "{transfer}, {verified}: {cut:?}");
            verified = end / UNIT * UNIT;
        }
        assert_eq!(complete(&home, content, &arguments).await, verified, "{transfer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_meanwhile_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let path = file(dir.path(), Pattern::new(1, LENGTH));
    let arguments = ["import", path.to_str().unwrap()];
    cut(&home, 9 * UNIT, &arguments).await;
    let content = Pattern::new(2, LENGTH);
    file(dir.path(), content);
    let node = Node::start(&home, &[]).await;
    assert_eq!(uploads(&home).len(), 2, "content and sidecar of what it was: {:?}", uploads(&home));
    let done = node.dfcache(&[&arguments[..], &["--json"]].concat()).await;
    let json: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((done.code, &json["resumed_at"]), (Some(0), &0.into()), "{done:?}");
    let exported = node.dfcache_bytes(&["export", json["task_id"].as_str().unwrap(), "-O", "-"]).await;
    content.check(0, &exported).unwrap();
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(home.path(), &[]).await;
    node.server.dies_at(5 * UNIT);
    let mut import = node.cache_command(&["import", "-"]);
    let mut import = import.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = import.stdin.take().unwrap();
    // Who reads it gives up in the middle.
    let written = stdin.write_all(&Pattern::new(1, LENGTH).to_vec()).await;
    drop(stdin);
    let cut = ended(import).await;
    assert!(cut.code == Some(3) && cut.stderr.contains("cannot be sent again"), "{written:?}, {cut:?}");
    died(node).await;
    let node = Node::start(home.path(), &[]).await;
    sees_nothing(&node).await;
    assert!(uploads(home.path()).is_empty(), "{:?}", uploads(home.path()));
    node.kill().await;
}
