//! Where the demonstration takes place: a temporary directory, a scheduler and daemons with homes in it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use damselfly_actors::config::{Config, Directories, Overrides, PortOverrides};
use damselfly_actors::daemon::{Daemon, DaemonOptions};
use damselfly_scheduler::machine;
use damselfly_scheduler::service::{Config as SchedulerConfig, GrpcOutbound, SchedulerService};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use super::{TITLE, cannot};
use crate::dfctl::args::Demo;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::units;

/// The scheduler is in this process; a daemon that does not find it by then never will.
const READY: Duration = Duration::from_secs(10);
/// Longest path of a unix socket, in bytes.
const MAX_SOCKET: usize = 107;
/// Besides the content each daemon needs room for logs, sidecars and the like.
const OVERHEAD: u64 = 16 << 20;
/// A file that came into being during the removal makes it fail.
const REMOVALS: usize = 5;

/// The directory and what runs in it.
#[derive(Debug)]
pub(super) struct Stage {
    dir: TempDir,
    scheduler: Option<AbortHandle>,
    daemons: Vec<Daemon>,
}

impl Stage {
    /// An empty stage with room for the demonstration.
    pub(super) fn new(demo: &Demo) -> Result<Self, Failure> {
        let base = std::env::temp_dir();
        let dir = tempfile::Builder::new().prefix("dfctl-demo-").tempdir();
        let dir = dir.map_err(|why| cannot(&format!("make a directory in {}", base.display()), &why))?;
        let needed = u64::from(demo.hosts) * (demo.size.as_u64().saturating_add(OVERHEAD));
        let room = rustix::fs::statvfs(dir.path()).map_err(|why| cannot("look for room", &why))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if free < needed {
            let text = format!(
                "no space left in {}: {} hosts need {}, and {} are free; set TMPDIR to another place, or give a smaller \
                 --size",
                base.display(),
                demo.hosts,
                units::bytes(needed),
                units::bytes(free)
            );
            return Err(Failure::new(TITLE, Exit::NoSpace, text));
        }
        Ok(Self { dir, scheduler: None, daemons: Vec::new() })
    }

    /// Starts a scheduler and `count` daemons, and waits until they know each other.
    pub(super) async fn start(&mut self, count: usize) -> Result<(), Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.map_err(|why| cannot("start the scheduler", &why))?;
        let address = listener.local_addr().map_err(|why| cannot("start the scheduler", &why))?.to_string();
        let ring = vec![address.clone()];
        // Nobody can have scheduled here before, so nothing is waited for.
        let machine = machine::Config { fresh: true, ..machine::Config::default() };
        let config =
            SchedulerConfig { machine, address: address.clone(), ring, ..SchedulerConfig::default() };
        let service = SchedulerService::start(config, Arc::new(GrpcOutbound::default()));
        let serving = tokio::spawn(service.serve(listener, std::future::pending()));
        self.scheduler = Some(serving.abort_handle());
        for index in 0..count {
            let daemon = Daemon::start(self.config(index, &address)?, DaemonOptions::default()).await;
            let daemon = daemon.map_err(|why| cannot(&format!("start {}", name(index)), &why))?;
            self.daemons.push(daemon);
        }
        for (index, daemon) in self.daemons.iter().enumerate() {
            let ready = tokio::time::timeout(READY, daemon.engine().cluster.ready()).await;
            ready.map_err(|_| {
                cannot(&format!("wait for {}", name(index)), &"it does not find the scheduler")
            })?;
        }
        Ok(())
    }

    fn config(&self, index: usize, scheduler: &str) -> Result<Config, Failure> {
        let home = self.home(index);
        let any = Some(0);
        let overrides = Overrides {
            home: Some(home.clone()),
            listen: Some(Ipv4Addr::LOCALHOST.into()),
            join: vec![scheduler.to_owned()],
            hostname: Some(name(index)),
            ports: PortOverrides {
                grpc: any,
                metrics: any,
                health: any,
                stats: any,
                tcp: any,
                quic: any,
                scheduler: any,
            },
            ..Overrides::default()
        };
        let wrong = |why: &dyn std::fmt::Display| cannot("configure the daemons", why);
        let directories = Directories::decide(0, |_| None, Some(&home)).map_err(|why| wrong(&why))?;
        if directories.socket.as_os_str().len() > MAX_SOCKET {
            let text =
                format!("{} is too long for a unix socket; set TMPDIR to a shorter path", home.display());
            return Err(wrong(&text));
        }
        let loaded = Config::parse("", Path::new("dfdaemon.yaml"), &overrides, directories);
        Ok(loaded.map_err(|why| wrong(&why))?.config)
    }

    fn home(&self, index: usize) -> PathBuf {
        self.dir.path().join(name(index))
    }

    /// How many daemons run.
    pub(super) fn hosts(&self) -> usize {
        self.daemons.len()
    }

    /// A daemon's unix socket.
    pub(super) fn socket(&self, index: usize) -> &Path {
        self.daemons[index].socket()
    }

    /// Where a daemon's copy goes.
    pub(super) fn output(&self, index: usize) -> PathBuf {
        self.home(index).join("copy.bin")
    }

    /// Stops everything and removes the directory, unless it is to be kept; returns where it is then.
    pub(super) async fn clear(self, keep: bool) -> Result<Option<PathBuf>, Failure> {
        let Self { dir, scheduler, daemons } = self;
        let mut ending = JoinSet::new();
        // Their store goes with them, so nobody needs a farewell.
        for daemon in daemons {
            ending.spawn(daemon.kill());
        }
        ending.join_all().await;
        if let Some(scheduler) = scheduler {
            scheduler.abort();
        }
        let path = dir.keep();
        if keep {
            return Ok(Some(path));
        }
        let mut removed = Ok(());
        for _ in 0..REMOVALS {
            removed = tokio::task::block_in_place(|| std::fs::remove_dir_all(&path));
            if removed.is_ok() {
                break;
            }
            tokio::task::yield_now().await;
        }
        removed.map(|()| None).map_err(|why| cannot(&format!("remove {}", path.display()), &why))
    }
}

/// What a daemon is called.
pub(super) fn name(index: usize) -> String {
    format!("host-{}", index + 1)
}
