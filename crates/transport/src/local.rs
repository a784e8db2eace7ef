//! The unix socket between the tools and the daemon.
//!
//! [`Listener`] binds it, tells gRPC connections from descriptor connections by their first four bytes, and learns
//! who calls ([`Caller`]). [`PathAccess`] opens what a caller names with the caller's own rights; what a caller opened
//! itself comes by [`hand_over`]. [`Pool`] is the tools' side: their connections.

mod access;
mod act;
mod bind;
mod caller;
mod client;
mod descriptor;
mod listener;
mod metadata;
mod pool;
mod stream;

pub use access::{OutputTarget, PathAccess, PathError, TempOutput};
pub use act::{ActError, Life, as_caller, as_caller_for_long, with_handed_over};
pub use bind::{BindError, BindOptions};
pub use caller::Caller;
pub use client::{ConnectError, connect, endpoint, is_broken_connection};
pub use descriptor::{DescriptorError, Direction, hand_over};
pub use listener::{Connection, Listener};
pub use metadata::{DESCRIPTOR_KEY, MetadataError, SEEN_KEY, Seen, Token};
pub use pool::{Counters, Lease, Pool, PoolChannel, PoolError, PoolOptions, Purpose};
pub use stream::LocalStream;

/// The first bytes of a descriptor connection. HTTP/2 begins with `PRI `.
pub const DESCRIPTOR_MAGIC: [u8; 4] = *b"DFFD";
/// The first bytes of every HTTP/2 connection.
pub const HTTP2_MAGIC: [u8; 4] = *b"PRI ";
