//! dfget without a daemon: the engine runs in this process, and the download talks to it as to a daemon.

use std::io;

use damselfly_actors::daemon::StartError;
use damselfly_actors::embedded::Embedded;
use damselfly_scheduler_client::Target;
use damselfly_storage::StoreError;
use tempfile::TempDir;

use super::daemon::TITLE;
use super::part_dir::PartDir;
use super::plan::Plan;
use crate::endpoint::{At, Daemon};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;

/// The engine and where it keeps its content.
#[derive(Debug)]
pub(super) struct Alone {
    embedded: Embedded,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Beside the output: what an interrupted run has fetched waits there for the next one.
    Beside(PartDir),
    /// For stdout, which nobody can write a second time: gone with this run.
    Temporary(TempDir),
}

impl Alone {
    /// Starts the engine for `plan`, in the swarm of the schedulers that it names.
    ///
    /// # Errors
    /// When the directory is locked or cannot be used, or the engine does not start. Nothing is left then.
    pub(super) async fn start(plan: &Plan) -> Result<Self, Failure> {
        let place = match &plan.output {
            Output::File(output) => Place::Beside(PartDir::open(output, plan.task.as_str())?),
            Output::Stdout => Place::Temporary(
                tempfile::Builder::new().prefix("dfget-").tempdir().map_err(|why| no_directory(&why))?,
            ),
        };
        let path = match &place {
            Place::Beside(part) => part.path(),
            Place::Temporary(directory) => directory.path(),
        };
        let embedded = Embedded::start(path, &plan.join).await.map_err(|why| not_started(&why))?;
        let mut alone = Self { embedded, place };
        alone.keep(true);
        Ok(alone)
    }

    /// The engine as the download sees it.
    pub(super) fn daemon(&self) -> Daemon {
        Daemon::new(self.embedded.channel().into(), At::Here(self.embedded.schedulers()))
    }

    /// What people are told: `why` no daemon does the work, and who takes part.
    pub(super) fn note(&self, why: &str, join: &[Target]) -> String {
        let schedulers = self.embedded.schedulers();
        let swarm = match (join.first(), schedulers.is_empty()) {
            (None, _) => "from the origin alone; --join HOST joins a swarm".to_owned(),
            (Some(_), true) => format!("no scheduler answers at {} yet", list(join)),
            (Some(_), false) => format!("in the swarm of {}", list(&schedulers)),
        };
        format!("dfget: running without a daemon ({why}), {swarm}")
    }

    fn keep(&mut self, keep: bool) {
        if let Place::Beside(part) = &mut self.place {
            part.keep(keep);
        }
    }

    /// Stops the engine. The part directory stays only for a run that failed with something fetched that the next run
    /// can use.
    pub(super) async fn end(self, failed: Option<&Failure>) {
        let Self { embedded, place } = self;
        let holds = embedded.shutdown().await;
        if let Place::Beside(mut part) = place {
            // Content with another digest than promised would fail every further run.
            part.keep(holds && failed.is_some_and(|failure| failure.exit != Exit::Digest));
            tokio::task::block_in_place(|| drop(part));
        }
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn no_directory(why: &io::Error) -> Failure {
    let directory = std::env::temp_dir();
    let text = format!(
        "cannot make a temporary directory in {}: {why}; set TMPDIR to a place with room for the content",
        directory.display()
    );
    Failure::new(TITLE, Exit::Failure, text)
}

fn not_started(why: &StartError) -> Failure {
    let exit = match why {
        StartError::Store(StoreError::NoSpace { .. } | StoreError::DiskFull { .. }) => Exit::NoSpace,
        _ => Exit::Failure,
    };
    Failure::new(TITLE, exit, why)
}
