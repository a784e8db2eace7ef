//! Where schedulers are and what must not be downloaded: the dynconfig file, or a manager in its stead.

mod block;
mod manager;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use damselfly_api::common::v2::Host;
use serde::Deserialize;
use thiserror::Error;

use crate::Target;
use crate::cluster::Names;

pub use block::{Action, BlockList, Blocked, Subject};
pub use manager::ManagerSource;

pub(crate) use block::RawClientConfig;

/// The port of schedulers named without one.
const SCHEDULER_PORT: u16 = 8002;

/// Where the list of schedulers comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Named by flags. The names are resolved at every refresh.
    Join(Vec<Target>),
    /// Named by flags like [`Source::Join`], while a dynconfig file, if it is there, still says what is blocked.
    JoinWithBlocks {
        /// The schedulers.
        targets: Vec<Target>,
        /// The file.
        file: PathBuf,
    },
    /// A dynconfig file, read at every refresh.
    File(PathBuf),
    /// A manager, asked at every refresh.
    Manager(Box<ManagerSource>),
}

/// Why there is no list.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DynconfigError {
    /// The file cannot be read.
    #[error("cannot read dynconfig {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file or the manager's answer makes no sense.
    #[error("{origin}: {message}")]
    Malformed {
        /// The file, or the manager.
        origin: String,
        /// What is wrong, with key, expectation and place where they are known.
        message: String,
    },
    /// None of the names could be resolved.
    #[error("no scheduler can be found: {0}")]
    NoneResolved(String),
    /// The manager did not help.
    #[error("manager {addr}: {why}")]
    Manager {
        /// Its address.
        addr: String,
        /// What happened.
        why: String,
    },
}

/// What one look-up found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) schedulers: Names,
    /// `None`: the block list stays what it was.
    pub(crate) blocks: Option<BlockList>,
    pub(crate) warnings: Vec<String>,
}

impl Source {
    pub(crate) async fn find(&self, host: &Host, seed: bool, version: &str) -> Result<Found, DynconfigError> {
        match self {
            Self::Join(targets) => resolve(targets).await,
            Self::JoinWithBlocks { targets, file } => {
                let mut found = resolve(targets).await?;
                match Dynconfig::read(file) {
                    Ok(dynconfig) => found.blocks = Some(dynconfig.into_blocks(seed)),
                    Err(DynconfigError::Read { source, .. })
                        if source.kind() == std::io::ErrorKind::NotFound =>
                    {
                        found.blocks = Some(BlockList::default());
                    }
                    Err(error) => found.warnings.push(format!("the block list stays what it was: {error}")),
                }
                Ok(found)
            }
            Self::File(file) => {
                let dynconfig = Dynconfig::read(file)?;
                let mut found = match (&dynconfig.addrs[..], &dynconfig.addr) {
                    ([], Some(addr)) => resolve(std::slice::from_ref(addr)).await?,
                    (addrs, _) => Found {
                        schedulers: addrs.iter().map(|a| (*a, a.ip().to_string())).collect(),
                        ..Found::default()
                    },
                };
                found.blocks = Some(dynconfig.into_blocks(seed));
                Ok(found)
            }
            Self::Manager(manager) => manager.find(host, seed, version).await,
        }
    }
}

/// Resolves what can be resolved; fails when that is nothing.
async fn resolve(targets: &[Target]) -> Result<Found, DynconfigError> {
    let mut found = Found::default();
    for target in targets {
        match target.resolve().await {
            Ok(addresses) => {
                found.schedulers.extend(addresses.into_iter().map(|address| (address, target.host.clone())));
            }
            Err(error) => found.warnings.push(error.to_string()),
        }
    }
    if found.schedulers.is_empty() && !found.warnings.is_empty() {
        return Err(DynconfigError::NoneResolved(found.warnings.join("; ")));
    }
    Ok(found)
}

/// The dynconfig file.
#[derive(Clone, Debug, Default)]
pub struct Dynconfig {
    /// `scheduler.addr`: a name whose every address is a scheduler.
    pub addr: Option<Target>,
    /// `scheduler.addrs`, which come before `addr`.
    pub addrs: Vec<SocketAddr>,
    /// The block list of normal hosts.
    pub blocks: BlockList,
    /// The block list of seeds.
    pub seed_blocks: BlockList,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawDynconfig {
    scheduler: Option<RawScheduler>,
    #[serde(rename = "clientConfig", alias = "client_config")]
    client_config: Option<RawClientConfig>,
    #[serde(rename = "seedClientConfig", alias = "seed_client_config")]
    seed_client_config: Option<RawClientConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawScheduler {
    addr: Option<String>,
    addrs: Option<Vec<String>>,
}

impl Dynconfig {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or makes no sense.
    pub fn read(file: &Path) -> Result<Self, DynconfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| DynconfigError::Read { file: file.to_owned(), source })?;
        Self::parse(&text, &file.display().to_string())
    }

    /// Reads the text of a file named `origin`.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn parse(text: &str, origin: &str) -> Result<Self, DynconfigError> {
        let malformed = |message: String| DynconfigError::Malformed { origin: origin.to_owned(), message };
        let raw: Option<RawDynconfig> = from_yaml(text).map_err(malformed)?;
        let raw = raw.unwrap_or_default();
        let scheduler = raw.scheduler.unwrap_or_default();
        let addr = match scheduler.addr.as_deref().map(str::trim) {
            None | Some("") => None,
            Some(addr) => Some(
                Target::parse(addr, SCHEDULER_PORT)
                    .map_err(|error| malformed(format!("scheduler.addr: expected {error}")))?,
            ),
        };
        let addrs = scheduler
            .addrs
            .unwrap_or_default()
            .iter()
            .map(|addr| {
                addr.parse().map_err(|_| {
                    malformed(format!(
                        "scheduler.addrs: expected addresses such as 10.0.0.1:8002, not {addr:?}"
                    ))
                })
            })
            .collect::<Result<_, _>>()?;
        let blocks = |raw: Option<RawClientConfig>, key: &str| {
            raw.unwrap_or_default().compile().map_err(|error| malformed(format!("{key}: {error}")))
        };
        Ok(Self {
            addr,
            addrs,
            blocks: blocks(raw.client_config, "clientConfig")?,
            seed_blocks: blocks(raw.seed_client_config, "seedClientConfig")?,
        })
    }

    fn into_blocks(self, seed: bool) -> BlockList {
        if seed { self.seed_blocks } else { self.blocks }
    }
}

/// Reads YAML, or JSON, which is YAML. Messages carry line and column, and no line of the text.
pub(crate) fn from_yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    let mut options = serde_saphyr::Options::default();
    options.with_snippet = false;
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
