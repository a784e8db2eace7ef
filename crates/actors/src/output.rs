//! Where a download's content goes in the file system, with the rights of the one who asked (promise I11).

use std::sync::Arc;

use damselfly_core::ByteRange;
use damselfly_storage::{OutputPolicy, OutputWay, StoreError, TaskContent};
use damselfly_transport::local::{OutputTarget, PathError, as_caller};
use tonic::Status;

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
        PathError::Foreign(_) | PathError::Refused { .. } | PathError::Act(_) | PathError::Unsupported => {
            Status::permission_denied(why.to_string())
        }
    }
}

fn stored(why: &StoreError) -> Status {
    match why {
        StoreError::NoSpace { .. } | StoreError::DiskFull { .. } => {
            Status::resource_exhausted(why.to_string())
        }
        StoreError::Exists(_) => Status::already_exists(why.to_string()),
        StoreError::NoHardLink { .. } => Status::failed_precondition(why.to_string()),
        _ => Status::internal(why.to_string()),
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
        if self.same_uid && range.is_none() {
            let policy = OutputPolicy {
                same_uid: true,
                overwrite: self.overwrite,
                force_hard_link: self.force_hard_link,
            };
            let way = tokio::task::block_in_place(|| {
                content.publish_to(self.target.dir(), self.target.name(), policy)
            });
            return way.map(|way| name(way).to_owned()).map_err(|why| stored(&why));
        }
        if self.force_hard_link {
            return Err(Status::failed_precondition(
                "--force-hard-link needs the whole content and the daemon's own user: leave it out to get a copy",
            ));
        }
        let Some(range) = range else { return self.publish_as_caller(content).await };
        let temp = self.target.create_temp().await.map_err(|why| refused(&why))?;
        tokio::task::block_in_place(|| content.publish_range_to(temp.file(), range))
            .map_err(|why| stored(&why))?;
        temp.commit(self.overwrite).await.map_err(|why| refused(&why))?;
        Ok(name(OutputWay::Copy).to_owned())
    }

    /// The whole content, made by a thread that has the caller's credentials, so that the file is the caller's.
    async fn publish_as_caller(&self, content: &Arc<TaskContent>) -> Result<String, Status> {
        let ready = tokio::task::block_in_place(|| content.output()).map_err(|why| stored(&why))?;
        let dir = self.target.dir().try_clone_to_owned().map_err(|why| Status::internal(why.to_string()))?;
        let file = self.target.name().to_owned();
        let policy = OutputPolicy { overwrite: self.overwrite, ..OutputPolicy::default() };
        let acted = as_caller(self.target.caller(), move || ready.publish_to(dir, &file, policy)).await;
        let way = acted.map_err(|why| Status::permission_denied(why.to_string()))?;
        way.map(|way| name(way).to_owned()).map_err(|why| stored(&why))
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
