//! Damselfly against the code that Dragonfly publishes: the crates `vortex-protocol` and `dragonfly-api` are
//! encoders, decoders, clients and servers that share nothing with ours.
//!
//! Here is what several tests need; each file in `tests/` is about one thing:
//! - `vortex.rs`: packets, byte for byte and value for value;
//! - `tcp.rs`: a child of theirs at our piece server, our lane at a parent of theirs;
//! - `messages.rs`: every protobuf message and service the two sides share;
//! - `scheduler.rs`: a daemon of theirs at our scheduler;
//! - `daemon.rs`: their programs and children at our daemon, our daemon at a scheduler and a parent of theirs;
//! - `dfcache.rs`, `cache_scheduler.rs`, `cache_daemon.rs`: the same for persistent cache tasks.

use damselfly_tests::swarm::Host;
use dragonfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use dragonfly_api::dfdaemon::v2::dfdaemon_upload_client::DfdaemonUploadClient;
use tonic::transport::Channel;

pub mod cache;
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
pub async fn channel(address: std::net::SocketAddr) -> Channel {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("somebody listens")
}

/// What a program of theirs talks to on a host of ours.
///
/// # Panics
/// When its socket does not answer.
pub async fn programs(host: &Host) -> DfdaemonDownloadClient<Channel> {
    let channel = damselfly_transport::local::connect(host.daemon().socket()).await.expect("a socket");
    DfdaemonDownloadClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// What their children and schedulers talk to.
///
/// # Panics
/// When nobody listens.
pub async fn children(host: &Host) -> DfdaemonUploadClient<Channel> {
    let channel = channel(host.daemon().ports().grpc).await;
    DfdaemonUploadClient::new(channel).max_decoding_message_size(usize::MAX)
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
