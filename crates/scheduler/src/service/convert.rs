//! Between the wire's messages and the machine's.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_api::damselfly::v1 as ours;
use damselfly_api::scheduler::v2 as scheduler;
use damselfly_core::download::{Learned, Lease, Validator};
use damselfly_core::{ByteRange, Crc, HostId, Kind, PeerId, TaskId, TaskKey, Tick};
use scheduler::announce_peer_request::Request;
use scheduler::announce_peer_response::Response;
use tonic::Status;

use super::validate;
use crate::machine::{
    About, Answer, Holding, HostInfo, Parent, PeerMessage, PeerState, PeerView, PieceReport, Priority,
    Register, Restate, TaskView, Tombstone,
};

/// The longest time that a piece is believed to have taken. Longer ones would make leases that never end.
const MAX_COST: Duration = Duration::from_secs(3600);

pub(super) fn duration(duration: prost_types::Duration) -> Option<Duration> {
    Duration::try_from(duration).ok()
}

pub(super) fn wire_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or_default()
}

pub(super) fn host(host: &common::Host, address: SocketAddr) -> HostInfo {
    let network = host.network.clone().unwrap_or_default();
    HostInfo {
        id: HostId::from(host.id.as_str()),
        seed: host.r#type != 0,
        address,
        idc: network.idc.unwrap_or_default(),
        location: network.location.unwrap_or_default(),
        max_tx_bandwidth: network.max_tx_bandwidth,
        tx_bandwidth: network.tx_bandwidth.unwrap_or(0),
        disk_free: host.disk.as_ref().map(|disk| disk.free),
        disable_shared: host.disable_shared,
        incarnation: host.incarnation,
    }
}

fn validator(validator: Option<ours::Validator>) -> Validator {
    let ours::Validator { etag, last_modified } = validator.unwrap_or_default();
    Validator { etag, last_modified }
}

fn wire_validator(validator: &Validator) -> ours::Validator {
    ours::Validator { etag: validator.etag.clone(), last_modified: validator.last_modified.clone() }
}

pub(super) fn learned(learned: ours::Learned) -> Learned {
    Learned {
        content_length: learned.content_length,
        piece_length: learned.piece_length,
        validator: validator(learned.validator),
        headers: learned.header.into_iter().collect(),
        ranges: learned.ranges,
        private: learned.private,
    }
}

fn wire_learned(learned: Learned) -> ours::Learned {
    ours::Learned {
        content_length: learned.content_length,
        piece_length: learned.piece_length,
        validator: Some(wire_validator(&learned.validator)),
        header: learned.headers.into_iter().collect(),
        private: learned.private,
        ranges: learned.ranges,
    }
}

fn lease(lease: ours::Lease) -> Lease {
    let ranges = lease.ranges.iter().map(|range| range.first..range.first.saturating_add(range.count));
    Lease {
        id: lease.id,
        ranges: ranges.collect(),
        silence: lease.silence.and_then(duration).unwrap_or_default(),
        generation: lease.generation,
    }
}

fn wire_lease(lease: &Lease) -> ours::Lease {
    let ranges = lease
        .ranges
        .iter()
        .map(|range| ours::PieceRange { first: range.start, count: range.end - range.start });
    ours::Lease {
        id: lease.id,
        ranges: ranges.collect(),
        silence: Some(wire_duration(lease.silence)),
        generation: lease.generation,
    }
}

fn priority(level: i32) -> Priority {
    match common::Priority::try_from(level).unwrap_or_default() {
        common::Priority::Level0 => Priority::Level0,
        common::Priority::Level1 => Priority::Level1,
        common::Priority::Level2 => Priority::Level2,
        common::Priority::Level3 => Priority::Level3,
        common::Priority::Level4 => Priority::Level4,
        common::Priority::Level5 => Priority::Level5,
        common::Priority::Level6 => Priority::Level6,
    }
}

fn register(download: &common::Download, restate: Option<ours::Restate>) -> Register {
    Register {
        about: About {
            url: download.url.clone(),
            digest: download.digest.clone(),
            tag: download.tag.clone(),
            application: download.application.clone(),
            filtered_query_params: download.filtered_query_params.clone(),
        },
        priority: priority(download.priority),
        range: download.range.as_ref().map(|range| ByteRange { start: range.start, length: range.length }),
        piece_length: download.actual_piece_length.or(download.piece_length).filter(|length| *length > 0),
        content_length: download.actual_content_length,
        disable_back_to_source: download.disable_back_to_source,
        need_back_to_source: download.need_back_to_source,
        metadata_only: download.metadata_only,
        persistent: false,
        restate: restate.map(restated),
    }
}

/// What a peer brings along from a stream that broke.
pub(super) fn restated(restate: ours::Restate) -> Restate {
    Restate {
        leases: restate.leases.into_iter().map(lease).collect(),
        bitmap: restate.bitmap,
        generation: restate.generation,
        validator: validator(restate.validator),
    }
}

fn report(piece: Option<common::Piece>) -> Result<PieceReport, Status> {
    let piece = piece.ok_or_else(|| validate::invalid("piece", "must be given"))?;
    Ok(PieceReport {
        number: piece.number,
        length: piece.length,
        crc: validate::piece(&piece)?,
        parent: piece.parent_id.map(PeerId::from),
        cost: piece.cost.and_then(duration).unwrap_or_default().min(MAX_COST),
    })
}

/// What a peer said; the download it registers with is left to the caller.
pub(super) fn message(request: Request) -> Result<PeerMessage, Status> {
    Ok(match request {
        Request::RegisterPeerRequest(request) => {
            let download = request.download.ok_or_else(|| validate::invalid("download", "must be given"))?;
            validate::download(&download)?;
            PeerMessage::Register(Box::new(register(&download, request.restate)))
        }
        Request::DownloadPeerStartedRequest(_) => PeerMessage::Started,
        Request::DownloadPeerBackToSourceStartedRequest(_) => PeerMessage::BackToSourceStarted,
        Request::ReschedulePeerRequest(request) => {
            let parents = request.candidate_parents.into_iter().map(|peer| PeerId::from(peer.id));
            PeerMessage::Reschedule(parents.collect())
        }
        Request::DownloadPeerFinishedRequest(_) => PeerMessage::Finished,
        Request::DownloadPeerBackToSourceFinishedRequest(_) => PeerMessage::BackToSourceFinished,
        Request::DownloadPeerFailedRequest(request) => {
            PeerMessage::Failed(request.description.unwrap_or_default())
        }
        Request::DownloadPeerBackToSourceFailedRequest(request) => {
            PeerMessage::BackToSourceFailed(request.description.unwrap_or_default())
        }
        Request::DownloadPieceFinishedRequest(request) => PeerMessage::PieceFinished(report(request.piece)?),
        Request::DownloadPieceBackToSourceFinishedRequest(request) => {
            PeerMessage::PieceBackToSourceFinished(report(request.piece)?)
        }
        Request::DownloadPieceFailedRequest(request) => {
            validate::given("parent_id", &request.parent_id)?;
            PeerMessage::PieceFailed { parent: PeerId::from(request.parent_id) }
        }
        Request::DownloadPieceBackToSourceFailedRequest(_) => PeerMessage::PieceBackToSourceFailed,
    })
}

pub(super) fn task_key(kind: i32, id: &str) -> Result<TaskKey, Status> {
    let kind = match ours::TaskKind::try_from(kind) {
        Ok(ours::TaskKind::Standard) => Kind::Standard,
        Ok(ours::TaskKind::PersistentCache) => Kind::PersistentCache,
        Ok(ours::TaskKind::Cache) => Kind::Cache,
        Err(_) => return Err(validate::invalid("kind", "must be a defined kind of task")),
    };
    let id = TaskId::parse(id).map_err(|error| validate::invalid("id", &error.to_string()))?;
    Ok(TaskKey { kind, id })
}

pub(super) fn holding(holding: ours::Holding) -> Result<Holding, Status> {
    Ok(Holding {
        task: task_key(holding.kind, &holding.id)?,
        generation: holding.generation,
        content_length: holding.content_length,
        piece_length: holding.piece_length,
        bitmap: holding.bitmap,
        crcs_from: holding.crcs_from,
        crcs: holding.crcs.into_iter().map(Crc).collect(),
        validator: validator(holding.validator),
        private: holding.private,
        url: holding.url,
        persistent: holding.persistent,
        replica_target: holding.replica_target.into(),
        ttl_left: holding.ttl_left.and_then(duration).unwrap_or_default(),
        tag: holding.tag,
        application: holding.application,
    })
}

/// A deleted task.
pub(super) fn tombstone(stone: ours::Tombstone) -> Result<Tombstone, Status> {
    Ok(Tombstone {
        task: task_key(stone.kind, &stone.id)?,
        generation: stone.generation,
        everywhere: stone.everywhere,
        ttl_left: stone.ttl_left.and_then(duration).unwrap_or_default(),
    })
}

/// The copy of a registration that a seed is triggered with. It is the only place where request headers go.
pub(super) fn for_seed(download: common::Download) -> common::Download {
    // Nor does the scheduler want the bytes: only how it ends.
    common::Download { need_back_to_source: true, output_path: None, need_piece_content: false, ..download }
}

/// An answer as it goes out.
pub(super) fn response(
    answer: Answer,
    task: Option<&TaskView>,
    hosts: &HashMap<HostId, Arc<common::Host>>,
    wall: impl Fn(Tick) -> prost_types::Timestamp,
) -> scheduler::AnnouncePeerResponse {
    let mut facts = None;
    let response = match answer {
        Answer::Empty => Some(Response::EmptyTaskResponse(scheduler::EmptyTaskResponse {})),
        Answer::MetadataOnly => Some(Response::MetadataOnlyResponse(scheduler::MetadataOnlyResponse {})),
        Answer::Parents(parents) => {
            let task = task.map(|view| wire_task(view, &wall));
            let candidate_parents =
                parents.iter().map(|candidate| parent(candidate, task.clone(), hosts, &wall)).collect();
            Some(Response::NormalTaskResponse(scheduler::NormalTaskResponse { candidate_parents }))
        }
        Answer::BackToSource { description, lease } => {
            Some(Response::NeedBackToSourceResponse(scheduler::NeedBackToSourceResponse {
                description: Some(description.to_owned()),
                lease: lease.as_ref().map(wire_lease),
            }))
        }
        Answer::Facts { generation, learned, first, crcs } => {
            facts = Some(ours::Facts {
                generation,
                learned: learned.map(wire_learned),
                first,
                crcs: crcs.into_iter().map(|crc| crc.0).collect(),
            });
            None
        }
    };
    scheduler::AnnouncePeerResponse { facts, response }
}

/// A candidate parent. Its state says "Succeeded" exactly when it holds every piece, whatever its own dialogue was for.
fn parent(
    parent: &Parent,
    task: Option<common::Task>,
    hosts: &HashMap<HostId, Arc<common::Host>>,
    wall: &impl Fn(Tick) -> prost_types::Timestamp,
) -> common::Peer {
    let host = hosts.get(&parent.host).map(|host| common::Host {
        // Nobody chooses a parent's pieces by these, and there are many parents.
        cpu: None,
        memory: None,
        disk: None,
        build: None,
        ..common::Host::clone(host)
    });
    let state = match parent.state {
        _ if parent.complete => PeerState::Succeeded,
        PeerState::Succeeded | PeerState::Failed => PeerState::Running,
        state => state,
    };
    common::Peer {
        id: parent.peer.to_string(),
        state: state.name().to_owned(),
        cost: Some(prost_types::Duration::default()),
        created_at: Some(wall(parent.created)),
        updated_at: Some(wall(parent.updated)),
        task,
        host,
        ..Default::default()
    }
}

/// A task. Request headers are not known here and so cannot be told.
pub(super) fn wire_task(view: &TaskView, wall: &impl Fn(Tick) -> prost_types::Timestamp) -> common::Task {
    let (length, count) =
        view.geometry.map_or((0, 0), |geometry| (geometry.content_length(), geometry.piece_count()));
    let scope = match (view.geometry, length, count) {
        (Some(_), 0, _) => common::SizeScope::Empty,
        (Some(_), 1..=128, _) => common::SizeScope::Tiny,
        (Some(_), _, 1) => common::SizeScope::Small,
        _ => common::SizeScope::Normal,
    };
    common::Task {
        id: view.key.id.to_string(),
        r#type: common::TaskType::Standard.into(),
        url: view.about.url.clone(),
        digest: view.about.digest.clone(),
        tag: view.about.tag.clone(),
        application: view.about.application.clone(),
        filtered_query_params: view.about.filtered_query_params.clone(),
        content_length: length,
        piece_count: count,
        size_scope: scope.into(),
        state: view.state.name().to_owned(),
        peer_count: u32::try_from(view.peers).unwrap_or(u32::MAX),
        has_available_peer: view.has_available_peer,
        created_at: Some(wall(view.created)),
        updated_at: Some(wall(view.updated)),
        ..Default::default()
    }
}

/// A peer, for StatPeer.
pub(super) fn wire_peer(
    view: &PeerView,
    task: &TaskView,
    host: Option<&common::Host>,
    wall: &impl Fn(Tick) -> prost_types::Timestamp,
) -> common::Peer {
    let pieces =
        view.pieces.iter().filter_map(|number| task.geometry?.piece(*number)).map(|span| common::Piece {
            number: span.number,
            offset: span.offset,
            length: span.length,
            cost: Some(prost_types::Duration::default()),
            created_at: Some(wall(view.updated)),
            ..Default::default()
        });
    common::Peer {
        id: view.id.to_string(),
        range: view.range.map(|range| common::Range { start: range.start, length: range.length }),
        priority: view.priority as i32,
        pieces: pieces.collect(),
        cost: Some(wire_duration(view.updated.since(view.created))),
        state: view.state.name().to_owned(),
        task: Some(wire_task(task, wall)),
        host: host.cloned(),
        need_back_to_source: view.need_back_to_source,
        created_at: Some(wall(view.created)),
        updated_at: Some(wall(view.updated)),
        ..Default::default()
    }
}
