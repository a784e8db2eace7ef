//! What this host holds, as schedulers of ours are told.

use std::sync::Arc;

use damselfly_api::damselfly::v1::{Holding, Tombstone};
use damselfly_core::PieceSet;
use damselfly_scheduler_client::{Holdings, kind_to_wire};
use damselfly_storage::{Reach, Store, TaskContent};
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

/// The CRCs of `held` in the order of the pieces; none when the content is not what `generation` says any more.
fn crcs(content: &TaskContent, held: &PieceSet, generation: u64) -> Vec<u32> {
    let crcs: Option<Vec<u32>> = held.iter().map(|piece| Some(content.crc(piece)?.0)).collect();
    crcs.filter(|_| content.meta().generation == generation).unwrap_or_default()
}

fn holding(content: &Arc<TaskContent>, with_crcs: bool) -> Option<Holding> {
    let meta = content.meta();
    let geometry = meta.geometry?;
    let held = content.pieces();
    if held.is_empty() && geometry.piece_count() > 0 {
        return None;
    }
    let crcs = if with_crcs { crcs(content, &held, meta.generation) } else { Vec::new() };
    Some(Holding {
        crcs_from: 0,
        crcs,
        kind: kind_to_wire(content.key().kind),
        id: content.key().id.to_string(),
        generation: meta.generation,
        content_length: Some(geometry.content_length()),
        piece_length: geometry.piece_length(),
        bitmap: if held.is_full() { Vec::new() } else { held.to_bytes() },
        ttl_left: wire::duration(meta.ttl_left),
        replica_target: u32::try_from(meta.replica_target).unwrap_or(u32::MAX),
        persistent: meta.persistent,
        validator: Some(wire::validator_to(&meta.validator)),
        private: meta.private,
        url: if meta.private { meta.url_redacted } else { String::new() },
        tag: meta.tag,
        application: meta.application,
    })
}

impl StoreHoldings {
    fn list(&self, with_crcs: bool) -> Vec<Holding> {
        if !self.shared {
            return Vec::new();
        }
        self.store.list().iter().filter_map(|content| holding(content, with_crcs)).collect()
    }
}

impl Holdings for StoreHoldings {
    fn snapshot(&self) -> Vec<Holding> {
        self.list(false)
    }

    fn listing(&self) -> Vec<Holding> {
        self.list(true)
    }

    fn tombstones(&self) -> Vec<Tombstone> {
        let all = self.store.tombstones();
        all.into_iter()
            .map(|tombstone| Tombstone {
                kind: kind_to_wire(tombstone.key.kind),
                id: tombstone.key.id.to_string(),
                generation: tombstone.generation,
                everywhere: tombstone.reach == Reach::Everywhere,
                ttl_left: wire::duration(tombstone.left),
            })
            .collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{daemon, empty, hold, key};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_listing_names_the_crcs_of_the_pieces_held() {
        let (_home, daemon) = daemon("").await;
        let engine = daemon.engine();
        let content = empty(&engine.store, &key('a'), 20, None);
        for piece in [2, 3, 11] {
            hold(&content, piece);
        }
        let listing = engine.holdings.listing();
        let [held] = &listing[..] else { panic!("{listing:?}") };
        assert_eq!(held.bitmap, [0b1100, 0b1000, 0]);
        assert_eq!(held.crcs, [2u8, 3, 11].map(|byte| crc32fast::hash(&[byte])));
        assert!(engine.holdings.snapshot()[0].crcs.is_empty());
        assert!(
            crcs(&content, &PieceSet::full(20), held.generation).is_empty(),
            "of pieces that are not held"
        );
        assert!(crcs(&content, &content.pieces(), held.generation + 1).is_empty(), "of another generation");
        daemon.kill().await;
    }
}
