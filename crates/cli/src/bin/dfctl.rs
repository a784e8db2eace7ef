//! Looks at a daemon and steers its tasks.

use std::process::ExitCode;

use clap::Parser as _;
use damselfly_cli::dfctl::args::{Args, Command};
use damselfly_cli::dfctl::{self, demo};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    let args = Args::parse();
    let mut runtime = Builder::new_multi_thread();
    if let Command::Demo(_) = args.command {
        demo::without_proxies();
    } else {
        // One call is waited for.
        runtime.worker_threads(1);
    }
    match runtime.enable_all().build() {
        Ok(runtime) => runtime.block_on(dfctl::run(args)).into(),
        Err(why) => dfctl::broken(&why).into(),
    }
}
