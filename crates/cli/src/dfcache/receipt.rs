//! How an import or an export ended well.

use std::time::Duration;

use serde_json::{Value, json};

use super::import::{Imported, Plan};
use crate::{transfer, units};

pub(super) fn import_text(plan: &Plan, imported: &Imported, elapsed: Duration) -> String {
    let Imported { task_id, task, bytes, resumed_at, transfer } = imported;
    let summary = transfer::summary(*bytes - resumed_at, elapsed);
    let mut text = format!("{} → {task_id}: {summary}", plan.source.name);
    if *resumed_at > 0 {
        text.push_str(&format!(", {} were there before", units::bytes(*resumed_at)));
    }
    text.push('\n');
    text.push_str(&transfer.line("read by the daemon (path)"));
    if let Some(task) = task {
        let (now, wanted) = (task.current_persistent_replica_count, task.persistent_replica_count);
        text.push_str(&format!("  {now} of {wanted} replicas now\n"));
    }
    text
}

pub(super) fn import_json(plan: &Plan, imported: &Imported, elapsed: Duration) -> Value {
    let Imported { task_id, task, bytes, resumed_at, transfer } = imported;
    json!({
        "ok": true,
        "exit_code": 0,
        "path": plan.source.name,
        "task_id": task_id,
        "bytes": bytes,
        "resumed_at": resumed_at,
        "seconds": elapsed.as_secs_f64(),
        "bytes_per_second": units::rate(*bytes - resumed_at, elapsed),
        "transfer": transfer.mode,
        "transfer_reason": transfer.reason,
        "replicas": task.as_ref().map(|task| task.current_persistent_replica_count),
        "replicas_wanted": task.as_ref().map(|task| task.persistent_replica_count),
        "state": task.as_ref().map(|task| task.state.clone()),
    })
}
