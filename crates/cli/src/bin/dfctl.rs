//! Looks at a daemon and steers its tasks.

use std::process::ExitCode;

use clap::Parser as _;
use damselfly_cli::dfctl::{self, args::Args};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    dfctl::run(Args::parse()).await.into()
}
