//! Where a download's content goes in the file system, with the rights of the one who asked (promise I11).

use std::fs::File;
use std::sync::Arc;

use damselfly_core::ByteRange;
use damselfly_storage::{OutputPolicy, OutputWay, StoreError, TaskContent};
use damselfly_transport::local::{
    ActError, Caller, Life, OutputTarget, PathError, as_caller_for_long, with_handed_over,
};
use rustix::fs::SeekFrom;
use tonic::Status;

use crate::metrics::Mode;
use crate::stream::storage;

/// Where content goes.
#[derive(Debug)]
pub enum Output {
    /// To a path, opened as its caller.
    Path(PathOutput),
    /// Into a file that its caller opened and handed over.
    Descriptor(DescriptorOutput),
}

/// An output opened as its caller.
#[derive(Debug)]
pub struct PathOutput {
    /// Directory and name.
    pub target: OutputTarget,
    /// Whether the caller owns the store too: only then may the output share its inode.
    pub same_uid: bool,
    /// Whether a file that is there may be replaced.
    pub overwrite: bool,
    /// Whether anything but a hard link is a failure.
    pub force_hard_link: bool,
}

/// A caller's file. It is the caller who gives it its name in the end.
#[derive(Debug)]
pub struct DescriptorOutput {
    file: Arc<File>,
    caller: Arc<Caller>,
}

/// How an output came about, for the receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// `path` or `fd`.
    pub transfer: &'static str,
    /// `hard link`, `reflink` or `copy`.
    pub way: &'static str,
}

/// A path's refusal: the caller's rights, or a file in the way.
pub(crate) fn refused(why: &PathError) -> Status {
    match why {
        PathError::Exists(_) => Status::already_exists(why.to_string()),
        PathError::Malformed { .. } | PathError::NotAFile { .. } => Status::invalid_argument(why.to_string()),
        PathError::Act(why) => not_acted(why),
        PathError::Foreign(_)
        | PathError::Elsewhere { .. }
        | PathError::Refused { .. }
        | PathError::Unsupported => Status::permission_denied(why.to_string()),
    }
}

pub(crate) fn not_acted(why: &ActError) -> Status {
    match why {
        ActError::Busy { .. } | ActError::Thread(_) => Status::unavailable(why.to_string()),
        ActError::Panicked => Status::internal(why.to_string()),
        ActError::NotPermitted { .. } | ActError::Credentials { .. } => {
            Status::permission_denied(why.to_string())
        }
    }
}

fn stored(why: &StoreError) -> Status {
    match why {
        // Here the caller acts: what is not permitted is not permitted to the caller.
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Status::permission_denied(why.to_string())
        }
        _ => storage(why),
    }
}

impl Output {
    /// Puts the content, or `range` of it, in place: complete or not at all, at a path.
    ///
    /// # Errors
    /// When the caller may not, something is in the way, or the disk is full.
    pub async fn publish(
        &self,
        content: &Arc<TaskContent>,
        range: Option<ByteRange>,
    ) -> Result<Published, Status> {
        let (transfer, way) = match self {
            Self::Path(output) => (Mode::Path, output.publish(content, range).await?),
            Self::Descriptor(output) => (Mode::Fd, output.fill(content, range).await?),
        };
        Ok(Published { transfer: transfer.name(), way: name(way) })
    }
}

impl PathOutput {
    async fn publish(
        &self,
        content: &Arc<TaskContent>,
        range: Option<ByteRange>,
    ) -> Result<OutputWay, Status> {
        let Some(range) = range else { return self.publish_whole(content).await };
        if self.force_hard_link {
            return Err(Status::failed_precondition(
                "--force-hard-link needs the whole content: leave it out to get a copy",
            ));
        }
        let part = verified(content, Some(range))?;
        let temp = self.target.create_temp().await.map_err(|why| refused(&why))?;
        let file = Arc::clone(temp.file());
        self.act(move |life| part.copy_to(&file, &|_| life.beat())).await?;
        temp.commit(self.overwrite).await.map_err(|why| refused(&why))?;
        Ok(OutputWay::Copy)
    }

    async fn publish_whole(&self, content: &Arc<TaskContent>) -> Result<OutputWay, Status> {
        let whole = verified(content, None)?;
        let dir = self.target.dir().try_clone_to_owned().map_err(|why| Status::internal(why.to_string()))?;
        let file = self.target.name().to_owned();
        let policy = OutputPolicy {
            same_uid: self.same_uid,
            overwrite: self.overwrite,
            force_hard_link: self.force_hard_link,
            umask: Some(self.target.caller().umask),
        };
        self.act(move |life| whole.publish_to(dir, &file, policy, &|_| life.beat())).await
    }

    /// Runs `act` on a thread that has the caller's credentials: what is made is the caller's, what the caller may not
    /// do fails, and a file system that does not answer holds up nobody else. A caller with the daemon's own uid may
    /// have fewer capabilities than the daemon.
    async fn act<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Life) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Status> {
        let acted = as_caller_for_long(self.target.caller(), act).await;
        acted.map_err(|why| not_acted(&why))?.map_err(|why| stored(&why))
    }
}

impl DescriptorOutput {
    /// `file` was checked when it came.
    pub(crate) fn new(file: File, caller: Arc<Caller>) -> Self {
        Self { file: Arc::new(file), caller }
    }

    async fn fill(&self, content: &Arc<TaskContent>, range: Option<ByteRange>) -> Result<OutputWay, Status> {
        let part = verified(content, range)?;
        let file = Arc::clone(&self.file);
        let filled = with_handed_over(&self.caller, move |life| {
            part.fill(&file, &|moved| {
                life.beat();
                show(&file, moved);
            })
        });
        filled.await.map_err(|why| not_acted(&why))?.map_err(|why| stored(&why))
    }
}

/// Sets the offset of a file that was handed over. The client shares it, and sees there how far its content is.
pub(crate) fn show(file: &File, moved: u64) {
    // It is only for people to look at.
    let _shown = rustix::fs::seek(file, SeekFrom::Start(moved));
}

fn verified(
    content: &Arc<TaskContent>,
    range: Option<ByteRange>,
) -> Result<damselfly_storage::Output, Status> {
    let verified = || match range {
        Some(range) => content.output_of(range),
        None => content.output(),
    };
    tokio::task::block_in_place(verified).map_err(|why| stored(&why))
}

fn name(way: OutputWay) -> &'static str {
    match way {
        OutputWay::HardLink => "hard link",
        OutputWay::Reflink => "reflink",
        OutputWay::Copy => "copy",
    }
}

#[cfg(test)]
mod tests;
