//! Damselfly against the code that Dragonfly publishes: the crates `vortex-protocol` and `dragonfly-api` are
//! encoders, decoders, clients and servers that share nothing with ours.
//!
//! Here is what several tests need; each file in `tests/` is about one thing:
//! - `vortex.rs`: packets, byte for byte and value for value;
//! - `tcp.rs`: a child of theirs at our piece server, our lane at a parent of theirs;
//! - `messages.rs`: every protobuf message and service the two sides share;
//! - `scheduler.rs`: a daemon of theirs at our scheduler;
//! - `daemon.rs`: their programs and children at our daemon, our daemon at a scheduler and a parent of theirs.

pub mod messages;
pub mod parent;
pub mod rules;
pub mod scheduler;
mod service;
pub mod vortex;

/// A task id as any other: 64 lower-case hex digits.
pub const TASK: &str = "e2d0fe1585a63ec6009c8016ff8dda8b17719a637405a4e23c0ff81339148249";

/// A gRPC channel to a server on this machine.
///
/// # Panics
/// When nobody listens.
pub async fn channel(address: std::net::SocketAddr) -> tonic::transport::Channel {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("somebody listens")
}

/// The bytes that `digits` spell. Spaces do not count.
///
/// # Panics
/// When they are not pairs of hex digits.
#[must_use]
pub fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        digits.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).expect("a hex digit")).collect();
    let (pairs, rest) = digits.as_chunks::<2>();
    assert!(rest.is_empty(), "an odd number of digits");
    pairs.iter().map(|[high, low]| u8::try_from(high * 16 + low).expect("two digits")).collect()
}
