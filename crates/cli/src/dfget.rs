//! dfget: one file, through the swarm, to an output that is complete or not there.

mod alone;
pub mod args;
mod daemon;
pub mod part;
mod part_dir;
pub mod plan;
pub mod receipt;
mod socket;
mod stdout;
mod story;
mod ticker;

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::alone::Alone;
use self::args::{Args, DaemonUse};
use self::part_dir::PartDir;
use self::plan::{Output, Plan};
use self::receipt::{Delivery, Receipt};
use self::ticker::Ticker;
use crate::endpoint::Daemon;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Sink};
use crate::progress::Progress;
use crate::signals::{Ending, Signals};
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
    let timeout = tokio::time::sleep(plan.timeout);
    tokio::pin!(timeout);

    let Reached { daemon, alone } = tokio::select! {
        reached = reach(args, &plan) => reached?,
        ending = signals.next() => return Err(ended_by(ending, false)),
        () = &mut timeout => return Err(too_late(&plan, false)),
    };
    // Nothing is kept for stdout without a daemon.
    let resumes = alone.is_none() || plan.output != Output::Stdout;
    let mut work = tokio::spawn(download(args.no_progress || args.json, plan.clone(), daemon.clone()));
    let outcome = tokio::select! {
        joined = &mut work => joined.map_err(|why| broken(&why)).flatten(),
        ending = signals.next() => {
            stop(work).await;
            Err(ended_by(ending, resumes))
        }
        () = &mut timeout => {
            stop(work).await;
            Err(too_late(&plan, resumes))
        }
    };
    if let Some(alone) = alone {
        tokio::select! {
            () = alone.end(outcome.as_ref().err()) => {}
            second = signals.next() => return Err(ended_by(second, resumes)),
        }
    }
    let delivery = outcome?;
    let receipt = Receipt { plan: &plan, delivery: &delivery, at: &daemon.at, elapsed: started.elapsed() };
    if args.json {
        print_json(&receipt.json(), to_stdout);
    } else {
        // The content is there, whether anybody reads the receipt or not.
        let _printed = io::stderr().lock().write_all(receipt.text().as_bytes());
    }
    Ok(())
}

/// Who does the work.
struct Reached {
    daemon: Daemon,
    alone: Option<Alone>,
}

async fn reach(args: &Args, plan: &Plan) -> Result<Reached, Failure> {
    let note = |text: &str| {
        if !args.json {
            // Nobody is left to tell when stderr is closed.
            let _printed = writeln!(io::stderr().lock(), "{text}");
        }
    };
    let why = match args.daemon {
        DaemonUse::Never => "--daemon never".to_owned(),
        DaemonUse::Auto | DaemonUse::Require => match endpoint::connect(args.endpoint.as_deref()).await {
            Ok(daemon) => {
                if !plan.join.is_empty() {
                    note("dfget: --join is ignored, the daemon has its own schedulers; see --daemon never");
                }
                if let Output::File(output) = &plan.output
                    && let Some(left) = PartDir::left(output, plan.task.as_str())
                {
                    let left = left.display();
                    note(&format!("dfget: {left} is of an earlier run without a daemon; it may be removed"));
                }
                return Ok(Reached { daemon, alone: None });
            }
            // Who names a socket means that daemon.
            Err(why) if args.daemon == DaemonUse::Require || args.endpoint.is_some() => {
                return Err(why.into());
            }
            Err(why) => why.tried(),
        },
    };
    let alone = Alone::start(plan).await?;
    note(&alone.note(&why, &plan.join));
    Ok(Reached { daemon: alone.daemon(), alone: Some(alone) })
}

async fn download(quiet: bool, plan: Arc<Plan>, daemon: Daemon) -> Result<Delivery, Failure> {
    fetch(&plan, &daemon, Progress::new(&plan.name, quiet)).await
}

/// Downloads through `daemon` as `plan` says.
///
/// # Errors
/// What failed, ready to be reported. Nothing is left at the output.
pub(crate) async fn fetch(plan: &Plan, daemon: &Daemon, progress: Progress) -> Result<Delivery, Failure> {
    daemon::run(plan, daemon, &mut Ticker::new(progress)).await
}

const RESUMES: &str = "; run the same command again, it resumes";

fn ended_by(ending: Ending, resumes: bool) -> Failure {
    let hint = if resumes { RESUMES } else { "" };
    Failure::new(daemon::TITLE, ending.exit(), format!("ended by {}{hint}", ending.name()))
}

fn too_late(plan: &Plan, resumes: bool) -> Failure {
    let hint = if resumes { RESUMES } else { "; give it more time" };
    let text = format!("not finished within {} (--timeout){hint}", units::duration(plan.timeout));
    Failure::new(daemon::TITLE, Exit::Timeout, text)
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
