//! What dfcache does with a daemon, and what it makes of the answers.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use damselfly_api::damselfly::v1::Replica;
use tokio::io::AsyncWriteExt as _;
use tonic::Status;

use crate::cached::{Cached, Write, task};
use crate::fake::{Ended, Fake, Script, TASK_ID};

const MIB: usize = 1 << 20;

fn fake(cache: Cached) -> Fake {
    Fake::start(Script { cache, ..Script::default() })
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

/// A file to import.
fn file(fake: &Fake, content: &[u8]) -> PathBuf {
    let path = fake.home.path().join("model.bin");
    fs::write(&path, content).unwrap();
    path
}

async fn piped(fake: &Fake, arguments: &[&str], content: &[u8]) -> Ended {
    let mut command = fake.dfcache_command(&[&["import", "-"], arguments].concat());
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that gave up reads nothing.
    let _written = stdin.write_all(content).await;
    drop(stdin);
    child.wait_with_output().await.unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_imported_byte_for_byte() {
    let content = content(3 * MIB + 5);
    let fake = fake(Cached::writing([Write::Take]));
    let path = file(&fake, &content);
    let arguments = [
        "import",
        path.to_str().unwrap(),
        "--tag=t",
        "--application=a",
        "--ttl=24h",
        "--piece-length=32mib",
        "--persistent-replica-count=3",
        "--content-id=blake3",
        "--ack=all",
    ];
    let ended = fake.dfcache(&arguments).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), &*format!("{TASK_ID}\n")), "{ended:?}");
    assert!(
        ended.stderr.contains("3.0 MiB in ") && ended.stderr.contains("1 of 2 replicas now"),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("through the daemon's socket (stream): the daemon takes streams"),
        "{ended:?}"
    );
    assert!(fake.script.cache.upload() == content);
    assert_eq!(*fake.script.cache.longest.lock().unwrap(), MIB);
    let begun = fake.script.cache.begun.lock().unwrap();
    let [begun] = &begun[..] else { panic!("{begun:?}") };
    assert_eq!((begun.tag.as_deref(), begun.application.as_deref()), (Some("t"), Some("a")));
    assert_eq!((begun.ttl.unwrap().seconds, begun.piece_length), (86400, Some(32 << 20)));
    assert_eq!((begun.persistent_replica_count, begun.ack, begun.content_id.as_str()), (3, 3, "blake3"));
    assert_eq!((begun.content_length, begun.offset), (Some(content.len() as u64), 0));
    assert_eq!(begun.upload_id.len(), 64);
    assert!(fake.script.cache.paths.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_is_imported_byte_for_byte() {
    let content = content(2 * MIB + 17);
    let fake = fake(Cached::writing([Write::Take]));
    let ended = piped(&fake, &[], &content).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), &*format!("{TASK_ID}\n")), "{ended:?}");
    assert!(ended.stderr.contains("stdin → ") && ended.stderr.contains("(stream): a pipe"), "{ended:?}");
    assert!(fake.script.cache.upload() == content);
    let begun = fake.script.cache.begun.lock().unwrap();
    assert_eq!((begun[0].content_length, begun[0].upload_id.as_str()), (None, ""));
    assert_eq!((begun[0].persistent_replica_count, begun[0].ack), (2, 1));
    assert_eq!((begun[0].content_id.as_str(), begun[0].ttl.unwrap().seconds), ("sha256", 3600));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_imported_too() {
    let fake = fake(Cached::writing([Write::Take, Write::Take]));
    let path = file(&fake, b"");
    let ended = fake.dfcache(&["import", path.to_str().unwrap(), "--json"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((json["task_id"].clone(), json["bytes"].clone()), (TASK_ID.into(), 0.into()));
    assert_eq!((json["transfer"].clone(), json["replicas"].clone()), ("stream".into(), 1.into()));
    assert_eq!(ended.stderr, "");
    assert_eq!(piped(&fake, &[], b"").await.code, Some(0));
    assert!(fake.script.cache.uploads.lock().unwrap().values().all(Vec::is_empty));
}

#[tokio::test(flavor = "multi_thread")]
async fn stat_prints_dragonflys_table() {
    let fake = fake(Cached { task: Some(task(65 << 20)), ..Cached::default() });
    let ended = fake.dfcache(&["stat", TASK_ID]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let cells = |line: &str| -> Vec<String> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    let lines: Vec<_> = ended.stdout.lines().map(cells).collect();
    let header = [
        "ID",
        "STATE",
        "CONTENT LENGTH",
        "PIECE LENGTH",
        "PERSISTENT REPLICA COUNT",
        "TTL",
        "CREATED",
        "UPDATED",
    ];
    assert_eq!(lines[0], header);
    let row = [TASK_ID, "Succeeded", "65.0 MiB", "4.0 MiB", "2", "1h", "2026-11-20 14:01:07", "-"];
    assert_eq!(lines[1], row);
    assert_eq!(lines.len(), 2, "Dragonfly's scheduler tells nothing of copies: {ended:?}");

    let ended = fake.dfcache(&["stat", "unknown"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.starts_with("Stating Failed!\n"), "{ended:?}");
    assert!(ended.stdout.contains("its ttl has expired"), "{ended:?}");
}

fn replica(name: &str, persistent: bool, alive: bool) -> Replica {
    let (hostname, ip) = (name.to_owned(), "10.0.0.1".to_owned());
    Replica { hostname, ip, persistent, complete: true, alive, ..Replica::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn stat_tells_of_copies_and_schedulers() {
    let stat = async |replicas: Vec<Replica>, schedulers| {
        let task = damselfly_api::common::v2::PersistentCacheTask { replicas, schedulers, ..task(9) };
        let fake = fake(Cached { task: Some(task), ..Cached::default() });
        let text = fake.dfcache(&["stat", TASK_ID]).await.stdout;
        let json = fake.dfcache(&["stat", TASK_ID, "--json"]).await.stdout;
        (text, serde_json::from_str::<serde_json::Value>(&json).unwrap())
    };
    let (text, json) = stat(vec![replica("a", true, true), replica("b", true, true)], 2).await;
    assert!(text.contains("Replicas: healthy 2 of 2\n") && !text.contains("only scheduler"), "{text}");
    assert_eq!(
        (json["health"].clone(), json["replicas"][1]["hostname"].clone()),
        ("healthy".into(), "b".into())
    );
    let gone = vec![replica("a", true, true), replica("b", true, false), replica("c", false, true)];
    let (text, json) = stat(gone, 1).await;
    assert!(text.contains("Replicas: degraded 1 of 2\n"), "{text}");
    assert!(text.contains("replica, not reachable") && text.contains("evictable"), "{text}");
    assert!(text.contains("only scheduler that knows it"), "{text}");
    assert_eq!((json["health"].clone(), json["schedulers"].clone()), ("degraded".into(), 1.into()));
    let (text, json) = stat(vec![replica("a", true, false)], 1).await;
    assert!(text.contains("Replicas: lost: no host"), "{text}");
    assert_eq!(json["health"], "lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_on_stderr_so_that_stdout_is_only_the_id() {
    let full = Status::resource_exhausted("the store is full: No space left on device");
    let fake = fake(Cached::writing([Write::Refuse(full)]));
    let path = file(&fake, b"content");
    let ended = fake.dfcache(&["import", path.to_str().unwrap()]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(6), ""), "{ended:?}");
    assert!(ended.stderr.contains("Importing Failed!\n") && ended.stderr.contains("dfcache rm"), "{ended:?}");
}
