//! What dfcache does with a daemon, and what it makes of the answers.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::Ordering;

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
        ended.stderr.contains("through the daemon's socket (stream): this daemon takes no open files"),
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

    let ended = fake.dfcache(&["stat", "fffff"]).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_gone_on_from() {
    let content = content(5 * MIB + 11);
    let fake = fake(Cached::writing([Write::Cut(2 * MIB), Write::Cut(4 * MIB), Write::Take]));
    let path = file(&fake, &content);
    let ended = fake.dfcache(&["import", path.to_str().unwrap()]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), &*format!("{TASK_ID}\n")), "{ended:?}");
    assert!(fake.script.cache.upload() == content);
    let begun = fake.script.cache.begun.lock().unwrap();
    let offsets: Vec<u64> = begun.iter().map(|begun| begun.offset).collect();
    assert_eq!(offsets, [0, 2 * MIB as u64, 4 * MIB as u64]);
    assert!(ended.stderr.contains("going on at 2.0 MiB"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_again_and_again_ends_it_and_the_next_run_goes_on() {
    let content = content(6 * MIB);
    let cuts = (1..=4).map(|mib| Write::Cut(mib * MIB)).chain([Write::Take]);
    let fake = fake(Cached::writing(cuts));
    let path = file(&fake, &content);
    let ended = fake.dfcache(&["import", path.to_str().unwrap()]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(3), ""), "{ended:?}");
    assert!(ended.stderr.contains("it goes on where this one ended"), "{ended:?}");
    assert_eq!(fake.script.cache.begun.lock().unwrap().len(), 4, "once, and three times again");

    let ended = fake.dfcache(&["import", path.to_str().unwrap(), "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((json["resumed_at"].clone(), json["bytes"].clone()), ((4 * MIB).into(), (6 * MIB).into()));
    assert!(fake.script.cache.upload() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_terms_are_another_upload() {
    let fake = fake(Cached::writing([Write::Take, Write::Take]));
    let path = file(&fake, b"content");
    let path = path.to_str().unwrap();
    fake.dfcache(&["import", path]).await;
    let ended = fake.dfcache(&["import", path, "--content-for-calculating-task-id", "x"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fake.script.cache.uploads.lock().unwrap().len(), 2);
    let begun = fake.script.cache.begun.lock().unwrap();
    assert_eq!(begun[1].content_for_calculating_task_id.as_deref(), Some("x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_is_not_sent_twice() {
    let fake = fake(Cached::writing([Write::Cut(MIB), Write::Take]));
    let ended = piped(&fake, &[], &content(3 * MIB)).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(3), ""), "{ended:?}");
    assert!(ended.stderr.contains("a pipe cannot be sent again"), "{ended:?}");
    assert_eq!(fake.script.cache.begun.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_streams_reads_the_file_itself() {
    let fake = fake(Cached::default());
    // More than fits into the socket before the daemon says no.
    let path = file(&fake, &content(20 * MIB));
    for arguments in [&[][..], &["--stream-mode"]] {
        let all = [&["import", path.to_str().unwrap(), "--tag", "t"], arguments].concat();
        let ended = fake.dfcache(&all).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), &*format!("{TASK_ID}\n")), "{ended:?}");
        let warnings: Vec<_> = ended.stderr.lines().filter(|line| line.starts_with("dfcache:")).collect();
        assert_eq!(warnings.len(), 1, "{ended:?}");
        assert!(
            warnings[0].contains("takes no streams (unknown method WritePersistentCacheTask)"),
            "{ended:?}"
        );
        assert!(
            ended.stderr.contains("read by the daemon (path): this daemon takes no streams"),
            "{ended:?}"
        );
    }
    let paths = fake.script.cache.paths.lock().unwrap();
    assert_eq!((paths.len(), paths[0].path.as_str()), (2, path.to_str().unwrap()));
    assert_eq!((paths[0].tag.as_deref(), paths[0].persistent_replica_count), (Some("t"), 2));
    assert_eq!((paths[0].ttl.unwrap().seconds, paths[0].timeout.unwrap().seconds), (3600, 1800));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_streams_can_do_is_not_dropped_in_silence() {
    let fake = fake(Cached::default());
    let ended = piped(&fake, &[], b"content").await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
    assert!(ended.stderr.contains("import a file instead of a pipe"), "{ended:?}");
    let path = file(&fake, b"content");
    let ended = fake.dfcache(&["import", path.to_str().unwrap(), "--ack", "2"]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("leave --ack out"), "{ended:?}");
    let ended = fake.dfcache(&["import", path.to_str().unwrap(), "--content-id", "blake3"]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("leave --content-id out"), "{ended:?}");
    assert!(fake.script.cache.paths.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_named_to_the_daemon_as_asked() {
    let fake = fake(Cached::writing([Write::Take]));
    let path = file(&fake, b"content");
    let mut command = fake.dfcache_command(&["import", "model.bin", "--transfer", "path"]);
    let ended: Ended = command.current_dir(fake.home.path()).output().await.unwrap().into();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), &*format!("{TASK_ID}\n")), "{ended:?}");
    assert!(ended.stderr.contains("read by the daemon (path): as asked (--transfer path)"), "{ended:?}");
    assert_eq!(fake.script.cache.paths.lock().unwrap()[0].path, path.to_str().unwrap());
    assert!(fake.script.cache.begun.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_ever() {
    let fake = fake(Cached::writing(vec![Write::Hang; 5]));
    let path = file(&fake, &content(20 * MIB));
    let ended = fake.dfcache(&["import", path.to_str().unwrap(), "--timeout", "300ms"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(7), ""), "{ended:?}");
    assert!(ended.stderr.contains("not finished within 300 ms (--timeout)"), "{ended:?}");
    let config = fake.home.path().join("c.yaml");
    fs::write(&config, "client: {streaming: {idleTimeout: 200ms}}").unwrap();
    let arguments = ["import", path.to_str().unwrap(), "--config", config.to_str().unwrap()];
    let ended = fake.dfcache(&arguments).await;
    assert_eq!(ended.code, Some(7), "{ended:?}");
    let said =
        "dfcache: the daemon took nothing for 200 ms (client.streaming.idleTimeout); connecting anew\n";
    assert_eq!(ended.stderr.matches(said).count(), 3, "{ended:?}");
    assert!(
        ended.stderr.contains("(client.streaming.idleTimeout); run the command again, it goes on"),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ls_and_rm() {
    let local = damselfly_api::dfdaemon::v2::StatLocalPersistentCacheTaskResponse {
        task_id: TASK_ID.to_owned(),
        persistent: true,
        ttl: Some(prost_types::Duration { seconds: 90, nanos: 0 }),
        piece_length: Some(4 << 20),
        content_length: Some(65 << 20),
        ..Default::default()
    };
    let theirs = fake(Cached { local: vec![local], ..Cached::default() });
    let ended = theirs.dfcache(&["ls"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with(" ID ") && ended.stdout.contains(" PERSISTENT "), "{ended:?}");
    assert!(ended.stdout.contains(TASK_ID) && ended.stdout.contains("1m 30s"), "{ended:?}");
    let ended = theirs.dfcache(&["ls", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((json[0]["id"].clone(), json[0]["ttl_seconds"].clone()), (TASK_ID.into(), 90.into()));
    let ended = theirs.dfcache(&["ls", "--cluster"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("leave --cluster out for what this host has"), "{ended:?}");
    let ended = theirs.dfcache(&["rm", TASK_ID]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("this daemon cannot remove imported content"), "{ended:?}");

    let ours = fake(Cached { removes: true, ..Cached::default() });
    let ended = ours.dfcache(&["rm", TASK_ID]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "Task Removed!\n"), "{ended:?}");
    assert_eq!(*ours.script.orders.lock().unwrap(), [format!("delete {TASK_ID}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_an_import_that_the_next_run_goes_on_with() {
    let fake = fake(Cached::writing([Write::Hang]));
    let path = file(&fake, b"content");
    let child = fake.dfcache_command(&["import", path.to_str().unwrap()]).spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    let begun = async {
        while fake.script.cache.begun.lock().unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), begun).await.unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended: Ended = child.wait_with_output().await.unwrap().into();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(130), ""), "{ended:?}");
    assert!(ended.stderr.contains("ended by SIGINT; run the same command again, it resumes"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_that_nobody_writes_to_is_not_waited_for_for_ever() {
    let fake = fake(Cached::writing([Write::Take]));
    let path = fake.home.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let ended = fake.dfcache(&["import", path.to_str().unwrap(), "--timeout", "200ms"]).await;
    assert_eq!(ended.code, Some(7), "{ended:?}");
    let writer = path.clone();
    let writing = tokio::task::spawn_blocking(move || fs::write(writer, content(2 * MIB)).unwrap());
    let ended = fake.dfcache(&["import", path.to_str().unwrap()]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    writing.await.unwrap();
    assert!(fake.script.cache.upload() == content(2 * MIB));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_meanwhile_is_not_imported() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("growing");
    fs::write(&path, content(24 * MIB)).unwrap();
    let fake = fake(Cached::writing([Write::Append(path.clone()), Write::Take]));
    let ended = fake.dfcache(&["import", path.to_str().unwrap()]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
    assert!(ended.stderr.contains("changed while it was read; nothing was imported"), "{ended:?}");
    assert_eq!(fake.script.cache.finished.load(Ordering::Relaxed), 0, "it must never be told as complete");

    let ended = fake.dfcache(&["import", path.to_str().unwrap()]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fake.script.cache.finished.load(Ordering::Relaxed), 1);
    let begun = fake.script.cache.begun.lock().unwrap();
    assert_ne!(begun[0].upload_id, begun[1].upload_id, "it is another file now");
}
