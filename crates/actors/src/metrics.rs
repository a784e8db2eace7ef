//! Metrics, under the names that dashboards made for Dragonfly expect (`docs/wire.md`, "Configuration and metrics").
//!
//! One registry per daemon, passed around: many daemons fit in one process.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use damselfly_core::Kind;
use damselfly_transport::tcp::UploadFigures;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

mod transfers;

pub use transfers::{Flow, Mode, Transfers};

/// How many sets of labels are told apart: callers choose tag and application, and every set is a series for good. What
/// comes later is counted without either.
const LABEL_SETS: usize = 256;

/// How much of a tag or an application is shown, in characters.
const LABEL_LENGTH: usize = 64;

/// Labels of download metrics; see [`Metrics::labels`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TaskLabels {
    r#type: String,
    pub(crate) tag: String,
    pub(crate) app: String,
    priority: String,
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

impl OriginLabels {
    /// Origins are asked over HTTP or HTTPS, and by GET only.
    fn of(scheme: &str) -> Self {
        Self { scheme: if scheme == "https" { "https" } else { "http" }, method: "GET" }
    }
}

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

/// With the names of their counters: how many, and how many failed. [`Call::DeleteHost`] is no matter of a task, so it
/// has no type and is counted apart.
const CALLS: [(Call, &str, &str); 5] = [
    (Call::StatTask, "stat_task", "stat_task_failure"),
    (Call::StatLocalTask, "stat_local_task", "stat_local_task_failure"),
    (Call::ListLocalTasks, "list_local_tasks", "list_tasks_failure"),
    (Call::DeleteTask, "delete_task", "delete_task_failure"),
    (Call::DeleteLocalTask, "delete_local_task", "delete_local_task_failure"),
];

/// Standard tasks.
const STANDARD: TypeLabel = TypeLabel { r#type: "0" };

/// Dragonfly's number of a kind of task.
const fn type_of(kind: Kind) -> TypeLabel {
    match kind {
        Kind::Standard => STANDARD,
        Kind::PersistentCache => TypeLabel { r#type: "2" },
        Kind::Cache => TypeLabel { r#type: "3" },
    }
}

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
    hosts_deleted: Counter,
    host_deletions_failed: Counter,
    blocked: ByType,
    /// The sets of labels in use.
    labels: Mutex<HashSet<TaskLabels>>,
    disk_total: Gauge,
    disk_used: Gauge,
    /// Local clients' files.
    pub transfers: Transfers,
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
            hosts_deleted: Counter::default(),
            host_deletions_failed: Counter::default(),
            blocked: Family::default(),
            labels: Mutex::default(),
            disk_total: Gauge::default(),
            disk_used: Gauge::default(),
            transfers: Transfers::new(),
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
        registry.register(
            "concurrent_upload_piece_total",
            "Pieces on their way to children",
            self.uploading.clone(),
        );
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
        registry.register("delete_host", "Departures asked for", self.hosts_deleted.clone());
        registry.register(
            "delete_host_failure",
            "Departures that failed",
            self.host_deletions_failed.clone(),
        );
        registry.register("download_task_blocked", "Downloads the block list refused", self.blocked.clone());
        self.transfers.register(&mut registry);
        registry.register("disk_space_total", "Bytes the store may take", self.disk_total.clone());
        registry.register("disk_usage_space_total", "Bytes the store takes", self.disk_used.clone());
    }

    /// Bytes of content arrived.
    pub fn downloaded(&self, from: Traffic, bytes: u64) {
        self.traffic.get_or_create(&from.label()).inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The labels of a task's download. Whatever callers say, they are few and short.
    #[must_use]
    pub fn labels(&self, kind: Kind, tag: &str, app: &str, priority: i32) -> TaskLabels {
        let short = |text: &str| text.chars().take(LABEL_LENGTH).collect();
        // Dragonfly has the priorities 0 to 6.
        let priority = if (0..=6).contains(&priority) { priority.to_string() } else { "unknown".to_owned() };
        let labels = TaskLabels {
            r#type: type_of(kind).r#type.to_owned(),
            tag: short(tag),
            app: short(app),
            priority,
        };
        let mut known = self.labels.lock();
        if known.len() < LABEL_SETS || known.contains(&labels) {
            known.insert(labels.clone());
            return labels;
        }
        TaskLabels { tag: String::new(), app: String::new(), ..labels }
    }

    /// The block list refused a download.
    pub fn blocked(&self, kind: Kind) {
        self.blocked.get_or_create(&type_of(kind)).inc();
    }

    /// A request to an origin of this URL scheme begins; dropping the result records how long its answer took to begin.
    #[must_use]
    pub fn origin_request(&self, scheme: &str) -> OriginTimer<'_> {
        let labels = OriginLabels::of(scheme);
        self.origin_requests.get_or_create(&labels).inc();
        OriginTimer { metrics: self, labels, since: Instant::now() }
    }

    /// A call was answered.
    pub fn called<T, E>(&self, call: Call, answer: &Result<T, E>) {
        let Some((_, total, failed)) = self.calls.iter().find(|(known, ..)| *known == call) else {
            self.hosts_deleted.inc();
            if answer.is_err() {
                self.host_deletions_failed.inc();
            }
            return;
        };
        total.get_or_create(&STANDARD).inc();
        if answer.is_err() {
            failed.get_or_create(&STANDARD).inc();
        }
    }

    /// Has everything that only grows begin at zero again. What shows the present stays.
    pub fn reset(&self, upload: UploadFigures) {
        self.downloads.clear();
        self.download_failures.clear();
        self.blocked.clear();
        for counter in [&self.hosts_deleted, &self.host_deletions_failed] {
            counter.inner().store(0, Ordering::Relaxed);
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
        self.transfers.reset();
        self.uploaded_before.store(upload.bytes, Ordering::Relaxed);
    }

    /// A download of `bytes` took `milliseconds`.
    pub fn download_took(&self, labels: &TaskLabels, bytes: u64, milliseconds: f64) {
        let labels = SizeLabels { task_type: labels.r#type.clone(), task_size_level: size_level(bytes) };
        self.download_duration.get_or_create(&labels).observe(milliseconds);
    }

    /// The text that `/metrics` answers with, in Prometheus' own format. `uploading` pieces are on their way to children.
    ///
    /// # Errors
    /// Never in practice: formatting into a string.
    pub fn render(
        &self,
        disk: (u64, u64),
        upload: UploadFigures,
        uploading: u64,
    ) -> Result<String, std::fmt::Error> {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.disk_total.set(signed(disk.0));
        self.disk_used.set(signed(disk.1));
        let before = self.uploaded_before.load(Ordering::Relaxed);
        self.uploaded.set(signed(upload.bytes.saturating_sub(before)));
        self.uploading.set(signed(uploading));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry.lock())?;
        Ok(plain(&text))
    }
}

/// OpenMetrics text as Prometheus' own: there a counter's family is called as its samples are, and nothing marks the end.
fn plain(open_metrics: &str) -> String {
    let mut plain = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().filter(|line| *line != "# EOF").peekable();
    while let Some(line) = lines.next() {
        let kind = if line.starts_with("# HELP ") { lines.peek().copied() } else { Some(line) };
        let counts = kind.is_some_and(|kind| kind.starts_with("# TYPE ") && kind.ends_with(" counter"));
        match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
            ["#", what, name, rest] if counts => {
                plain.extend(["# ", what, " ", name, "_total ", rest, "\n"]);
            }
            _ => plain.extend([line, "\n"]),
        }
    }
    plain
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
    labels: OriginLabels,
    since: Instant,
}

impl OriginTimer<'_> {
    /// The request failed.
    pub fn failed(&self) {
        self.metrics.origin_failures.get_or_create(&self.labels).inc();
    }
}

impl Drop for OriginTimer<'_> {
    fn drop(&mut self) {
        let took = self.since.elapsed().as_secs_f64() * 1000.0;
        self.metrics.origin_duration.get_or_create(&self.labels).observe(took);
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
mod tests;
