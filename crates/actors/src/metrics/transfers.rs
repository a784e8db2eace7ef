//! What local clients' files cost: how many were moved which way, how many bytes, how long it took, what went wrong.
//!
//! Names of ours, for Dragonfly has none of these.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::histogram;

/// Which way content goes, as its client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// From the client into the store.
    Import,
    /// From the store to the client.
    Export,
}

/// How the bytes travel between client and daemon (`docs/dfcache.md`, "How bytes travel").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The daemon opens the file.
    Path,
    /// The client hands the open file over.
    Fd,
    /// In messages.
    Stream,
}

impl Mode {
    /// As receipts and labels call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Path => "path",
            Mode::Fd => "fd",
            Mode::Stream => "stream",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    flow: &'static str,
    mode: &'static str,
}

impl Labels {
    fn of(flow: Flow, mode: Mode) -> Self {
        let flow = match flow {
            Flow::Import => "import",
            Flow::Export => "export",
        };
        Self { flow, mode: mode.name() }
    }
}

/// The transfers of one daemon's local clients.
#[derive(Debug)]
pub struct Transfers {
    ended: Family<Labels, Counter>,
    failed: Family<Labels, Counter>,
    resumed: Family<Labels, Counter>,
    bytes: Family<Labels, Counter>,
    duration: Family<Labels, Histogram>,
}

impl Transfers {
    pub(super) fn new() -> Self {
        Self {
            ended: Family::default(),
            failed: Family::default(),
            resumed: Family::default(),
            bytes: Family::default(),
            duration: Family::new_with_constructor(histogram),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("local_transfer", "Files of local clients moved", self.ended.clone());
        registry.register("local_transfer_failure", "Such transfers that failed", self.failed.clone());
        registry.register(
            "local_transfer_retry",
            "Such transfers that went on where one before broke off",
            self.resumed.clone(),
        );
        registry.register(
            "local_transfer_bytes",
            "Bytes of such transfers that succeeded",
            self.bytes.clone(),
        );
        registry.register(
            "local_transfer_duration_milliseconds",
            "How long such transfers took that succeeded",
            self.duration.clone(),
        );
    }

    pub(super) fn reset(&self) {
        for counters in [&self.ended, &self.failed, &self.resumed, &self.bytes] {
            counters.clear();
        }
        self.duration.clear();
    }

    /// A transfer ended: so many bytes, or `None` when it failed.
    pub fn ended(&self, flow: Flow, mode: Mode, bytes: Option<u64>, took: Duration) {
        let labels = Labels::of(flow, mode);
        self.ended.get_or_create(&labels).inc();
        match bytes {
            Some(bytes) => {
                self.bytes.get_or_create(&labels).inc_by(bytes);
                self.duration.get_or_create(&labels).observe(took.as_secs_f64() * 1000.0);
            }
            None => drop(self.failed.get_or_create(&labels).inc()),
        }
    }

    /// An import goes on where another run of its client broke off.
    pub fn resumed(&self, mode: Mode) {
        self.resumed.get_or_create(&Labels::of(Flow::Import, mode)).inc();
    }
}
