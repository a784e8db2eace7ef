use std::time::{Duration, SystemTime};

use damselfly_core::Class;
use damselfly_core::download::FailureKind;
use damselfly_source::{ErrorKind, Options, Origin, Request};
use tokio::net::TcpListener;

use crate::server::{Reply, Server, Then, content, options, origin, read, refusal};

#[tokio::test]
async fn a_status_says_whose_failure_it_is() {
    let server = Server::start(|head| {
        let status = head.target.trim_start_matches('/').to_owned();
        Reply::new(&format!("{status} Reason\nX-Why: because"), b"no")
    })
    .await;
    let origin = origin();
    let retry = ErrorKind::Retry { after: None };
    for (status, kind, class) in [
        (202, ErrorKind::Unusable, Class::Fatal),
        (304, ErrorKind::Unusable, Class::Fatal),
        (400, ErrorKind::Refused, Class::Fatal),
        (401, ErrorKind::Unauthorized, Class::Fatal),
        (403, ErrorKind::Unauthorized, Class::Fatal),
        (404, ErrorKind::Refused, Class::Fatal),
        (408, retry.clone(), Class::Retry),
        (410, ErrorKind::Refused, Class::Fatal),
        (425, retry.clone(), Class::Retry),
        (429, retry.clone(), Class::Retry),
        (500, retry.clone(), Class::Retry),
        (502, retry.clone(), Class::Retry),
        (503, retry.clone(), Class::Retry),
        (504, retry, Class::Retry),
    ] {
        let error = refusal(&origin, &Request::new(server.url(&format!("/{status}")))).await;
        assert_eq!((error.kind(), error.class(), error.status()), (&kind, class, Some(status)));
        assert_eq!(error.headers()["x-why"], "because");
        assert!(error.to_string().contains(&format!("it answered {status}")), "{error}");
        let failure = error.clone().into_failure();
        assert_eq!((failure.status, failure.message), (Some(status), error.to_string()));
    }
    // A 304 has no body, so its connection cannot be told from one with a pending body by this raw server.
    assert!(server.connections() <= 2, "short error bodies are read, so connections are kept");
}

#[tokio::test]
async fn retry_after_is_seconds_or_a_date() {
    let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
    let server = Server::start(move |head| {
        let after = match head.index {
            0 => "7",
            1 => soon.as_str(),
            2 => "Wed, 21 Oct 2015 07:28:00 GMT",
            _ => "soon",
        };
        Reply::new(&format!("429 Too Many Requests\nRetry-After: {after}"), b"")
    })
    .await;
    let origin = origin();
    let request = Request::new(server.url("/file"));
    assert_eq!(refusal(&origin, &request).await.retry_after(), Some(Duration::from_secs(7)));
    let dated = refusal(&origin, &request).await;
    let after = dated.retry_after().unwrap();
    assert!(after > Duration::from_secs(80) && after <= Duration::from_secs(100), "{after:?}");
    assert_eq!(dated.into_failure().kind, FailureKind::Retry { after: Some(after) });
    assert_eq!(refusal(&origin, &request).await.retry_after(), Some(Duration::ZERO));
    assert_eq!(refusal(&origin, &request).await.retry_after(), None);
}

#[tokio::test]
async fn nothing_is_tried_again_in_here() {
    let server = Server::start(|head| match head.index {
        0 => Reply::new("503 Service Unavailable", b"busy"),
        _ => Reply::new("200 OK", b"fine"),
    })
    .await;
    let origin = origin();
    let request = Request::new(server.url("/file"));
    assert_eq!(refusal(&origin, &request).await.class(), Class::Retry);
    assert_eq!(server.heads().len(), 1);
    assert_eq!(read(&mut origin.get(&request).await.unwrap()).await.unwrap(), b"fine");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_truncated_body_is_told_with_numbers() {
    let server =
        Server::start(|_| Reply::raw("200 OK\nContent-Length: 100000", &content(60_000)).then(Then::Close))
            .await;
    let mut response = origin().get(&Request::new(server.url("/file"))).await.unwrap();
    let error = read(&mut response).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (&ErrorKind::Retry { after: None }, Some(200)));
    assert!(error.to_string().contains("after 60000 of 100000 bytes"), "{error}");
    assert_eq!(response.received(), 60_000);
    assert_eq!(response.chunk().await.unwrap(), None, "nothing comes after an error");
}

#[tokio::test]
async fn a_truncated_chunked_body_is_no_end() {
    let server = Server::start(|_| {
        Reply::raw("200 OK\nTransfer-Encoding: chunked", b"5\r\nhello\r\n9\r\nwor").then(Then::Close)
    })
    .await;
    let mut response = origin().get(&Request::new(server.url("/file"))).await.unwrap();
    let error = read(&mut response).await.unwrap_err();
    assert_eq!(error.class(), Class::Retry);
    assert!(error.to_string().contains("the connection broke"), "{error}");
}

#[tokio::test]
async fn a_body_longer_than_its_range_is_refused() {
    let server = Server::start(|_| {
        Reply::raw(
            "206 Partial Content\nTransfer-Encoding: chunked\nContent-Range: bytes 0-3/10",
            b"5\r\nhello\r\n0\r\n\r\n",
        )
    })
    .await;
    let request = Request { range: Some((0, Some(3))), ..Request::new(server.url("/file")) };
    let mut response = origin().get(&request).await.unwrap();
    let error = read(&mut response).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Unusable);
    assert!(error.to_string().contains("more than the 4 bytes"), "{error}");
}

#[tokio::test]
async fn a_stalled_body_ends_at_its_deadline() {
    let server = Server::start(|_| Reply::raw("200 OK\nContent-Length: 10", b"hello").then(Then::Hang)).await;
    let origin = Origin::new(Options { stall_timeout: Duration::from_millis(50), ..options() }).unwrap();
    let mut response = origin.get(&Request::new(server.url("/file"))).await.unwrap();
    let error = read(&mut response).await.unwrap_err();
    assert_eq!(error.class(), Class::Retry);
    assert!(error.to_string().contains("nothing came for 50ms after 5 of 10 bytes"), "{error}");
}

#[tokio::test]
async fn a_silent_origin_ends_at_its_deadline() {
    let server = Server::start(|_| Reply::raw("100 Continue", b"").then(Then::Hang)).await;
    let origin = Origin::new(Options { head_timeout: Duration::from_millis(50), ..options() }).unwrap();
    let error = refusal(&origin, &Request::new(server.url("/file"))).await;
    assert_eq!((error.class(), error.status()), (Class::Retry, None));
    assert!(error.to_string().contains("no answer within 50ms"), "{error}");
}

#[tokio::test]
async fn a_closed_port_and_a_broken_connection_are_worth_a_retry() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let error = refusal(&origin(), &Request::new(format!("http://{addr}/file").parse().unwrap())).await;
    assert_eq!(error.class(), Class::Retry);
    assert!(error.to_string().to_lowercase().contains("connection refused"), "{error}");

    let server = Server::start(|_| Reply::raw("200 OK\nContent-", b"").then(Then::Close)).await;
    let error = refusal(&origin(), &Request::new(server.url("/file"))).await;
    assert_eq!(error.class(), Class::Retry);
}

#[tokio::test]
async fn what_cannot_be_asked_is_told_before_asking() {
    let error = refusal(&origin(), &Request::new("s3://bucket/key?sig=s3cret".parse().unwrap())).await;
    assert_eq!((error.kind(), error.class()), (&ErrorKind::Unusable, Class::Fatal));
    assert!(error.to_string().contains("\"s3\" is not supported; use one of: http, https"), "{error}");
    assert!(!error.to_string().contains("s3cret"), "{error}");

    for (name, value) in [("X Token", "s3cret"), ("X-Token", "s3\ncret")] {
        let headers = vec![(name.to_owned(), value.to_owned())];
        let request =
            Request { headers: headers.clone(), ..Request::new("http://127.0.0.1:9/".parse().unwrap()) };
        let error = refusal(&origin(), &request).await;
        assert_eq!(*error.kind(), ErrorKind::Unusable);
        assert!(!error.to_string().contains("cret"), "{error}");
        let error = Origin::new(Options { extra_headers: headers, ..options() }).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Unusable);
    }
    let garbage = Options { extra_roots: vec![vec![1, 2, 3]], ..options() };
    assert!(Origin::new(garbage).unwrap_err().to_string().contains("extra root certificate 0"));
}

#[tokio::test]
async fn headers_that_would_change_the_answer_are_left_out() {
    let server = Server::start(|_| Reply::new("200 OK", b"content")).await;
    let headers =
        ["Range", "If-None-Match", "If-Range", "If-Modified-Since", "Transfer-Encoding", "Connection"]
            .map(|name| (name.to_owned(), "x".to_owned()))
            .into_iter()
            .chain([
                ("X-Twice".to_owned(), "a".to_owned()),
                ("Accept-Encoding".to_owned(), "gzip".to_owned()),
            ])
            .collect();
    let extra = [("X-Twice", "configured"), ("X-Configured", "yes"), ("User-Agent", "corporate/2")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let origin = Origin::new(Options { extra_headers: extra.to_vec(), ..options() }).unwrap();
    origin.get(&Request { headers, ..Request::new(server.url("/file")) }).await.unwrap();
    let head = &server.heads()[0];
    for absent in
        ["range", "if-none-match", "if-range", "if-modified-since", "transfer-encoding", "connection"]
    {
        assert_eq!(head.header(absent), None, "{absent}");
    }
    assert_eq!(head.header("x-twice"), Some("a"), "the user's comes before the configured one");
    assert_eq!(head.header("x-configured"), Some("yes"));
    assert_eq!(head.header("user-agent"), Some("corporate/2"));
    assert_eq!(head.header("accept-encoding"), Some("gzip"), "the user's wish");
}
