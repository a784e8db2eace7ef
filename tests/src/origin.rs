//! An HTTP/1.1 origin on loopback that serves generated content, misbehaves on request and counts what it sent.
//!
//! Every path of the form `/blob/<bytes>` serves the [`Pattern`] of that length; the query's `seed` picks the content,
//! everything else behind the `?` is ignored (a signature, say). Anything behind the length (`/blob/<bytes>/<name>`)
//! makes a path of its own. What a path does is its [`Behaviour`], which can be changed while requests run.

mod behaviour;
mod serve;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use behaviour::{Behaviour, Gate, Trouble};

use crate::pace::Pace;
use crate::{Pattern, Waited, wait};

/// A running origin. Dropping it closes its port and its connections.
#[derive(Debug)]
pub struct OriginServer {
    addr: SocketAddr,
    shared: Arc<Shared>,
    running: DropGuard,
    ended: JoinHandle<()>,
}

/// One piece of content that the origin serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Where it is.
    pub url: String,
    /// What it is, unless its [`Behaviour`] names another seed.
    pub pattern: Pattern,
    path: String,
}

/// What a path, or the whole origin, has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted (of the whole origin only).
    pub connections: u64,
    /// Connections open now (of the whole origin only).
    pub open: u64,
    /// Requests whose head was read.
    pub requests: u64,
    /// Those among them that were no GET.
    pub not_get: u64,
    /// Responses that were no 2xx.
    pub refused: u64,
    /// Content bytes written to connections. What a client that went away left in the kernel's buffers is included.
    pub body_bytes: u64,
}

/// A request, as the log keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `GET`, hopefully.
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The status it was answered with; 0 where the connection was closed instead.
    pub status: u16,
}

impl Seen {
    /// The value of a header; `name` in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, Default)]
struct Shared {
    sites: Mutex<HashMap<(String, u64), Arc<Site>>>,
    total: watch::Sender<Counts>,
    log: Mutex<Vec<Seen>>,
}

/// One path with one seed.
#[derive(Debug, Default)]
struct Site {
    behaviour: watch::Sender<Behaviour>,
    counts: watch::Sender<Counts>,
    pace: Pace,
}

impl Shared {
    fn site(&self, path: &str, seed: u64) -> Arc<Site> {
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(sites.entry((path.to_owned(), seed)).or_default())
    }
}

impl OriginServer {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn start() -> io::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts at an address, for example that of an origin that was dropped before.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start_at(addr: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let stop = CancellationToken::new();
        let ended = tokio::spawn(serve::accept(listener, Arc::clone(&shared), stop.clone()));
        Ok(Self { addr, shared, running: stop.drop_guard(), ended })
    }

    /// Ends it, connections and all, and returns once its port is free.
    ///
    /// # Panics
    /// When it has panicked.
    pub async fn kill(self) {
        drop(self.running);
        self.ended.await.expect("the origin served to its end");
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Content of `length` bytes. It is there without being announced: this only names it.
    #[must_use]
    pub fn blob(&self, length: u64, seed: u64) -> Blob {
        self.at(format!("/blob/{length}"), length, seed)
    }

    /// As [`OriginServer::blob`], at a path that ends in `name`.
    #[must_use]
    pub fn named_blob(&self, length: u64, seed: u64, name: &str) -> Blob {
        self.at(format!("/blob/{length}/{name}"), length, seed)
    }

    fn at(&self, path: String, length: u64, seed: u64) -> Blob {
        let url = format!("http://{}{path}?seed={seed}", self.addr);
        Blob { url, pattern: Pattern::new(seed, length), path }
    }

    /// Changes how `blob` is served, requests that are being answered included.
    pub fn set(&self, blob: &Blob, behaviour: Behaviour) {
        self.site(blob).behaviour.send_replace(behaviour);
    }

    /// Changes how `blob` is served from what it is now.
    pub fn modify(&self, blob: &Blob, change: impl FnOnce(&mut Behaviour)) {
        self.site(blob).behaviour.send_modify(change);
    }

    /// What was done for `blob`.
    #[must_use]
    pub fn counts(&self, blob: &Blob) -> Counts {
        *self.site(blob).counts.borrow()
    }

    /// What was done in all.
    #[must_use]
    pub fn total(&self) -> Counts {
        *self.shared.total.borrow()
    }

    /// Waits until the counts of `blob` are as wished, and returns them.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn wait_until(
        &self,
        blob: &Blob,
        is_so: impl FnMut(&Counts) -> bool,
    ) -> Result<Counts, Waited> {
        wait::until(&self.site(blob).counts, is_so).await
    }

    /// Waits until the counts of the whole origin are as wished, and returns them.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn wait_until_total(&self, is_so: impl FnMut(&Counts) -> bool) -> Result<Counts, Waited> {
        wait::until(&self.shared.total, is_so).await
    }

    /// Every request answered so far, in order of their answers' beginning.
    #[must_use]
    pub fn log(&self) -> Vec<Seen> {
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn site(&self, blob: &Blob) -> Arc<Site> {
        self.shared.site(&blob.path, blob.pattern.seed)
    }
}

#[cfg(test)]
mod tests;
