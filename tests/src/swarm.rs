//! Daemons for whole-system tests: started in this process, each in its own home, with every port free.

mod cache;
mod call;
mod host;
mod parent;
mod scheduler;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use damselfly_actors::daemon::StartError;
use damselfly_api::common::v2::{Download, Piece};
use damselfly_api::dfdaemon::v2::DownloadTaskStartedResponse;
use damselfly_core::task_id::{self, DEFAULT_FILTERED_QUERY_PARAMS, StandardInput};
use damselfly_core::{Kind, TaskId};
use tempfile::TempDir;

pub use cache::{Exported, import};
pub use call::Call;
pub use host::{Host, Setup};
pub use parent::{FakeParent, Vice};
pub use scheduler::TestScheduler;

/// No test waits longer than this for a download.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What one download told.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The beginning.
    pub started: Option<DownloadTaskStartedResponse>,
    /// The pieces, as they came.
    pub pieces: Vec<Piece>,
    /// The task.
    pub task_id: String,
    /// The download as a peer.
    pub peer_id: String,
}

/// In few words, for the message of a test that waited in vain.
impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<_> = self.pieces.iter().map(|piece| piece.number).collect();
        let length = self.started.as_ref().map(|started| started.content_length);
        write!(f, "peer {}, {length:?} bytes, pieces {numbers:?}", self.peer_id)
    }
}

impl Told {
    /// The content of all pieces by number.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        let by_number: BTreeMap<_, _> = self.pieces.iter().map(|piece| (piece.number, piece)).collect();
        by_number.values().flat_map(|piece| piece.content.clone().unwrap_or_default()).collect()
    }
}

/// A download as dfget makes one, without an output.
#[must_use]
pub fn download(url: &str) -> Download {
    Download {
        url: url.to_owned(),
        tag: Some(String::new()),
        application: Some(String::new()),
        priority: 6,
        filtered_query_params: DEFAULT_FILTERED_QUERY_PARAMS.iter().map(ToString::to_string).collect(),
        ..Download::default()
    }
}

/// A download to a file.
#[must_use]
pub fn to_file(url: &str, path: &Path) -> Download {
    Download { output_path: Some(path.display().to_string()), ..download(url) }
}

/// A download of a part, as Dragonfly's clients name one.
#[must_use]
pub fn with_range(download: Download, start: u64, length: u64) -> Download {
    Download { range: Some(damselfly_api::common::v2::Range { start, length }), ..download }
}

/// A download with one more request header.
#[must_use]
pub fn with_header(mut download: Download, name: &str, value: &str) -> Download {
    download.request_header.insert(name.to_owned(), value.to_owned());
    download
}

/// The id that a download's task has everywhere.
///
/// # Panics
/// When the URL is none.
#[must_use]
pub fn task_of(download: &Download) -> TaskId {
    let input = StandardInput {
        url: &download.url,
        tag: download.tag.as_deref(),
        application: download.application.as_deref(),
        revision: None,
        piece_length: download.piece_length,
        filtered_query_params: &download.filtered_query_params,
        content: download.content_for_calculating_task_id.as_deref(),
        blob_digest: download.enable_task_id_based_blob_digest,
        kind: Kind::Standard,
    };
    task_id::standard(&input).expect("a URL")
}

/// Several hosts that share one scheduler, the first one's.
#[derive(Debug)]
pub struct Swarm {
    dir: TempDir,
    /// The hosts.
    pub hosts: Vec<Host>,
}

impl Swarm {
    /// Starts `count` hosts; the first embeds the scheduler, the others join it.
    ///
    /// # Errors
    /// As [`Host::start`].
    ///
    /// # Panics
    /// When no temporary directory can be made.
    pub async fn start(count: usize, yaml: &str) -> Result<Self, StartError> {
        let mut swarm = Self { dir: TempDir::new().expect("a temporary directory"), hosts: Vec::new() };
        for _ in 0..count {
            swarm.add(Setup { yaml: yaml.to_owned(), ..Setup::default() }).await?;
        }
        Ok(swarm)
    }

    /// Starts `count` hosts that join `schedulers`.
    ///
    /// # Errors
    /// As [`Host::start`].
    ///
    /// # Panics
    /// As [`Swarm::start`].
    pub async fn join(count: usize, schedulers: &[SocketAddr], yaml: &str) -> Result<Self, StartError> {
        let mut swarm = Self { dir: TempDir::new().expect("a temporary directory"), hosts: Vec::new() };
        for _ in 0..count {
            let setup = Setup { yaml: yaml.to_owned(), join: schedulers.to_vec(), ..Setup::default() };
            swarm.add(setup).await?;
        }
        Ok(swarm)
    }

    /// Adds a host that joins the first one's scheduler unless `setup` names another.
    ///
    /// # Errors
    /// As [`Host::start`].
    pub async fn add(&mut self, mut setup: Setup) -> Result<&mut Host, StartError> {
        let index = self.hosts.len();
        if setup.join.is_empty()
            && let Some(first) = self.hosts.first()
        {
            setup.join = vec![first.scheduler()];
        }
        if setup.name.is_empty() {
            setup.name = format!("host{index}");
        }
        let home = self.dir.path().join(format!("host{index}"));
        let host = Host::start(&home, setup).await?;
        host.daemon().engine().cluster.ready().await;
        self.hosts.push(host);
        Ok(&mut self.hosts[index])
    }

    /// Stops every host.
    pub async fn stop(&mut self) {
        for host in self.hosts.iter_mut().rev() {
            host.stop().await;
        }
    }
}
