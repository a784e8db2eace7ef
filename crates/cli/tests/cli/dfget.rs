//! What dfget makes of a daemon's answers.

use std::fs;
use std::sync::Mutex;

use damselfly_api::common::v2::Range;
use damselfly_api::damselfly::v1::{Receipt, ReceiptParent};
use damselfly_api::dfdaemon::v2::read_persistent_cache_task_response::Response as Read;
use damselfly_api::dfdaemon::v2::{
    PersistentCacheTaskChunk, ReadPersistentCacheTaskFinished, ReadPersistentCacheTaskResponse,
    ReadPersistentCacheTaskStarted,
};
use tonic::{Code, Status};

use crate::fake::{Fake, Script, Step, TASK_ID, piece, pieces, started, whole};

const CONTENT: &[u8] = b"0123456789";

fn without_content(content: &[u8], piece_length: usize) -> Vec<Step> {
    let reports = pieces(content, piece_length).into_iter().map(|report| piece_without(report, None));
    std::iter::once(started(content, piece_length)).chain(reports).collect()
}

fn piece_without(report: damselfly_api::common::v2::Piece, content: Option<bytes::Bytes>) -> Step {
    piece(damselfly_api::common::v2::Piece { content, ..report })
}

fn backend() -> Status {
    let details = br#"{"message":"403 Forbidden","header":{"server":"nginx"},"status_code":403}"#;
    Status::with_details(Code::Internal, "backend error: 403 Forbidden", details.to_vec().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_writes_the_output() {
    let mut steps = without_content(CONTENT, 4);
    steps.insert(1, Step::WriteOutput(CONTENT.to_vec()));
    let fake = Fake::downloading(steps);
    let ended = fake.dfget_to_file(&["--tag", "t", "--digest", "crc32:2793719750"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read(fake.output("f")).unwrap(), CONTENT);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("origin 4 B, peers 6 B (1 parent), local cache 0 B"), "{ended:?}");
    assert!(ended.stderr.contains("written by the daemon (path)"), "{ended:?}");

    let asked = fake.script.asked.lock().unwrap();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].output_path.as_deref(), fake.output("f").to_str());
    assert_eq!(asked[0].digest.as_deref(), Some("crc32:2793719750"));
    assert_eq!(asked[0].tag.as_deref(), Some("t"));
    assert!(!asked[0].need_piece_content);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_carries_the_daemons_receipt() {
    let parents = vec![ReceiptParent::default(), ReceiptParent::default()];
    let receipt = Receipt { origin_bytes: 1, peer_bytes: 9, parents, ..Receipt::default() };
    let downloads = Mutex::new([whole(CONTENT, 4)].into());
    let fake = Fake::start(Script { downloads, receipt: Some(receipt), ..Script::default() });
    let ended = fake.dfget_to_file(&["--transfer-from-dfdaemon", "--json"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((json["ok"].clone(), json["bytes"].clone()), (true.into(), 10.into()));
    assert_eq!((json["origin_bytes"].clone(), json["peer_bytes"].clone()), (1.into(), 9.into()));
    assert_eq!(json["parents"], 2);
    assert_eq!(json["task_id"], TASK_ID);
    assert_eq!(json["transfer"], "stream");
    assert_eq!(ended.stderr, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_through_the_socket_in_any_order() {
    let fake = Fake::downloading(whole(CONTENT, 3));
    let ended = fake.dfget_to_file(&["--transfer-from-dfdaemon", "--digest", "crc32:2793719750"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read(fake.output("f")).unwrap(), CONTENT);
    assert_eq!(fake.outputs(), ["f"]);
    let asked = fake.script.asked.lock().unwrap();
    assert!(asked[0].need_piece_content && asked[0].output_path.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_content() {
    let fake = Fake::downloading(vec![started(b"", 4)]);
    let ended = fake.dfget_to_file(&["--transfer-from-dfdaemon"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read(fake.output("f")).unwrap(), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_cut_out_of_whole_pieces() {
    let mut steps = vec![started(CONTENT, 4)];
    steps.extend(pieces(CONTENT, 4).into_iter().map(piece));
    let fake = Fake::downloading(steps);
    let ended = fake.dfget_to_file(&["-H", "Range: bytes=2-8"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read(fake.output("f")).unwrap(), b"2345678");
    assert!(ended.stderr.contains("a range is written by dfget"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_piece_fails_and_leaves_nothing() {
    let mut steps = whole(CONTENT, 4);
    steps.remove(2);
    let fake = Fake::downloading(steps);
    let ended = fake.dfget_to_file(&["--transfer-from-dfdaemon"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.starts_with("Downloading Failed!\n"), "{ended:?}");
    assert!(
        ended
            .stdout
            .contains("unknown download incomplete: the daemon ended its answer without 1 of 3 pieces")
    );
    assert!(fake.outputs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_foreign_daemon_left_is_removed() {
    // Dragonfly's daemon links its unfinished file to the output before anything has come.
    let steps =
        || vec![started(CONTENT, 4), Step::WriteOutput(vec![0; 10]), Step::Fail(Status::internal("oops"))];
    let fake = Fake::downloading(steps());
    let ended = fake.dfget_to_file(&[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("Message: oops\n"), "{ended:?}");
    assert!(fake.outputs().is_empty());

    // Ours says what it is and keeps the output clean itself: what is there is somebody else's.
    let downloads = Mutex::new([steps()].into());
    let fake = Fake::start(Script { downloads, ours: true, ..Script::default() });
    assert_eq!(fake.dfget_to_file(&[]).await.code, Some(1));
    assert_eq!(fake.outputs(), ["f"]);

    // So is what came meanwhile, or was there before.
    let mut others = steps();
    others[2] = Step::Fail(Status::internal("output path /f is already exists"));
    let fake = Fake::downloading(others);
    assert_eq!(fake.dfget_to_file(&[]).await.code, Some(1));
    assert_eq!(fake.outputs(), ["f"]);
    let fake = Fake::downloading(steps());
    fs::write(fake.output("f"), "before").unwrap();
    assert_eq!(fake.dfget_to_file(&["--overwrite"]).await.code, Some(1));
    assert_eq!(fake.outputs(), ["f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_content_is_not_kept() {
    let mut damaged = pieces(CONTENT, 16).remove(0);
    damaged.content = Some(bytes::Bytes::from_static(b"0123x56789"));
    let fake = Fake::downloading(vec![started(CONTENT, 16), piece(damaged)]);
    let ended = fake.dfget_to_file(&["--transfer-from-dfdaemon"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("piece 0 came from the daemon damaged"), "{ended:?}");
    assert!(fake.outputs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origins_refusal_is_shown_whole() {
    let fake = Fake::downloading(vec![Step::Fail(backend())]);
    let ended = fake.dfget_to_file(&[]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    let expected = "Bad Status Code: 403\nMessage: 403 Forbidden\nHeader:\n  [server]: nginx\n";
    assert!(ended.stdout.contains(expected), "{ended:?}");

    // As the stream's last word, too.
    let fake = Fake::downloading(vec![started(CONTENT, 4), Step::Fail(backend())]);
    let ended = fake.dfget_to_file(&["--json"]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(json["origin"]["status"], 403);
    assert_eq!(json["origin"]["headers"]["server"], "nginx");
    assert_eq!(json["message"], "403 Forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_their_codes() {
    let mismatch = Status::internal("digest mismatch expected: sha256:a, actual: sha256:b");
    let full = Status::internal("No space left on device (os error 28)");
    for (status, code) in
        [(mismatch, 5), (full, 6), (Status::deadline_exceeded("late"), 7), (Status::aborted("x"), 1)]
    {
        let fake = Fake::downloading(vec![Step::Fail(status)]);
        let ended = fake.dfget_to_file(&[]).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
    }
    let fake = Fake::downloading(whole(CONTENT, 4));
    let ended = fake.dfget_to_file(&["--transfer-from-dfdaemon", "--digest", "crc32:1"]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(
        ended.stdout.contains("digest mismatch expected: crc32:1, actual: crc32:2793719750"),
        "{ended:?}"
    );
    assert!(fake.outputs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_may_not_write_sends_the_content() {
    let refusal = || {
        vec![Step::Fail(Status::permission_denied(
            "another mount namespace: stream it (--transfer-from-dfdaemon)",
        ))]
    };
    let downloads = Mutex::new([refusal(), whole(CONTENT, 4)].into());
    let fake = Fake::start(Script { downloads, ..Script::default() });
    let ended = fake.dfget_to_file(&[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read(fake.output("f")).unwrap(), CONTENT);
    assert!(
        ended.stderr.contains("dfget: the daemon does not open this output itself (another mount namespace")
    );
    assert!(ended.stderr.contains("through the daemon's socket (stream)"), "{ended:?}");

    // A daemon that wrote where nobody here can see it is no better.
    let downloads = Mutex::new([without_content(CONTENT, 4), whole(CONTENT, 4)].into());
    let fake = Fake::start(Script { downloads, ..Script::default() });
    let ended = fake.dfget_to_file(&[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read(fake.output("f")).unwrap(), CONTENT);
    assert!(ended.stderr.contains("here it cannot be seen"), "{ended:?}");

    let fake = Fake::downloading(refusal());
    assert_eq!(fake.dfget_to_file(&["--force-hard-link"]).await.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_of_another_size_is_a_failure() {
    let mut steps = without_content(CONTENT, 4);
    steps.push(Step::WriteOutput(b"short".to_vec()));
    let fake = Fake::downloading(steps);
    let ended = fake.dfget_to_file(&[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("has 5 bytes instead of 10"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_takes_too_long() {
    let fake = Fake::downloading(vec![started(CONTENT, 4), Step::Hang]);
    let ended = fake.dfget_to_file(&["--transfer-from-dfdaemon", "--timeout", "300ms"]).await;
    assert_eq!(ended.code, Some(7), "{ended:?}");
    assert!(fake.outputs().is_empty());
}

fn read(content: &[u8], finished: bool) -> Vec<ReadPersistentCacheTaskResponse> {
    let say = |response| ReadPersistentCacheTaskResponse { response: Some(response) };
    let mut messages = vec![say(Read::Started(ReadPersistentCacheTaskStarted {
        content_length: Some(CONTENT.len() as u64),
        task_id: TASK_ID.to_owned(),
        ..Default::default()
    }))];
    for chunk in content.chunks(3) {
        let content = bytes::Bytes::copy_from_slice(chunk);
        messages.push(say(Read::Chunk(PersistentCacheTaskChunk { content })));
    }
    if finished {
        let receipt = Some(Receipt { local_bytes: 10, ..Receipt::default() });
        messages.push(say(Read::Finished(ReadPersistentCacheTaskFinished { receipt, ..Default::default() })));
    }
    messages
}

fn reading(messages: Vec<ReadPersistentCacheTaskResponse>, end: Option<Status>) -> Fake {
    Fake::start(Script { read: Some((messages, end)), ..Script::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn content_to_stdout_in_order() {
    let fake = reading(read(CONTENT, true), None);
    let ended = fake.dfget(&["http://origin/f", "-O", "-", "--json"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout.as_bytes(), CONTENT);
    let json: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
    assert_eq!((json["output"].clone(), json["local_bytes"].clone()), ("-".into(), 10.into()));

    let fake = reading(read(&CONTENT[4..], true), None);
    let ended = fake.dfget(&["http://origin/f", "-O", "-", "-H", "Range: bytes=4-"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "456789"), "{ended:?}");
    let asked = fake.script.asked.lock().unwrap();
    assert_eq!(asked[0].range, None::<Range>);
    assert_eq!(asked[0].request_header["Range"], "bytes=4-");
}

#[tokio::test(flavor = "multi_thread")]
async fn stdout_that_ends_early_is_a_failure() {
    for fake in [reading(read(CONTENT, false), None), reading(read(&CONTENT[..5], true), None)] {
        let ended = fake.dfget(&["http://origin/f", "-O", "-"]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("unknown download incomplete"), "{ended:?}");
        assert!(CONTENT.starts_with(ended.stdout.as_bytes()), "{ended:?}");
    }
    let mismatch = Status::internal("digest mismatch expected: crc32:1, actual: crc32:2");
    let ended = reading(read(CONTENT, false), Some(mismatch)).dfget(&["http://origin/f", "-O", "-"]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");

    let ended = Fake::start(Script::default()).dfget(&["http://origin/f", "-O", "-"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("needs Damselfly's dfdaemon"), "{ended:?}");
}
