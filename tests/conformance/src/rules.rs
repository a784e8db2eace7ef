//! What Dragonfly's scheduler demands of messages before it handles them, as far as daemons and schedulers here send
//! them. The rules stand in its API, not in the crate.

use std::net::IpAddr;

use dragonfly_api::common::v2::{
    Download, Host, Peer, PersistentCachePeer, PersistentCacheTask, Piece, Priority, TaskType,
};
use dragonfly_api::scheduler::v2::announce_peer_request::Request;
use dragonfly_api::scheduler::v2::announce_peer_response::Response;
use dragonfly_api::scheduler::v2::announce_persistent_cache_peer_request::Request as CacheRequest;
use dragonfly_api::scheduler::v2::announce_persistent_cache_peer_response::Response as CacheResponse;
use dragonfly_api::scheduler::v2::{
    AnnouncePeerRequest, AnnouncePeerResponse, AnnouncePersistentCachePeerRequest,
    AnnouncePersistentCachePeerResponse, UploadPersistentCacheTaskStartedRequest,
};

type Checked = Result<(), String>;

fn demand(holds: bool, rule: &str) -> Checked {
    if holds { Ok(()) } else { Err(rule.to_owned()) }
}

/// An announced host.
///
/// # Errors
/// The rule that is broken; so for all functions here.
pub fn host(host: &Host) -> Checked {
    demand(!host.id.is_empty(), "host id")?;
    demand(!host.hostname.is_empty(), "hostname")?;
    demand(host.ip.parse::<IpAddr>().is_ok(), "host ip")?;
    demand(host.r#type <= 3, "host type")?;
    demand((1024..65535).contains(&host.port), "host port")?;
    demand((1024..65535).contains(&host.download_port), "host download port")
}

/// Whose message it is.
///
/// # Errors
/// As [`host`].
pub fn ids(host: &str, task: &str, peer: &str) -> Checked {
    demand(!host.is_empty(), "host id")?;
    demand(!task.is_empty(), "task id")?;
    demand(!peer.is_empty(), "peer id")
}

/// A message of a daemon.
///
/// # Errors
/// As [`host`].
pub fn request(message: &AnnouncePeerRequest) -> Checked {
    ids(&message.host_id, &message.task_id, &message.peer_id)?;
    match message.request.as_ref().ok_or("a request arm")? {
        Request::RegisterPeerRequest(register) => download(register.download.as_ref().ok_or("a download")?),
        Request::DownloadPieceFinishedRequest(finished) => piece(finished.piece.as_ref().ok_or("a piece")?),
        Request::DownloadPieceBackToSourceFinishedRequest(finished) => {
            piece(finished.piece.as_ref().ok_or("a piece")?)
        }
        Request::DownloadPieceFailedRequest(failed) => demand(!failed.parent_id.is_empty(), "parent id"),
        Request::DownloadPieceBackToSourceFailedRequest(failed) => {
            demand(failed.response.is_some(), "a reason")
        }
        Request::ReschedulePeerRequest(again) => {
            demand(again.description.as_deref() != Some(""), "description")
        }
        Request::DownloadPeerFailedRequest(failed) => {
            demand(failed.description.as_deref() != Some(""), "description")
        }
        _ => Ok(()),
    }
}

fn download(download: &Download) -> Checked {
    demand(download.url.contains("://"), "download url")?;
    demand(TaskType::try_from(download.r#type).is_ok(), "download type")?;
    demand(Priority::try_from(download.priority).is_ok(), "download priority")?;
    demand(
        download.piece_length.is_none_or(|length| (4 << 20..=64 << 20).contains(&length)),
        "piece length",
    )?;
    demand(download.digest.as_deref().is_none_or(is_digest), "download digest")?;
    demand(download.output_path.as_deref() != Some(""), "output path")
}

fn piece(piece: &Piece) -> Checked {
    demand(piece.cost.is_some(), "piece cost")?;
    demand(piece.created_at.is_some(), "piece created at")?;
    demand(piece.digest.is_empty() || is_digest(&piece.digest), "piece digest")?;
    demand(piece.parent_id.as_deref() != Some(""), "piece parent id")
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, encoded)) = text.split_once(':') else { return false };
    let digits = match algorithm {
        "md5" => 32,
        "sha1" => 40,
        "sha256" | "blake3" => 64,
        "sha512" => 128,
        "crc32" => encoded.len().max(1),
        _ => return false,
    };
    encoded.len() == digits && encoded.chars().all(|c| c.is_ascii_hexdigit())
}

/// A message of a scheduler.
///
/// # Errors
/// As [`host`].
pub fn response(message: &AnnouncePeerResponse) -> Checked {
    match message.response.as_ref().ok_or("a response arm")? {
        Response::NormalTaskResponse(normal) => {
            demand(!normal.candidate_parents.is_empty(), "candidate parents")?;
            normal.candidate_parents.iter().try_for_each(peer)
        }
        Response::NeedBackToSourceResponse(need) => {
            demand(need.description.as_deref() != Some(""), "description")
        }
        Response::EmptyTaskResponse(_) | Response::MetadataOnlyResponse(_) => Ok(()),
    }
}

fn peer(peer: &Peer) -> Checked {
    demand(!peer.id.is_empty(), "peer id")?;
    demand(!peer.state.is_empty(), "peer state")?;
    demand(peer.cost.is_some(), "peer cost")?;
    demand(peer.created_at.is_some() && peer.updated_at.is_some(), "peer times")?;
    let task = peer.task.as_ref().ok_or("a task")?;
    demand(!task.id.is_empty() && !task.state.is_empty(), "task id and state")?;
    demand(task.url.contains("://"), "task url")?;
    demand(task.created_at.is_some() && task.updated_at.is_some(), "task times")?;
    host(peer.host.as_ref().ok_or("a host")?)
}

/// A message of a daemon about a persistent cache task.
///
/// # Errors
/// As [`host`].
pub fn cache_request(message: &AnnouncePersistentCachePeerRequest) -> Checked {
    ids(&message.host_id, &message.task_id, &message.peer_id)?;
    match message.request.as_ref().ok_or("a request arm")? {
        CacheRequest::RegisterPersistentCachePeerRequest(register) => {
            demand(register.piece_length >= 4 << 20, "piece length")?;
            demand(register.output_path.as_deref() != Some(""), "output path")
        }
        CacheRequest::DownloadPieceFinishedRequest(finished) => {
            piece(finished.piece.as_ref().ok_or("a piece")?)
        }
        CacheRequest::DownloadPieceFailedRequest(failed) => demand(!failed.parent_id.is_empty(), "parent id"),
        CacheRequest::ReschedulePersistentCachePeerRequest(again) => {
            demand(again.description.as_deref() != Some(""), "description")
        }
        CacheRequest::DownloadPersistentCachePeerFailedRequest(failed) => {
            demand(failed.description.as_deref() != Some(""), "description")
        }
        CacheRequest::DownloadPersistentCachePeerStartedRequest(_)
        | CacheRequest::DownloadPersistentCachePeerFinishedRequest(_) => Ok(()),
    }
}

/// A message of a scheduler about a persistent cache task.
///
/// # Errors
/// As [`host`].
pub fn cache_response(message: &AnnouncePersistentCachePeerResponse) -> Checked {
    match message.response.as_ref().ok_or("a response arm")? {
        CacheResponse::NormalPersistentCacheTaskResponse(normal) => {
            demand(!normal.candidate_cache_parents.is_empty(), "candidate parents")?;
            normal.candidate_cache_parents.iter().try_for_each(cache_peer)
        }
        CacheResponse::EmptyPersistentCacheTaskResponse(_) => Ok(()),
    }
}

/// A peer of a persistent cache task.
///
/// # Errors
/// As [`host`].
pub fn cache_peer(peer: &PersistentCachePeer) -> Checked {
    demand(!peer.id.is_empty(), "peer id")?;
    demand(!peer.state.is_empty(), "peer state")?;
    demand(peer.cost.is_some(), "peer cost")?;
    demand(peer.created_at.is_some() && peer.updated_at.is_some(), "peer times")?;
    cache_task(peer.task.as_ref().ok_or("a task")?)?;
    host(peer.host.as_ref().ok_or("a host")?)
}

/// A persistent cache task.
///
/// # Errors
/// As [`host`].
pub fn cache_task(task: &PersistentCacheTask) -> Checked {
    demand(!task.id.is_empty() && !task.state.is_empty(), "task id and state")?;
    demand(task.persistent_replica_count >= 1, "replica count")?;
    demand((4 << 20..=64 << 20).contains(&task.piece_length), "piece length")?;
    demand(task.ttl.is_some(), "ttl")?;
    demand(task.created_at.is_some() && task.updated_at.is_some(), "task times")
}

/// The beginning of an import.
///
/// # Errors
/// As [`host`].
pub fn upload(started: &UploadPersistentCacheTaskStartedRequest) -> Checked {
    ids(&started.host_id, &started.task_id, &started.peer_id)?;
    demand(started.persistent_replica_count >= 1, "replica count")?;
    demand(started.piece_length >= 4 << 20, "piece length")?;
    let ttl = started.ttl.as_ref().ok_or("ttl")?;
    demand((300..=604_800).contains(&ttl.seconds), "ttl")
}
