//! Schedules the daemons of a cluster.

use std::process::ExitCode;

use clap::Parser as _;
use damselfly_cli::dfscheduler::{self, args::Args};

#[tokio::main(flavor = "multi_thread")]
async fn main() -> ExitCode {
    dfscheduler::run(Args::parse()).await
}
