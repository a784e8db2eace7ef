//! One scheduler of the set, and the loop that keeps up with it.
//!
//! A visit is: health check, announce the host, try `Hold`. A scheduler that accepts `Hold` is ours and is healthy for
//! as long as that stream lives. One that does not know `Hold` is Dragonfly's and is checked from time to time. When a
//! visit ends, the next begins after a backoff.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use damselfly_api::damselfly::v1::cluster_client::ClusterClient;
use damselfly_api::scheduler::v2::scheduler_client::SchedulerClient;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tracing::{debug, warn};

use crate::ClientError;
use crate::announce::{announce_host, delete_host};
use crate::channel::{MAX_ANSWER, Tls, channel};
use crate::cluster::Shared;
use crate::handle::{timed, unary};
use crate::hold;
use crate::ring::RingKey;

/// Connections for announce streams: a tonic server takes 200 streams on each.
const STREAM_CHANNELS: usize = 4;
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A visit of at least this length was no flapping: the backoff begins anew.
const STEADY: Duration = Duration::from_secs(10);
/// How often a scheduler without `Hold` is checked.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// How often a scheduler that turned out to be another one under a second address is looked at again.
const TWIN_EVERY: Duration = Duration::from_secs(60);
/// Failures of calls make the cluster look at a scheduler at most this often.
const DOUBT_EVERY: Duration = Duration::from_secs(1);

/// One scheduler.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) address: SocketAddr,
    control: Channel,
    streams: Vec<Channel>,
    next_stream: AtomicUsize,
    pub(crate) standing: Mutex<Standing>,
    /// A call failed in a way that makes the scheduler doubtful.
    pub(crate) doubt: Notify,
    /// It is no member any more.
    pub(crate) gone: Notify,
}

/// What is known of a scheduler.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) healthy: bool,
    /// It accepted `Hold` when asked last; `None` before the first time.
    pub(crate) ours: Option<bool>,
    /// The address it states, while `Hold` lives or was alive last.
    pub(crate) stated: Option<String>,
    /// The ring it states.
    pub(crate) ring: Vec<SocketAddr>,
    /// Its incarnation.
    pub(crate) epoch: u64,
    /// Changes whenever it becomes healthy.
    pub(crate) session: u64,
    /// Why it is not healthy.
    pub(crate) error: Option<String>,
}

/// How a visit ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The scheduler failed.
    Broken(ClientError),
    /// This is the scheduler at that address, reached by another.
    Twin(SocketAddr),
    /// The daemon leaves, and the scheduler was told.
    Left,
}

impl Member {
    pub(crate) fn new(address: SocketAddr, name: &str, tls: Option<&Tls>) -> Result<Self, ClientError> {
        let streams = (0..STREAM_CHANNELS).map(|_| channel(address, name, tls)).collect::<Result<_, _>>()?;
        Ok(Self {
            address,
            control: channel(address, name, tls)?,
            streams,
            next_stream: AtomicUsize::new(0),
            standing: Mutex::default(),
            doubt: Notify::new(),
            gone: Notify::new(),
        })
    }

    /// For unary calls.
    pub(crate) fn control_client(&self) -> SchedulerClient<Channel> {
        SchedulerClient::new(self.control.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// For announce streams.
    pub(crate) fn stream_client(&self) -> SchedulerClient<Channel> {
        let index = self.next_stream.fetch_add(1, Ordering::Relaxed) % self.streams.len();
        SchedulerClient::new(self.streams[index].clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// For `Hold`.
    pub(crate) fn cluster_client(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.control.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Its place on the ring.
    pub(crate) fn ring_key(&self) -> RingKey {
        match &self.standing.lock().stated {
            Some(stated) => RingKey::Stated(stated.clone()),
            None => RingKey::Resolved(self.address),
        }
    }

    async fn check(&self) -> Result<(), ClientError> {
        let mut client = HealthClient::new(self.control.clone());
        let request = timed(HealthCheckRequest { service: String::new() });
        let answer = unary("health check", self.address, client.check(request)).await?;
        if answer.status() == ServingStatus::Serving {
            Ok(())
        } else {
            Err(ClientError::NotServing { scheduler: self.address })
        }
    }
}

/// Keeps up with one scheduler until the daemon leaves.
pub(crate) async fn drive(shared: &Arc<Shared>, member: &Member) {
    let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
    while !shared.is_leaving() {
        let begun = Instant::now();
        let pause = match Box::pin(visit(shared, member)).await {
            Ended::Left => return,
            Ended::Twin(of) => {
                debug!(scheduler = %member.address, twin_of = %of, "scheduler is known by another address");
                shared.not_healthy(member, format!("the same scheduler as {of}"));
                TWIN_EVERY
            }
            Ended::Broken(error) => {
                shared.not_healthy(member, error.to_string());
                if begun.elapsed() >= STEADY {
                    backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
                }
                let pause = backoff.next();
                debug!(scheduler = %member.address, error = %error, retry_in = ?pause, "scheduler is not healthy");
                pause
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = shared.departure() => {}
        }
    }
}

async fn visit(shared: &Arc<Shared>, member: &Member) -> Ended {
    let interval = shared.options.announce_interval;
    // Calls that failed before this visit say nothing about it.
    let _stale = futures_util::FutureExt::now_or_never(member.doubt.notified());
    let greeting = async {
        member.check().await?;
        announce_host(member, shared.options.host.host(), interval).await
    };
    let greeted = tokio::select! {
        greeted = greeting => greeted,
        _ = shared.departure() => return Ended::Left,
    };
    if let Err(error) = greeted {
        return Ended::Broken(error);
    }
    let held = tokio::select! {
        held = hold::hold(shared, member) => held,
        error = attend(shared, member, None) => Some(Ended::Broken(error)),
    };
    if let Some(ended) = held {
        return ended;
    }
    shared.healthy_foreign(member);
    tokio::select! {
        _ = shared.departure() => {
            shared.not_healthy(member, "this daemon is leaving".to_owned());
            let host = shared.options.host.host();
            if let Err(error) = delete_host(member, host.id).await {
                warn!(scheduler = %member.address, %error, "scheduler was not told that this host leaves");
            }
            Ended::Left
        }
        error = attend(shared, member, Some(CHECK_EVERY)) => Ended::Broken(error),
    }
}

/// Looks at the scheduler every `check_every`, and when a call raised doubts. Returns when it turns out to be gone.
async fn attend(shared: &Shared, member: &Member, check_every: Option<Duration>) -> ClientError {
    let start = Instant::now();
    let pace = check_every.unwrap_or(CHECK_EVERY);
    let mut check = tokio::time::interval_at(start + pace, pace);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut doubted = start;
    loop {
        let outcome = tokio::select! {
            _ = check.tick(), if check_every.is_some() => member.check().await,
            () = member.doubt.notified() => {
                tokio::time::sleep_until(doubted + DOUBT_EVERY).await;
                doubted = Instant::now();
                // It may be there and have forgotten this host.
                announce_host(member, shared.options.host.host(), shared.options.announce_interval).await
            }
        };
        match outcome {
            Ok(()) => {}
            Err(error) if error.doubts_scheduler() => return error,
            Err(error) => {
                warn!(scheduler = %member.address, %error, "scheduler did not take the announcement");
            }
        }
    }
}

/// Whether a refusal of `Hold` means that the scheduler, or a gateway before it, does not know the call.
pub(crate) fn unknown_call(code: Code) -> bool {
    matches!(code, Code::Unimplemented | Code::PermissionDenied | Code::Unauthenticated)
}

/// Pauses that double, each shortened at random by up to a half so that a thousand daemons do not return as one.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { next: min, max }
    }

    pub(crate) fn next(&mut self) -> Duration {
        use std::hash::{BuildHasher, Hasher};
        let whole = self.next;
        self.next = (whole * 2).min(self.max);
        let random = std::hash::RandomState::new().build_hasher().finish();
        let half = whole / 2;
        half + half.mul_f64(f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_end() {
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        let mut whole = BACKOFF_MIN;
        for _ in 0..20 {
            let pause = backoff.next();
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
            whole = (whole * 2).min(BACKOFF_MAX);
        }
        assert_eq!(whole, BACKOFF_MAX);
    }
}
