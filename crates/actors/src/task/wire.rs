//! Between the Download machine's words and the wire's.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use damselfly_api::common::v2 as common;
use damselfly_api::damselfly::v1 as ours;
use damselfly_api::errordetails::v2 as details;
use damselfly_api::scheduler::v2::announce_peer_request::Request;
use damselfly_api::scheduler::v2::announce_peer_response::Response;
use damselfly_api::scheduler::v2::{self as sched, AnnouncePeerRequest, AnnouncePeerResponse};
use damselfly_core::download::{
    Facts, Failure, FromScheduler, Learned, Lease, ParentInfo, ToScheduler, Validator,
};
use damselfly_core::{ByteRange, Crc, Geometry, HostId, PeerId, PieceSet};

/// A parent as the supervisor knows it: who it is and where it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its peer id.
    pub id: PeerId,
    /// Its host.
    pub host: HostId,
    /// Where its gRPC server answers.
    pub grpc: SocketAddr,
    /// Where its Vortex TCP server answers; unknown of Dragonfly's parents until SyncPieces tells.
    pub vortex: Option<SocketAddr>,
    /// Whether it showed one of our extensions.
    pub ours: bool,
    /// Whether it holds every piece.
    pub complete: bool,
}

impl Parent {
    /// What the machine needs of it.
    #[must_use]
    pub fn info(&self) -> ParentInfo {
        ParentInfo { id: self.id.clone(), ours: self.ours, complete: self.complete && self.vortex.is_some() }
    }
}

/// Reads a candidate parent; `None` for one that cannot be reached (no host, no address).
#[must_use]
pub fn parent(peer: &common::Peer) -> Option<Parent> {
    let host = peer.host.as_ref()?;
    let ip = host.ip.parse::<IpAddr>().ok()?.to_canonical();
    let port = |port: u32| u16::try_from(port).ok().filter(|port| *port != 0);
    let ours = host.incarnation.is_some();
    Some(Parent {
        id: peer.id.as_str().into(),
        host: host.id.as_str().into(),
        grpc: SocketAddr::new(ip, port(u32::try_from(host.port).ok()?)?),
        vortex: port(host.tcp_port).map(|port| SocketAddr::new(ip, port)),
        ours,
        complete: ours && peer.state == "Succeeded",
    })
}

/// Reads a scheduler's answer. A message of ours may carry facts beside its arm, or alone: hence several results.
#[must_use]
pub fn from_response(response: AnnouncePeerResponse) -> (Vec<FromScheduler>, Vec<Parent>) {
    let mut all = Vec::new();
    let mut parents = Vec::new();
    if let Some(facts) = response.facts {
        all.push(FromScheduler::Facts(Facts {
            generation: facts.generation,
            learned: facts.learned.map(learned_from),
            first: facts.first,
            crcs: facts.crcs.into_iter().map(Crc).collect(),
        }));
    }
    match response.response {
        Some(Response::EmptyTaskResponse(_)) => all.push(FromScheduler::Empty),
        Some(Response::NormalTaskResponse(normal)) => {
            parents = normal.candidate_parents.iter().filter_map(parent).collect();
            all.push(FromScheduler::Parents(parents.iter().map(Parent::info).collect()));
        }
        Some(Response::NeedBackToSourceResponse(need)) => {
            all.push(FromScheduler::BackToSource(need.lease.map(lease_from)));
        }
        Some(Response::MetadataOnlyResponse(_)) => {
            all.push(FromScheduler::Refused("scheduler answered a download with metadata only".to_owned()));
        }
        None => {}
    }
    (all, parents)
}

/// The geometry of a task that Dragonfly's scheduler knows; `None` where it knows no length, or pieces that are cut
/// otherwise than `piece_length`, the user's, cuts them.
#[must_use]
pub fn geometry_there(task: &common::Task, piece_length: Option<u64>) -> Option<Geometry> {
    // A length that nobody has told is -1 there, or 0.
    let length = i64::try_from(task.content_length).ok().and_then(|length| u64::try_from(length).ok());
    let length = length.filter(|length| *length > 0)?;
    let geometry = match piece_length {
        Some(piece_length) => Geometry::new(length, piece_length),
        None => Geometry::derived(length),
    };
    geometry.ok().filter(|geometry| [0, geometry.piece_count()].contains(&task.piece_count))
}

/// Tells in a registration what is known of the content's length.
pub fn set_geometry(download: &mut common::Download, geometry: Geometry) {
    download.actual_content_length = Some(geometry.content_length());
    download.actual_piece_length = Some(geometry.piece_length());
    download.actual_piece_count = Some(geometry.piece_count().into());
}

fn lease_from(lease: ours::Lease) -> Lease {
    Lease {
        id: lease.id,
        ranges: lease.ranges.iter().map(|r| r.first..r.first.saturating_add(r.count)).collect(),
        silence: duration_from(lease.silence).unwrap_or(Duration::from_secs(10)),
        generation: lease.generation,
    }
}

fn lease_to(lease: &Lease) -> ours::Lease {
    ours::Lease {
        id: lease.id,
        ranges: lease
            .ranges
            .iter()
            .map(|r| ours::PieceRange { first: r.start, count: r.end.saturating_sub(r.start) })
            .collect(),
        silence: duration(lease.silence),
        generation: lease.generation,
    }
}

/// Reads what a scheduler learned of the content.
#[must_use]
pub fn learned_from(learned: ours::Learned) -> Learned {
    Learned {
        content_length: learned.content_length,
        piece_length: learned.piece_length,
        validator: learned.validator.map(validator_from).unwrap_or_default(),
        headers: learned.header.into_iter().collect(),
        ranges: learned.ranges,
        private: learned.private,
    }
}

fn learned_to(learned: &Learned) -> ours::Learned {
    ours::Learned {
        content_length: learned.content_length,
        piece_length: learned.piece_length,
        validator: Some(validator_to(&learned.validator)),
        header: learned.headers.clone().into_iter().collect(),
        private: learned.private,
        ranges: learned.ranges,
    }
}

/// A validator from the wire.
#[must_use]
pub fn validator_from(validator: ours::Validator) -> Validator {
    Validator { etag: validator.etag, last_modified: validator.last_modified }
}

/// A validator for the wire.
#[must_use]
pub fn validator_to(validator: &Validator) -> ours::Validator {
    ours::Validator { etag: validator.etag.clone(), last_modified: validator.last_modified.clone() }
}

/// What every message of one peer's dialogue carries, and what it needs to describe its pieces.
#[derive(Clone, Debug)]
pub struct Dialogue {
    /// This host.
    pub host_id: HostId,
    /// The task.
    pub task_id: String,
    /// This download.
    pub peer_id: PeerId,
}

impl Dialogue {
    fn wrap(&self, request: Option<Request>) -> AnnouncePeerRequest {
        AnnouncePeerRequest {
            host_id: self.host_id.to_string(),
            task_id: self.task_id.clone(),
            peer_id: self.peer_id.to_string(),
            request,
            ..AnnouncePeerRequest::default()
        }
    }

    /// The message that opens the dialogue.
    #[must_use]
    pub fn register(
        &self,
        download: common::Download,
        restate: Option<ours::Restate>,
    ) -> AnnouncePeerRequest {
        self.wrap(Some(Request::RegisterPeerRequest(sched::RegisterPeerRequest {
            download: Some(download),
            restate,
        })))
    }

    /// Registers again on the same stream, for another part of the content: the whole without a range.
    #[must_use]
    pub fn wants(&self, download: common::Download, range: Option<ByteRange>) -> AnnouncePeerRequest {
        let range = range.map(|range| common::Range { start: range.start, length: range.length });
        self.register(common::Download { range, ..download }, None)
    }

    /// Any later message; `None` where it would speak of a piece that has no place in `geometry`.
    #[must_use]
    pub fn tell(&self, message: &ToScheduler, geometry: Option<Geometry>) -> Option<AnnouncePeerRequest> {
        let description = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Some(
            self.wrap(Some(match message {
                ToScheduler::Started => {
                    Request::DownloadPeerStartedRequest(sched::DownloadPeerStartedRequest {})
                }
                ToScheduler::BackToSourceStarted => Request::DownloadPeerBackToSourceStartedRequest(
                    sched::DownloadPeerBackToSourceStartedRequest { description: None },
                ),
                ToScheduler::Learned(learned) => {
                    let bare = self.wrap(None);
                    return Some(AnnouncePeerRequest { learned: Some(learned_to(learned)), ..bare });
                }
                // A registration needs the client's words: `Dialogue::wants`.
                ToScheduler::Wants(_) => return None,
                ToScheduler::Release(lease) => {
                    let bare = self.wrap(None);
                    return Some(AnnouncePeerRequest { released_lease: Some(*lease), ..bare });
                }
                ToScheduler::PieceFinished { piece, crc, parent, cost } => {
                    let piece = finished_piece(geometry?, *piece, *crc, parent.as_ref(), *cost)?;
                    if parent.is_some() {
                        Request::DownloadPieceFinishedRequest(sched::DownloadPieceFinishedRequest {
                            piece: Some(piece),
                        })
                    } else {
                        Request::DownloadPieceBackToSourceFinishedRequest(
                            sched::DownloadPieceBackToSourceFinishedRequest { piece: Some(piece) },
                        )
                    }
                }
                ToScheduler::PieceFailed { piece, parent } => {
                    Request::DownloadPieceFailedRequest(sched::DownloadPieceFailedRequest {
                        piece_number: Some(*piece),
                        parent_id: parent.to_string(),
                        temporary: true,
                    })
                }
                ToScheduler::OriginFailed(failure) => Request::DownloadPieceBackToSourceFailedRequest(
                    sched::DownloadPieceBackToSourceFailedRequest {
                        piece_number: None,
                        response: Some(origin_failure(failure)),
                    },
                ),
                ToScheduler::Reschedule { parents, description: text } => {
                    Request::ReschedulePeerRequest(sched::ReschedulePeerRequest {
                        candidate_parents: parents
                            .iter()
                            .map(|id| common::Peer { id: id.to_string(), ..common::Peer::default() })
                            .collect(),
                        description: description(text),
                    })
                }
                ToScheduler::Finished { back_to_source: false } => {
                    Request::DownloadPeerFinishedRequest(sched::DownloadPeerFinishedRequest {})
                }
                ToScheduler::Finished { back_to_source: true } => {
                    Request::DownloadPeerBackToSourceFinishedRequest(
                        sched::DownloadPeerBackToSourceFinishedRequest {},
                    )
                }
                ToScheduler::Failed { description: text, back_to_source: false } => {
                    Request::DownloadPeerFailedRequest(sched::DownloadPeerFailedRequest {
                        description: description(text),
                    })
                }
                ToScheduler::Failed { description: text, back_to_source: true } => {
                    Request::DownloadPeerBackToSourceFailedRequest(
                        sched::DownloadPeerBackToSourceFailedRequest { description: description(text) },
                    )
                }
            })),
        )
    }
}

fn finished_piece(
    geometry: Geometry,
    number: u32,
    crc: Crc,
    parent: Option<&PeerId>,
    cost: Duration,
) -> Option<common::Piece> {
    let span = geometry.piece(number)?;
    let traffic =
        if parent.is_some() { common::TrafficType::RemotePeer } else { common::TrafficType::BackToSource };
    Some(common::Piece {
        number,
        parent_id: parent.map(ToString::to_string),
        offset: span.offset,
        length: span.length,
        digest: crc.to_string(),
        content: None,
        traffic_type: Some(traffic.into()),
        cost: duration(cost),
        created_at: Some(SystemTime::now().into()),
    })
}

fn origin_failure(failure: &Failure) -> sched::download_piece_back_to_source_failed_request::Response {
    use sched::download_piece_back_to_source_failed_request::Response;
    match failure.status {
        Some(status) => Response::Backend(details::Backend {
            message: failure.message.clone(),
            header: failure.headers.clone().into_iter().collect(),
            status_code: Some(i32::from(status)),
        }),
        None => Response::Unknown(details::Unknown { message: Some(failure.message.clone()) }),
    }
}

/// What a peer that registers again says of itself.
#[must_use]
pub fn restate(leases: &[Lease], held: &PieceSet, generation: u64, validator: &Validator) -> ours::Restate {
    ours::Restate {
        leases: leases.iter().map(lease_to).collect(),
        bitmap: held.to_bytes(),
        generation,
        validator: Some(validator_to(validator)),
    }
}

/// A duration for the wire.
#[must_use]
pub fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

/// A duration from the wire; negative ones are none.
#[must_use]
pub fn duration_from(duration: Option<prost_types::Duration>) -> Option<Duration> {
    duration.and_then(|duration| Duration::try_from(duration).ok())
}

#[cfg(test)]
mod tests;
