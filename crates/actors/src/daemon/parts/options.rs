//! The configuration as the parts understand it.

use damselfly_core::download::Config as MachineConfig;
use damselfly_transport::TokenBucket;
use damselfly_transport::tcp::{Deadlines, DialOptions, SocketOptions};

use crate::config::{Config, CongestionControl};
use crate::connections::LANES_NEAR;

pub(super) fn dial_options(config: &Config) -> DialOptions {
    DialOptions {
        deadlines: Deadlines { turn: config.download.piece_timeout, ..Deadlines::default() },
        socket: socket_options(config),
        ..DialOptions::new(true)
    }
}

pub(super) fn socket_options(config: &Config) -> SocketOptions {
    let congestion = match config.download.congestion_control {
        CongestionControl::Auto | CongestionControl::Bbr => "bbr",
        CongestionControl::Cubic => "cubic",
    };
    SocketOptions { congestion: Some(congestion.to_owned()), ..SocketOptions::default() }
}

/// The machine with what the configuration says of it.
pub(super) fn machine_config(config: &Config) -> MachineConfig {
    let machine = MachineConfig::default();
    let most = config.download.concurrent_piece_count.max(1) as usize;
    let retries = config.backend.max_retries;
    MachineConfig {
        max_schedule_count: config.scheduler.max_schedule_count,
        // So many pieces arrive at a time, and as many again are asked for ahead.
        max_in_flight: 2 * most,
        origin_window: machine.origin_window.min(most),
        lanes: LANES_NEAR,
        origin_tries: retries.map_or(machine.origin_tries, |retries| retries.saturating_add(1)),
        ..machine
    }
}

/// A limit of hundreds of gigabits is none; leaving it out saves every buffer a visit.
pub(super) fn limit(bytes_per_second: u64) -> TokenBucket {
    TokenBucket::new((bytes_per_second < 50_000_000_000).then_some(bytes_per_second))
}

pub(crate) fn store_options(config: &Config) -> damselfly_storage::Options {
    damselfly_storage::Options {
        dir: config.storage.dir.clone(),
        keep: config.storage.keep,
        capacity: config.gc.disk_threshold,
        high_percent: config.gc.disk_high_percent,
        low_percent: config.gc.disk_low_percent,
        task_ttl: config.gc.task_ttl,
    }
}

pub(super) fn origin_options(config: &Config) -> damselfly_source::Options {
    damselfly_source::Options {
        extra_headers: config.backend.request_header.clone().into_iter().collect(),
        ..damselfly_source::Options::default()
    }
}
