//! How a download ended well: where its bytes came from, how fast, which way they took.

use std::time::Duration;

use damselfly_api::damselfly::v1 as local;
use damselfly_api::damselfly::v1::local_client::LocalClient;
use damselfly_transport::local::PoolChannel;

use crate::endpoint::At;
use crate::output::Output;
use crate::transfer::{self, Sources, Transfer};
use crate::units;

/// What a download delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The task.
    pub task_id: String,
    /// The daemon's host.
    pub host_id: String,
    /// This download.
    pub peer_id: String,
    /// Bytes at the output.
    pub bytes: u64,
    /// Bytes of the whole content, where known.
    pub content_length: Option<u64>,
    /// Where they came from; `None` when the daemon did not say.
    pub sources: Option<Sources>,
    /// The way they took.
    pub transfer: Transfer,
    /// Whether the daemon had everything before it was asked; `None` when it did not say.
    pub was_complete: Option<bool>,
}

/// The receipt is asked for when everything is done: it must not hold the end up.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// The daemon's own numbers of a download. Dragonfly's daemons do not know the call, and a receipt can be forgotten.
pub(crate) async fn ask(channel: &PoolChannel, peer_id: &str) -> Option<local::Receipt> {
    let mut client = LocalClient::new(channel.clone());
    let request = local::GetReceiptRequest { peer_id: peer_id.to_owned() };
    let answer = tokio::time::timeout(ASK_TIMEOUT, client.get_receipt(request)).await;
    answer.ok()?.ok().map(tonic::Response::into_inner)
}

/// A delivery and the time it took.
#[derive(Debug)]
pub struct Receipt<'a> {
    /// What was delivered, for people.
    pub name: &'a str,
    /// The origin's URL without secrets, where the content is from one.
    pub url: Option<&'a str>,
    /// Where it was delivered to.
    pub output: &'a Output,
    /// What came of it.
    pub delivery: &'a Delivery,
    /// Who did the work.
    pub at: &'a At,
    /// From the start of the program's work to its end.
    pub elapsed: Duration,
}

impl Receipt<'_> {
    fn output(&self) -> String {
        match self.output {
            Output::Stdout => "-".to_owned(),
            Output::File(file) => file.path.display().to_string(),
        }
    }

    /// The lines for people.
    #[must_use]
    pub fn text(&self) -> String {
        let Delivery { bytes, sources, transfer, .. } = self.delivery;
        let summary = transfer::summary(*bytes, self.elapsed);
        let mut text = format!("{} → {}: {summary}, verified\n", self.name, self.output());
        text.push_str(&sources.as_ref().map(Sources::line).unwrap_or_default());
        let here = matches!(self.at, At::Here(_));
        text.push_str(&transfer.line(if here {
            "written without a daemon"
        } else {
            "written by the daemon (path)"
        }));
        text
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let delivery = self.delivery;
        let (daemon, schedulers) = match self.at {
            At::Socket(socket) => (Some(socket.display().to_string()), None),
            At::Here(schedulers) => (None, Some(schedulers)),
        };
        let mut json = serde_json::json!({
            "ok": true,
            "exit_code": 0,
            "output": self.output(),
            "task_id": delivery.task_id,
            "host_id": delivery.host_id,
            "peer_id": delivery.peer_id,
            "bytes": delivery.bytes,
            "content_length": delivery.content_length,
            "origin_bytes": delivery.sources.map(|sources| sources.origin),
            "peer_bytes": delivery.sources.map(|sources| sources.peers),
            "local_bytes": delivery.sources.map(|sources| sources.local),
            "parents": delivery.sources.map(|sources| sources.parents),
            "seconds": self.elapsed.as_secs_f64(),
            "bytes_per_second": units::rate(delivery.bytes, self.elapsed),
            "transfer": delivery.transfer.mode,
            "transfer_reason": delivery.transfer.reason,
            "already_complete": delivery.was_complete,
            "daemon": daemon,
            "schedulers": schedulers,
        });
        if let Some(url) = self.url {
            json["url"] = url.into();
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::FileOutput;

    #[test]
    fn text_and_json() {
        let output =
            Output::File(FileOutput { path: "/tmp/absent-output".into(), overwrite: false, existed: false });
        let url = Some("http://h/m.bin?sig=REDACTED");
        let mut delivery = Delivery {
            task_id: "t".to_owned(),
            host_id: "h".to_owned(),
            peer_id: "p".to_owned(),
            bytes: 4 << 20,
            content_length: Some(4 << 20),
            sources: Some(Sources { origin: 1 << 20, peers: 3 << 20, local: 0, parents: 2 }),
            transfer: Transfer { mode: "path".to_owned(), reason: "same file system".to_owned() },
            was_complete: Some(false),
        };
        let at = At::Socket("/d.sock".into());
        let receipt = Receipt {
            name: "/m.bin",
            url,
            output: &output,
            delivery: &delivery,
            at: &at,
            elapsed: Duration::from_secs(2),
        };
        assert_eq!(
            receipt.text(),
            "/m.bin → /tmp/absent-output: 4.0 MiB in 2.00 s (2.0 MiB/s), verified\n  \
             origin 1.0 MiB, peers 3.0 MiB (2 parents), local cache 0 B\n  \
             written by the daemon (path): same file system\n"
        );
        let json = receipt.json();
        assert_eq!(json["peer_bytes"], 3 << 20);
        assert_eq!(json["bytes_per_second"], 2 << 20);
        assert_eq!(json["url"], "http://h/m.bin?sig=REDACTED");
        assert_eq!(json["daemon"], "/d.sock");
        let at = At::Here(vec!["10.0.0.1:8002".parse().unwrap()]);
        let receipt = Receipt { at: &at, ..receipt };
        assert!(
            receipt.text().ends_with("  written without a daemon: same file system\n"),
            "{}",
            receipt.text()
        );
        assert!(receipt.json()["daemon"].is_null());
        assert_eq!(receipt.json()["schedulers"][0], "10.0.0.1:8002");

        delivery.sources = None;
        delivery.transfer = Transfer { mode: "stream".to_owned(), reason: String::new() };
        let receipt = Receipt {
            name: "/m.bin",
            url,
            output: &output,
            delivery: &delivery,
            at: &at,
            elapsed: Duration::ZERO,
        };
        assert_eq!(
            receipt.text(),
            "/m.bin → /tmp/absent-output: 4.0 MiB in 0 ms, verified\n  through the daemon's socket (stream)\n"
        );
        assert!(receipt.json()["origin_bytes"].is_null());
    }
}
