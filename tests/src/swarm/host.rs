//! One host of a test.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use damselfly_actors::config::{Config, Directories, Overrides, PortOverrides};
use damselfly_actors::daemon::{Daemon, DaemonOptions, StartError};
use damselfly_actors::kit::{Faults, Snapshot};
use damselfly_api::common::v2::Download;
use damselfly_api::damselfly::v1::local_client::LocalClient;
use damselfly_api::damselfly::v1::{GetReceiptRequest, Receipt, StatusRequest, StatusResponse};
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_api::dfdaemon::v2::{DownloadTaskRequest, StatLocalTaskRequest, StatLocalTaskResponse};
use damselfly_core::{Kind, TaskId, TaskKey};
use tokio::runtime::{Builder, Runtime};
use tonic::Status;
use tonic::transport::Channel;

use super::{Call, PATIENCE, Told, to_file};
use crate::{Waited, wait};

/// How a host of a test is set up.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Schedulers to join; none makes it its own.
    pub join: Vec<SocketAddr>,
    /// `dfdaemon.yaml`.
    pub yaml: String,
    /// Panics to be armed.
    pub faults: Faults,
    /// A name, so that several hosts differ on one machine.
    pub name: String,
    /// Where in the emulated network it is; none is this machine's loopback.
    #[cfg(feature = "privileged")]
    pub place: Option<damselfly_benches::place::Place>,
}

impl Setup {
    fn address(&self) -> IpAddr {
        #[cfg(feature = "privileged")]
        if let Some(place) = &self.place {
            return place.address;
        }
        Ipv4Addr::LOCALHOST.into()
    }

    fn runtime(&self) -> Runtime {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).enable_all();
        #[cfg(feature = "privileged")]
        if let Some(place) = self.place.clone() {
            builder.on_thread_start(move || place.enter().expect("run these tests as root"));
        }
        builder.build().expect("threads")
    }
}

/// One host: a daemon and its home. The daemon has a runtime of its own, as it has a process of its own elsewhere.
#[derive(Debug)]
pub struct Host {
    home: PathBuf,
    setup: Setup,
    running: Option<(Daemon, Runtime)>,
}

impl Host {
    /// Starts a host whose home is `home`.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn start(home: &Path, setup: Setup) -> Result<Self, StartError> {
        trace();
        let mut host = Self { home: home.to_owned(), setup, running: None };
        host.restart().await?;
        Ok(host)
    }

    /// The configuration the host starts with.
    ///
    /// # Panics
    /// When the test's YAML is wrong.
    #[must_use]
    pub fn config(&self) -> Config {
        let ports = PortOverrides {
            grpc: Some(0),
            metrics: Some(0),
            health: Some(0),
            stats: Some(0),
            tcp: Some(0),
            quic: Some(0),
            scheduler: Some(0),
        };
        let overrides = Overrides {
            home: Some(self.home.clone()),
            listen: Some(self.setup.address()),
            join: self.setup.join.iter().map(ToString::to_string).collect(),
            hostname: Some(self.setup.name.clone()).filter(|name| !name.is_empty()),
            ports,
            ..Overrides::default()
        };
        let directories = Directories::decide(0, |_| None, Some(&self.home)).expect("an absolute home");
        let parsed = Config::parse(&self.setup.yaml, Path::new("dfdaemon.yaml"), &overrides, directories);
        let mut config = parsed.expect("valid YAML").config;
        if config.gc.disk_threshold.is_none() {
            // Nothing is evicted because the machine's own disk is rather full.
            (config.gc.disk_high_percent, config.gc.disk_low_percent) = (100, 100);
        }
        config
    }

    /// Starts the daemon (again) on the same home.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub async fn restart(&mut self) -> Result<(), StartError> {
        let options = DaemonOptions { faults: self.setup.faults.clone() };
        let runtime = self.setup.runtime();
        let daemon =
            runtime.spawn(Daemon::start(self.config(), options)).await.expect("no panic at the start");
        match daemon {
            Ok(daemon) => self.running = Some((daemon, runtime)),
            Err(why) => {
                end(runtime).await;
                return Err(why);
            }
        }
        Ok(())
    }

    /// The running daemon.
    ///
    /// # Panics
    /// When it is down.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.running.as_ref().expect("the daemon runs").0
    }

    /// Where its embedded scheduler answers.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn scheduler(&self) -> SocketAddr {
        self.daemon().scheduler().expect("an embedded scheduler")
    }

    /// Stops the daemon as its user would.
    ///
    /// # Panics
    /// When stopping panics.
    pub async fn stop(&mut self) {
        if let Some((daemon, runtime)) = self.running.take() {
            let departure = damselfly_scheduler_client::Departure::ForGood;
            let stopping = runtime.spawn(daemon.shutdown(departure, Duration::from_secs(5)));
            stopping.await.expect("no panic at the end");
            end(runtime).await;
        }
    }

    /// Ends the daemon as `kill -9` does: every task and every socket is gone at once, and nobody is told.
    pub async fn kill(&mut self) {
        if let Some((daemon, runtime)) = self.running.take() {
            end(runtime).await;
            drop(daemon);
        }
    }

    /// A path in the host's home for an output.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    async fn channel(&self) -> Result<Channel, Status> {
        let connected = damselfly_transport::local::connect(self.daemon().socket()).await;
        connected.map_err(|why| Status::unavailable(why.to_string()))
    }

    /// A client of the host's local service.
    ///
    /// # Errors
    /// When the socket does not answer.
    pub async fn download_client(&self) -> Result<DfdaemonDownloadClient<Channel>, Status> {
        Ok(DfdaemonDownloadClient::new(self.channel().await?).max_decoding_message_size(usize::MAX))
    }

    /// A client of the host's own service.
    ///
    /// # Errors
    /// When the socket does not answer.
    pub async fn local_client(&self) -> Result<LocalClient<Channel>, Status> {
        Ok(LocalClient::new(self.channel().await?).max_decoding_message_size(usize::MAX))
    }

    /// Runs a download to its end.
    ///
    /// # Errors
    /// As the daemon answers; DEADLINE_EXCEEDED when it takes longer than [`PATIENCE`].
    pub async fn download(&self, download: Download) -> Result<Told, Status> {
        self.open(download).await?.finish().await
    }

    /// Begins a download.
    ///
    /// # Errors
    /// As the daemon answers; DEADLINE_EXCEEDED when it does not within [`PATIENCE`].
    pub async fn open(&self, download: Download) -> Result<Call, Status> {
        let request = DownloadTaskRequest { download: Some(download) };
        let mut client = self.download_client().await?;
        let late = |_| Status::deadline_exceeded("the test lost its patience before the first message");
        let opened = tokio::time::timeout(PATIENCE, client.download_task(request)).await.map_err(late)?;
        Ok(Call::new(opened?.into_inner()))
    }

    /// What this host has of a task.
    ///
    /// # Errors
    /// As StatLocalTask answers.
    pub async fn stat(&self, task: &TaskId) -> Result<StatLocalTaskResponse, Status> {
        let request = StatLocalTaskRequest { task_id: task.to_string(), ..Default::default() };
        Ok(self.download_client().await?.stat_local_task(request).await?.into_inner())
    }

    /// Waits until the host has at least `count` pieces of a task that it knows already.
    ///
    /// # Errors
    /// When that takes more than a minute.
    ///
    /// # Panics
    /// When it does not know the task.
    pub async fn holds(&self, task: &TaskId, count: u32) -> Result<(), Waited> {
        let key = TaskKey { kind: Kind::Standard, id: task.clone() };
        let content = self.daemon().engine().store.get(&key).expect("the task is known");
        let changes = content.changes();
        wait::following(changes, || content.pieces().len(), |held| *held >= count).await.map(drop)
    }

    /// Waits until exactly `count` schedulers are healthy.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn sees_schedulers(&self, count: usize) -> Result<(), Waited> {
        let cluster = &self.daemon().engine().cluster;
        let healthy = |all: &Vec<damselfly_scheduler_client::SchedulerInfo>| {
            all.iter().filter(|scheduler| scheduler.healthy).count() == count
        };
        wait::following(cluster.changes(), || cluster.schedulers(), healthy).await.map(drop)
    }

    /// Arms a panic in the actor of `kind`, and waits until it has happened and the actor is back on the board at `path`.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn panics(&self, kind: &'static str, path: &str) -> Result<(), Waited> {
        let back = self.comes_back(path);
        let arm = async { self.setup.faults.arm(kind, 1) };
        tokio::join!(biased; back, arm).0
    }

    /// Waits until an actor has left the board at `path` and another one has taken its place.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn comes_back(&self, path: &str) -> Result<(), Waited> {
        let board = &self.daemon().engine().board;
        let look =
            || board.snapshot().into_iter().filter(|seat| seat.path == path).map(|seat| seat.number).max();
        let before = look();
        wait::following(board.changes(), look, |now| *now > before).await.map(drop)
    }

    /// Waits until no task runs and nobody is left of those that ran, farewells to schedulers included; returns how many
    /// actors live then.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn idles(&self) -> Result<usize, Waited> {
        let engine = self.daemon().engine();
        wait::following(engine.live.changes(), || engine.live.len(), |live| *live == 0).await?;
        // A task's actors sit below its own seat.
        let look = || engine.board.snapshot();
        let of_tasks = |path: &str| path.starts_with("daemon/tasks/");
        let idle = |seats: &Vec<Snapshot>| !seats.iter().any(|seat| of_tasks(&seat.path));
        Ok(wait::following(engine.board.changes(), look, idle).await?.len())
    }

    /// Downloads `url` to `name` in the host's home.
    ///
    /// # Errors
    /// As [`Host::download`].
    pub async fn get(&self, url: &str, name: &str) -> Result<Told, Status> {
        self.download(to_file(url, &self.path(name))).await
    }

    /// Where a download's bytes came from.
    ///
    /// # Errors
    /// When the daemon does not know it.
    pub async fn receipt(&self, told: &Told) -> Result<Receipt, Status> {
        let request = GetReceiptRequest { peer_id: told.peer_id.clone() };
        Ok(self.local_client().await?.get_receipt(request).await?.into_inner())
    }

    /// A snapshot of the daemon.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub async fn status(&self) -> Result<StatusResponse, Status> {
        let mut stream = self.local_client().await?.status(StatusRequest {}).await?.into_inner();
        let mut whole = StatusResponse::default();
        while let Some(part) = stream.message().await? {
            whole.host = whole.host.or(part.host);
            whole.tasks.extend(part.tasks);
            whole.actors.extend(part.actors);
        }
        Ok(whole)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that failed does not wait.
        if let Some((_, runtime)) = self.running.take() {
            runtime.shutdown_background();
        }
    }
}

/// Ends a runtime with all that runs on it.
pub(super) async fn end(runtime: Runtime) {
    let ending = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(10)));
    ending.await.expect("a runtime's end does not panic");
}

/// With `RUST_LOG` set, what the daemons log goes to standard error: for finding out why a test fails.
fn trace() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let asked = std::env::var_os("RUST_LOG").is_some();
    // A test that has a subscriber of its own keeps it.
    drop(
        asked.then(|| {
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init()
        }),
    );
}
