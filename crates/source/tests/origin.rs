//! [`damselfly_source::Origin`] against origins on loopback that behave well, badly and oddly.

#![expect(clippy::unwrap_used, reason = "clippy.toml's leave does not reach the helpers of tests")]

#[path = "origin/environment.rs"]
mod environment;
#[path = "origin/failures.rs"]
mod failures;
#[path = "origin/ranges.rs"]
mod ranges;
#[path = "origin/redirects.rs"]
mod redirects;
#[path = "origin/secrets.rs"]
mod secrets;
#[path = "origin/server.rs"]
mod server;
#[path = "origin/tls.rs"]
mod tls;
