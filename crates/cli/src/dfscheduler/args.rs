//! dfscheduler's command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Parser;

use crate::logging::Level;
use crate::{units, version};

/// The port schedulers are looked for at.
pub const PORT: u16 = 8002;

/// Schedules the daemons of a cluster: the scheduler that a daemon can embed, alone.
#[derive(Clone, Debug, Parser)]
#[command(name = "dfscheduler", version = version::long(), max_term_width = 110)]
pub struct Args {
    /// Where to listen [default: 127.0.0.1, or all addresses with --join; port 8002]
    #[arg(long, env = "DFSCHEDULER_LISTEN", value_name = "IP[:PORT]", value_parser = parse_listen)]
    pub listen: Option<SocketAddr>,

    /// Every scheduler of the ring (repeatable, or separated by commas); this one may be among them
    #[arg(long, env = "DFSCHEDULER_JOIN", value_name = "HOST[:8002]")]
    pub join: Vec<String>,

    /// What to log; RUST_LOG overrides it
    #[arg(short, long, env = "DFSCHEDULER_LOG_LEVEL", default_value = "info")]
    pub log_level: Level,

    /// Where dfscheduler.log is written [default: /var/log/dragonfly/dfscheduler, or in the user's state directory]
    #[arg(long, env = "DFSCHEDULER_LOG_DIR", value_name = "DIR")]
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
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let ip = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    ip.map(|ip| SocketAddr::new(ip, PORT)).or_else(|_| text.parse()).map_err(|_| {
        "expected an IP address, or one with a port, such as 10.0.0.1:8002 or [fd00::1]:8002".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_or_without_port() {
        assert_eq!(parse_listen("10.0.0.1"), Ok(SocketAddr::from(([10, 0, 0, 1], PORT))));
        assert_eq!(parse_listen("10.0.0.1:0"), Ok(SocketAddr::from(([10, 0, 0, 1], 0))));
        for v6 in ["::1", "[::1]", "[::1]:8002"] {
            assert_eq!(parse_listen(v6).map(|address| address.to_string()), Ok("[::1]:8002".to_owned()));
        }
        assert!(parse_listen("host:8002").is_err_and(|text| text.contains("10.0.0.1:8002")));
    }
}
