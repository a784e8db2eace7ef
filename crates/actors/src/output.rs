//! Where a download's content goes in the file system, with the rights of the one who asked (promise I11).

use std::sync::Arc;

use damselfly_core::ByteRange;
use damselfly_storage::{OutputPolicy, OutputWay, StoreError, TaskContent};
use damselfly_transport::local::{ActError, Life, OutputTarget, PathError, as_caller_for_long};
use tonic::Status;

use crate::stream::storage;

/// An output opened as its caller.
#[derive(Debug)]
pub struct Output {
    /// Directory and name.
    pub target: OutputTarget,
    /// Whether the caller owns the store too: only then may the output share its inode.
    pub same_uid: bool,
    /// Whether a file that is there may be replaced.
    pub overwrite: bool,
    /// Whether anything but a hard link is a failure.
    pub force_hard_link: bool,
}

/// A path's refusal: the caller's rights, or a file in the way.
pub(crate) fn refused(why: &PathError) -> Status {
    match why {
        PathError::Exists(_) => Status::already_exists(why.to_string()),
        PathError::Malformed { .. } | PathError::NotAFile { .. } => Status::invalid_argument(why.to_string()),
        PathError::Act(why) => not_acted(why),
        PathError::Foreign(_) | PathError::Refused { .. } | PathError::Unsupported => {
            Status::permission_denied(why.to_string())
        }
    }
}

fn not_acted(why: &ActError) -> Status {
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
    /// Puts the content, or `range` of it, in place: complete or not at all. Says how, for the receipt.
    ///
    /// # Errors
    /// When the caller may not, something is in the way, or the disk is full.
    pub async fn publish(
        &self,
        content: &Arc<TaskContent>,
        range: Option<ByteRange>,
    ) -> Result<String, Status> {
        let Some(range) = range else { return self.publish_whole(content).await };
        if self.force_hard_link {
            return Err(Status::failed_precondition(
                "--force-hard-link needs the whole content: leave it out to get a copy",
            ));
        }
        let part = tokio::task::block_in_place(|| content.output_of(range)).map_err(|why| stored(&why))?;
        let temp = self.target.create_temp().await.map_err(|why| refused(&why))?;
        let file = Arc::clone(temp.file());
        self.act(move |life| part.copy_to(&file, &|| life.beat())).await?;
        temp.commit(self.overwrite).await.map_err(|why| refused(&why))?;
        Ok(name(OutputWay::Copy).to_owned())
    }

    async fn publish_whole(&self, content: &Arc<TaskContent>) -> Result<String, Status> {
        let whole = tokio::task::block_in_place(|| content.output()).map_err(|why| stored(&why))?;
        let dir = self.target.dir().try_clone_to_owned().map_err(|why| Status::internal(why.to_string()))?;
        let file = self.target.name().to_owned();
        let policy = OutputPolicy {
            same_uid: self.same_uid,
            overwrite: self.overwrite,
            force_hard_link: self.force_hard_link,
            umask: Some(self.target.caller().umask),
        };
        let way = self.act(move |life| whole.publish_to(dir, &file, policy, &|| life.beat())).await?;
        Ok(name(way).to_owned())
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

fn name(way: OutputWay) -> &'static str {
    match way {
        OutputWay::HardLink => "hard link",
        OutputWay::Reflink => "reflink",
        OutputWay::Copy => "copy",
    }
}

#[cfg(test)]
mod tests;
