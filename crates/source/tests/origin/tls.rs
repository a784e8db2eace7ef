use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use damselfly_core::Class;
use damselfly_source::{ErrorKind, Options, Origin, Request};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::server::{content, options, read, refusal};

const ROOT: &[u8] = include_bytes!("tls/root.der");

/// An HTTPS origin that speaks the protocols of `alpn` and counts its connections. Answers name the version used.
async fn https(alpn: &[&str]) -> (SocketAddr, Arc<AtomicUsize>) {
    https_at("127.0.0.1", alpn).await
}

async fn https_at(ip: &str, alpn: &[&str]) -> (SocketAddr, Arc<AtomicUsize>) {
    let key = PrivatePkcs8KeyDer::from(include_bytes!("tls/localhost.key.der").to_vec());
    let certificate = CertificateDer::from(include_bytes!("tls/localhost.der").to_vec());
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key))
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|request: hyper::Request<Incoming>| async move {
                    let version = format!("{:?}", request.version());
                    let body = Full::new(Bytes::from(content(1 << 20)));
                    Ok::<_, Infallible>(
                        hyper::Response::builder().header("x-version", version).body(body).unwrap(),
                    )
                });
                drop(
                    auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            });
        }
    });
    (addr, connections)
}

fn trusting() -> Origin {
    Origin::new(Options { extra_roots: vec![ROOT.to_vec()], ..options() }).unwrap()
}

fn request<'a>(addr: SocketAddr) -> Request<'a> {
    Request::new(format!("https://localhost:{}/file", addr.port()).parse().unwrap())
}

#[tokio::test]
async fn https_speaks_the_version_both_sides_know() {
    for (alpn, version) in
        [(&["h2", "http/1.1"][..], "HTTP/2.0"), (&["http/1.1"], "HTTP/1.1"), (&[], "HTTP/1.1")]
    {
        let (addr, _) = https(alpn).await;
        let mut response = trusting().get(&request(addr)).await.unwrap();
        assert_eq!(response.headers["x-version"], version);
        assert_eq!(response.content_length, Some(1 << 20));
        assert_eq!(read(&mut response).await.unwrap(), content(1 << 20));
    }
}

#[tokio::test]
async fn http2_requests_share_a_connection() {
    let (addr, connections) = https(&["h2"]).await;
    let origin = trusting();
    let request = request(addr);
    // The first one opens the connection that the others find.
    let mut open = vec![origin.get(&request).await.unwrap()];
    for _ in 0..7 {
        open.push(origin.get(&request).await.unwrap());
    }
    for mut response in open {
        assert_eq!(read(&mut response).await.unwrap().len(), 1 << 20);
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_unknown_issuer_is_not_worth_a_retry() {
    let (addr, _) = https(&["h2"]).await;
    let error = refusal(&Origin::new(options()).unwrap(), &request(addr)).await;
    assert_eq!((error.kind(), error.class()), (&ErrorKind::Unusable, Class::Fatal));
    assert!(error.to_string().contains("its certificate is not trusted"), "{error}");
    assert!(error.to_string().contains("SSL_CERT_FILE"), "{error}");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let (addr, _) = https_at("127.0.0.2", &["h2"]).await;
    let error = refusal(&trusting(), &Request::new(format!("https://{addr}/file").parse().unwrap())).await;
    assert_eq!(*error.kind(), ErrorKind::Unusable, "{error}");
    assert!(error.to_string().contains("not trusted"), "{error}");
}
