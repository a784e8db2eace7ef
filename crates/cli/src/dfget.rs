//! dfget: one file, through the swarm, to an output that is complete or not there.

mod alone;
pub mod args;
mod daemon;
mod part_dir;
pub mod plan;
mod socket;
mod story;

use std::io::{self, Write as _};
use std::sync::Arc;

use tokio::time::Instant;

use self::alone::Alone;
use self::args::{Args, DaemonUse};
use self::part_dir::PartDir;
use self::plan::Plan;
use crate::client::{Limits, print_json};
use crate::endpoint;
use crate::endpoint::Daemon;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Sink};
use crate::memory;
use crate::output::Output;
use crate::progress::Progress;
use crate::receipt::{Delivery, Receipt};
use crate::ticker::Ticker;

/// Runs dfget. Needs a multi-threaded runtime.
pub async fn run(args: Args) -> Exit {
    memory::keep_what_is_freed();
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
    let mut limits = Limits::begin(daemon::TITLE, args.timeout)?;
    let started = Instant::now();
    let plan = Arc::new(Plan::new(args)?);

    let Reached { daemon, alone } = limits.within(false, reach(args, &plan)).await?;
    // Nothing is kept for stdout without a daemon.
    let resumes = alone.is_none() || plan.output != Output::Stdout;
    let work = tokio::spawn(download(args.no_progress || args.json, plan.clone(), daemon.clone()));
    let outcome = limits.carry_out(resumes, work).await;
    if let Some(alone) = alone {
        limits.unless_signalled(resumes, alone.end(outcome.as_ref().err())).await?;
    }
    let delivery = outcome?;
    let receipt = Receipt {
        name: &plan.name,
        url: Some(&plan.url),
        output: &plan.output,
        delivery: &delivery,
        at: &daemon.at,
        elapsed: started.elapsed(),
    };
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
