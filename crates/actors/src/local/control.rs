//! Pause, resume, cancel, limit.

use std::sync::Arc;

use damselfly_api::damselfly::v1::TaskRef;
use damselfly_core::{TaskId, TaskKey};
use damselfly_scheduler_client::kind_from_wire;
use damselfly_transport::local::Caller;
use tonic::Status;

use super::may_change;
use crate::engine::Engine;
use crate::task::Control;
use crate::tasks::{ASK, TasksMsg};

/// The key a caller names.
pub(super) fn key(task: Option<TaskRef>) -> Result<TaskKey, Status> {
    let task = task.ok_or_else(|| Status::invalid_argument("missing task"))?;
    let kind = kind_from_wire(task.kind)
        .ok_or_else(|| Status::invalid_argument(format!("unknown task kind {}", task.kind)))?;
    let id = TaskId::parse(&task.id).map_err(|why| Status::invalid_argument(why.to_string()))?;
    Ok(TaskKey { kind, id })
}

/// Does to a task what its user asks. Pause and resume are remembered by the store and hold for later runs.
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
    if let Control::Pause | Control::Resume = control {
        tokio::task::block_in_place(|| content.set_paused(control == Control::Pause))
            .map_err(|why| Status::internal(why.to_string()))?;
    }
    let asked = engine.tasks.ask(ASK, |reply| TasksMsg::Control(key.clone(), control, reply)).await;
    let running = asked.map_err(|why| Status::unavailable(why.to_string()))?;
    match control {
        // Remembered for the next run.
        Control::Pause | Control::Resume => Ok(()),
        Control::Cancel | Control::Limit(_) if running => Ok(()),
        Control::Cancel | Control::Limit(_) => {
            Err(Status::failed_precondition(format!("task {} is not running", key.id)))
        }
    }
}
