//! Downloads a file through the swarm.

use std::process::ExitCode;

use clap::Parser as _;
use damselfly_cli::dfget::{self, args::Args};

// Two threads are enough for one download: one that waits, and one that may block on a file.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    dfget::run(Args::parse()).await.into()
}
