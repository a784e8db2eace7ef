//! How content moved: which way, from where, how fast.

use std::collections::HashSet;
use std::time::Duration;

use damselfly_api::common::v2::{Piece, TrafficType};
use damselfly_api::damselfly::v1 as local;

use crate::units;

/// Bytes by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// From the origin.
    pub origin: u64,
    /// From other hosts.
    pub peers: u64,
    /// Held by the daemon before.
    pub local: u64,
    /// Hosts that bytes came from.
    pub parents: usize,
}

impl From<&local::Receipt> for Sources {
    fn from(receipt: &local::Receipt) -> Self {
        Self {
            origin: receipt.origin_bytes,
            peers: receipt.peer_bytes,
            local: receipt.local_bytes,
            parents: receipt.parents.len(),
        }
    }
}

/// Which way the content took to its output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// `path` (the daemon opened it), `fd` (the daemon had it open from here) or `stream` (through the daemon's socket).
    pub mode: String,
    /// Why, for people; may be empty.
    pub reason: String,
}

impl Sources {
    /// `  origin 1.0 MiB, peers 2.0 MiB (1 parent), local cache 0 B` and a line's end.
    #[must_use]
    pub fn line(&self) -> String {
        let parents = match self.parents {
            0 => String::new(),
            1 => " (1 parent)".to_owned(),
            many => format!(" ({many} parents)"),
        };
        let [origin, peers, local] = [self.origin, self.peers, self.local].map(units::bytes);
        format!("  origin {origin}, peers {peers}{parents}, local cache {local}\n")
    }
}

impl Transfer {
    /// The way and why it was taken, indented, and a line's end. `path` are the words for what the daemon did itself.
    #[must_use]
    pub fn line(&self, path: &str) -> String {
        let way = match self.mode.as_str() {
            "path" => path,
            "stream" => "through the daemon's socket (stream)",
            "fd" => "through a descriptor (fd)",
            other => other,
        };
        let reason = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
        format!("  {way}{reason}\n")
    }
}

/// `64.0 MiB in 2.31 s (27.7 MiB/s)`.
#[must_use]
pub fn summary(bytes: u64, elapsed: Duration) -> String {
    let speed = units::rate(bytes, elapsed).map(|rate| format!(" ({}/s)", units::bytes(rate)));
    format!("{} in {}{}", units::bytes(bytes), units::duration(elapsed), speed.unwrap_or_default())
}

/// Where pieces came from, by the reports of a daemon.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    sources: Sources,
    parents: HashSet<String>,
}

impl Tally {
    pub(crate) fn count(&mut self, piece: &Piece) {
        match piece.traffic_type() {
            TrafficType::BackToSource => self.sources.origin += piece.length,
            TrafficType::RemotePeer => {
                self.sources.peers += piece.length;
                if let Some(parent) = piece.parent_id.as_ref().filter(|parent| !parent.is_empty()) {
                    self.parents.insert(parent.clone());
                }
            }
            TrafficType::LocalPeer => self.sources.local += piece.length,
        }
    }

    pub(crate) fn sources(&self) -> Sources {
        Sources { parents: self.parents.len(), ..self.sources }
    }
}
