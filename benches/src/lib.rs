//! What the measurements share: processes with their CPU time, an nginx origin, daemons, an emulated network, statistics.
//!
//! Every figure is a ratio of two things measured in the same run, because machines are noisy; medians of several rounds.
//! Memory is touched and freed before a timed run, because the first touch of fresh memory can dominate it.

pub mod calls;
pub mod dragonfly;
pub mod floor;
pub mod iperf;
pub mod lab;
pub mod netlab;
pub mod parts;
pub mod place;
pub mod process;
pub mod stats;
pub mod together;

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A file or process could not be handled.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A program ended with a failure.
    #[error("{0}")]
    Failed(String),
}

/// Adds to an I/O error what was tried.
pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> BenchError {
    move |source| BenchError::Io { what: what.into(), source }
}
