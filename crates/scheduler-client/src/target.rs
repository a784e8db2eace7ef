//! Addresses as people write them, and the files that make a connection TLS.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Looking a name up takes longer than this only when no name server answers.
const LOOKUP: Duration = Duration::from_secs(10);

/// A host name or IP address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// A name or an address, IPv6 without brackets.
    pub host: String,
    /// The port, not 0.
    pub port: u16,
}

/// Why an address was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TargetError {
    /// Not of the form `HOST[:PORT]`.
    #[error("HOST[:PORT] such as 10.0.0.1, scheduler.example:8002 or [fd00::1]:8002, not {0:?}")]
    Malformed(String),
    /// The name has no address.
    #[error("cannot resolve {name}: {why}; check the name and the name server")]
    Unresolved {
        /// The name.
        name: String,
        /// The resolver's words.
        why: String,
    },
}

impl Target {
    /// Reads `HOST[:PORT]`; an IPv6 address with a port needs brackets.
    ///
    /// # Errors
    /// [`TargetError::Malformed`].
    pub fn parse(text: &str, default_port: u16) -> Result<Self, TargetError> {
        let malformed = || TargetError::Malformed(text.chars().take(200).collect());
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self { host: ip.to_canonical().to_string(), port: default_port });
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (ip, rest) = rest.split_once(']').ok_or_else(malformed)?;
            let ip: std::net::Ipv6Addr = ip.parse().map_err(|_| malformed())?;
            let port = match rest.strip_prefix(':') {
                Some(port) => parse_port(port).ok_or_else(malformed)?,
                None if rest.is_empty() => default_port,
                None => return Err(malformed()),
            };
            return Ok(Self { host: ip.to_canonical().to_string(), port });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, parse_port(port).ok_or_else(malformed)?),
            None => (text, default_port),
        };
        let fine = (1..=253).contains(&host.len())
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        if !fine {
            return Err(malformed());
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// Reads lists as `--join` takes them: repeated, each comma-separated; doubles are dropped.
    ///
    /// # Errors
    /// [`TargetError::Malformed`] for the first that is wrong.
    pub fn parse_list(lists: &[String], default_port: u16) -> Result<Vec<Self>, TargetError> {
        let mut targets = Vec::new();
        for item in lists.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|t| !t.is_empty()) {
            let target = Self::parse(item, default_port)?;
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        Ok(targets)
    }

    /// All IPv4 addresses of the host, or its IPv6 addresses where it has no other; canonical, sorted, without doubles.
    ///
    /// # Errors
    /// [`TargetError::Unresolved`].
    pub async fn resolve(&self) -> Result<Vec<SocketAddr>, TargetError> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip.to_canonical(), self.port)]);
        }
        let unresolved = |why: String| TargetError::Unresolved { name: self.host.clone(), why };
        let lookup = tokio::net::lookup_host((self.host.as_str(), self.port));
        let found = tokio::time::timeout(LOOKUP, lookup)
            .await
            .map_err(|_| unresolved(format!("no answer within {} s", LOOKUP.as_secs())))?
            .map_err(|error| unresolved(error.to_string()))?;
        let addresses = choose(found);
        if addresses.is_empty() { Err(unresolved("it has no address".to_owned())) } else { Ok(addresses) }
    }
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|&port| port != 0 && !text.starts_with('+'))
}

fn choose(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> =
        found.map(|address| SocketAddr::new(address.ip().to_canonical(), address.port())).collect();
    if addresses.iter().any(SocketAddr::is_ipv4) {
        addresses.retain(SocketAddr::is_ipv4);
    }
    addresses.sort();
    addresses.dedup();
    addresses
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// PEM files that make connections to schedulers or a manager TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities to trust; the system's where absent.
    pub ca: Option<PathBuf>,
    /// Certificate and key to show.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, host, port) in [
            ("10.0.0.1", "10.0.0.1", 8002),
            ("10.0.0.1:9000", "10.0.0.1", 9000),
            ("scheduler.example", "scheduler.example", 8002),
            ("scheduler.example:80", "scheduler.example", 80),
            ("fd00::1", "fd00::1", 8002),
            ("[fd00::1]:9000", "fd00::1", 9000),
            ("[fd00::1]", "fd00::1", 8002),
            ("::ffff:10.0.0.1", "10.0.0.1", 8002),
        ] {
            let target = Target::parse(text, 8002).unwrap();
            assert_eq!((target.host.as_str(), target.port), (host, port), "{text}");
        }
        for text in [
            "",
            ":8002",
            "a b",
            "host:0",
            "host:70000",
            "host:+1",
            "http://host",
            "[fd00::1",
            "[x]:1",
            "[::1]x",
        ] {
            assert!(Target::parse(text, 8002).is_err(), "{text}");
        }
    }

    #[test]
    fn lists_are_repeated_or_comma_separated() {
        let list = ["a:1,b".to_owned(), " c , a:1,".to_owned()];
        let names: Vec<String> =
            Target::parse_list(&list, 8002).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a:1", "b:8002", "c:8002"]);
        assert_eq!(Target::parse("fd00::1", 1).unwrap().to_string(), "[fd00::1]:1");
    }

    #[test]
    fn v4_comes_before_v6_sorted_and_once() {
        let found: Vec<SocketAddr> = ["[fd00::1]:1", "10.0.0.9:1", "[::ffff:10.0.0.2]:1", "10.0.0.9:1"]
            .map(|a| a.parse().unwrap())
            .into();
        assert_eq!(choose(found.into_iter()), ["10.0.0.2:1".parse().unwrap(), "10.0.0.9:1".parse().unwrap()]);
        let only: Vec<SocketAddr> = ["[fd00::2]:1", "[fd00::1]:1"].map(|a| a.parse().unwrap()).into();
        assert_eq!(choose(only.into_iter()).len(), 2);
    }

    #[tokio::test]
    async fn localhost_resolves() {
        let addresses = Target::parse("localhost:8002", 1).unwrap().resolve().await.unwrap();
        assert!(addresses.iter().all(|a| a.ip().is_loopback() && a.port() == 8002));
    }
}
