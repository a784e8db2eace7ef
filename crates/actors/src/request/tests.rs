use tonic::Code;

use super::*;
use crate::testing::daemon;

fn download(url: &str) -> Download {
    Download { url: url.to_owned(), ..Download::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_with_its_reason_and_no_secret() {
    let (_home, daemon) = daemon("").await;
    let fine = || download("http://user:hunter2@origin/x?X-Amz-Signature=hunter2");
    let header = |value: &str| [("rAnGe".to_owned(), value.to_owned())].into();
    for (download, code, word) in [
        (download("hunter2 is no URL"), Code::InvalidArgument, "malformed URL"),
        (download("s3://user:hunter2@bucket/x"), Code::InvalidArgument, "scheme \"s3\" is not supported"),
        (Download { digest: Some("md6:00".to_owned()), ..fine() }, Code::InvalidArgument, ""),
        (Download { digest: Some("sha256:zz".to_owned()), ..fine() }, Code::InvalidArgument, ""),
        (Download { piece_length: Some(0), ..fine() }, Code::InvalidArgument, "minimum 4194304 bytes"),
        (
            Download { piece_length: Some(65 << 20), ..fine() },
            Code::InvalidArgument,
            "maximum 67108864 bytes",
        ),
        (Download { request_header: header("bytes=9-1"), ..fine() }, Code::FailedPrecondition, ""),
        (Download { request_header: header("lines=1-2"), ..fine() }, Code::FailedPrecondition, ""),
        (
            Download {
                enable_task_id_based_blob_digest: true,
                ..download("https://registry/v2/library/x/blobs/sha256:short")
            },
            Code::InvalidArgument,
            "",
        ),
    ] {
        let refused = prepare(daemon.engine(), download, None).unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(word) && !refused.message().is_empty(), "{refused}");
        assert!(!refused.message().contains("hunter2") || word == "malformed URL", "{refused}");
    }
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_becomes_a_wish() {
    let (_home, daemon) = daemon("").await;
    let engine = daemon.engine();
    let asked = Download {
        tag: Some("t".to_owned()),
        application: Some("app".to_owned()),
        request_header: [("Range", "bytes=5-9"), ("Authorization", "me")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        digest: Some(String::new()),
        disable_back_to_source: true,
        timeout: wire::duration(Duration::from_secs(60)),
        output_path: Some("/out".to_owned()),
        ..download("http://origin/x")
    };
    let prepared = prepare(engine, asked.clone(), Some(7)).unwrap();
    assert_eq!(prepared.key.id, task_id(&asked).unwrap());
    let bytes = prepared.wish.range.resolve(100).unwrap();
    assert_eq!((bytes.start, bytes.length), (5, 5));
    assert_eq!(
        prepared.wish.request.as_ref().unwrap().headers,
        [("Authorization".to_owned(), "me".to_owned())]
    );
    assert!(prepared.wish.request.as_ref().unwrap().is_private() && !prepared.wish.may_use_origin);
    assert_eq!((prepared.new.owner_uid, prepared.owner, prepared.digest), (None, Some(7), None));
    assert_eq!(prepared.wish.download.output_path, None, "schedulers need not know local paths");
    let left = prepared.wish.deadline.unwrap().since(engine.clock.now());
    assert!((Duration::from_secs(50)..=Duration::from_secs(60)).contains(&left), "{left:?}");
    assert_eq!((prepared.labels.tag.as_str(), prepared.labels.app.as_str()), ("t", "app"));

    let explicit = damselfly_api::common::v2::Range { start: 1, length: 2 };
    let prepared = prepare(engine, Download { range: Some(explicit), ..asked }, None).unwrap();
    assert_eq!(prepared.wish.range, RangeSpec::Span(ByteRange { start: 1, length: 2 }));
    let plain = prepare(engine, download("http://origin/x"), None).unwrap();
    assert_eq!(plain.wish.range, RangeSpec::Whole);
    assert!(plain.wish.may_use_origin && !plain.wish.request.unwrap().is_private());

    let digest = "ab".repeat(32);
    let blob = Download {
        enable_task_id_based_blob_digest: true,
        ..download(&format!("https://registry/v2/library/x/blobs/sha256:{digest}"))
    };
    assert_eq!(prepare(engine, blob, None).unwrap().key.id.as_str(), digest);
    daemon.kill().await;
}
