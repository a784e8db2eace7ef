//! The store as the Vortex server sees it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use damselfly_core::{Kind, TaskId, TaskKey};
use damselfly_transport::tcp::{PieceProvider, ProviderError, Served, ServedFuture};

use crate::engine::Engine;

/// Serves what the store holds, and waits for what a running task means to fetch.
#[derive(Clone, Debug)]
pub struct Provider(pub Arc<Engine>);

impl PieceProvider for Provider {
    fn piece<'a>(&'a self, kind: Kind, task: &'a TaskId, piece: u32) -> ServedFuture<'a> {
        Box::pin(async move {
            let key = TaskKey { kind, id: task.clone() };
            let engine = &self.0;
            if engine.config.upload.disable_shared {
                return Ok(None);
            }
            loop {
                let Some(content) = engine.store.get(&key) else { return Ok(None) };
                let mut changes = content.changes();
                changes.mark_unchanged();
                let found = tokio::task::block_in_place(|| content.piece(piece)).map_err(|why| {
                    tracing::warn!(%key, piece, %why, "cannot serve a piece");
                    // The child needs no local paths.
                    ProviderError("the parent cannot read it; ask another".to_owned())
                })?;
                if let Some(found) = found {
                    return Ok(Some(Served {
                        content: found.content.clone(),
                        offset: found.offset,
                        digest: found.crc.to_string(),
                        parent_id: String::new(),
                        cost: Duration::ZERO,
                        created_at: SystemTime::now()
                            .duration_since(SystemTime::UNIX_EPOCH)
                            .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0)),
                        guard: Box::new((found, engine.uploads.begin(&key))),
                    }));
                }
                let plan = engine.live.follow_plan(&key);
                let Some(mut plan) = plan.filter(|plan| plan.borrow().covers(piece)) else {
                    // The supervisor may have stored it, and lost interest or ended, since the look.
                    if content.has(piece) {
                        continue;
                    }
                    return Ok(None);
                };
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return Ok(None) },
                    // Another plan, or with the supervisor's end none: looked at above.
                    _ = plan.changed() => {}
                }
            }
        })
    }
}
