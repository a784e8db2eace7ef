//! dfdaemon's command line: Dragonfly's flags first, then ours.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Parser;
use damselfly_actors::config::{Overrides, PortOverrides};

use crate::logging::Level;
use crate::{units, version};

/// Downloads, keeps and serves content on this host.
#[derive(Clone, Debug, Parser)]
#[command(name = "dfdaemon", version = version::long(), max_term_width = 110)]
#[command(
    after_help = "Without a configuration file everything has a default, in the user's own directories when not \
    root. The first SIGINT, SIGTERM or SIGQUIT ends the daemon in order, a second one at once."
)]
pub struct Args {
    /// The configuration [default: dfdaemon.yaml in the configuration directory, if it is there]
    #[arg(short, long, env = "DFDAEMON_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The file of schedulers and block lists [default: dynconfig.yaml in the configuration directory, if it is there]
    #[arg(long, env = "DFDAEMON_DYNCONFIG", value_name = "FILE")]
    pub dynconfig: Option<PathBuf>,

    /// What to log; RUST_LOG overrides it
    #[arg(short, long, env = "DFDAEMON_LOG_LEVEL", default_value = "info")]
    pub log_level: Level,

    /// Where dfdaemon.log is written [default: /var/log/dragonfly/dfdaemon, or in the user's state directory]
    #[arg(long, env = "DFDAEMON_LOG_DIR", value_name = "DIR")]
    pub log_dir: Option<PathBuf>,

    /// Log files to keep, the open one included
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub log_max_files: u16,

    /// Size at which a log file is full
    #[arg(long, default_value = "1GiB", value_name = "SIZE", value_parser = units::parse_size)]
    pub log_max_file_size: ByteSize,

    /// Log to stdout instead of files
    #[arg(long)]
    pub console: bool,

    /// Keep configuration, store, socket and logs in one directory: for a second daemon on one host
    #[arg(long, env = "DFDAEMON_HOME", value_name = "DIR")]
    pub home: Option<PathBuf>,

    /// The address to listen on and to announce [default: loopback, or with --join all and the one towards the scheduler]
    #[arg(long, env = "DFDAEMON_LISTEN", value_name = "IP")]
    pub listen: Option<IpAddr>,

    /// A scheduler of the ring (repeatable, or separated by commas)
    #[arg(long, env = "DFDAEMON_JOIN", value_name = "HOST[:8002]")]
    pub join: Vec<String>,

    /// Run a scheduler inside this daemon, whatever else is configured
    #[arg(long)]
    pub scheduler: bool,

    /// The name to announce instead of the operating system's
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,

    /// gRPC for other hosts; a port that is named here is never replaced by a free one
    #[arg(long, value_name = "PORT", help_heading = "Ports")]
    pub port: Option<u16>,

    /// Pieces over TCP
    #[arg(long, value_name = "PORT", help_heading = "Ports")]
    pub tcp_port: Option<u16>,

    /// The embedded scheduler
    #[arg(long, value_name = "PORT", help_heading = "Ports")]
    pub scheduler_port: Option<u16>,

    /// Health over HTTP
    #[arg(long, value_name = "PORT", help_heading = "Ports")]
    pub health_port: Option<u16>,

    /// Metrics over HTTP
    #[arg(long, value_name = "PORT", help_heading = "Ports")]
    pub metrics_port: Option<u16>,
}

impl Args {
    /// What these flags change in the configuration.
    ///
    /// # Errors
    /// When a relative path cannot be made absolute because the current directory is gone.
    pub fn overrides(&self) -> io::Result<Overrides> {
        let absolute = |path: &Option<PathBuf>| path.as_deref().map(std::path::absolute).transpose();
        Ok(Overrides {
            dynconfig: absolute(&self.dynconfig)?,
            home: absolute(&self.home)?,
            listen: self.listen,
            join: self.join.clone(),
            scheduler: self.scheduler,
            hostname: self.hostname.clone(),
            log_dir: absolute(&self.log_dir)?,
            ports: PortOverrides {
                grpc: self.port,
                metrics: self.metrics_port,
                health: self.health_port,
                tcp: self.tcp_port,
                scheduler: self.scheduler_port,
                ..PortOverrides::default()
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_overrides() {
        let arguments = [
            "dfdaemon",
            "--home",
            "d",
            "--listen",
            "10.0.0.1",
            "--join",
            "a,b:1",
            "--join",
            "c",
            "--scheduler",
        ];
        let ports = [
            "--port",
            "1",
            "--tcp-port",
            "2",
            "--scheduler-port",
            "3",
            "--health-port",
            "4",
            "--metrics-port",
            "5",
        ];
        let args = Args::try_parse_from(arguments.iter().chain(&ports)).unwrap();
        let overrides = args.overrides().unwrap();
        assert!(overrides.home.is_some_and(|home| home.is_absolute() && home.ends_with("d")));
        assert_eq!(overrides.listen, Some(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(overrides.join, ["a,b:1", "c"]);
        assert!(overrides.scheduler);
        let ports = overrides.ports;
        let numbers =
            [ports.grpc, ports.tcp, ports.scheduler, ports.health, ports.metrics, ports.quic, ports.stats];
        assert_eq!(numbers, [Some(1), Some(2), Some(3), Some(4), Some(5), None, None]);
    }

    #[test]
    fn defaults_are_dragonflys() {
        let args = Args::try_parse_from(["dfdaemon"]).unwrap();
        assert_eq!((args.log_max_files, args.log_max_file_size.as_u64()), (6, 1 << 30));
        assert_eq!(args.log_level, Level::Info);
        assert!(Args::try_parse_from(["dfdaemon", "--log-max-files", "0"]).is_err());
    }
}
