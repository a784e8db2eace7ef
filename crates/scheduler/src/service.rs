//! The machine on the network: `scheduler.v2.Scheduler`, `damselfly.v1.Cluster` and health over tonic.
//!
//! One mutex guards the machine; it is held for one step and never over an await. What a step wants done is done in
//! the same breath: messages go into the bounded queue of their stream, calls to other hosts are spawned. A stream
//! whose peer does not read loses its queue and ends with RESOURCE_EXHAUSTED; nobody else waits for it.

mod announce;
mod convert;
mod hold;
mod outbound;
mod persistent_cache;
mod rpc;
mod stream;
mod validate;

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use damselfly_api::common::v2 as common;
use damselfly_api::damselfly::v1::HoldResponse;
use damselfly_api::damselfly::v1::cluster_server::ClusterServer;
use damselfly_api::scheduler::v2::AnnouncePeerResponse;
use damselfly_api::scheduler::v2::scheduler_server::SchedulerServer;
use damselfly_core::{HostId, Tick};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::service::Routes;
use tonic::{Code, Status};

pub use outbound::{CopyCall, GrpcOutbound, Outbound, OutboundError};

use crate::machine::{self, Answer, Counters, Effect, Ending, Event, HoldId, Scheduler, Snapshot, StreamId};
use stream::Outlet;

/// Bytes of one message from outside, for which tonic makes room as soon as its length is announced. The bitmap of the
/// longest content has half a mebibyte, and a daemon tells its holdings in parts of about that size.
const MAX_MESSAGE: usize = 16 << 20;
/// Streams of one connection.
const MAX_STREAMS: u32 = 16_384;

/// What a scheduler needs to be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// How it decides.
    pub machine: machine::Config,
    /// Its own address `<ip>:<port>`, as others reach it; its key on the ring.
    pub address: String,
    /// Addresses of all schedulers of the ring, its own included.
    pub ring: Vec<String>,
    /// Messages that wait for a peer to read them; a peer that lets more pile up loses its stream.
    pub queue: usize,
    /// How long a stream may stand without its first message.
    pub first_message: Duration,
}

/// The addresses of a ring: those that are joined, and this scheduler's own.
#[must_use]
pub fn ring_of(own: SocketAddr, joined: &[SocketAddr]) -> Vec<String> {
    let own = (!joined.contains(&own)).then_some(&own);
    joined.iter().chain(own).map(ToString::to_string).collect()
}

impl Default for Config {
    fn default() -> Self {
        Self {
            machine: machine::Config::default(),
            address: String::new(),
            ring: Vec::new(),
            queue: 1024,
            first_message: Duration::from_secs(30),
        }
    }
}

/// An announce stream's side towards the peer.
struct Announce {
    outlet: Outlet<AnnouncePeerResponse>,
    /// What the peer registered with: a triggered seed gets a copy of it, and nobody else does.
    download: Option<Box<common::Download>>,
}

struct Inner {
    machine: Scheduler,
    announces: HashMap<StreamId, Announce>,
    holds: HashMap<HoldId, Outlet<HoldResponse>>,
    /// Hosts as announced, for those who are sent to them.
    hosts: HashMap<HostId, Arc<common::Host>>,
    closing: bool,
}

/// The service as tonic sees it.
#[derive(Clone)]
struct Face(Arc<SchedulerService>);

/// A call to another host that a step asked for.
enum Call {
    Seed(damselfly_core::TaskKey, HostId, SocketAddr, Box<common::Download>),
    Probe(HostId, SocketAddr),
    Copy(u64, SocketAddr, CopyCall),
}

/// A running scheduler.
pub struct SchedulerService {
    inner: Mutex<Inner>,
    config: Config,
    outbound: Arc<dyn Outbound>,
    started: Instant,
    started_at: SystemTime,
    /// Drawn at the start; lease ids are unique within it.
    epoch: u64,
    ids: AtomicU64,
    /// The deadline moved to an earlier time.
    sooner: Arc<Notify>,
    /// Wakes whoever waits for something that a step may have brought.
    stepped: Notify,
}

impl std::fmt::Debug for SchedulerService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SchedulerService").field("address", &self.config.address).finish_non_exhaustive()
    }
}

impl SchedulerService {
    /// Starts a scheduler that nobody can reach yet; see [`SchedulerService::serve`] and
    /// [`SchedulerService::routes`]. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(config: Config, outbound: Arc<dyn Outbound>) -> Arc<Self> {
        let epoch: u64 = rand::random();
        let service = Arc::new(Self {
            inner: Mutex::new(Inner {
                // Lease ids carry the low half of the epoch in front, so that restated ones meet no new ones.
                machine: Scheduler::new(config.machine.clone(), epoch & 0x7fff_ffff),
                announces: HashMap::new(),
                holds: HashMap::new(),
                hosts: HashMap::new(),
                closing: false,
            }),
            config,
            outbound,
            started: Instant::now(),
            started_at: SystemTime::now(),
            epoch,
            ids: AtomicU64::new(1),
            sooner: Arc::new(Notify::new()),
            stepped: Notify::new(),
        });
        tokio::spawn(keep_time(Arc::downgrade(&service), service.sooner.clone()));
        service
    }

    /// The services, for a server that the caller runs.
    pub async fn routes(self: &Arc<Self>) -> Routes {
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<SchedulerServer<Face>>().await;
        let scheduler = SchedulerServer::new(Face(self.clone()))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(usize::MAX);
        let cluster = ClusterServer::new(Face(self.clone()))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(usize::MAX);
        Routes::new(scheduler).add_service(cluster).add_service(health)
    }

    /// Serves on `listener` until `shutdown` completes; then every stream ends with UNAVAILABLE, and unary calls under
    /// way are finished.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
        let routes = self.routes().await;
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let service = self.clone();
        tonic::transport::Server::builder()
            // A daemon has one stream per running task.
            .max_concurrent_streams(Some(MAX_STREAMS))
            .http2_keepalive_interval(Some(Duration::from_secs(60)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, async move {
                shutdown.await;
                service.close();
            })
            .await
    }

    /// Ends every stream with UNAVAILABLE and takes no more: the daemons go on with the next scheduler.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closing = true;
        let status = || Status::unavailable("the scheduler is shutting down");
        for (_, announce) in inner.announces.drain() {
            announce.outlet.end(Some(status()));
        }
        for (_, hold) in inner.holds.drain() {
            hold.end(Some(status()));
        }
        drop(inner);
        self.stepped.notify_waiters();
    }

    /// What the scheduler knows and has done.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.inner.lock().machine.snapshot()
    }

    /// What the scheduler has done.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner.lock().machine.counters()
    }

    fn now(&self) -> Tick {
        Tick(0) + self.started.elapsed()
    }

    fn wall(&self, tick: Tick) -> prost_types::Timestamp {
        prost_types::Timestamp::from(self.started_at + tick.since(Tick(0)))
    }

    /// The time since 1970, as imports are told apart by it.
    fn wall_micros(&self) -> u64 {
        let since = (self.started_at + self.started.elapsed()).duration_since(SystemTime::UNIX_EPOCH);
        since.ok().and_then(|since| u64::try_from(since.as_micros()).ok()).unwrap_or_default()
    }

    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes a host's announcement over, in full for those who will be sent to it.
    fn take_host(self: &Arc<Self>, host: common::Host, event: Event) {
        let (id, host) = (HostId::from(host.id.as_str()), Arc::new(host));
        self.inner.lock().hosts.insert(id.clone(), host.clone());
        self.step(event);
        let mut inner = self.inner.lock();
        // The step may have begun with forgetting a host that had been silent for too long: this one.
        if inner.machine.knows_host(&id) {
            inner.hosts.insert(id, host);
        }
    }

    /// Lets the machine take a step and does what it says.
    fn step(self: &Arc<Self>, event: Event) {
        self.ask(|machine, now, out| machine.step(event, now, out));
    }

    /// Asks the machine for something that changes it, and does what it says.
    fn ask<T>(self: &Arc<Self>, ask: impl FnOnce(&mut Scheduler, Tick, &mut Vec<Effect>) -> T) -> T {
        let mut calls = Vec::new();
        let (answer, sooner) = {
            let mut inner = self.inner.lock();
            let before = inner.machine.deadline();
            let (mut events, mut effects) = (Vec::new(), Vec::new());
            let answer = ask(&mut inner.machine, self.now(), &mut effects);
            loop {
                for effect in std::mem::take(&mut effects) {
                    self.perform(&mut inner, effect, &mut events, &mut calls);
                }
                let Some(event) = events.pop() else { break };
                inner.machine.step(event, self.now(), &mut effects);
            }
            let after = inner.machine.deadline();
            (answer, after.is_some_and(|after| before.is_none_or(|before| after < before)))
        };
        self.stepped.notify_waiters();
        if sooner {
            self.sooner.notify_one();
        }
        for call in calls {
            self.spawn(call);
        }
        answer
    }

    fn perform(&self, inner: &mut Inner, effect: Effect, events: &mut Vec<Event>, calls: &mut Vec<Call>) {
        match effect {
            Effect::Answer(stream, task, answer) => {
                let response = self.response(inner, &task, answer);
                let Some(announce) = inner.announces.get(&stream) else { return };
                if !announce.outlet.send(response) {
                    tracing::warn!(task = %task.id, "a peer does not read its announce stream; closing it");
                    let why = "the peer does not read its announce stream";
                    end(inner.announces.remove(&stream), Some(Status::resource_exhausted(why)));
                    events.push(Event::StreamClosed(stream));
                }
            }
            Effect::Close(stream, ending) => {
                let status = status(ending);
                if let Some(status) = &status {
                    tracing::debug!(code = ?status.code(), why = status.message(), "announce stream refused");
                }
                end(inner.announces.remove(&stream), status);
            }
            Effect::CloseHold(hold, why) => {
                if let Some(outlet) = inner.holds.remove(&hold) {
                    outlet.end(Some(Status::aborted(why)));
                }
            }
            Effect::TriggerSeed { stream, task, host, address } => {
                let download = inner.announces.get(&stream).and_then(|announce| announce.download.clone());
                match download {
                    Some(download) => calls.push(Call::Seed(task, host, address, download)),
                    None => events.push(Event::SeedEnded { task, host, failed: true }),
                }
            }
            Effect::Probe { host, address } => calls.push(Call::Probe(host, address)),
            Effect::Order(hold, order, what) => {
                let sent = inner.holds.get(&hold).is_some_and(|outlet| outlet.send(hold::order(order, what)));
                if !sent {
                    let error = Some("its host does not read its Hold".to_owned());
                    events.push(Event::OrderEnded { order, error });
                }
            }
            Effect::Copy { order, task, address, copy, .. } => {
                calls.push(Call::Copy(order, address, CopyCall { task: task.id, copy }));
            }
            Effect::Forget(host) => {
                inner.hosts.remove(&host);
            }
        }
    }

    fn response(
        &self,
        inner: &Inner,
        task: &damselfly_core::TaskKey,
        answer: Answer,
    ) -> AnnouncePeerResponse {
        let (hosts, view) = match &answer {
            Answer::Parents(_) => (&inner.hosts, inner.machine.task(task)),
            _ => (&inner.hosts, None),
        };
        convert::response(answer, view.as_ref(), hosts, |tick| self.wall(tick))
    }

    fn spawn(self: &Arc<Self>, call: Call) {
        let service = self.clone();
        tokio::spawn(async move {
            match call {
                Call::Seed(task, host, address, download) => {
                    tracing::info!(task = %task.id, host = %host, %address, "triggering a seed");
                    let download = convert::for_seed(*download);
                    let ended = service.outbound.trigger_seed(address, download).await;
                    if let Err(error) = &ended {
                        tracing::warn!(task = %task.id, host = %host, %error, "the seed was not triggered");
                    }
                    service.step(Event::SeedEnded { task, host, failed: ended.is_err() });
                }
                Call::Copy(order, address, call) => {
                    let task = call.task.clone();
                    let error =
                        service.outbound.copy(address, call).await.err().map(|error| error.to_string());
                    if let Some(error) = &error {
                        tracing::warn!(%task, %address, error, "a copy was not made, kept or deleted");
                    }
                    service.step(Event::OrderEnded { order, error });
                }
                Call::Probe(host, address) => {
                    let alive = service.outbound.probe(address).await;
                    service.step(Event::Probed { host, alive });
                }
            }
        });
    }
}

fn end(announce: Option<Announce>, status: Option<Status>) {
    if let Some(announce) = announce {
        announce.outlet.end(status);
    }
}

fn status(ending: Ending) -> Option<Status> {
    let (code, why) = match ending {
        Ending::Done => return None,
        Ending::NotFound(why) => (Code::NotFound, why),
        Ending::Refused(why) => (Code::FailedPrecondition, why),
        Ending::Invalid(why) => (Code::InvalidArgument, why),
        Ending::Superseded(why) => (Code::Aborted, why),
        Ending::Exhausted(why) => (Code::ResourceExhausted, why),
    };
    Some(Status::new(code, why))
}

/// Ends a stream that began with nothing.
fn too_late(expected: &str) -> Status {
    Status::deadline_exceeded(format!(
        "the stream's first message did not come; open it with {expected} at once"
    ))
}

/// Ticks the machine whenever its deadline comes. Ends with the service.
async fn keep_time(service: std::sync::Weak<SchedulerService>, sooner: Arc<Notify>) {
    loop {
        let deadline = {
            let Some(service) = service.upgrade() else { return };
            let deadline = service.inner.lock().machine.deadline();
            deadline.map(|at| service.started + at.since(Tick(0)))
        };
        // Without a deadline something has to happen first; the bound only lets a dropped service's task end.
        let at = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
        tokio::select! {
            () = tokio::time::sleep_until(at) => {
                let Some(service) = service.upgrade() else { return };
                service.step(Event::Tick);
            }
            () = sooner.notified() => {}
        }
    }
}
