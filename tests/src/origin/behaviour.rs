//! What a path can be told to do.

use std::time::Duration;

use tokio::sync::watch;

use crate::{Waited, wait};

/// How a path is served. The default is a well-behaved static file with ranges, length, `ETag` and `Last-Modified`.
#[derive(Clone, Debug, PartialEq)]
pub struct Behaviour {
    /// Whether `Range` is honoured.
    pub ranges: bool,
    /// Whether the length is told; without it whole bodies are chunked.
    pub length: bool,
    /// The content served, where it is not that of the URL: changing it (with `etag`) is a new version.
    pub seed: Option<u64>,
    /// Bytes of content, where they are not those of the URL.
    pub content_length: Option<u64>,
    /// The `ETag`, quotes included; `None` sends none.
    pub etag: Option<String>,
    /// The `Last-Modified`; `None` sends none.
    pub last_modified: Option<String>,
    /// Further response headers.
    pub headers: Vec<(String, String)>,
    /// A request header that must be there, else 401.
    pub require: Option<(String, String)>,
    /// As a URL signed for GET: every other method is answered 403.
    pub presigned: bool,
    /// Where requests are sent on to (307).
    pub redirect: Option<String>,
    /// The status all requests are answered with.
    pub status: Option<u16>,
    /// What goes wrong with the first requests.
    pub trouble: Option<Trouble>,
    /// Bytes per second for all responses of this path together.
    pub rate: Option<u64>,
    /// Each response's connection breaks after this many bytes of its body.
    pub cut_after: Option<u64>,
    /// The path dies once this many bytes of bodies were sent in all: responses break off, later requests are not
    /// answered but their connections closed.
    pub die_after: Option<u64>,
    /// Each response stops after this many bytes of its body and waits for the gate.
    pub gate: Option<(u64, Gate)>,
    /// Whether the gate is in front of the head too.
    pub gate_head: bool,
}

/// A failure that goes away by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// How many requests it meets, from the path's first one on.
    pub requests: u64,
    /// Their status.
    pub status: u16,
    /// Their `Retry-After`.
    pub retry_after: Option<Duration>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            ranges: true,
            length: true,
            seed: None,
            content_length: None,
            etag: Some("\"v1\"".to_owned()),
            last_modified: Some("Wed, 21 Oct 2015 07:28:00 GMT".to_owned()),
            headers: Vec::new(),
            require: None,
            presigned: false,
            redirect: None,
            status: None,
            trouble: None,
            rate: None,
            cut_after: None,
            die_after: None,
            gate: None,
            gate_head: false,
        }
    }
}

impl Behaviour {
    /// An origin without ranges.
    #[must_use]
    pub fn without_ranges() -> Self {
        Self { ranges: false, ..Self::default() }
    }

    /// An origin that says neither ranges nor length.
    #[must_use]
    pub fn chunked() -> Self {
        Self { ranges: false, length: false, ..Self::default() }
    }

    /// Another version of the content: other bytes, another `ETag`.
    #[must_use]
    pub fn version(seed: u64) -> Self {
        Self { seed: Some(seed), etag: Some(format!("\"seed {seed}\"")), ..Self::default() }
    }

    /// Only requests with this header are served.
    #[must_use]
    pub fn requiring(name: &str, value: &str) -> Self {
        Self { require: Some((name.to_ascii_lowercase(), value.to_owned())), ..Self::default() }
    }

    /// The first `requests` requests are answered 503.
    #[must_use]
    pub fn busy(requests: u64) -> Self {
        Self { trouble: Some(Trouble { requests, status: 503, retry_after: None }), ..Self::default() }
    }

    /// Every response waits for `gate` before its head.
    #[must_use]
    pub fn held_by(gate: &Gate) -> Self {
        Self { gate: Some((0, gate.clone())), gate_head: true, ..Self::default() }
    }
}

/// Holds responses until it is opened, and tells how many it holds. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate(watch::Sender<GateState>);

#[derive(Clone, Copy, Debug)]
struct GateState {
    open: bool,
    waiting: usize,
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn closed() -> Self {
        Self(watch::Sender::new(GateState { open: false, waiting: 0 }))
    }

    /// Lets pass who waits and who comes.
    pub fn open(&self) {
        self.0.send_modify(|gate| gate.open = true);
    }

    /// Holds who comes from now on.
    pub fn close(&self) {
        self.0.send_modify(|gate| gate.open = false);
    }

    /// Waits until exactly `count` responses are held. Those whose clients went away are not.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn holds(&self, count: usize) -> Result<(), Waited> {
        wait::until(&self.0, |gate| gate.waiting == count).await.map(drop)
    }

    /// Waits until the gate is open, however long that takes.
    pub(super) async fn pass(&self) {
        struct Waiting<'a>(&'a Gate);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.0.send_modify(|gate| gate.waiting -= 1);
            }
        }
        self.0.send_modify(|gate| gate.waiting += 1);
        let _waiting = Waiting(self);
        // Fails only without a sender, and this gate is one.
        drop(self.0.subscribe().wait_for(|gate| gate.open).await);
    }
}

impl PartialEq for Gate {
    fn eq(&self, other: &Self) -> bool {
        self.0.same_channel(&other.0)
    }
}
