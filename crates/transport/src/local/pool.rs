//! The tools' connections to one daemon: opened when they are needed, used again, looked at before, closed when idle.

mod channel;
mod lease;
mod slots;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use damselfly_core::Tick;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tonic::transport::Channel;

use self::lease::{Claim, Waiting};
use self::slots::{Slots, Ticket};
use super::ConnectError;

pub use channel::PoolChannel;
pub use lease::Lease;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Small messages: many calls share a connection.
    Call,
    /// A stream of content, with which no other stream of content shares a connection, nor its flow control.
    Content,
}

/// The bounds of a [`Pool`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Connections at a time; at least one.
    pub max_connections: usize,
    /// After how long without use a connection is closed.
    pub idle_timeout: Duration,
    /// After how long without use it is checked before it is used again. An end that the kernel tells of is always noticed.
    pub check_after: Duration,
    /// How long the check may take.
    pub check_timeout: Duration,
    /// How long one try to connect may take. A unix socket connects at once or never; the time is for a daemon whose
    /// backlog is full.
    pub connect_timeout: Duration,
    /// How long to wait for a connection when there may be no more.
    pub wait: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            max_connections: 100,
            idle_timeout: Duration::from_secs(60),
            check_after: Duration::from_secs(1),
            check_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(5),
            wait: Duration::from_secs(30),
        }
    }
}

/// What a pool has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections opened.
    pub opened: u64,
    /// Times that a connection was used which had been used before, or was in use.
    pub reused: u64,
    /// Connections found dead by the check before they were used again.
    pub checks_failed: u64,
    /// Connections that ended without the pool's doing.
    pub lost: u64,
    /// Connections opened in place of those.
    pub reconnects: u64,
    /// Connections closed because nobody used them.
    pub evicted: u64,
    /// Users who waited in vain while there might be no more connections.
    pub refused: u64,
}

/// Why there is no connection.
#[derive(Clone, Debug, Error)]
pub enum PoolError {
    /// None can be opened.
    #[error("{source} ({tries} tries)")]
    Unreachable {
        /// How often it was tried.
        tries: u32,
        /// Socket and reason of the last try.
        #[source]
        source: Arc<ConnectError>,
    },
    /// There may be no more, and none became free.
    #[error(
        "all {max} connections to the daemon at {path} are in use, and none became free within {waited:?}; \
         allow more of them (client.streaming.maxConnections)"
    )]
    Full {
        /// The socket.
        path: PathBuf,
        /// How many there may be.
        max: usize,
        /// How long it was waited.
        waited: Duration,
    },
}

impl From<PoolError> for Status {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Unreachable { .. } => {
                let mut status = Status::unavailable(error.to_string());
                status.set_source(Arc::new(error));
                status
            }
            // Nothing broke.
            PoolError::Full { .. } => Status::resource_exhausted(error.to_string()),
        }
    }
}

/// The connections to the daemon at one socket. Cloning gives another handle on them; with the last one, and the last
/// lease, they are closed.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    options: PoolOptions,
    /// What ticks count from.
    begun: Instant,
    shared: Mutex<Shared>,
    /// The keeper has an earlier deadline than it knows, or nothing to keep any more.
    sooner: Arc<Notify>,
}

#[derive(Debug)]
struct Shared {
    slots: Slots<Channel>,
    waiting: HashMap<Ticket, oneshot::Sender<Result<Claim, PoolError>>>,
    /// What the keeper waits for.
    keeper: Option<Tick>,
}

impl Pool {
    /// Opens the first connection to the daemon at `path`, which is tried once. Needs a runtime, in which the connections
    /// live.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(path: &Path, options: PoolOptions) -> Result<Self, ConnectError> {
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            begun: Instant::now(),
            shared: Mutex::new(Shared { slots: Slots::new(&options), waiting: HashMap::new(), keeper: None }),
            options,
            sooner: Arc::default(),
        });
        tokio::spawn(keep(Arc::downgrade(&inner), inner.sooner.clone()));
        // Where there is none yet the first is granted.
        if let Ok(claim) = inner.ask(Purpose::Call) {
            claim.warm_up().await?;
        }
        Ok(Self(inner))
    }

    /// A connection for `purpose`, for as long as the lease is held. One that was idle for a while is checked first; one
    /// that broke is opened again, with growing pauses between a few tries.
    ///
    /// # Errors
    /// When the daemon cannot be reached, or no connection becomes free in time.
    pub async fn lease(&self, purpose: Purpose) -> Result<Lease, PoolError> {
        loop {
            let claim = match self.0.ask(purpose) {
                Ok(claim) => claim,
                Err(waiting) => waiting.claim().await?,
            };
            // One that ends between the two is none.
            if let Some(lease) = claim.ready().await? {
                return Ok(lease);
            }
        }
    }

    /// A gRPC channel whose every call leases a connection for `purpose`.
    #[must_use]
    pub fn channel(&self, purpose: Purpose) -> PoolChannel {
        PoolChannel::pooled(self.clone(), purpose)
    }

    /// What the pool has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.shared.lock().slots.counters()
    }
}

/// Closes what has been idle for too long, as long as there is a pool.
async fn keep(pool: Weak<Inner>, sooner: Arc<Notify>) {
    loop {
        let Some(inner) = pool.upgrade() else { return };
        let deadline = inner.update(|shared, now| {
            shared.slots.expire(now);
            shared.keeper = shared.slots.next_deadline();
            shared.keeper.map(|tick| inner.begun + tick.since(Tick::default()))
        });
        drop(inner);
        match deadline {
            Some(deadline) => tokio::select! {
                () = sleep_until(deadline) => {}
                () = sooner.notified() => {}
            },
            None => sooner.notified().await,
        }
    }
}

impl Inner {
    /// A connection, or the wait for one.
    fn ask(self: &Arc<Self>, purpose: Purpose) -> Result<Claim, Waiting> {
        let asked = self.update(|shared, now| {
            shared.slots.ask(purpose, now).map_err(|ticket| {
                let (tell, told) = oneshot::channel();
                shared.waiting.insert(ticket, tell);
                (ticket, told)
            })
        });
        match asked {
            Ok(grant) => Ok(Claim::new(self, grant, purpose)),
            Err((ticket, told)) => Err(Waiting::new(self, ticket, told)),
        }
    }

    /// Changes something, and hands on what became free by it.
    fn update<T>(self: &Arc<Self>, change: impl FnOnce(&mut Shared, Tick) -> T) -> T {
        let mut shared = self.shared.lock();
        let now = Tick::default() + self.begun.elapsed();
        let result = change(&mut shared, now);
        let granted = shared.slots.settle(now);
        let mut told = Vec::with_capacity(granted.len());
        for (ticket, purpose, grant) in granted {
            if let Some(tell) = shared.waiting.remove(&ticket) {
                told.push((tell, grant, purpose));
            }
        }
        let deadline = shared.slots.next_deadline();
        if deadline.is_some_and(|deadline| shared.keeper.is_none_or(|keeper| deadline < keeper)) {
            self.sooner.notify_one();
        }
        drop(shared);
        for (tell, grant, purpose) in told {
            // Whoever has gone gives it back by this.
            drop(tell.send(Ok(Claim::new(self, grant, purpose))));
        }
        result
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.sooner.notify_one();
        let Counters { opened, reused, checks_failed, lost, reconnects, evicted, refused } =
            self.shared.get_mut().slots.counters();
        tracing::debug!(
            socket = %self.path.display(),
            opened,
            reused,
            checks_failed,
            lost,
            reconnects,
            evicted,
            refused,
            "connections to the daemon closed"
        );
    }
}
