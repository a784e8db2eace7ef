//! What dfcache export leaves at the output.

use std::fs;

use bytes::Bytes;
use damselfly_api::dfdaemon::v2::download_persistent_cache_task_response::Response as Told;
use damselfly_api::dfdaemon::v2::read_persistent_cache_task_response::Response as Read;
use damselfly_api::dfdaemon::v2::{
    DownloadPersistentCacheTaskResponse, DownloadPersistentCacheTaskStartedResponse,
    DownloadPieceFinishedResponse, PersistentCacheTaskChunk, ReadPersistentCacheTaskFinished,
    ReadPersistentCacheTaskResponse, ReadPersistentCacheTaskStarted,
};
use tonic::Status;

use crate::cached::{Cached, Export};
use crate::fake::{Ended, Fake, Script, TASK_ID, pieces};

const CONTENT: &[u8] = b"0123456789";
const CRC: &str = "crc32:2793719750";

fn fake(cache: Cached) -> Fake {
    Fake::start(Script { cache, ..Script::default() })
}

fn message(response: Read) -> ReadPersistentCacheTaskResponse {
    ReadPersistentCacheTaskResponse { response: Some(response) }
}

/// A daemon that streams the content in chunks of four bytes, and then what `end` says.
fn streaming(content: &[u8], end: Option<Status>) -> Cached {
    let started = ReadPersistentCacheTaskStarted { content_length: Some(10), ..Default::default() };
    let chunks = content.chunks(4).map(|chunk| {
        message(Read::Chunk(PersistentCacheTaskChunk { content: Bytes::copy_from_slice(chunk) }))
    });
    let mut messages: Vec<_> = std::iter::once(message(Read::Started(started))).chain(chunks).collect();
    if end.is_none() {
        messages.push(message(Read::Finished(ReadPersistentCacheTaskFinished::default())));
    }
    Cached { read: Some((messages, end)), ..Cached::default() }
}

fn say(response: Told) -> Export {
    Export::Say(Box::new(DownloadPersistentCacheTaskResponse {
        host_id: "10.0.0.1-h".to_owned(),
        task_id: TASK_ID.to_owned(),
        peer_id: "10.0.0.1-h-p".to_owned(),
        response: Some(response),
    }))
}

/// What a daemon tells that writes the output itself.
fn writing() -> Vec<Export> {
    let started = DownloadPersistentCacheTaskStartedResponse { content_length: 10 };
    let mut steps = vec![say(Told::DownloadPersistentCacheTaskStartedResponse(started))];
    steps.extend(pieces(CONTENT, 4).into_iter().map(|mut piece| {
        piece.content = None;
        let finished = DownloadPieceFinishedResponse { piece: Some(piece) };
        say(Told::DownloadPieceFinishedResponse(finished))
    }));
    steps.push(Export::WriteOutput(CONTENT.to_vec()));
    steps
}

async fn to_file(fake: &Fake, arguments: &[&str]) -> Ended {
    let output = fake.output("f");
    fake.dfcache(&[&["export", TASK_ID, "-O", output.to_str().unwrap()], arguments].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn to_stdout() {
    let streams = fake(streaming(CONTENT, None));
    let ended = streams.dfcache(&["export", TASK_ID, "-O", "-"]).await;
    assert_eq!((ended.code, ended.stdout.as_bytes()), (Some(0), CONTENT), "{ended:?}");
    assert!(ended.stderr.contains("through the daemon's socket (stream): for stdout"), "{ended:?}");
    assert_eq!(*streams.script.orders.lock().unwrap(), [format!("read {TASK_ID}")]);
    let ended = streams.dfcache(&["export", TASK_ID, "-O", "-", "--json"]).await;
    assert_eq!(ended.stdout.as_bytes(), CONTENT);
    let json: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
    assert_eq!((json["bytes"].clone(), json["task_id"].clone()), (10.into(), TASK_ID.into()));

    let theirs = fake(Cached::default());
    let ended = theirs.dfcache(&["export", TASK_ID, "-O", "-"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
    assert!(
        ended.stderr.contains("Exporting Failed!") && ended.stderr.contains("name an output file"),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_writes_the_file() {
    let fake = fake(Cached { exports: writing(), ..Cached::default() });
    let ended = to_file(&fake, &["--tag=t", "--digest", CRC, "--timeout=2h"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(fs::read(fake.output("f")).unwrap(), CONTENT);
    assert!(ended.stderr.contains("written by the daemon (path)"), "{ended:?}");
    assert!(ended.stderr.contains("origin 4 B, peers 6 B (1 parent)"), "{ended:?}");
    let asked = fake.script.cache.exported.lock().unwrap();
    assert_eq!((asked.len(), asked[0].output_path.as_deref()), (1, fake.output("f").to_str()));
    assert_eq!((asked[0].digest.as_deref(), asked[0].tag.as_deref()), (Some(CRC), Some("t")));
    assert!(!asked[0].need_piece_content && !asked[0].persistent && !asked[0].overwrite);
    assert!(fake.script.orders.lock().unwrap().is_empty(), "nothing was streamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_to_a_file() {
    for flag in ["--stream-mode", "--transfer-from-dfdaemon", "--transfer=stream"] {
        let fake = fake(streaming(CONTENT, None));
        let ended = to_file(&fake, &[flag, "--digest", CRC]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(fs::read(fake.output("f")).unwrap(), CONTENT);
        assert_eq!(fake.outputs(), ["f"]);
        assert!(ended.stderr.contains("(stream): as asked (--"), "{ended:?}");
        assert!(fake.script.cache.exported.lock().unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_stream_leaves_nothing() {
    let failing = [
        (streaming(&CONTENT[..8], Some(Status::unavailable("no replica can be reached"))), 1, "dfcache stat"),
        (streaming(&CONTENT[..8], None), 1, "8 of 10 bytes came"),
        (streaming(b"0123456780", None), 5, "digest mismatch"),
        (streaming(b"", Some(Status::resource_exhausted("No space left on device"))), 6, "No space left"),
    ];
    for (cache, code, text) in failing {
        let fake = fake(cache);
        let ended = to_file(&fake, &["--stream-mode", "--digest", CRC]).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.stdout.starts_with("Exporting Failed!\n") && ended.stdout.contains(text), "{ended:?}");
        assert!(fake.outputs().is_empty(), "{:?}", fake.outputs());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_output_is_refused_before_anything_is_asked() {
    let mut cache = streaming(CONTENT, None);
    cache.exports = writing();
    let fake = fake(cache);
    fs::write(fake.output("f"), "mine").unwrap();
    for arguments in [&[][..], &["--stream-mode"]] {
        let ended = to_file(&fake, arguments).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stdout.starts_with("Validating Failed!\n"), "{ended:?}");
        assert!(ended.stdout.contains("is already exist; use --overwrite"), "{ended:?}");
        assert_eq!(fs::read(fake.output("f")).unwrap(), b"mine");
    }
    assert!(fake.script.orders.lock().unwrap().is_empty());
    assert!(fake.script.cache.exported.lock().unwrap().is_empty());
    for arguments in [&["--overwrite"][..], &["--overwrite", "--stream-mode"]] {
        fs::write(fake.output("f"), "mine").unwrap();
        assert_eq!(to_file(&fake, arguments).await.code, Some(0));
        assert_eq!(fs::read(fake.output("f")).unwrap(), CONTENT);
    }
    assert!(fake.script.cache.exported.lock().unwrap()[0].overwrite);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_daemon_may_not_write_the_content_comes_over_its_socket() {
    let denied = Status::permission_denied("the daemon cannot see it; use --transfer-from-dfdaemon");
    let mut cache = streaming(CONTENT, None);
    cache.exports = vec![Export::Fail(denied)];
    let fake = fake(cache);
    let ended = to_file(&fake, &["--transfer", "path"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(fake.outputs().is_empty());
    let ended = to_file(&fake, &["--force-hard-link"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let ended = to_file(&fake, &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read(fake.output("f")).unwrap(), CONTENT);
    assert!(
        ended
            .stderr
            .contains("dfcache: the daemon does not open this output itself (the daemon cannot see it")
    );
    assert!(ended.stderr.contains("; taking the content through its socket instead (stream)\n"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_streams_writes_the_file_itself() {
    let theirs = fake(Cached { exports: writing(), ..Cached::default() });
    let ended = to_file(&theirs, &["--transfer-from-dfdaemon"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read(theirs.output("f")).unwrap(), CONTENT);
    assert!(ended.stderr.contains("dfcache: this daemon sends no streams"), "{ended:?}");

    // Dragonfly's daemon links its unfinished file to the output before anything has come.
    let mut steps = writing();
    steps.remove(2);
    let unfinished = fake(Cached { exports: steps, ..Cached::default() });
    let ended = to_file(&unfinished, &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stdout.contains("unknown download incomplete: the daemon reported 6 of 10 bytes"),
        "{ended:?}"
    );
    assert!(unfinished.outputs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_id_says_what_may_have_become_of_it() {
    let fake = fake(Cached {
        exports: vec![Export::Fail(Status::not_found("task not found"))],
        ..Cached::default()
    });
    let ended = to_file(&fake, &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("it was never imported in this cluster, its ttl has expired"), "{ended:?}");
    let ended = to_file(&fake, &["--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((json["code"].clone(), json["error"].clone()), ("NotFound".into(), "Exporting Failed".into()));
}
