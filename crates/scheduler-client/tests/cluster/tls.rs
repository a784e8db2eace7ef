//! TLS towards schedulers, with certificates that were made for this test and are worth nothing elsewhere.

use std::path::PathBuf;

use damselfly_scheduler_client::{ClientError, Cluster, TlsFiles};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::fake::{Fake, Me, PATIENCE, options, run, until};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/tls").join(name)
}

fn pem(name: &str) -> Vec<u8> {
    std::fs::read(file(name)).unwrap()
}

fn files() -> TlsFiles {
    TlsFiles { ca: Some(file("ca.pem")), identity: Some((file("client.pem"), file("client.key"))) }
}

async fn fake() -> Fake {
    let server = ServerTlsConfig::new()
        .identity(Identity::from_pem(pem("server.pem"), pem("server.key")))
        .client_ca_root(Certificate::from_pem(pem("ca.pem")));
    Fake::start_tls(server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_with_mutual_tls_is_used() {
    let fake = fake().await;
    let me = Me::new();
    let mut options = options(&me, &[fake.address]);
    options.tls = Some(files());
    let (cluster, _orders) = run(options);
    tokio::time::timeout(PATIENCE, cluster.ready()).await.unwrap();
    assert!(cluster.schedulers()[0].ours);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_to_show_it_is_not() {
    let fake = fake().await;
    let me = Me::new();
    let mut options = options(&me, &[fake.address]);
    options.tls = Some(TlsFiles { identity: None, ..files() });
    let (cluster, _orders) = run(options);
    let refused = |cluster: &Cluster| cluster.schedulers().first().is_some_and(|info| info.error.is_some());
    until(&cluster, "the scheduler is known and refuses", refused).await;
    assert!(cluster.healthy().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_named() {
    let me = Me::new();
    let mut options = options(&me, &[]);
    options.tls = Some(TlsFiles { ca: Some("/nonexistent/ca.pem".into()), identity: None });
    let error = Cluster::new(options).unwrap_err();
    assert!(matches!(error, ClientError::TlsFile { .. }));
    assert!(error.to_string().contains("/nonexistent/ca.pem"), "{error}");
}
