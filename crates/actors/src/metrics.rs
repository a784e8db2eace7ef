//! Metrics, under the names that dashboards made for Dragonfly expect (`docs/wire.md`, "Configuration and metrics").
//!
//! One registry per daemon, passed around: many daemons fit in one process.

use std::sync::atomic::{AtomicU64, Ordering};

use damselfly_transport::tcp::UploadFigures;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

/// Labels of download metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TaskLabels {
    /// The task type's number.
    pub r#type: String,
    /// The tag.
    pub tag: String,
    /// The application.
    pub app: String,
    /// The priority's number.
    pub priority: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SizeLabels {
    task_type: String,
    task_size_level: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OriginLabels {
    scheme: &'static str,
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    git_version: &'static str,
    platform: &'static str,
}

/// Where downloaded bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// The origin.
    Origin,
    /// A peer.
    Remote,
    /// This host's store.
    Local,
}

impl Traffic {
    fn label(self) -> TypeLabel {
        TypeLabel {
            r#type: match self {
                Traffic::Origin => "BACK_TO_SOURCE",
                Traffic::Remote => "REMOTE_PEER",
                Traffic::Local => "LOCAL_PEER",
            },
        }
    }
}

const ORIGIN: OriginLabels = OriginLabels { scheme: "http", method: "GET" };

/// Calls that are counted, beside downloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A task in the scheduler's eyes.
    StatTask,
    /// A task as this host has it.
    StatLocalTask,
    /// Every task of this host.
    ListLocalTasks,
    /// Delete a task here and at the scheduler.
    DeleteTask,
    /// Delete a task here.
    DeleteLocalTask,
    /// Take this host off the schedulers.
    DeleteHost,
}

/// With the names of their counters: how many, and how many failed.
const CALLS: [(Call, &str, &str); 6] = [
    (Call::StatTask, "stat_task", "stat_task_failure"),
    (Call::StatLocalTask, "stat_local_task", "stat_local_task_failure"),
    (Call::ListLocalTasks, "list_local_tasks", "list_tasks_failure"),
    (Call::DeleteTask, "delete_task", "delete_task_failure"),
    (Call::DeleteLocalTask, "delete_local_task", "delete_local_task_failure"),
    (Call::DeleteHost, "delete_host", "delete_host_failure"),
];

/// Standard tasks.
const STANDARD: TypeLabel = TypeLabel { r#type: "0" };

type Counters = Family<TaskLabels, Counter>;
type ByType = Family<TypeLabel, Counter>;

/// One daemon's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Downloads begun.
    pub downloads: Counters,
    /// Downloads failed.
    pub download_failures: Counters,
    /// Downloads under way.
    pub downloading: Family<TaskLabels, Gauge>,
    download_duration: Family<SizeLabels, Histogram>,
    // Gauges, because counters of this crate always end in `_total`, and these names do not.
    traffic: Family<TypeLabel, Gauge>,
    uploaded: Gauge,
    /// Bytes uploaded before the last reset.
    uploaded_before: AtomicU64,
    uploading: Gauge,
    origin_requests: Family<OriginLabels, Counter>,
    origin_failures: Family<OriginLabels, Counter>,
    origin_duration: Family<OriginLabels, Histogram>,
    /// How many of each kind, and how many of them failed.
    calls: Vec<(Call, ByType, ByType)>,
    /// Downloads that the block list refused.
    pub blocked: Counters,
    disk_total: Gauge,
    disk_used: Gauge,
}

fn histogram() -> Histogram {
    // 1 ms to 2^23 ms, doubling.
    Histogram::new((0..24).map(|exponent| f64::from(1u32 << exponent)))
}

impl Metrics {
    /// All metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("dragonfly_client")),
            downloads: Family::default(),
            download_failures: Family::default(),
            downloading: Family::default(),
            download_duration: Family::new_with_constructor(histogram),
            traffic: Family::default(),
            uploaded: Gauge::default(),
            uploaded_before: AtomicU64::new(0),
            uploading: Gauge::default(),
            origin_requests: Family::default(),
            origin_failures: Family::default(),
            origin_duration: Family::new_with_constructor(histogram),
            calls: CALLS.iter().map(|(call, ..)| (*call, Family::default(), Family::default())).collect(),
            blocked: Family::default(),
            disk_total: Gauge::default(),
            disk_used: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock();
        let version = Family::<VersionLabels, Gauge<u64, AtomicU64>>::default();
        version
            .get_or_create(&VersionLabels {
                git_version: env!("CARGO_PKG_VERSION"),
                platform: std::env::consts::OS,
            })
            .set(1);
        registry.register("version", "Version of the daemon", version);
        registry.register("download_task", "Downloads begun", self.downloads.clone());
        registry.register("download_task_failure", "Downloads failed", self.download_failures.clone());
        registry.register("concurrent_download_task_total", "Downloads under way", self.downloading.clone());
        registry.register(
            "download_task_duration_milliseconds",
            "How long downloads took",
            self.download_duration.clone(),
        );
        registry.register(
            "download_traffic",
            "Bytes downloaded, by where they came from",
            self.traffic.clone(),
        );
        registry.register("upload_traffic", "Bytes of pieces sent", self.uploaded.clone());
        registry.register("concurrent_upload_piece_total", "Connections to children", self.uploading.clone());
        registry.register("backend_request", "Requests to origins", self.origin_requests.clone());
        registry.register(
            "backend_request_failure",
            "Requests to origins that failed",
            self.origin_failures.clone(),
        );
        registry.register(
            "backend_request_duration_milliseconds",
            "Time to the head of an origin's answer",
            self.origin_duration.clone(),
        );
        for ((_, name, failures), (_, total, failed)) in CALLS.iter().zip(&self.calls) {
            registry.register(*name, "Calls of this kind", total.clone());
            registry.register(*failures, "Such calls that failed", failed.clone());
        }
        registry.register("download_task_blocked", "Downloads the block list refused", self.blocked.clone());
        registry.register("disk_space_total", "Bytes the store may take", self.disk_total.clone());
        registry.register("disk_usage_space_total", "Bytes the store takes", self.disk_used.clone());
    }

    /// Bytes of content arrived.
    pub fn downloaded(&self, from: Traffic, bytes: u64) {
        self.traffic.get_or_create(&from.label()).inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// An origin request begins; dropping the result records how long its answer took to begin.
    #[must_use]
    pub fn origin_request(&self) -> OriginTimer<'_> {
        self.origin_requests.get_or_create(&ORIGIN).inc();
        OriginTimer { metrics: self, since: Instant::now() }
    }

    /// An origin request failed.
    pub fn origin_failed(&self) {
        self.origin_failures.get_or_create(&ORIGIN).inc();
    }

    /// A call was answered.
    pub fn called<T, E>(&self, call: Call, answer: &Result<T, E>) {
        let Some((_, total, failed)) = self.calls.iter().find(|(known, ..)| *known == call) else { return };
        total.get_or_create(&STANDARD).inc();
        if answer.is_err() {
            failed.get_or_create(&STANDARD).inc();
        }
    }

    /// Has everything that only grows begin at zero again. What shows the present stays.
    pub fn reset(&self, upload: UploadFigures) {
        for counters in [&self.downloads, &self.download_failures, &self.blocked] {
            counters.clear();
        }
        for (_, total, failed) in &self.calls {
            total.clear();
            failed.clear();
        }
        self.download_duration.clear();
        self.traffic.clear();
        self.origin_requests.clear();
        self.origin_failures.clear();
        self.origin_duration.clear();
        self.uploaded_before.store(upload.bytes, Ordering::Relaxed);
    }

    /// A download of `bytes` took `milliseconds`.
    pub fn download_took(&self, task_type: &str, bytes: u64, milliseconds: f64) {
        let labels = SizeLabels { task_type: task_type.to_owned(), task_size_level: size_level(bytes) };
        self.download_duration.get_or_create(&labels).observe(milliseconds);
    }

    /// The text that `/metrics` answers with.
    ///
    /// # Errors
    /// Never in practice: formatting into a string.
    pub fn render(&self, disk: (u64, u64), upload: UploadFigures) -> Result<String, std::fmt::Error> {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.disk_total.set(signed(disk.0));
        self.disk_used.set(signed(disk.1));
        let before = self.uploaded_before.load(Ordering::Relaxed);
        self.uploaded.set(signed(upload.bytes.saturating_sub(before)));
        self.uploading.set(signed(upload.connections));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Measures the time to the head of an origin's answer.
#[derive(Debug)]
pub struct OriginTimer<'a> {
    metrics: &'a Metrics,
    since: Instant,
}

impl Drop for OriginTimer<'_> {
    fn drop(&mut self) {
        let took = self.since.elapsed().as_secs_f64() * 1000.0;
        self.metrics.origin_duration.get_or_create(&ORIGIN).observe(took);
    }
}

/// Dragonfly's class of sizes: 0 for nothing, 1 below 1 MiB, 2 below 4 MiB, then doubling to 1 GiB, and so on.
fn size_level(bytes: u64) -> u32 {
    const MIB: u64 = 1 << 20;
    if bytes == 0 {
        return 0;
    }
    let bounds =
        [1, 4, 8, 16, 32, 64, 128, 256, 512, 1 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10];
    let rest = [128 << 10, 256 << 10, 512 << 10, 1 << 20];
    (1..)
        .zip(bounds.into_iter().chain(rest))
        .find(|(_, bound)| bytes < bound * MIB)
        .map_or(20, |(level, _)| level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_levels_are_dragonflys() {
        let mib = 1u64 << 20;
        for (bytes, level) in [
            (0, 0),
            (1, 1),
            (mib, 2),
            (4 * mib, 3),
            (8 * mib, 4),
            (512 * mib, 10),
            (1 << 30, 11),
            (4 << 30, 12),
            (512 << 30, 19),
            (1 << 40, 20),
        ] {
            assert_eq!(size_level(bytes), level, "{bytes}");
        }
    }

    #[test]
    fn a_reset_counts_from_zero_and_keeps_the_present() {
        let (metrics, labels) = (Metrics::new(), TaskLabels::default());
        metrics.downloads.get_or_create(&labels).inc();
        metrics.downloading.get_or_create(&labels).inc();
        metrics.called(Call::DeleteHost, &Ok::<(), ()>(()));
        metrics.called(Call::StatLocalTask, &Err::<(), ()>(()));
        let sent = |bytes| UploadFigures { bytes, connections: 1, ..UploadFigures::default() };
        let before = metrics.render((1, 1), sent(10)).unwrap();
        for line in [
            "dragonfly_client_upload_traffic 10",
            "dragonfly_client_delete_host_total{type=\"0\"} 1",
            "dragonfly_client_stat_local_task_failure_total{type=\"0\"} 1",
        ] {
            assert!(before.contains(line), "{line} is missing in\n{before}");
        }
        metrics.reset(sent(10));
        let after = metrics.render((1, 1), sent(15)).unwrap();
        for line in ["dragonfly_client_upload_traffic 5", "dragonfly_client_concurrent_download_task_total{"]
        {
            assert!(after.contains(line), "{line} is missing in\n{after}");
        }
        for name in ["download_task_total{", "delete_host_total{", "stat_local_task_failure_total{"] {
            assert!(!after.contains(&format!("dragonfly_client_{name}")), "{name} is still in\n{after}");
        }
    }

    #[test]
    fn names_are_dragonflys() {
        let metrics = Metrics::new();
        metrics.downloads.get_or_create(&TaskLabels::default()).inc();
        metrics.downloaded(Traffic::Origin, 5);
        drop(metrics.origin_request());
        let text = metrics.render((10, 2), UploadFigures::default()).unwrap();
        for name in [
            "dragonfly_client_download_task_total{",
            "dragonfly_client_download_traffic{type=\"BACK_TO_SOURCE\"} 5",
            "dragonfly_client_backend_request_total{scheme=\"http\",method=\"GET\"} 1",
            "dragonfly_client_disk_usage_space_total 2",
            "dragonfly_client_version{",
        ] {
            assert!(text.contains(name), "{name} is missing in\n{text}");
        }
    }
}
