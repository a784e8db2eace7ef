//! A laboratory in one directory: an nginx origin and daemons.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

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
    pub async fn start(dir: &Path, state: &Path) -> Result<Self, BenchError> {
        let port = free_port()?;
        let (root, state) = (dir.display(), state.display());
        let config = format!(
            "daemon off; worker_processes 1; pid {state}/nginx.pid; error_log {state}/nginx.err;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
             client_body_temp_path {state}/b; proxy_temp_path {state}/p; fastcgi_temp_path {state}/f;\n\
             uwsgi_temp_path {state}/u; scgi_temp_path {state}/s;\n\
             server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
        );
        let file = PathBuf::from(format!("{state}/nginx.conf"));
        fs::write(&file, config).map_err(io("write nginx.conf"))?;
        let nginx = Running::start(Command::new("nginx").arg("-c").arg(&file))?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        until(PATIENCE, async || tokio::net::TcpStream::connect(address).await.is_ok()).await?;
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
    /// When it does not become healthy.
    pub async fn start(programs: &Path, home: &Path, join: Option<SocketAddr>) -> Result<Self, BenchError> {
        fs::create_dir_all(home).map_err(io("make a home"))?;
        let (grpc, scheduler) = (free_port()?, free_port()?);
        let mut command = Command::new(programs.join("dfdaemon"));
        command.arg("--home").arg(home).args(["--listen", "127.0.0.1", "--port", &grpc.to_string()]);
        match join {
            Some(join) => command.args(["--join", &join.to_string()]),
            None => command.args(["--scheduler", "--scheduler-port", &scheduler.to_string()]),
        };
        command.args(["--hostname", &home.file_name().unwrap_or_default().to_string_lossy()]);
        let daemon = Running::start(&mut command)?;
        let address = SocketAddr::from(([127, 0, 0, 1], grpc));
        let socket = home.join("dfdaemon.sock");
        let ready_after = until(PATIENCE, async || {
            tokio::net::UnixStream::connect(&socket).await.is_ok() && is_serving(address).await
        })
        .await?;
        let scheduler = SocketAddr::from(([127, 0, 0, 1], scheduler));
        Ok(Self { home: home.to_owned(), programs: programs.to_owned(), daemon, scheduler, ready_after })
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

    /// A dfget that downloads `url` to `name` in the home.
    #[must_use]
    pub fn dfget(&self, url: &str, name: &str) -> Command {
        let mut command = Command::new(self.programs.join("dfget"));
        command.arg(url).arg("-O").arg(self.path(name)).arg("-e").arg(self.socket()).arg("--no-progress");
        command
    }
}

async fn is_serving(address: SocketAddr) -> bool {
    let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else { return false };
    let Ok(channel) = endpoint.connect().await else { return false };
    let asked = HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await;
    asked.is_ok_and(|answer| answer.into_inner().status == 1)
}
