//! Which addresses a daemon binds and announces, whom it asks, and whether it schedules itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use damselfly_scheduler_client::Target;
use thiserror::Error;

/// What the choice of addresses depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct AddressInputs {
    /// `--listen`.
    pub listen: Option<IpAddr>,
    /// Whether schedulers elsewhere are configured: by `--join`, a manager or dynconfig.
    pub joins: bool,
    /// `host.ip`.
    pub host_ip: Option<IpAddr>,
    /// `upload.server.ip`.
    pub server_ip: Option<IpAddr>,
    /// The local address of the route to the first scheduler, or of the default route where it is not known yet.
    pub route: Option<IpAddr>,
    /// `network.enableIPv6`.
    pub ipv6: bool,
}

/// Where a daemon listens and what others are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Bound by every listener whose own section names no other address.
    pub bind: IpAddr,
    /// Announced to schedulers, and part of the host id.
    pub announce: IpAddr,
}

/// Why no address can be announced.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AddressError {
    /// This host has no route to a scheduler and no default route.
    #[error(
        "no address to announce: this host has no route to a scheduler; name its address with --listen or host.ip"
    )]
    NoRoute,
    /// The address stands for all addresses, which nobody can dial.
    #[error("host.ip is {0}: expected an address that other hosts can dial")]
    Unspecified(IpAddr),
}

impl Addresses {
    /// With neither `--listen` nor a scheduler elsewhere: loopback. `--listen` binds and announces its address. A
    /// scheduler elsewhere alone: all addresses are bound, and the route to it is announced. `host.ip` and
    /// `upload.server.ip` overrule what is announced and what is bound, below `--listen`.
    ///
    /// # Errors
    /// When an address must be announced and none is known.
    pub fn decide(inputs: AddressInputs) -> Result<Self, AddressError> {
        let any: IpAddr =
            if inputs.ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let loopback: IpAddr =
            if inputs.ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let alone = !inputs.joins && inputs.host_ip.is_none();
        let bind =
            inputs.listen.or(inputs.server_ip).unwrap_or(if alone { loopback } else { any }).to_canonical();
        let named = inputs.host_ip.map(|ip| ip.to_canonical());
        if let Some(ip) = named.filter(IpAddr::is_unspecified) {
            return Err(AddressError::Unspecified(ip));
        }
        let announce = match (inputs.listen, named) {
            (Some(_), _) if !bind.is_unspecified() => bind,
            (_, Some(ip)) => ip,
            (None, None) if !bind.is_unspecified() => bind,
            _ => inputs.route.map(|ip| ip.to_canonical()).ok_or(AddressError::NoRoute)?,
        };
        Ok(Self { bind, announce })
    }
}

/// The local address from which `remote` would be reached. Nothing is sent.
///
/// # Errors
/// When there is no route.
pub fn route_to(remote: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr =
        if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip().to_canonical())
}

/// The local address of the default route, where there is one: a documentation address is asked for, which no host has.
#[must_use]
pub fn default_route() -> Option<IpAddr> {
    let v4 = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9));
    let v6 = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9));
    route_to(v4).or_else(|_| route_to(v6)).ok()
}

/// Where the list of schedulers comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchedulerSource {
    /// `--join`.
    Join(Vec<Target>),
    /// `manager.addr`.
    Manager(String),
    /// The dynconfig file, which names schedulers.
    Dynconfig(PathBuf),
    /// Nobody: this daemon's own.
    Own,
}

impl SchedulerSource {
    /// `--join`, else the manager, else what dynconfig names, else the daemon itself. `dynconfig` is the file's path
    /// where the file names a scheduler.
    #[must_use]
    pub fn decide(join: &[Target], manager: Option<&str>, dynconfig: Option<PathBuf>) -> Self {
        match (join, manager, dynconfig) {
            ([_, ..], _, _) => Self::Join(join.to_vec()),
            ([], Some(manager), _) => Self::Manager(manager.to_owned()),
            ([], None, Some(path)) => Self::Dynconfig(path),
            ([], None, None) => Self::Own,
        }
    }
}

/// Whether a daemon runs a scheduler of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbeddedScheduler {
    /// No.
    No,
    /// Yes: `--scheduler` asks for it, or there is no other.
    Yes,
    /// `--join` names this daemon's own address. Yes if the address can be bound; if it is taken, another daemon or a
    /// dfscheduler on this host runs that scheduler, and this daemon joins it.
    IfFree(SocketAddr),
}

impl EmbeddedScheduler {
    /// `flag` is `--scheduler`, `own` the address a scheduler here would announce, and `joined` the resolved addresses
    /// of `--join`.
    #[must_use]
    pub fn decide(flag: bool, source: &SchedulerSource, own: SocketAddr, joined: &[SocketAddr]) -> Self {
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        match source {
            SchedulerSource::Own => Self::Yes,
            _ if flag => Self::Yes,
            SchedulerSource::Join(_) if joined.iter().any(|&a| canonical(a) == canonical(own)) => {
                Self::IfFree(canonical(own))
            }
            _ => Self::No,
        }
    }
}
