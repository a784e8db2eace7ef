use damselfly_core::download::Validator;
use damselfly_source::{Options, Origin, Request};

use crate::server::{Reply, Server, options, refusal};

const SECRET: &str = "hunter2";

fn secret_headers() -> Vec<(String, String)> {
    ["Authorization", "X-Anything"].map(|name| (name.to_owned(), format!("Bearer {SECRET}"))).to_vec()
}

fn assert_clean(text: &str) {
    assert!(!text.contains(SECRET), "{text}");
}

#[tokio::test]
async fn secrets_show_up_nowhere() {
    let server = Server::start(|_| {
        Reply::new(
            "403 Forbidden\nSet-Cookie: sid=hunter2\nSet-Cookie: again=hunter2\nLocation: /login?token=hunter2\n\
             WWW-Authenticate: Bearer realm=\"x\"\nX-Cache: a\nX-Cache: b",
            b"hunter2 in the body",
        )
    })
    .await;
    let mut url = server.url(&format!("/file?X-Amz-Signature={SECRET}"));
    url.set_password(Some(SECRET)).unwrap();
    let expect = Validator::default();
    let request = Request {
        url,
        headers: secret_headers(),
        range: Some((0, None)),
        expect: Some(&expect),
        expect_length: None,
    };
    assert_clean(&format!("{request:?} {request:#?}"));
    assert!(format!("{request:?}").contains("Authorization"), "names are shown");

    let origin = Origin::new(Options { extra_headers: secret_headers(), ..options() }).unwrap();
    assert_clean(&format!("{origin:?} {:?}", Options { extra_headers: secret_headers(), ..options() }));

    let error = refusal(&origin, &request).await;
    assert_clean(&format!("{error} {error:?}"));
    assert!(error.to_string().contains("X-Amz-Signature=REDACTED"), "{error}");
    assert_eq!(error.headers()["www-authenticate"], "Bearer realm=\"x\"", "tells the user what is wanted");
    assert_eq!(error.headers()["x-cache"], "a, b");
    assert!(!error.headers().contains_key("set-cookie"));
    assert_clean(&format!("{:?}", error.into_failure()));
}

#[tokio::test]
async fn a_good_answer_shows_no_secrets_either() {
    let server = Server::start(|_| {
        Reply::new("200 OK\nSet-Cookie: sid=hunter2\nContent-Location: /x?sig=hunter2\nX-Ok: 1", b"content")
    })
    .await;
    let url = server.url(&format!("/file?sig={SECRET}"));
    let origin = Origin::new(options()).unwrap();
    let response = origin.get(&Request { headers: secret_headers(), ..Request::new(url) }).await.unwrap();
    assert_clean(&format!("{response:?} {:?}", response.headers));
    assert_eq!(response.headers["x-ok"], "1");
}

#[tokio::test]
async fn an_unreachable_origin_shows_no_secrets() {
    let url = format!("http://user:{SECRET}@127.0.0.1:1/file?sig={SECRET}").parse().unwrap();
    let error = refusal(&Origin::new(options()).unwrap(), &Request::new(url)).await;
    assert_clean(&format!("{error} {error:?}"));
    assert!(error.to_string().contains("127.0.0.1:1/file"), "{error}");
}
