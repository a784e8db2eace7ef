//! dfget: one file, through the swarm, to an output that is complete or not there.

pub mod args;
mod daemon;
pub mod part;
pub mod plan;
pub mod receipt;
mod stdout;
mod story;
mod ticker;

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::args::Args;
use self::plan::Plan;
use self::receipt::{Delivery, Receipt};
use self::ticker::Ticker;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Sink};
use crate::signals::Signals;
use crate::{endpoint, units};

/// After a signal the download is dropped at its next wait; a write that hangs longer than this is not waited for.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs dfget. Needs a multi-threaded runtime.
pub async fn run(args: Args) -> Exit {
    let to_stdout = args.output == std::path::Path::new("-");
    match attempt(&args, to_stdout).await {
        Ok(()) => Exit::Success,
        Err(failure) if args.json => {
            print_json(&failure.json(), to_stdout);
            failure.exit
        }
        Err(failure) => {
            failure.report().print(to_stdout);
            failure.exit
        }
    }
}

async fn attempt(args: &Args, to_stdout: bool) -> Result<(), Failure> {
    let broken = |why: &dyn std::error::Error| Failure::new(daemon::TITLE, Exit::Failure, why);
    let sink = match args.console {
        false => Sink::Nothing,
        // Stdout carries content, or one JSON object and nothing else.
        true if to_stdout || args.json => Sink::Stderr,
        true => Sink::Stdout,
    };
    logging::init(sink, args.log_level).map_err(|why| broken(&why))?;
    let mut signals = Signals::listen().map_err(|why| broken(&why))?;
    let started = Instant::now();
    let plan = Arc::new(Plan::new(args)?);

    let mut work = tokio::spawn(download(args.clone(), plan.clone()));
    let delivery = tokio::select! {
        joined = &mut work => joined.map_err(|why| broken(&why))??,
        ending = signals.next() => {
            stop(work).await;
            let text = format!("ended by {}; run the same command again, it resumes", ending.name());
            return Err(Failure::new(daemon::TITLE, ending.exit(), text));
        }
        () = tokio::time::sleep(plan.timeout) => {
            stop(work).await;
            let text = format!(
                "not finished within {} (--timeout); run the same command again, it resumes",
                units::duration(plan.timeout)
            );
            return Err(Failure::new(daemon::TITLE, Exit::Timeout, text));
        }
    };
    let receipt = Receipt { plan: &plan, delivery: &delivery, elapsed: started.elapsed() };
    if args.json {
        print_json(&receipt.json(), to_stdout);
    } else {
        // The content is there, whether anybody reads the receipt or not.
        let _printed = io::stderr().lock().write_all(receipt.text().as_bytes());
    }
    Ok(())
}

async fn download(args: Args, plan: Arc<Plan>) -> Result<Delivery, Failure> {
    let daemon = endpoint::connect(args.endpoint.as_deref()).await?;
    let mut ticker = Ticker::new(&plan.name, args.no_progress || args.json);
    daemon::run(&plan, &daemon, &mut ticker).await
}

/// Drops the download, and with it the call and the unfinished output.
async fn stop(work: JoinHandle<Result<Delivery, Failure>>) {
    work.abort();
    // Whatever it ended with, it is over.
    let _ended = tokio::time::timeout(DROP_TIMEOUT, work).await;
}

fn print_json(value: &serde_json::Value, stdout_is_taken: bool) {
    // Nobody is left to tell when the reader is gone.
    let _printed = if stdout_is_taken {
        writeln!(io::stderr().lock(), "{value}")
    } else {
        writeln!(io::stdout().lock(), "{value}")
    };
}
