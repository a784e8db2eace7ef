use damselfly_core::Class;
use damselfly_source::{ErrorKind, Options, Origin, Request};

use crate::server::{Head, Reply, Server, options, origin, read, refusal};

fn to(status: &str, location: &str) -> Reply {
    Reply::new(&format!("{status} Moved\nLocation: {location}"), b"<html>over there</html>")
}

fn headers(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn every_kind_of_redirect_is_followed_as_get_with_its_range() {
    for status in ["301", "302", "303", "307", "308"] {
        let server = Server::start(move |head| match head.target.as_str() {
            "/a/file" => to(status, "../b/file?x=1"),
            "/b/file?x=1" => Reply::new("206 Partial Content\nContent-Range: bytes 5-9/10", b"56789"),
            other => panic!("unexpected {other}"),
        })
        .await;
        let request = Request { range: Some((5, Some(9))), ..Request::new(server.url("/a/file")) };
        let mut response = origin().get(&request).await.unwrap();
        assert_eq!(read(&mut response).await.unwrap(), b"56789");
        let heads = server.heads();
        assert!(heads.iter().all(|head| head.method == "GET" && head.header("range") == Some("bytes=5-9")));
        assert_eq!(server.connections(), 1, "the redirect's body is read so that its connection is kept");
    }
}

const SENSITIVE: [(&str, &str); 5] = [
    ("Authorization", "Bearer s3cret"),
    ("Cookie", "sid=s3cret"),
    ("PRIVATE-TOKEN", "s3cret"),
    ("X-Api-Key", "s3cret"),
    ("Host", "virtual.example"),
];

fn sensitive_seen(head: &Head) -> Vec<String> {
    SENSITIVE
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .filter(|name| {
            head.header(name).is_some_and(|value| value.contains("s3cret") || value.contains("virtual"))
        })
        .collect()
}

#[tokio::test]
async fn sensitive_headers_stay_with_their_origin() {
    let other = Server::start(|_| Reply::new("200 OK", b"content")).await;
    let elsewhere = other.url("/file").to_string();
    let first = Server::start(move |head| match head.target.as_str() {
        "/start" => to("302", "/same-origin"),
        _ => to("302", &elsewhere),
    })
    .await;
    let mut sent = headers(&SENSITIVE);
    sent.extend(headers(&[("X-Tenant", "blue"), ("User-Agent", "mine/1")]));
    let request = Request { headers: sent, ..Request::new(first.url("/start")) };
    let mut response = origin().get(&request).await.unwrap();
    assert_eq!(read(&mut response).await.unwrap(), b"content");

    for head in first.heads() {
        assert_eq!(sensitive_seen(&head).len(), SENSITIVE.len(), "{head:?}");
    }
    let head = &other.heads()[0];
    assert_eq!(sensitive_seen(head), Vec::<String>::new());
    assert_eq!(head.header("host"), Some(other.addr.to_string().as_str()));
    assert_eq!((head.header("x-tenant"), head.header("user-agent")), (Some("blue"), Some("mine/1")));
}

#[tokio::test]
async fn credentials_of_the_url_follow_within_their_origin_only() {
    let other = Server::start(|_| Reply::new("200 OK", b"content")).await;
    let elsewhere = other.url("/file").to_string();
    let first = Server::start(move |head| match head.target.as_str() {
        "/start" => to("302", "/same-origin"),
        _ => to("302", &elsewhere),
    })
    .await;
    let mut url = first.url("/start");
    url.set_username("user").unwrap();
    url.set_password(Some("pass")).unwrap();
    origin().get(&Request::new(url)).await.unwrap();
    for head in first.heads() {
        assert_eq!(head.header("authorization"), Some("Basic dXNlcjpwYXNz"));
    }
    assert_eq!(other.heads()[0].header("authorization"), None);
}

#[tokio::test]
async fn redirects_without_end_are_given_up() {
    let server = Server::start(|head| to("302", &format!("/loop?token=s3cret{}", head.index))).await;
    let error = refusal(&origin(), &Request::new(server.url("/loop"))).await;
    assert_eq!((error.kind(), error.class()), (&ErrorKind::Unusable, Class::Fatal));
    assert!(error.to_string().contains("more than 10 redirects"), "{error}");
    assert!(!error.to_string().contains("s3cret"), "{error}");
    assert_eq!(server.heads().len(), 11);

    let none = Origin::new(Options { max_redirects: 0, ..options() }).unwrap();
    refusal(&none, &Request::new(server.url("/loop"))).await;
    assert_eq!(server.heads().len(), 12);
}

#[tokio::test]
async fn a_redirect_to_another_scheme_names_what_is_supported() {
    let server = Server::start(|_| to("302", "ftp://files.example/file")).await;
    let error = refusal(&origin(), &Request::new(server.url("/file"))).await;
    assert_eq!(*error.kind(), ErrorKind::Unusable);
    assert!(error.to_string().contains("\"ftp\" is not supported; use one of: http, https"), "{error}");
}

#[tokio::test]
async fn a_redirect_without_a_place_is_no_content() {
    let server = Server::start(|_| Reply::new("302 Found", b"")).await;
    let error = refusal(&origin(), &Request::new(server.url("/file"))).await;
    assert_eq!((error.kind(), error.status()), (&ErrorKind::Unusable, Some(302)));
    let server = Server::start(|_| to("302", "http://[broken")).await;
    let error = refusal(&origin(), &Request::new(server.url("/file"))).await;
    assert_eq!(*error.kind(), ErrorKind::Unusable);
}

#[tokio::test]
async fn an_error_behind_a_redirect_names_where_it_happened() {
    let server = Server::start(|head| match head.target.as_str() {
        "/start" => to("302", "/signed?signature=s3cret"),
        _ => Reply::new("403 Forbidden", b"expired"),
    })
    .await;
    let error = refusal(&origin(), &Request::new(server.url("/start"))).await;
    assert_eq!(*error.kind(), ErrorKind::Unauthorized);
    assert!(error.to_string().contains("/signed?signature=REDACTED"), "{error}");
}
