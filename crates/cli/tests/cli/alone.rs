//! dfget without a daemon.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use damselfly_core::Algorithm;
use damselfly_tests::OriginServer;
use damselfly_tests::origin::{Behaviour, Blob};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::BufReader;
use tokio::process::Command;

use crate::fake::Ended;
use crate::node::{Node, command, ended, names, next_line, run, signal};

const PIECE: u64 = 4 << 20;
const LENGTH: u64 = 30 * PIECE + 7;
/// A lone host asks the origin for so many pieces at once.
const IN_FLIGHT: u64 = 4 * PIECE;

/// A user's directory, with a subdirectory for outputs and one for temporary files.
struct User(TempDir);

impl User {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("out")).unwrap();
        std::fs::create_dir(home.path().join("tmp")).unwrap();
        Self(home)
    }

    fn output(&self) -> PathBuf {
        self.0.path().join("out/f")
    }

    fn outputs(&self) -> Vec<String> {
        names(&self.0.path().join("out"))
    }

    fn temporary(&self) -> Vec<String> {
        names(&self.0.path().join("tmp"))
    }

    fn dfget(&self, arguments: &[&str]) -> Command {
        let arguments = [arguments, &["--daemon", "never"]].concat();
        let mut command = command(env!("CARGO_BIN_EXE_dfget"), &arguments, self.0.path());
        command.env("TMPDIR", self.0.path().join("tmp"));
        command
    }

    fn getting(&self, url: &str, flags: &[&str]) -> Command {
        self.dfget(&[&[url, "-O", self.output().to_str().unwrap()], flags].concat())
    }

    async fn get(&self, url: &str, flags: &[&str]) -> Ended {
        run(self.getting(url, flags)).await
    }
}

/// A blob that takes a second or two.
fn slow(origin: &OriginServer, seed: u64) -> Blob {
    let blob = origin.blob(LENGTH, seed);
    origin.set(&blob, Behaviour { rate: Some(64 << 20), ..Behaviour::default() });
    blob
}

fn link_count(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().nlink()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_so_and_leaves_the_output_alone() {
    let origin = OriginServer::start().await.unwrap();
    let user = User::new();
    for length in [0, 1, PIECE, 3 * PIECE + 1] {
        let blob = origin.blob(length, length);
        let digest = blob.pattern.digest(Algorithm::Sha256);
        let got = user.get(&blob.url, &["--digest", &digest]).await;
        assert_eq!((got.code, got.stdout.as_str()), (Some(0), ""), "{got:?}");
        let note =
            "dfget: running without a daemon (--daemon never), from the origin alone; --join HOST joins";
        assert!(got.stderr.starts_with(note), "{got:?}");
        assert!(got.stderr.contains("written without a daemon: hard link"), "{got:?}");
        blob.pattern.check_file(user.output()).unwrap();
        assert_eq!(user.outputs(), ["f"]);
        assert_eq!(link_count(&user.output()), 1, "the store's name for it is gone");
        assert_eq!(origin.counts(&blob).body_bytes, length);
        std::fs::remove_file(user.output()).unwrap();
    }
    let got = user.get(&origin.blob(5, 1).url, &["--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&got.stdout).unwrap();
    assert_eq!(got.stderr, "");
    assert_eq!((json["ok"].clone(), json["origin_bytes"].clone()), (true.into(), 5.into()));
    assert!(json["daemon"].is_null() && json["schedulers"].as_array().is_some_and(Vec::is_empty), "{json}");

    let range = user.get(&origin.blob(3 * PIECE, 2).url, &["--overwrite", "-H", "Range: bytes=-10"]).await;
    assert_eq!(range.code, Some(0), "{range:?}");
    let expected = origin.blob(3 * PIECE, 2).pattern.to_vec();
    assert_eq!(std::fs::read(user.output()).unwrap(), expected[expected.len() - 10..]);
    assert_eq!(user.outputs(), ["f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_is_resumed() {
    let origin = OriginServer::start().await.unwrap();
    for (seed, number, code) in
        [(1, Signal::INT, Some(130)), (2, Signal::TERM, Some(143)), (3, Signal::KILL, None)]
    {
        let user = User::new();
        let blob = slow(&origin, seed);
        let download = user.getting(&blob.url, &[]).spawn().unwrap();
        origin.wait_until(&blob, |counts| counts.body_bytes >= LENGTH * 2 / 3).await.unwrap();
        let second = user.get(&blob.url, &[]).await;
        assert_eq!(second.code, Some(1), "{second:?}");
        assert!(second.stdout.contains("another dfget or dfcache writes the same output"), "{second:?}");

        signal(&download, number);
        let cut = ended(download).await;
        assert_eq!(cut.code, code, "{cut:?}");
        assert_eq!(number != Signal::KILL, cut.stdout.contains("run the same command again, it resumes"));
        let left = user.outputs();
        let [part] = &left[..] else { panic!("only the part directory is there: {left:?}") };
        assert!(part.starts_with(".f.") && part.ends_with(".part"), "{part}");

        let got = user.get(&blob.url, &[]).await;
        assert_eq!(got.code, Some(0), "{got:?}");
        blob.pattern.check_file(user.output()).unwrap();
        assert_eq!(user.outputs(), ["f"]);
        let sent = origin.counts(&blob).body_bytes;
        assert!(sent <= LENGTH + IN_FLIGHT, "{sent} bytes left the origin for {LENGTH}");
        assert!(!got.stderr.contains("local cache 0 B"), "{got:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_leave_nothing() {
    let origin = OriginServer::start().await.unwrap();
    let user = User::new();
    let missing = user.get(&format!("http://{}/nothing", origin.addr()), &["--json"]).await;
    assert_eq!(missing.code, Some(4), "{missing:?}");
    let json: serde_json::Value = serde_json::from_str(&missing.stdout).unwrap();
    assert_eq!(json["origin"]["status"], 404);
    assert!(user.outputs().is_empty(), "{:?}", user.outputs());

    let wrong = user.get(&origin.blob(10, 1).url, &["--digest", "crc32:1"]).await;
    assert_eq!(wrong.code, Some(5), "{wrong:?}");
    assert!(user.outputs().is_empty(), "{:?}", user.outputs());

    let both = user.get(&origin.blob(10, 1).url, &["-e", "/nowhere/d.sock"]).await;
    assert_eq!(both.code, Some(1), "{both:?}");
    let url = origin.blob(10, 1).url;
    let arguments = [&url, "-O", "-", "--daemon", "require", "-e", "/nowhere/d.sock"];
    assert_eq!(run(command(env!("CARGO_BIN_EXE_dfget"), &arguments, user.0.path())).await.code, Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn stdout_keeps_nothing_anywhere() {
    let origin = OriginServer::start().await.unwrap();
    let user = User::new();
    let blob = origin.blob(3 * PIECE + 1, 1);
    let printed = user.dfget(&[&blob.url, "-O", "-"]).output().await.unwrap();
    assert_eq!(printed.status.code(), Some(0), "{}", String::from_utf8_lossy(&printed.stderr));
    blob.pattern.check_reader(&printed.stdout[..]).unwrap();
    assert!(user.temporary().is_empty(), "{:?}", user.temporary());

    let blob = slow(&origin, 2);
    let download = user.dfget(&[&blob.url, "-O", "-"]).spawn().unwrap();
    origin.wait_until(&blob, |counts| counts.body_bytes >= LENGTH / 8).await.unwrap();
    signal(&download, Signal::INT);
    assert_eq!(download.wait_with_output().await.unwrap().status.code(), Some(130));
    assert!(user.temporary().is_empty(), "{:?}", user.temporary());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_joins_a_swarm() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(LENGTH, 1);
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(home.path(), &[]).await;
    node.got(&blob.url, "f").await;
    let scheduler = node.scheduler().await;

    let user = User::new();
    let got = user.get(&blob.url, &["--join", &scheduler]).await;
    assert_eq!(got.code, Some(0), "{got:?}");
    assert!(got.stderr.contains(&format!("in the swarm of {scheduler}")), "{got:?}");
    assert!(got.stderr.contains("origin 0 B") && got.stderr.contains("(1 parent)"), "{got:?}");
    blob.pattern.check_file(user.output()).unwrap();
    assert_eq!(user.outputs(), ["f"]);
    assert_eq!(origin.counts(&blob).body_bytes, LENGTH);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_missed_is_named() {
    if Path::new("/var/run/dragonfly/dfdaemon.sock").try_exists().unwrap() {
        // This machine's own daemon would be used.
        return;
    }
    let origin = OriginServer::start().await.unwrap();
    let user = User::new();
    let blob = origin.blob(1, 1);
    let arguments = [&blob.url, "-O", user.0.path().join("out/f").to_str().unwrap()].map(str::to_owned);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let mut child = command(env!("CARGO_BIN_EXE_dfget"), &arguments, user.0.path()).spawn().unwrap();
    let note = next_line(&mut BufReader::new(child.stderr.take().unwrap())).await;
    assert!(
        note.contains("running without a daemon (none answers at ") && note.contains("/var/run"),
        "{note}"
    );
    assert_eq!(ended(child).await.code, Some(0));
}
