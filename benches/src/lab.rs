//! A laboratory in one directory: an nginx origin and daemons, each in its place.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use damselfly_api::damselfly::v1::StatusRequest;
use damselfly_api::damselfly::v1::local_client::LocalClient;
use damselfly_transport::local::connect;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::place::Place;
use crate::process::{Running, until};
use crate::{BenchError, io};

const PATIENCE: Duration = Duration::from_secs(20);

/// A port that was free a moment ago.
///
/// # Errors
/// When loopback has none.
pub fn free_port() -> Result<u16, BenchError> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(io("find a free port"))?;
    Ok(listener.local_addr().map_err(io("find a free port"))?.port())
}

/// An nginx that serves a directory.
#[derive(Debug)]
pub struct Origin {
    /// Where it listens.
    pub address: SocketAddr,
    _nginx: Running,
}

impl Origin {
    /// Starts nginx over `dir`.
    ///
    /// # Errors
    /// When there is no nginx.
    pub async fn start(place: &Place, dir: &Path, state: &Path) -> Result<Self, BenchError> {
        let address = SocketAddr::new(place.address, free_port()?);
        let (root, state) = (dir.display(), state.display());
        // One process, so that none outlives the one that is ended.
        let config = format!(
            "daemon off; master_process off; pid {state}/nginx.pid; error_log {state}/nginx.err;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
             client_body_temp_path {state}/b; proxy_temp_path {state}/p; fastcgi_temp_path {state}/f;\n\
             uwsgi_temp_path {state}/u; scgi_temp_path {state}/s;\n\
             server {{ listen {address}; root {root}; }} }}\n"
        );
        let file = PathBuf::from(format!("{state}/nginx.conf"));
        fs::write(&file, config).map_err(io("write nginx.conf"))?;
        let nginx = Running::start(place.command("nginx").arg("-c").arg(&file))?;
        until(PATIENCE, async || place.answers(address.port()).await).await?;
        Ok(Self { address, _nginx: nginx })
    }

    /// A file's URL.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }
}

/// A dfdaemon with a home of its own.
#[derive(Debug)]
pub struct Host {
    home: PathBuf,
    programs: PathBuf,
    daemon: Running,
    /// Where its scheduler listens, if it has one.
    pub scheduler: SocketAddr,
    /// From the start of the process to health SERVING.
    pub ready_after: Duration,
}

impl Host {
    /// Starts a daemon in `home`, with a scheduler of its own or joining `join`.
    ///
    /// # Errors
    /// When it does not become healthy, or finds no scheduler.
    pub async fn start(
        place: &Place,
        programs: &Path,
        home: &Path,
        join: Option<SocketAddr>,
    ) -> Result<Self, BenchError> {
        fs::create_dir_all(home).map_err(io("make a home"))?;
        let grpc = SocketAddr::new(place.address, free_port()?);
        let scheduler = SocketAddr::new(place.address, free_port()?);
        let mut command = place.command(programs.join("dfdaemon"));
        command.arg("--home").arg(home).args(["--listen", &place.address.to_string()]);
        command.args(["--port", &grpc.port().to_string()]);
        match join {
            Some(join) => command.args(["--join", &join.to_string()]),
            None => command.args(["--scheduler", "--scheduler-port", &scheduler.port().to_string()]),
        };
        command.args(["--hostname", &home.file_name().unwrap_or_default().to_string_lossy()]);
        let daemon = Running::start(&mut command)?;
        let socket = home.join("dfdaemon.sock");
        let ready_after = until(PATIENCE, async || {
            tokio::net::UnixStream::connect(&socket).await.is_ok()
                && (!place.is_loopback() || is_serving(grpc).await)
        })
        .await?;
        until(PATIENCE, async || has_scheduler(&socket).await).await?;
        Ok(Self { home: home.to_owned(), programs: programs.to_owned(), daemon, scheduler, ready_after })
    }

    /// Ends it in order: it takes leave of its scheduler, so that nobody is sent to it any more.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn leave(self) -> Result<(), BenchError> {
        self.daemon.end()
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Its unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.home.join("dfdaemon.sock")
    }

    /// A path in its home.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// A dfcache that does `verb` through this daemon and says how it went as JSON.
    #[must_use]
    pub fn dfcache(&self, verb: &str) -> Command {
        let mut command = Command::new(self.programs.join("dfcache"));
        command.args([verb, "--json", "-e"]).arg(self.socket());
        command
    }

    /// A dfget that downloads `url` to `name` in the home.
    #[must_use]
    pub fn dfget(&self, url: &str, name: &str) -> Command {
        self.dfget_to(url, self.path(name))
    }

    /// A dfget that downloads `url` to a path, or to its stdout for `-`.
    #[must_use]
    pub fn dfget_to(&self, url: &str, output: impl AsRef<Path>) -> Command {
        let mut command = Command::new(self.programs.join("dfget"));
        let (output, socket) = (output.as_ref(), self.socket());
        command.arg(url).arg("-O").arg(output).arg("-e").arg(socket).arg("--no-progress");
        command
    }
}

async fn is_serving(address: SocketAddr) -> bool {
    let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else { return false };
    let Ok(channel) = endpoint.connect().await else { return false };
    let asked = HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await;
    asked.is_ok_and(|answer| answer.into_inner().status == 1)
}

/// Whether the daemon knows of a scheduler that answers.
async fn has_scheduler(socket: &Path) -> bool {
    let Ok(channel) = connect(socket).await else { return false };
    let Ok(parts) = LocalClient::new(channel).status(StatusRequest {}).await else { return false };
    let Ok(Some(first)) = parts.into_inner().message().await else { return false };
    first.host.is_some_and(|host| host.schedulers.iter().any(|scheduler| scheduler.healthy))
}
