//! How pieces cross the network, and the local socket.
//!
//! [`vortex`] is the pure codec of the piece protocol, [`tcp`] its client ([`tcp::Lane`]) and server
//! ([`tcp::serve`]). [`local`] is the unix socket: who calls, and what may be done in the caller's name.
//! [`framed`] writes and reads gRPC message streams by hand so that content is never copied into a message.
//! [`rate`] and [`pool`] bound bandwidth and memory; [`accept`] is what every listener does when it cannot accept.
//!
//! Everything that reads files or calls sendfile does so in `tokio::task::block_in_place` and therefore needs
//! tokio's multi-threaded runtime.

pub mod accept;
pub mod framed;
pub mod local;
pub mod pool;
pub mod rate;
pub mod tcp;
pub mod vortex;

pub use pool::{Buffer, BufferPool};
pub use rate::TokenBucket;
