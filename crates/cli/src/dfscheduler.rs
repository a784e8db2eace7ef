//! dfscheduler: the scheduler that daemons can embed, as a program of its own.

pub mod args;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use damselfly_actors::config::{
    AddressError, AddressInputs, Addresses, Directories, DirectoryError, default_route, route_to,
};
use damselfly_scheduler::service::{Config, GrpcOutbound, SchedulerService, ring_of};
use damselfly_scheduler_client::{Target, TargetError};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use self::args::{Args, PORT};
use crate::exit::Exit;
use crate::logging::{self, LogError, Sink};
use crate::signals::Signals;
use crate::version;

/// How long calls under way may take to end.
const GRACE: Duration = Duration::from_secs(10);

/// Why a scheduler does not run.
#[derive(Debug, Error)]
enum RunError {
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    #[error("--join: expected {0}")]
    Join(#[from] TargetError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(
        "cannot listen on {address}: {why}; name another address with --listen, or stop what listens there"
    )]
    Bind { address: SocketAddr, why: io::Error },
    #[error("serving failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Runs a scheduler until a signal ends it. Needs a multi-threaded runtime.
pub async fn run(args: Args) -> ExitCode {
    match attempt(&args).await {
        Ok(code) => code,
        Err(why) => {
            tracing::error!(%why, "dfscheduler does not run");
            // With logs in a file, this is all that a service manager gets to see.
            let _printed = writeln!(io::stderr().lock(), "dfscheduler: {why}");
            Exit::Failure.into()
        }
    }
}

async fn attempt(args: &Args) -> Result<ExitCode, RunError> {
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let targets = Target::parse_list(&args.join, PORT)?;
    begin_to_log(args)?;
    let joined = resolve(&targets).await;
    let addresses = addresses(args, &joined)?;
    let bind = SocketAddr::new(addresses.bind, args.listen.map_or(PORT, |listen| listen.port()));
    let refused = |why| RunError::Bind { address: bind, why };
    let listener = TcpListener::bind(bind).await.map_err(refused)?;
    let own = SocketAddr::new(addresses.announce, listener.local_addr().map_err(refused)?.port());
    let config = Config { address: own.to_string(), ring: ring_of(own, &joined), ..Config::default() };
    tracing::info!(version = version::long(), address = %own, ring = ?config.ring, "dfscheduler serves");
    if !args.console {
        let _printed = writeln!(io::stderr().lock(), "dfscheduler: serving on {own}");
    }

    let service = SchedulerService::start(config, Arc::new(GrpcOutbound::default()));
    let (stop, stopped) = oneshot::channel::<()>();
    // The sender being gone means the same.
    let serving = service.serve(listener, async move { drop(stopped.await) });
    tokio::pin!(serving);
    let ending = tokio::select! {
        served = &mut serving => return served.map(|()| Exit::Success.into()).map_err(RunError::from),
        ending = signals.next() => ending,
    };
    tracing::info!(signal = ending.name(), "ending in order; a second signal ends at once");
    drop(stop);
    tokio::select! {
        served = tokio::time::timeout(GRACE, serving) => match served {
            Ok(served) => served.map(|()| Exit::Success.into()).map_err(RunError::from),
            Err(_) => {
                tracing::warn!(grace = ?GRACE, "calls under way were cut off");
                Ok(Exit::Success.into())
            }
        },
        second = signals.next() => Ok(ExitCode::from(second.code())),
    }
}

fn begin_to_log(args: &Args) -> Result<(), RunError> {
    let sink = if args.console {
        Sink::Stdout
    } else {
        let directory = match &args.log_dir {
            Some(directory) => directory.clone(),
            None => {
                let uid = rustix::process::geteuid().as_raw();
                let daemons = Directories::decide(uid, |name| std::env::var_os(name), None)?.logs;
                daemons.with_file_name("dfscheduler")
            }
        };
        logging::file(&directory, "dfscheduler", args.log_max_files.into(), args.log_max_file_size.as_u64())?
    };
    Ok(logging::init(sink, args.log_level)?)
}

/// What the names of the ring mean now. A member that has no address yet (its pod does not run) is left out: daemons that
/// join it by name find it themselves.
async fn resolve(targets: &[Target]) -> Vec<SocketAddr> {
    let mut joined = Vec::new();
    for target in targets {
        match target.resolve().await {
            Ok(found) => joined.extend(found),
            Err(why) => tracing::warn!(%target, %why, "left out of the ring that daemons are told"),
        }
    }
    joined
}

fn addresses(args: &Args, joined: &[SocketAddr]) -> Result<Addresses, AddressError> {
    let other = joined.iter().find(|address| !address.ip().is_loopback());
    let route = other.and_then(|address| route_to(*address).ok()).or_else(default_route);
    Addresses::decide(AddressInputs {
        listen: args.listen.map(|listen| listen.ip()),
        joins: !args.join.is_empty(),
        route,
        ..AddressInputs::default()
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn decided(arguments: &[&str], joined: &[SocketAddr]) -> Addresses {
        addresses(&Args::try_parse_from([&["dfscheduler"], arguments].concat()).unwrap(), joined).unwrap()
    }

    #[test]
    fn alone_it_is_for_this_host() {
        let alone = decided(&[], &[]);
        assert!(alone.bind.is_loopback() && alone.announce.is_loopback());
        let named = decided(&["--listen", "127.0.0.2:9"], &[]);
        assert_eq!(
            (named.bind.to_string(), named.announce.to_string()),
            ("127.0.0.2".into(), "127.0.0.2".into())
        );
    }

    #[test]
    fn the_ring_holds_this_one_once() {
        let (own, other) = (SocketAddr::from(([10, 0, 0, 1], 8002)), SocketAddr::from(([10, 0, 0, 2], 8002)));
        assert_eq!(ring_of(own, &[other]), ["10.0.0.2:8002", "10.0.0.1:8002"]);
        assert_eq!(ring_of(own, &[own, other]), ["10.0.0.1:8002", "10.0.0.2:8002"]);
    }
}
