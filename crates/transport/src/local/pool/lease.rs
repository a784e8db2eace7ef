//! From a decision of the pool to a connection in somebody's hands, and back.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::slots::{Grant, Slot, Ticket};
use super::{Inner, PoolError, Purpose};
use crate::local::client::connect_guarded;
use crate::local::{ConnectError, is_broken_connection};

/// How often a connection that cannot be opened is tried again.
const RETRIES: u32 = 3;
/// Before the first of these; twice as long before each further one.
const BACKOFF: Duration = Duration::from_millis(100);

/// A connection of a pool, for as long as this is held.
#[derive(Debug)]
pub struct Lease {
    channel: Channel,
    claim: Claim,
}

impl Lease {
    /// The connection. It does not come back by itself when it ends, as channels otherwise do.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// A call on it failed as calls do on a connection that breaks: nobody gets it without a check.
    pub fn suspect(&mut self) {
        self.claim.suspect = true;
    }
}

/// The right to a connection that may not be open yet. Dropped, it is given back, whatever became of it.
#[derive(Debug)]
pub(super) struct Claim {
    pool: Arc<Inner>,
    grant: Grant,
    purpose: Purpose,
    suspect: bool,
}

impl Claim {
    pub(super) fn new(pool: &Arc<Inner>, grant: Grant, purpose: Purpose) -> Self {
        Self { pool: pool.clone(), grant, purpose, suspect: false }
    }

    /// Makes it a lease; `None` where its connection has ended meanwhile.
    pub(super) async fn ready(self) -> Result<Option<Lease>, PoolError> {
        let slot = self.grant.slot();
        let connection = || self.pool.shared.lock().slots.connection(slot);
        let channel = match self.grant {
            Grant::Use(_) => connection(),
            Grant::Check(_) => match connection() {
                Some(channel) if self.lives(&channel).await => Some(channel),
                _ => {
                    self.pool.update(|shared, _| shared.slots.replace(slot));
                    Some(self.open().await?)
                }
            },
            Grant::Open(_) => Some(self.open().await?),
        };
        Ok(channel.map(|channel| Lease { channel, claim: self }))
    }

    /// Opens the pool's first connection, for a call that is still to come.
    pub(super) async fn warm_up(self) -> Result<(), ConnectError> {
        let slot = self.grant.slot();
        let channel = self.dial(slot).await?;
        self.pool.update(|shared, _| {
            // One that has ended again is no matter of the pool's making.
            if shared.slots.opened(slot, channel) {
                shared.slots.keep_fresh(slot);
            }
        });
        Ok(())
    }

    /// Whether anybody answers. What the daemon says of its health is its own affair.
    async fn lives(&self, channel: &Channel) -> bool {
        let mut health = HealthClient::new(channel.clone());
        let asked = health.check(HealthCheckRequest::default());
        let lives = match timeout(self.pool.options.check_timeout, asked).await {
            Ok(Ok(_)) => true,
            Ok(Err(status)) => !is_broken_connection(&status),
            Err(_elapsed) => false,
        };
        lives && self.pool.update(|shared, _| shared.slots.passed(self.grant.slot()))
    }

    /// Opens it, in a few tries.
    async fn open(&self) -> Result<Channel, PoolError> {
        let slot = self.grant.slot();
        let mut retries = 0;
        loop {
            let failed = match self.dial(slot).await {
                Ok(channel) if self.pool.update(|shared, _| shared.slots.opened(slot, channel.clone())) => {
                    return Ok(channel);
                }
                Ok(_) => self.error(io::Error::from(io::ErrorKind::ConnectionReset)),
                Err(why) => why,
            };
            if retries == RETRIES || !may_pass(failed.source.kind()) {
                let error = PoolError::Unreachable { tries: retries + 1, source: Arc::new(failed) };
                self.fail(slot, &error);
                return Err(error);
            }
            tracing::debug!(error = %failed, retries, "daemon not reached");
            sleep(BACKOFF * 2_u32.pow(retries)).await;
            retries += 1;
        }
    }

    /// Tries once to open it.
    async fn dial(&self, slot: Slot) -> Result<Channel, ConnectError> {
        let dialled = self.pool.update(|shared, _| shared.slots.dial(slot));
        let watch = Watch { pool: Arc::downgrade(&self.pool), slot, dialled };
        let connect = connect_guarded(&self.pool.path, watch);
        timeout(self.pool.options.connect_timeout, connect).await.unwrap_or_else(|_elapsed| {
            let why = "the daemon does not accept connections";
            Err(self.error(io::Error::new(io::ErrorKind::TimedOut, why)))
        })
    }

    /// Tells those who waited for this very connection.
    fn fail(&self, slot: Slot, error: &PoolError) {
        let waiting = self.pool.update(|shared, _| {
            let tickets = shared.slots.failed(slot);
            tickets.into_iter().filter_map(|ticket| shared.waiting.remove(&ticket)).collect::<Vec<_>>()
        });
        for tell in waiting {
            // Whoever has gone need not know.
            drop(tell.send(Err(error.clone())));
        }
    }

    fn error(&self, source: io::Error) -> ConnectError {
        ConnectError { path: self.pool.path.clone(), source }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let (slot, purpose, suspect) = (self.grant.slot(), self.purpose, self.suspect);
        self.pool.update(|shared, now| shared.slots.release(slot, purpose, suspect, now));
    }
}

/// Whether a failure to connect is one of a daemon that is just being started again.
fn may_pass(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{InvalidInput, NotADirectory, PermissionDenied};
    !matches!(kind, InvalidInput | NotADirectory | PermissionDenied)
}

/// Says when a connection is gone: it is dropped with its socket.
struct Watch {
    pool: Weak<Inner>,
    slot: Slot,
    dialled: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.update(|shared, _| shared.slots.ended(self.slot, self.dialled));
        }
    }
}

/// A place in the queue for a connection; dropped, it is given up.
#[derive(Debug)]
pub(super) struct Waiting {
    pool: Arc<Inner>,
    ticket: Ticket,
    told: oneshot::Receiver<Result<Claim, PoolError>>,
}

impl Waiting {
    pub(super) fn new(
        pool: &Arc<Inner>,
        ticket: Ticket,
        told: oneshot::Receiver<Result<Claim, PoolError>>,
    ) -> Self {
        Self { pool: pool.clone(), ticket, told }
    }

    pub(super) async fn claim(mut self) -> Result<Claim, PoolError> {
        let options = &self.pool.options;
        if let Ok(Ok(told)) = timeout(options.wait, &mut self.told).await {
            return told;
        }
        self.pool.update(|shared, _| shared.slots.refuse(self.ticket));
        Err(PoolError::Full {
            path: self.pool.path.clone(),
            max: options.max_connections.max(1),
            waited: options.wait,
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pool.update(|shared, _| {
            shared.waiting.remove(&self.ticket);
            shared.slots.withdraw(self.ticket);
        });
    }
}
