//! What this host holds, as schedulers of ours are told.

use std::sync::Arc;

use damselfly_api::damselfly::v1::{Holding, Tombstone};
use damselfly_scheduler_client::{Holdings, kind_to_wire};
use damselfly_storage::{Store, TaskContent};
use tokio::sync::watch;

use crate::task::wire;

/// The store's tasks and tombstones; whoever changes them says so with [`StoreHoldings::changed`].
#[derive(Debug)]
pub struct StoreHoldings {
    store: Arc<Store>,
    changes: watch::Sender<u64>,
    shared: bool,
}

impl StoreHoldings {
    /// Of this store; a host that shares nothing says that it holds nothing.
    #[must_use]
    pub fn new(store: Arc<Store>, shared: bool) -> Self {
        Self { store, changes: watch::Sender::new(0), shared }
    }

    /// Something was stored or deleted.
    pub fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

fn holding(content: &Arc<TaskContent>) -> Option<Holding> {
    let meta = content.meta();
    let geometry = meta.geometry?;
    let held = content.pieces();
    if held.is_empty() && geometry.piece_count() > 0 {
        return None;
    }
    Some(Holding {
        kind: kind_to_wire(content.key().kind),
        id: content.key().id.to_string(),
        generation: meta.generation,
        content_length: Some(geometry.content_length()),
        piece_length: geometry.piece_length(),
        bitmap: if held.is_full() { Vec::new() } else { held.to_bytes() },
        ttl_left: wire::duration(meta.ttl_left),
        replica_target: 0,
        persistent: meta.persistent,
        validator: Some(wire::validator_to(&meta.validator)),
        private: meta.private,
    })
}

impl Holdings for StoreHoldings {
    fn snapshot(&self) -> Vec<Holding> {
        if !self.shared {
            return Vec::new();
        }
        self.store.list().iter().filter_map(holding).collect()
    }

    fn tombstones(&self) -> Vec<Tombstone> {
        let all = self.store.tombstones();
        all.into_iter()
            .map(|tombstone| Tombstone {
                kind: kind_to_wire(tombstone.key.kind),
                id: tombstone.key.id.to_string(),
                generation: tombstone.generation,
            })
            .collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
