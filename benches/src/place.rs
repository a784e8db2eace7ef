//! Where a process runs: in this network, or in one of the laboratory's.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{BenchError, io};

/// Long enough for any link of the laboratory.
const CONNECT: Duration = Duration::from_secs(2);

/// An address and the network namespace it is in.
#[derive(Clone, Debug)]
pub struct Place {
    /// What processes listen on.
    pub address: IpAddr,
    namespace: Option<PathBuf>,
}

impl Place {
    /// This machine's own loopback.
    #[must_use]
    pub fn loopback() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), namespace: None }
    }

    /// A named network namespace, as iproute2 keeps them.
    #[must_use]
    pub fn within(namespace: &str, address: IpAddr) -> Self {
        Self { address, namespace: Some(PathBuf::from("/run/netns").join(namespace)) }
    }

    /// Whether this program can reach it.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.namespace.is_none()
    }

    /// A program that will run here. Only its network is another: with a mount namespace of its own, which `ip netns exec`
    /// gives, a daemon could not write to its callers' paths.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(namespace) = &self.namespace else { return Command::new(program) };
        let mut net = OsStr::new("--net=").to_owned();
        net.push(namespace);
        let mut command = Command::new("nsenter");
        command.arg(net).arg(program);
        command
    }

    /// Whether something listens on `port`.
    pub async fn answers(&self, port: u16) -> bool {
        let here = self.clone();
        // Namespaces belong to threads: this one ends with its question.
        let (told, answer) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || told.send(here.connects(port)));
        answer.await.unwrap_or(false)
    }

    /// Moves this thread into the place's network for good.
    ///
    /// # Errors
    /// When the namespace is gone, or this is not root.
    pub fn enter(&self) -> Result<(), BenchError> {
        let Some(namespace) = &self.namespace else { return Ok(()) };
        let file = File::open(namespace).map_err(io("open a network namespace"))?;
        let entered = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
        entered.map_err(|why| io("enter a network namespace")(why.into()))
    }

    fn connects(&self, port: u16) -> bool {
        self.enter().is_ok()
            && TcpStream::connect_timeout(&SocketAddr::new(self.address, port), CONNECT).is_ok()
    }
}
