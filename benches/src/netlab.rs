//! The emulated network: hosts in namespaces of their own, see benches/netlab/README.md. Needs root.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::BenchError;
use crate::place::Place;
use crate::process::timed;

/// The laboratory's name: hosts are damselfly0, damselfly1 and so on.
const NAME: &str = "damselfly";

/// A running laboratory.
#[derive(Debug)]
pub struct Netlab {
    script: PathBuf,
}

impl Netlab {
    /// Starts one with `hosts` hosts. It ends with this process, whatever happens.
    ///
    /// # Errors
    /// When it cannot be started: not root, no compiler, or another one is running.
    pub fn start(script: &Path, hosts: u8, settings: &[String]) -> Result<Self, BenchError> {
        let lab = Self { script: script.to_owned() };
        let follow = format!("follow={}", std::process::id());
        timed(lab.ask("start").arg(hosts.to_string()).args(settings).arg(follow))?;
        Ok(lab)
    }

    /// Changes some hosts' links from now on.
    ///
    /// # Errors
    /// When the laboratory does not know the host or setting.
    pub fn set(&self, host: u8, settings: &[&str]) -> Result<(), BenchError> {
        timed(self.ask("set").arg(host.to_string()).args(settings)).map(drop)
    }

    /// A host, counted from 0.
    #[must_use]
    pub fn host(&self, number: u8) -> Place {
        let address = IpAddr::V4(Ipv4Addr::new(10, 77, 0, number + 1));
        Place::within(&format!("{NAME}{number}"), address)
    }

    fn ask(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.script);
        command.env("NETLAB", NAME).arg(verb);
        command
    }
}

impl Drop for Netlab {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(timed(&mut self.ask("stop")));
    }
}
