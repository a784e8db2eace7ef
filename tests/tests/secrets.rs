//! Nothing secret reaches a log. Its own program, because there is one log per process.
#![expect(clippy::unwrap_used, reason = "clippy.toml's leave does not reach the helpers of tests")]

use std::io;
use std::sync::{Arc, Mutex};

use damselfly_tests::OriginServer;
use damselfly_tests::origin::Behaviour;
use damselfly_tests::swarm::{Swarm, to_file, with_header};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// As much as `dfdaemon --log-level trace` writes.
const EVERYTHING: &str = "trace,h2=warn,hyper=warn,hyper_util=warn,tower=warn";

const TOKEN: &str = "tok3n-in-a-header";
const COOKIE: &str = "c00kie-in-a-header";
const USER: &str = "us3r-in-the-url";
const PASSWORD: &str = "passw0rd-in-the-url";
const SIGNATURE: &str = "s1gnature-in-the-query";
const UNKNOWN: &str = "s3cret-in-a-parameter-that-nobody-knows";

#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_reaches_the_log_or_an_error_or_the_status() {
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(EVERYTHING))
        .with_writer(log.clone())
        .with_ansi(false)
        .init();
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let mut said = String::new();
    for (index, status) in [None, Some(404), Some(503)].into_iter().enumerate() {
        let blob = origin.named_blob((4 << 20) + 1, index as u64, &format!("blob-{index}"));
        let trouble = status.filter(|status| *status == 503).map(|status| damselfly_tests::origin::Trouble {
            requests: 1,
            status,
            retry_after: None,
        });
        let behaviour =
            Behaviour { status: status.filter(|status| *status != 503), trouble, ..Behaviour::default() };
        origin.set(&blob, behaviour);
        let url = blob.url.replacen("http://", &format!("http://{USER}:{PASSWORD}@"), 1);
        let url = format!("{url}&X-Amz-Signature={SIGNATURE}&X-Amz-Date=today&mystery={UNKNOWN}");
        for host in &swarm.hosts {
            let path = host.path(&format!("out-{index}"));
            let request = with_header(to_file(&url, &path), "Authorization", &format!("Bearer {TOKEN}"));
            match host.download(with_header(request, "Cookie", COOKIE)).await {
                Ok(_) => blob.pattern.check_file(&path).unwrap(),
                Err(error) => {
                    said.push_str(&format!("{error:?}{}", String::from_utf8_lossy(error.details())))
                }
            }
            said.push_str(&format!("{:?}", host.status().await.unwrap()));
        }
    }
    swarm.stop().await;
    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(log.contains("blob-0") && log.contains("effect"), "the log is not what it should be:\n{log}");
    for secret in [TOKEN, COOKIE, USER, PASSWORD, SIGNATURE, UNKNOWN] {
        for (what, text) in [("log", &log), ("answers", &said)] {
            let line = text.lines().find(|line| line.contains(secret));
            assert_eq!(line.map(|line| &line[..line.len().min(2000)]), None, "{secret} is in the {what}");
        }
    }
}
