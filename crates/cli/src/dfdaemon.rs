//! dfdaemon: from flags and files to a running daemon, and its end.

pub mod args;

use std::io::{self, Write as _};
use std::process::ExitCode;

use damselfly_actors::config::{Config, ConfigError, Loaded};
use damselfly_actors::daemon::{Daemon, DaemonOptions, GRACE, StartError};
use damselfly_scheduler_client::Departure;
use thiserror::Error;

use self::args::Args;
use crate::exit::Exit;
use crate::logging::{self, LogError, Sink};
use crate::memory;
use crate::signals::{Ending, Signals};
use crate::version;

/// Why a daemon does not run.
#[derive(Debug, Error)]
enum RunError {
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    #[error("cannot make a path of a flag absolute: {0}; start it in a directory that exists")]
    Directory(#[source] io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Runs a daemon until a signal ends it. Needs a multi-threaded runtime.
pub async fn run(args: Args) -> ExitCode {
    memory::keep_what_is_freed();
    match attempt(&args).await {
        Ok(code) => code,
        Err(why) => {
            tracing::error!(%why, "dfdaemon does not run");
            // With logs in a file, this is all that a service manager gets to see.
            let _printed = writeln!(io::stderr().lock(), "dfdaemon: {why}");
            Exit::Failure.into()
        }
    }
}

async fn attempt(args: &Args) -> Result<ExitCode, RunError> {
    // First of all: a signal that comes during the start must not be lost.
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let overrides = args.overrides().map_err(RunError::Directory)?;
    let Loaded { config, file, warnings } = Config::load(args.config.as_deref(), &overrides)?;
    let sink = if args.console {
        Sink::Stdout
    } else {
        let max_files = usize::from(args.log_max_files);
        logging::file(&config.log_dir, "dfdaemon", max_files, args.log_max_file_size.as_u64())?
    };
    logging::init(sink, args.log_level)?;
    tracing::info!(version = version::long(), pid = std::process::id(), config = ?file, "dfdaemon starts");
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let repair_delay = config.replica_repair_delay;
    let logs = config.log_dir.clone();
    let daemon = tokio::select! {
        started = Daemon::start(config, DaemonOptions::default()) => started?,
        ending = signals.next() => return Ok(ExitCode::from(ending.code())),
    };
    if !args.console {
        let _printed = writeln!(
            io::stderr().lock(),
            "dfdaemon: serving on {}, logs in {}",
            daemon.socket().display(),
            logs.display()
        );
    }

    let ending = signals.next().await;
    tracing::info!(signal = ending.name(), "ending in order; a second signal ends at once");
    if !args.console {
        // Uploads in flight may take a while to end, and the log is elsewhere.
        let _printed = writeln!(
            io::stderr().lock(),
            "dfdaemon: {}, ending in order; a second signal ends at once",
            ending.name()
        );
    }
    // Whoever stops a daemon mostly starts it again, and its content is still there. Schedulers that see nothing of it
    // for this long make its replicas good elsewhere.
    let departure = Departure::Restarting { back_within: repair_delay };
    Ok(tokio::select! {
        () = daemon.shutdown(departure, GRACE) => Exit::Success.into(),
        second = signals.next() => at_once(second),
    })
}

fn at_once(signal: Ending) -> ExitCode {
    tracing::warn!(signal = signal.name(), "ending at once; pieces will be verified before their next use");
    // Not by returning: the runtime would wait for whatever the first signal waited for.
    std::process::exit(signal.code().into())
}
