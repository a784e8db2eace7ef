//! One snapshot of the daemon.

use std::time::SystemTime;

use damselfly_api::damselfly::v1 as ours;
use damselfly_core::TaskKey;
use damselfly_scheduler_client::kind_to_wire;
use damselfly_storage::TaskContent;

use crate::engine::Engine;
use crate::host::HostFacts;
use crate::task::{TaskView, wire};

/// Tasks or actors in one message.
const BATCH: usize = 256;

/// Said of content whose sources nobody has counted.
const FETCHED_BEFORE: &str = "where it came from is not known: it was fetched before this daemon started";

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The host's announcement.
    pub host: HostFacts,
    /// When the daemon started.
    pub started_at: SystemTime,
    /// Whether a scheduler runs inside.
    pub embedded_scheduler: bool,
}

/// The daemon as it is now.
pub(super) fn snapshot(engine: &Engine, facts: &Facts) -> Vec<ours::StatusResponse> {
    let usage = engine.store.usage();
    let buffer = engine.buffers.buffer_size() as u64;
    let host = ours::HostStatus {
        host: Some(facts.host.announce(Some(usage))),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: Some(facts.started_at.into()),
        storage_dir: engine.config.storage.dir.display().to_string(),
        storage: Some(ours::StorageStatus {
            total: usage.total,
            used: usage.used,
            free: usage.free,
            reserved: usage.reserved,
        }),
        schedulers: schedulers(engine),
        embedded_scheduler: facts.embedded_scheduler,
        memory_used: engine.buffers.lent() as u64 * buffer,
        memory_budget: engine.buffers.capacity() as u64 * buffer,
    };
    let mut parts = vec![ours::StatusResponse { host: Some(host), ..Default::default() }];
    let tasks: Vec<_> = engine.store.list().iter().map(|content| task(engine, content)).collect();
    parts.extend(
        tasks.chunks(BATCH).map(|tasks| ours::StatusResponse { tasks: tasks.to_vec(), ..Default::default() }),
    );
    let actors: Vec<_> = engine
        .board
        .snapshot()
        .into_iter()
        .map(|seat| ours::ActorStatus { path: seat.path, state: seat.state })
        .collect();
    parts.extend(
        actors
            .chunks(BATCH)
            .map(|actors| ours::StatusResponse { actors: actors.to_vec(), ..Default::default() }),
    );
    parts
}

/// The schedulers as this daemon sees them.
pub(super) fn schedulers(engine: &Engine) -> Vec<ours::SchedulerStatus> {
    let all = engine.cluster.schedulers();
    all.into_iter()
        .map(|scheduler| ours::SchedulerStatus {
            address: scheduler.address.to_string(),
            ours: scheduler.ours,
            healthy: scheduler.healthy,
            error: scheduler.error.unwrap_or_default(),
        })
        .collect()
}

fn task(engine: &Engine, content: &TaskContent) -> ours::TaskStatus {
    let key: &TaskKey = content.key();
    let meta = content.meta();
    let view = engine.live.view(key);
    let state = match &view {
        Some(view) => view.state.clone(),
        None if meta.paused => "paused".to_owned(),
        None if content.is_complete() => "complete".to_owned(),
        None => "partial".to_owned(),
    };
    let view = view.unwrap_or_else(|| last(engine, key));
    let TaskView { wanted, fetches, clients, limit, parents, origin_bytes, peer_bytes, local_bytes, .. } =
        view;
    let held = content.pieces().len();
    let told = held == 0 || origin_bytes + peer_bytes + local_bytes > 0;
    ours::TaskStatus {
        task: Some(ours::TaskRef { kind: kind_to_wire(key.kind), id: key.id.to_string() }),
        url: meta.url_redacted,
        state,
        content_length: meta.geometry.map(|geometry| geometry.content_length()),
        piece_length: meta.geometry.map_or(0, |geometry| geometry.piece_length()),
        piece_count: meta.geometry.map_or(0, |geometry| geometry.piece_count()),
        pieces_held: held,
        pieces_wanted: wanted,
        fetches,
        origin_bytes,
        peer_bytes,
        local_bytes,
        clients,
        uploads: engine.uploads.of(key).now,
        parents: parents
            .into_iter()
            .map(|parent| ours::ParentStatus {
                peer_id: parent.id.to_string(),
                address: parent.address,
                ours: parent.ours,
                banned: parent.banned,
                fetches: parent.fetches,
                pieces: parent.pieces,
                bytes: parent.bytes,
            })
            .collect(),
        bytes_per_second: limit.unwrap_or(0),
        generation: meta.generation,
        private: meta.private,
        tag: meta.tag.unwrap_or_default(),
        application: meta.application.unwrap_or_default(),
        created_at: Some(meta.created_at.into()),
        updated_at: Some(meta.updated_at.into()),
        ttl_left: wire::duration(meta.ttl_left),
        note: if told { String::new() } else { FETCHED_BEFORE.to_owned() },
    }
}

/// What is shown of a task that does not run: what its last run has counted, and what holds for the next.
fn last(engine: &Engine, key: &TaskKey) -> TaskView {
    let sources = engine.known.sources(key).unwrap_or_default();
    TaskView {
        origin_bytes: sources.origin,
        peer_bytes: sources.peers,
        local_bytes: sources.local,
        limit: engine.known.limit(key),
        ..TaskView::default()
    }
}
