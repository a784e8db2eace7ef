//! What comes from the environment. Setting a variable in a process with threads is racy, so the tests run themselves
//! again in a child process.

use std::process::Stdio;

use damselfly_source::{Options, Origin, Request};
use tokio::process::Command;
use url::Url;

use crate::server::{Reply, Server, options, read};

/// The child's part: the other tests of this module run it in an environment of their own.
#[tokio::test]
async fn child() {
    // Outside the other tests' environment there is nothing to do.
    let Ok(url) = std::env::var("CHILD_URL") else { return };
    let url: Url = url.parse().unwrap();
    let origin = Origin::new(Options { proxies: Options::default().proxies, ..options() }).unwrap();
    let text = match origin.get(&Request::new(url)).await {
        Ok(mut response) => String::from_utf8(read(&mut response).await.unwrap()).unwrap(),
        Err(error) => error.to_string(),
    };
    let expected = std::env::var("CHILD_EXPECTS").unwrap();
    assert!(text.contains(&expected), "expected {expected:?}, got {text:?}");
}

async fn fetch_in_child(url: &str, expects: &str, environment: &[(&str, &str)]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "environment::child"])
        .env_clear()
        .envs(environment.iter().copied())
        .env("CHILD_URL", url)
        .env("CHILD_EXPECTS", expects)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
async fn the_environment_names_the_proxy() {
    let proxy = Server::start(|_| Reply::new("200 OK", b"by proxy")).await;
    let address = format!("http://user:pass@{}", proxy.addr);
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        fetch_in_child("http://files.example/file", "by proxy", &[(variable, &address)]).await;
    }
    let heads = proxy.heads();
    assert_eq!(heads.len(), 3);
    assert_eq!(heads[0].target, "http://files.example/file");
    assert_eq!(heads[0].header("proxy-authorization"), Some("Basic dXNlcjpwYXNz"));
}

#[tokio::test]
async fn no_proxy_goes_around_it() {
    let proxy = Server::start(|_| Reply::new("200 OK", b"by proxy")).await;
    let server = Server::start(|_| Reply::new("200 OK", b"direct")).await;
    let address = format!("http://{}", proxy.addr);
    let url = server.url("/file").to_string();
    fetch_in_child(&url, "by proxy", &[("HTTP_PROXY", &address)]).await;
    for around in ["127.0.0.1", "127.0.0.0/8", "*"] {
        fetch_in_child(&url, "direct", &[("HTTP_PROXY", &address), ("NO_PROXY", around)]).await;
    }
    assert_eq!((proxy.heads().len(), server.heads().len()), (1, 3));
}

#[tokio::test]
async fn without_root_certificates_only_https_is_refused() {
    let server = Server::start(|_| Reply::new("200 OK", b"direct")).await;
    let rootless = [("SSL_CERT_FILE", "/nonexistent/roots.pem"), ("SSL_CERT_DIR", "/nonexistent")];
    fetch_in_child(server.url("/file").as_str(), "direct", &rootless).await;
    fetch_in_child("https://127.0.0.1:1/file", "ca-certificates", &rootless).await;
}
