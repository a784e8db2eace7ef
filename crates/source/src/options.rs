//! What an [`Origin`](crate::Origin) is told when it is made.

use std::fmt;
use std::time::Duration;

use damselfly_core::redact;

/// Settings of an [`Origin`](crate::Origin).
#[derive(Clone)]
pub struct Options {
    /// `User-Agent` of requests that bring none of their own.
    pub user_agent: String,
    /// Added to every request that does not have a header of that name (`backend.requestHeader`).
    pub extra_headers: Vec<(String, String)>,
    /// Which proxies are used.
    pub proxies: Proxies,
    /// Certificates in DER form that are trusted besides the system's.
    pub extra_roots: Vec<Vec<u8>>,
    /// Longest wait for name resolution, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Longest wait for the head of a response, connecting included; each redirect starts anew.
    pub head_timeout: Duration,
    /// Longest wait for the next bytes of a body.
    pub stall_timeout: Duration,
    /// Redirects followed for one request.
    pub max_redirects: usize,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// Unused connections kept per origin.
    pub max_idle: usize,
    /// HTTP/2 receive window of one response, in bytes.
    pub stream_window: u32,
    /// HTTP/2 receive window of one connection, in bytes.
    pub connection_window: u32,
}

/// Where proxies come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proxies {
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in either case, read when the origin is made.
    #[default]
    Environment,
    /// None at all.
    Direct,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            user_agent: concat!("damselfly/", env!("CARGO_PKG_VERSION")).to_owned(),
            extra_headers: Vec::new(),
            proxies: Proxies::Environment,
            extra_roots: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(10),
            max_redirects: 10,
            idle_timeout: Duration::from_secs(30),
            max_idle: 64,
            stream_window: 4 << 20,
            connection_window: 16 << 20,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("user_agent", &self.user_agent)
            .field("extra_headers", &HeaderNames(&self.extra_headers))
            .field("proxies", &self.proxies)
            .field("extra_roots", &self.extra_roots.len())
            .field("connect_timeout", &self.connect_timeout)
            .field("head_timeout", &self.head_timeout)
            .field("stall_timeout", &self.stall_timeout)
            .field("max_redirects", &self.max_redirects)
            .field("idle_timeout", &self.idle_timeout)
            .field("max_idle", &self.max_idle)
            .field("stream_window", &self.stream_window)
            .field("connection_window", &self.connection_window)
            .finish()
    }
}

/// Shows the names of headers and hides every value: which ones are secret is the user's knowledge, not ours.
pub(crate) struct HeaderNames<'a>(pub(crate) &'a [(String, String)]);

impl fmt::Debug for HeaderNames<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(name, _)| (name, redact::REDACTED))).finish()
    }
}
