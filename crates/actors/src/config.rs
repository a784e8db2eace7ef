//! `dfdaemon.yaml`: the composition of every part's options, and what flags and defaults make of it.
//!
//! The file takes Dragonfly's keys (`docs/wire.md`, "Configuration") and a few of ours. Flags come before their
//! environment variables, those before the file, and the file before defaults. A value that cannot be used is refused
//! with key, value, expectation and place, all of them at once; what merely has no effect is a [`Warning`]. A value
//! whose effect is not built yet and whose absence would go unnoticed is refused too.

mod addresses;
mod directories;
mod error;
mod keys;
mod section;
#[cfg(test)]
mod tests;
pub mod tree;
mod unbuilt;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use damselfly_scheduler_client::{Target, TlsFiles};

pub use addresses::{
    AddressError, AddressInputs, Addresses, EmbeddedScheduler, SchedulerSource, default_route, route_to,
};
pub use directories::{Directories, DirectoryError, client_configs, client_sockets};
pub use error::{ConfigError, Place, Warning, WrongValue};
pub use tree::Mark;

/// Everything a daemon is told, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What the host says of itself.
    pub host: Host,
    /// Fetching.
    pub download: Download,
    /// Serving.
    pub upload: Upload,
    /// The manager, where one is used.
    pub manager: Manager,
    /// Schedulers elsewhere, and the embedded one.
    pub scheduler: Scheduler,
    /// Whether and how the host is a seed.
    pub seed_peer: Option<SeedType>,
    /// The file of schedulers and block lists.
    pub dynconfig: Dynconfig,
    /// The store and its servers.
    pub storage: Storage,
    /// Origins.
    pub backend: Backend,
    /// Eviction.
    pub gc: Gc,
    /// `network.enableIPv6`: default listen addresses and the announced address are IPv6.
    pub ipv6: bool,
    /// `health.server`, HTTP.
    pub health: Listen,
    /// `metrics.server`, HTTP.
    pub metrics: Listen,
    /// `stats.server`, HTTP. Nothing listens there yet.
    pub stats: Listen,
    /// A task that was fetched with request headers is confirmed at the origin for every further client.
    pub private_tasks: bool,
    /// How long a lost replica is waited for before it is replaced.
    pub replica_repair_delay: Duration,
    /// `--listen`: bound and announced.
    pub listen: Option<IpAddr>,
    /// `--join`: the schedulers, instead of those of the manager or dynconfig.
    pub join: Vec<Target>,
    /// `--log-dir`, or the default.
    pub log_dir: PathBuf,
    /// Where the configuration's directory is, and whether the socket's must be private.
    pub directories: Directories,
}

/// What the host says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Data centre, for choosing near parents.
    pub idc: Option<String>,
    /// Location, parts from wide to narrow joined by `|`.
    pub location: Option<String>,
    /// Instead of the operating system's.
    pub hostname: Option<String>,
    /// Announced instead of what [`Addresses::decide`] finds.
    pub ip: Option<IpAddr>,
    /// The manager's scheduler cluster to ask for.
    pub scheduler_cluster_id: Option<u64>,
}

/// A port to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The number; 0 takes any free one.
    pub number: u16,
    /// Somebody named it, so it is never replaced. A default that is taken falls back to a free port.
    pub named: bool,
}

/// A network listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address to bind instead of [`Addresses::bind`].
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: Port,
}

/// How piece connections share the network with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CongestionControl {
    /// BBR where the kernel offers it, else the kernel's default.
    Auto,
    /// BBR; a kernel without it falls back to its default.
    Bbr,
    /// CUBIC.
    Cubic,
}

/// How many requests a gRPC server takes. There is no limit unless the file names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimit {
    /// Requests per second, at least 1.
    pub rate: u64,
    /// Requests that may wait for their turn, at least 1; what comes on top is refused.
    pub waiting: usize,
}

/// Fetching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    /// The unix socket.
    pub socket: PathBuf,
    /// Its permission bits, 0 to 0o777.
    pub socket_mode: u32,
    /// Directories beneath which callers of other mount namespaces may name paths.
    pub path_roots: Vec<PathBuf>,
    /// Of requests on the socket.
    pub requests: Option<RequestLimit>,
    /// Bytes per second from peers, above 0.
    pub bandwidth_limit: u64,
    /// Bytes per second from origins, above 0.
    pub back_to_source_bandwidth_limit: u64,
    /// How long one piece may take, above 0.
    pub piece_timeout: Duration,
    /// How long to wait for word of a piece from a parent, above 0.
    pub collected_piece_timeout: Duration,
    /// Pieces of one task in flight at once, at least 1.
    pub concurrent_piece_count: u32,
    /// For piece connections.
    pub congestion_control: CongestionControl,
}

/// Serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// gRPC on the network.
    pub listen: Listen,
    /// Of requests on that port.
    pub requests: Option<RequestLimit>,
    /// This host's content is not offered to others.
    pub disable_shared: bool,
    /// Bytes per second, above 0.
    pub bandwidth_limit: u64,
}

/// The manager.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manager {
    /// `http://HOST:PORT` or `https://…`.
    pub addr: Option<String>,
    /// For the connection to it.
    pub tls: Option<TlsFiles>,
}

/// Schedulers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduler {
    /// How often the host is announced, above 0.
    pub announce_interval: Duration,
    /// How often one download is scheduled anew by a scheduler of Dragonfly's, at least 1.
    pub max_schedule_count: u32,
    /// For connections to schedulers.
    pub tls: Option<TlsFiles>,
    /// `--scheduler`: run one here whatever else is configured.
    pub embedded: bool,
    /// Where an embedded scheduler listens.
    pub listen: Listen,
}

/// Kinds of seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedType {
    /// Announced as a normal host.
    Normal,
    /// Announced as a super seed, which schedulers trigger.
    Super,
}

/// The file of schedulers and block lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dynconfig {
    /// The file.
    pub path: PathBuf,
    /// Whether somebody named it, so that its absence is worth a warning.
    pub named: bool,
    /// How often the schedulers are looked up anew, above 0.
    pub refresh_interval: Duration,
}

/// The store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Where content lives; ours in `damselfly-v1` below it.
    pub dir: PathBuf,
    /// Content outlives the process. True unless the file says false, where Dragonfly's default would wipe.
    pub keep: bool,
    /// Vortex over TCP.
    pub tcp: Listen,
    /// Vortex over QUIC. Nothing listens there yet.
    pub quic: Listen,
}

/// Origins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Headers that every origin request carries. Secrets.
    pub request_header: BTreeMap<String, String>,
    /// Further tries after a failure worth another try; `None` leaves it to the engine, which backs off as it tries.
    pub max_retries: Option<u32>,
}

/// Eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gc {
    /// Time between two passes, above 0.
    pub interval: Duration,
    /// How long a task lives after its last use.
    pub task_ttl: Duration,
    /// Bytes the store may take; `None` is the disk's size.
    pub disk_threshold: Option<u64>,
    /// Eviction begins above this share of the capacity, 1 to 99 per cent.
    pub disk_high_percent: u8,
    /// Eviction ends below this share, at most `disk_high_percent`.
    pub disk_low_percent: u8,
}

/// What flags, or the environment variables behind them, say.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--dynconfig`.
    pub dynconfig: Option<PathBuf>,
    /// `--home`: everything in one directory.
    pub home: Option<PathBuf>,
    /// `--listen`.
    pub listen: Option<IpAddr>,
    /// `--join`, each possibly a comma-separated list.
    pub join: Vec<String>,
    /// `--scheduler`.
    pub scheduler: bool,
    /// `--hostname`.
    pub hostname: Option<String>,
    /// `--log-dir`.
    pub log_dir: Option<PathBuf>,
    /// Ports by flag.
    pub ports: PortOverrides,
}

/// Ports by flag.
#[derive(Clone, Copy, Debug, Default)]
pub struct PortOverrides {
    /// gRPC.
    pub grpc: Option<u16>,
    /// Metrics over HTTP.
    pub metrics: Option<u16>,
    /// Health over HTTP.
    pub health: Option<u16>,
    /// Statistics over HTTP.
    pub stats: Option<u16>,
    /// Vortex over TCP.
    pub tcp: Option<u16>,
    /// Vortex over QUIC.
    pub quic: Option<u16>,
    /// The embedded scheduler.
    pub scheduler: Option<u16>,
}

/// A configuration and what is odd about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file it came from; `None` when there was none.
    pub file: Option<PathBuf>,
    /// To be logged, one line each.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// Reads `path`, or without one the default file if it is there, for this process's user and environment.
    ///
    /// # Errors
    /// When a named file cannot be read, when the file is no YAML, when a value cannot be used, or when no place for
    /// the daemon's files can be found.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Loaded, ConfigError> {
        let uid = rustix::process::geteuid().as_raw();
        Self::load_for(path, overrides, uid, |name| std::env::var_os(name))
    }

    /// [`Config::load`] for any user and environment.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    pub fn load_for(
        path: Option<&Path>,
        overrides: &Overrides,
        uid: u32,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Loaded, ConfigError> {
        let directories = Directories::decide(uid, env, overrides.home.as_deref())?;
        let file = path.map_or_else(|| directories.config.join("dfdaemon.yaml"), Path::to_owned);
        let source = match std::fs::read(&file) {
            Ok(bytes) => Some(String::from_utf8(bytes).map_err(|error| ConfigError::Read {
                file: file.clone(),
                source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
            })?),
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(ConfigError::Read { file, source }),
        };
        let read = source.is_some();
        let mut loaded = Self::parse(&source.unwrap_or_default(), &file, overrides, directories)?;
        loaded.file = read.then_some(file);
        Ok(loaded)
    }

    /// The configuration that `source`, read from `file`, makes together with flags and default places.
    ///
    /// # Errors
    /// When `source` is no YAML or a value cannot be used.
    pub fn parse(
        source: &str,
        file: &Path,
        overrides: &Overrides,
        directories: Directories,
    ) -> Result<Loaded, ConfigError> {
        let document = tree::parse(file, source)?;
        let findings = section::Findings::new(file, source);
        let mut config = keys::read(section::Section::root(&document, &findings), directories);
        let (mut warnings, wrong) = findings.into_parts();
        if !wrong.is_empty() {
            return Err(ConfigError::Values(wrong));
        }
        keys::apply(&mut config, overrides, &mut warnings)?;
        Ok(Loaded { config, file: Some(file.to_owned()), warnings })
    }
}
