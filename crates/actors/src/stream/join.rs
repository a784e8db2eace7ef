//! Joining a task for a client.

use std::sync::Arc;

use damselfly_core::PieceSet;
use damselfly_storage::{Pin, TaskContent};
use tonic::Status;

use super::StreamArgs;
use crate::tasks::{ASK, JoinError, Membership, TasksMsg};

/// Tries to join a task that others delete at the same time.
const JOINS: u32 = 3;

/// A place in the task, and what the store held of it just before.
pub(super) struct Joined {
    pub(super) content: Arc<TaskContent>,
    pub(super) pin: Pin,
    pub(super) membership: Membership,
    pub(super) was_complete: bool,
    pub(super) held: PieceSet,
}

/// Joins the task, made anew where it was deleted in between.
pub(super) async fn join(args: &StreamArgs) -> Result<Joined, Status> {
    for _ in 0..JOINS {
        let content = args.open()?;
        let Ok(pin) = tokio::task::block_in_place(|| content.pin()) else { continue };
        verify(args, &content);
        // Looked at before joining: from then on the task's progress says where each piece comes from.
        let (was_complete, held) = (content.is_complete(), content.pieces());
        let wish = Box::new(args.wish.clone());
        let asked =
            args.engine.tasks.ask(ASK, |reply| TasksMsg::Join(Arc::clone(&content), wish, reply)).await;
        match asked.map_err(|why| Status::unavailable(why.to_string()))? {
            Ok(membership) => return Ok(Joined { content, pin, membership, was_complete, held }),
            Err(JoinError::Gone) => {}
            Err(why @ JoinError::TooMany) => return Err(Status::resource_exhausted(why.to_string())),
            Err(why @ JoinError::Start(_)) => return Err(Status::internal(why.to_string())),
        }
    }
    Err(Status::aborted(JoinError::Gone.to_string()))
}

/// After a crash stored pieces are in doubt: what this client wants is looked at now, so that damaged pieces are fetched
/// again instead of failing the client at the end.
fn verify(args: &StreamArgs, content: &Arc<TaskContent>) {
    let Some(geometry) = content.geometry() else { return };
    let Ok(range) = args.wish.range.resolve(geometry.content_length()) else { return };
    args.seat.show("verifying what is stored");
    if let Err(why) = tokio::task::block_in_place(|| content.verify_range(range)) {
        tracing::warn!(key = %args.key, %why, "cannot verify what is stored");
    }
}
