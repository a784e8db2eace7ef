//! What the whole-system tests share.
//!
//! - [`content`]: bytes that are a pure function of a seed and an offset, so that any byte anywhere can be checked
//!   without a stored copy.
//! - [`origin`]: an HTTP origin on loopback that serves such content, misbehaves on request and counts what it sent.
//! - [`swarm`]: daemons, each in its own home, and clients that talk to them as programs do.
//! - [`proxy`]: a TCP proxy that delays, cuts, resets, swallows and corrupts what passes.
//!
//! Nothing here polls: tests wait for events (`wait_until`), each under a deadline.

pub mod content;
pub mod origin;
mod pace;
pub mod proxy;
pub mod swarm;
mod wait;

pub use content::Pattern;
pub use origin::OriginServer;
pub use proxy::Proxy;
pub use wait::Waited;
