//! A TCP proxy that lets a connection suffer: delays, limits, truncation, resets, silence, flipped bits.
//!
//! `listen → connect`, each direction with its own [`Faults`], changed while connections run. Offsets count the bytes
//! of one connection in one direction.

mod pump;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Waited, wait};

/// A running proxy. Dropping it closes its port and its connections.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _running: DropGuard,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From who connected to the proxy.
    ToTarget,
    /// Back to who connected.
    ToClient,
}

/// What happens to the bytes of one direction. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// How much later than they came bytes go on. What is on its way keeps its order and does not limit the rate.
    pub delay: Duration,
    /// Bytes per second of all connections together.
    pub rate: Option<u64>,
    /// Connections whose number, from 0 in order of acceptance, is at least this one are spared what follows.
    pub spare_from: Option<u64>,
    /// What happens at an offset.
    pub strike: Option<Strike>,
}

/// A fault at an offset: that many bytes of the connection pass unharmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// The direction ends cleanly, as if its sender had nothing more to say.
    Truncate(u64),
    /// The whole connection is reset.
    Reset(u64),
    /// What follows vanishes; nobody is told.
    Swallow(u64),
    /// The lowest bit of the byte at this offset is flipped.
    Flip(u64),
}

impl Faults {
    /// A strike on every connection.
    #[must_use]
    pub fn strike(strike: Strike) -> Self {
        Self { strike: Some(strike), ..Self::default() }
    }

    /// A delay.
    #[must_use]
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// A limit in bytes per second.
    #[must_use]
    pub fn rate(rate: u64) -> Self {
        Self { rate: Some(rate), ..Self::default() }
    }
}

/// What went through so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open: u64,
    /// Bytes passed on to the target.
    pub to_target: u64,
    /// Bytes passed on to clients.
    pub to_client: u64,
    /// Strikes that happened.
    pub strikes: u64,
}

/// What holds now.
#[derive(Clone, Debug, Default)]
struct Plan {
    to_target: Faults,
    to_client: Faults,
    paused: bool,
    refusing: bool,
}

impl Plan {
    fn faults(&self, direction: Direction) -> &Faults {
        match direction {
            Direction::ToTarget => &self.to_target,
            Direction::ToClient => &self.to_client,
        }
    }
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    plan: watch::Sender<Plan>,
    counts: watch::Sender<Counts>,
    paces: [crate::pace::Pace; 2],
    /// Counts calls of [`Proxy::reset_all`].
    resets: watch::Sender<u64>,
}

impl Proxy {
    /// Starts on a free port of 127.0.0.1, in front of `target`.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), target).await
    }

    /// Starts at an address.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start_at(listen: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            plan: watch::Sender::default(),
            counts: watch::Sender::default(),
            paces: Default::default(),
            resets: watch::Sender::default(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(accept(listener, Arc::clone(&shared), stop.clone()));
        Ok(Self { addr, shared, _running: stop.drop_guard() })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What happens from now on to the bytes of one direction, on open connections too.
    pub fn set(&self, direction: Direction, faults: Faults) {
        self.shared.plan.send_modify(|plan| match direction {
            Direction::ToTarget => plan.to_target = faults,
            Direction::ToClient => plan.to_client = faults,
        });
    }

    /// Takes back everything: faults, pause, refusal.
    pub fn heal(&self) {
        self.shared.plan.send_replace(Plan::default());
    }

    /// Nothing passes any more, in either direction, and nobody is told.
    pub fn pause(&self) {
        self.shared.plan.send_modify(|plan| plan.paused = true);
    }

    /// What was held passes.
    pub fn resume(&self) {
        self.shared.plan.send_modify(|plan| plan.paused = false);
    }

    /// Whether new connections are reset at once.
    pub fn refuse(&self, refusing: bool) {
        self.shared.plan.send_modify(|plan| plan.refusing = refusing);
    }

    /// Resets every open connection.
    pub fn reset_all(&self) {
        self.shared.resets.send_modify(|generation| *generation += 1);
    }

    /// What went through so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *self.shared.counts.borrow()
    }

    /// Waits until the counts are as wished, and returns them.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn wait_until(&self, is_so: impl FnMut(&Counts) -> bool) -> Result<Counts, Waited> {
        wait::until(&self.shared.counts, is_so).await
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let client = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => client,
                // A client that went away before it was accepted.
                Err(_) => continue,
            },
        };
        let mut number = 0;
        shared.counts.send_modify(|counts| {
            number = counts.connections;
            counts.connections += 1;
            counts.open += 1;
        });
        let (shared, stop) = (Arc::clone(&shared), stop.child_token());
        tokio::spawn(async move {
            connect(client, number, &shared, &stop).await;
            shared.counts.send_modify(|counts| counts.open -= 1);
        });
    }
}

/// One connection from beginning to end.
async fn connect(mut client: TcpStream, number: u64, shared: &Shared, stop: &CancellationToken) {
    let mut resets = shared.resets.subscribe();
    let refusing = shared.plan.borrow().refusing;
    let target = if refusing { None } else { TcpStream::connect(shared.target).await.ok() };
    let Some(mut target) = target else {
        // A target that cannot be reached looks like one that refuses.
        drop(client.set_zero_linger());
        return;
    };
    // Without it, small writes of the far side would be held back; nothing depends on it.
    drop((client.set_nodelay(true), target.set_nodelay(true)));
    let ended = tokio::select! {
        () = stop.cancelled() => pump::Ended::Over,
        _ = resets.changed() => pump::Ended::Reset,
        ended = pump::both(&mut client, &mut target, number, shared) => ended,
    };
    if matches!(ended, pump::Ended::Reset) {
        drop((client.set_zero_linger(), target.set_zero_linger()));
    }
}

#[cfg(test)]
mod tests;
