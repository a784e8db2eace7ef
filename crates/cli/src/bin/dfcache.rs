//! Keeps files in the swarm's cache.

use std::process::ExitCode;

use damselfly_cli::dfcache::{self, args::Args};

// Two threads are enough for one transfer: one that waits, and one that may block on a file.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    dfcache::run(Args::read()).await.into()
}
