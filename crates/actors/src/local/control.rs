//! Pause, resume, cancel, limit.

use std::sync::Arc;

use damselfly_api::damselfly::v1::TaskRef;
use damselfly_core::TaskKey;
use damselfly_scheduler_client::kind_from_wire;
use damselfly_transport::local::Caller;
use tonic::Status;

use super::may_change;
use crate::engine::Engine;
use crate::request;
use crate::task::Control;
use crate::tasks::{ASK, TasksMsg};

/// The key a caller names.
pub(super) fn key(task: Option<TaskRef>) -> Result<TaskKey, Status> {
    let task = task.ok_or_else(|| Status::invalid_argument("missing task"))?;
    let kind = kind_from_wire(task.kind)
        .ok_or_else(|| Status::invalid_argument(format!("unknown task kind {}", task.kind)))?;
    request::key(kind, &task.id)
}

/// Does to a task what its user asks. Pause and resume are remembered by the store and hold for later runs; a limit
/// holds for later runs of this daemon.
pub(super) async fn control(
    engine: &Arc<Engine>,
    caller: &Caller,
    task: Option<TaskRef>,
    control: Control,
) -> Result<(), Status> {
    let key = key(task)?;
    may_change(engine, caller, &key)?;
    let content = engine
        .store
        .get(&key)
        .ok_or_else(|| Status::not_found(format!("local task not found: {}", key.id)))?;
    let asked_of_a_fetch = match control {
        Control::Pause => Some("paused"),
        Control::Limit(Some(_)) => Some("limited"),
        Control::Limit(None) | Control::Resume | Control::Cancel => None,
    };
    if let Some(asked) = asked_of_a_fetch.filter(|_| content.is_complete()) {
        let why =
            format!("task {} is complete: nothing of it is fetched any more that could be {asked}", key.id);
        return Err(Status::failed_precondition(why));
    }
    match control {
        Control::Pause | Control::Resume => {
            tokio::task::block_in_place(|| content.set_paused(control == Control::Pause))
                .map_err(|why| Status::internal(why.to_string()))?;
        }
        Control::Limit(rate) => engine.known.set_limit(&key, rate),
        Control::Cancel => {}
    }
    let asked = engine.tasks.ask(ASK, |reply| TasksMsg::Control(key.clone(), control, reply)).await;
    let running = asked.map_err(|why| Status::unavailable(why.to_string()))?;
    match control {
        Control::Cancel if !running => {
            let why = format!("task {} is not running: there is nothing to cancel", key.id);
            Err(Status::failed_precondition(why))
        }
        // The others are remembered for the next run.
        _ => Ok(()),
    }
}
