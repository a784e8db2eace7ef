//! Downloads, keeps and serves content on this host.

use std::process::ExitCode;

use clap::Parser as _;
use damselfly_cli::dfdaemon::{self, args::Args};

#[tokio::main(flavor = "multi_thread")]
async fn main() -> ExitCode {
    dfdaemon::run(Args::parse()).await
}
