use damselfly_core::download::Validator;
use damselfly_source::{ContentRange, ErrorKind, Origin, Request};

use crate::server::{Head, Reply, Server, Then, content, origin, read, refusal};

const LENGTH: usize = 300_000;

/// Serves ranges of `content(LENGTH)` as nginx would.
fn nginx(head: &Head) -> Reply {
    let content = content(LENGTH);
    let version = "ETag: \"v1\"\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT";
    let Some(range) = head.header("range") else {
        return Reply::new(&format!("200 OK\nAccept-Ranges: bytes\n{version}"), &content);
    };
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let last = last.parse().unwrap_or(usize::MAX).min(LENGTH - 1);
    if first >= LENGTH {
        return Reply::new(
            &format!("416 Range Not Satisfiable\nContent-Range: bytes */{LENGTH}"),
            b"<html>no</html>",
        );
    }
    let head = format!("206 Partial Content\nContent-Range: bytes {first}-{last}/{LENGTH}\n{version}");
    Reply::new(&head, &content[first..=last])
}

fn ranged<'a>(server: &Server, first: u64, last: impl Into<Option<u64>>) -> Request<'a> {
    Request { range: Some((first, last.into())), ..Request::new(server.url("/file")) }
}

#[tokio::test]
async fn the_whole_content_is_read() {
    let server = Server::start(nginx).await;
    let mut response = origin().get(&Request::new(server.url("/file"))).await.unwrap();
    assert_eq!(response.status, 200);
    assert_eq!(response.content_range, None);
    assert_eq!(response.content_length, Some(LENGTH as u64));
    assert!(response.ranges, "Accept-Ranges offers them");
    assert_eq!(response.validator.etag.as_deref(), Some("\"v1\""));
    assert_eq!(response.validator.last_modified.as_deref(), Some("Wed, 21 Oct 2015 07:28:00 GMT"));
    assert_eq!(read(&mut response).await.unwrap(), content(LENGTH));
    assert_eq!(response.received(), LENGTH as u64);
    assert_eq!(response.chunk().await.unwrap(), None);

    let heads = server.heads();
    assert_eq!(heads[0].method, "GET");
    assert_eq!(heads[0].header("range"), None);
    assert_eq!(heads[0].header("accept-encoding"), Some("identity"));
    assert_eq!(
        heads[0].header("user-agent"),
        Some(concat!("damselfly/", env!("CARGO_PKG_VERSION"))),
        "ours unless the user sets one"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_is_shared_between_tasks() {
    let server = Server::start(nginx).await;
    let origin = origin();
    let reads: Vec<_> = (0..4)
        .map(|_| {
            let (origin, url) = (origin.clone(), server.url("/file"));
            tokio::spawn(async move { read(&mut origin.get(&Request::new(url)).await?).await })
        })
        .collect();
    for task in reads {
        assert_eq!(task.await.unwrap().unwrap(), content(LENGTH));
    }
}

#[tokio::test]
async fn ranges_are_read_over_one_kept_connection() {
    let server = Server::start(nginx).await;
    let origin = origin();
    let all = content(LENGTH);
    for first in (0..LENGTH).step_by(40_000) {
        let last = (first + 39_999).min(LENGTH - 1);
        let mut response =
            origin.get(&ranged(&server, first as u64, Some(first as u64 + 39_999))).await.unwrap();
        let total = Some(LENGTH as u64);
        assert_eq!(response.status, 206);
        assert_eq!(
            response.content_range,
            Some(ContentRange { first: first as u64, last: last as u64, total })
        );
        assert_eq!(response.content_length, total);
        assert!(response.ranges);
        assert_eq!(
            response.headers["content-length"],
            LENGTH.to_string(),
            "as if the whole had been asked for"
        );
        assert!(!response.headers.contains_key("content-range"));
        assert_eq!(read(&mut response).await.unwrap(), all[first..=last]);
    }
    assert_eq!(server.connections(), 1);
    assert_eq!(server.heads().len(), 8);
}

#[tokio::test]
async fn the_rest_of_the_content_can_be_asked_for() {
    let server = Server::start(nginx).await;
    let mut response = origin().get(&ranged(&server, 299_990, None)).await.unwrap();
    assert_eq!(server.heads()[0].header("range"), Some("bytes=299990-"));
    assert_eq!(read(&mut response).await.unwrap(), content(LENGTH)[299_990..]);
}

#[tokio::test]
async fn an_origin_without_ranges_sends_everything() {
    let server = Server::start(|_| Reply::new("200 OK\nAccept-Ranges: bytes", &content(1000))).await;
    let mut response = origin().get(&ranged(&server, 500, 599)).await.unwrap();
    assert!(!response.ranges, "what counts is what it did, not what it says");
    assert_eq!(response.content_range, None);
    assert_eq!(response.content_length, Some(1000));
    assert_eq!(read(&mut response).await.unwrap(), content(1000));
}

#[tokio::test]
async fn a_chunked_body_has_no_length() {
    let server = Server::start(|_| {
        Reply::raw("200 OK\nTransfer-Encoding: chunked", b"5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n")
    })
    .await;
    let mut response = origin().get(&ranged(&server, 0, 99)).await.unwrap();
    assert_eq!(response.content_length, None);
    assert!(!response.ranges);
    assert_eq!(read(&mut response).await.unwrap(), b"hello, world");
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_has_no_length() {
    let server =
        Server::start(|_| Reply::raw("200 OK\nConnection: close", b"to the end").then(Then::Close)).await;
    let mut response = origin().get(&Request::new(server.url("/file"))).await.unwrap();
    assert_eq!(response.content_length, None);
    assert_eq!(read(&mut response).await.unwrap(), b"to the end");
}

#[tokio::test]
async fn a_chunked_part_is_as_long_as_its_range() {
    let server = Server::start(|_| {
        Reply::raw(
            "206 Partial Content\nTransfer-Encoding: chunked\nContent-Range: bytes 0-9/*",
            b"5\r\nhello\r\n0\r\n\r\n",
        )
    })
    .await;
    let mut response = origin().get(&ranged(&server, 0, 99)).await.unwrap();
    assert_eq!(response.content_length, None, "the total is not known");
    assert_eq!(response.content_range, Some(ContentRange { first: 0, last: 9, total: None }));
    let error = read(&mut response).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Retry { after: None });
    assert!(error.to_string().contains("ended early after 5 of 10 bytes"), "{error}");
}

#[tokio::test]
async fn empty_content_is_told_by_416() {
    let server = Server::start(|_| {
        Reply::new("416 Range Not Satisfiable\nContent-Range: bytes */0\nETag: \"e\"", b"no")
    })
    .await;
    let mut response = origin().get(&ranged(&server, 0, 99)).await.unwrap();
    assert_eq!(response.content_length, Some(0));
    assert_eq!(response.validator.etag.as_deref(), Some("\"e\""));
    assert_eq!(response.headers["content-length"], "0");
    assert_eq!(response.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn empty_content_behind_a_bare_416_is_found_without_a_range() {
    let server = Server::start(|head| match head.header("range") {
        Some(_) => Reply::new("416 Range Not Satisfiable", b""),
        None => Reply::new("200 OK\nAccept-Ranges: bytes", b""),
    })
    .await;
    let mut response = origin().get(&ranged(&server, 0, 99)).await.unwrap();
    assert_eq!((response.status, response.content_length), (200, Some(0)));
    assert!(!response.ranges);
    assert_eq!(response.chunk().await.unwrap(), None);
    assert_eq!(server.heads().len(), 2);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_bare_416_without_a_range_ends() {
    let server = Server::start(|_| Reply::new("416 Range Not Satisfiable", b"")).await;
    let error = refusal(&origin(), &ranged(&server, 0, 99)).await;
    assert_eq!(*error.kind(), ErrorKind::Unusable);
    assert_eq!(server.heads().len(), 2);
}

#[tokio::test]
async fn no_content_is_empty_content() {
    let server = Server::start(|_| Reply::raw("204 No Content", b"")).await;
    let response = origin().get(&Request::new(server.url("/file"))).await.unwrap();
    assert_eq!(response.content_length, Some(0));
}

#[tokio::test]
async fn a_range_past_the_end_is_refused_with_numbers() {
    let server = Server::start(nginx).await;
    let error = refusal(&origin(), &ranged(&server, 300_000, 300_010)).await;
    assert_eq!((error.kind(), error.status()), (&ErrorKind::Refused, Some(416)));
    assert!(error.to_string().contains("starts at byte 300000, but the content has 300000 bytes"), "{error}");
}

#[tokio::test]
async fn a_range_past_the_new_end_is_a_change() {
    let server = Server::start(nginx).await;
    let request = Request { expect_length: Some(400_000), ..ranged(&server, 300_000, 300_010) };
    let error = refusal(&origin(), &request).await;
    assert!(matches!(error.kind(), ErrorKind::Changed(_)), "{error:?}");
    assert!(error.to_string().contains("it had 400000 bytes, now it has 300000"), "{error}");
}

async fn with_content_range(value: &'static str, length: usize) -> (Server, Origin) {
    let server = Server::start(move |_| {
        Reply::new(&format!("206 Partial Content\nContent-Range: {value}"), &vec![0; length])
    })
    .await;
    (server, origin())
}

#[tokio::test]
async fn another_range_than_asked_for_is_refused() {
    for (value, length) in [
        ("bytes 11-19/100", 9),
        ("bytes 9-19/100", 11),
        ("bytes 10-20/100", 11),
        ("bytes 10-19/19", 10),
        ("bytes 19-10/100", 10),
        ("bytes 10-19", 10),
        ("items 10-19/100", 10),
        ("bytes 10-18/100", 10),
        ("bytes */100", 10),
    ] {
        let (server, origin) = with_content_range(value, length).await;
        let error = refusal(&origin, &ranged(&server, 10, 19)).await;
        assert_eq!(*error.kind(), ErrorKind::Unusable, "{value}");
        assert!(error.to_string().contains(value), "{error}");
    }
    let server = Server::start(|_| Reply::new("206 Partial Content", &[0; 10])).await;
    assert_eq!(*refusal(&origin(), &ranged(&server, 10, 19)).await.kind(), ErrorKind::Unusable);
    let (server, origin) = with_content_range("bytes 0-9/100", 10).await;
    let error = refusal(&origin, &Request::new(server.url("/file"))).await;
    assert_eq!(*error.kind(), ErrorKind::Unusable, "a part although the whole was asked for");
}

#[tokio::test]
async fn a_shorter_range_than_asked_for_is_told() {
    let (server, origin) = with_content_range("bytes 10-14/100", 5).await;
    let mut response = origin.get(&ranged(&server, 10, 19)).await.unwrap();
    assert_eq!(response.content_range, Some(ContentRange { first: 10, last: 14, total: Some(100) }));
    assert_eq!(read(&mut response).await.unwrap().len(), 5);
}

#[tokio::test]
async fn only_what_both_sides_know_is_compared() {
    let server = Server::start(nginx).await;
    let origin = origin();
    let validator = |etag: Option<&str>, modified: Option<&str>| Validator {
        etag: etag.map(str::to_owned),
        last_modified: modified.map(str::to_owned),
    };
    let date = Some("Wed, 21 Oct 2015 07:28:00 GMT");
    for same in [
        validator(None, None),
        validator(Some("\"v1\""), None),
        validator(None, date),
        validator(Some("\"v1\""), date),
    ] {
        let request =
            Request { expect: Some(&same), expect_length: Some(LENGTH as u64), ..ranged(&server, 0, 9) };
        assert!(origin.get(&request).await.is_ok(), "{same:?}");
    }
    for (other, text) in [
        (validator(Some("\"v0\""), date), "its ETag was \"v0\", now it is \"v1\""),
        (validator(Some("\"v1\""), Some("Thu, 22 Oct 2015 07:28:00 GMT")), "Last-Modified was Thu"),
    ] {
        for request in [ranged(&server, 0, 9), Request::new(server.url("/file"))] {
            let error = refusal(&origin, &Request { expect: Some(&other), ..request }).await;
            assert_eq!(*error.kind(), ErrorKind::Changed(validator(Some("\"v1\""), date)));
            assert!(error.to_string().contains(text), "{error}");
        }
    }
    let error = refusal(&origin, &Request { expect_length: Some(1), ..ranged(&server, 0, 9) }).await;
    assert!(matches!(error.kind(), ErrorKind::Changed(_)), "{error:?}");
}
