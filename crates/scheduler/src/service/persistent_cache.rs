//! Persistent cache tasks: their part of `scheduler.v2.Scheduler`, and the words of their peers.

use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_api::damselfly::v1 as ours;
use damselfly_api::scheduler::v2 as api;
use damselfly_api::scheduler::v2::announce_peer_request::Request;
use damselfly_api::scheduler::v2::announce_peer_response::Response;
use damselfly_api::scheduler::v2::announce_persistent_cache_peer_request::Request as CacheRequest;
use damselfly_api::scheduler::v2::announce_persistent_cache_peer_response::Response as CacheResponse;
use damselfly_core::geometry::named_piece_length;
use damselfly_core::{Crc, Geometry, HostId, Kind, PeerId, TaskKey};
use tonic::{Code, Status};

use super::{SchedulerService, convert, validate};
use crate::machine::{About, Event, KeepError, KeepView, PeerMessage, PeerView, Priority, Register, Upload};

/// How long replicas are waited for. Callers name shorter deadlines where they want.
const REPLICATING: Duration = Duration::from_secs(10 * 60);

fn refused(why: KeepError) -> Status {
    let code = match why {
        KeepError::Exists(_) => Code::AlreadyExists,
        KeepError::UnknownHost(_) | KeepError::Unknown(_) => Code::NotFound,
        KeepError::NotUploading(_) => Code::FailedPrecondition,
    };
    Status::new(code, why.to_string())
}

fn key(id: &str) -> Result<TaskKey, Status> {
    validate::task_of(Kind::PersistentCache, "task_id", id)
}

/// What a peer of a persistent cache task said. It has no origin and triggers no seed.
pub(super) fn message(request: CacheRequest) -> Result<PeerMessage, Status> {
    let standard = match request {
        CacheRequest::RegisterPersistentCachePeerRequest(register) => {
            return Ok(PeerMessage::Register(Box::new(Register {
                about: About { tag: register.tag, application: register.application, ..About::default() },
                priority: Priority::Level3,
                piece_length: Some(register.piece_length).filter(|length| *length > 0),
                disable_back_to_source: true,
                persistent: register.persistent,
                restate: register.restate.map(convert::restated),
                ..Register::default()
            })));
        }
        CacheRequest::DownloadPersistentCachePeerStartedRequest(_) => {
            Request::DownloadPeerStartedRequest(api::DownloadPeerStartedRequest {})
        }
        CacheRequest::ReschedulePersistentCachePeerRequest(request) => {
            let parents = request.candidate_parents.into_iter().map(|peer| PeerId::from(peer.id));
            return Ok(PeerMessage::Reschedule(parents.collect()));
        }
        CacheRequest::DownloadPersistentCachePeerFinishedRequest(_) => {
            Request::DownloadPeerFinishedRequest(api::DownloadPeerFinishedRequest {})
        }
        CacheRequest::DownloadPersistentCachePeerFailedRequest(request) => {
            Request::DownloadPeerFailedRequest(api::DownloadPeerFailedRequest {
                description: request.description,
            })
        }
        CacheRequest::DownloadPieceFinishedRequest(request) => Request::DownloadPieceFinishedRequest(request),
        CacheRequest::DownloadPieceFailedRequest(request) => Request::DownloadPieceFailedRequest(request),
    };
    convert::message(standard)
}

fn parent(peer: common::Peer) -> common::PersistentCachePeer {
    common::PersistentCachePeer {
        id: peer.id,
        state: peer.state,
        host: peer.host,
        cost: peer.cost,
        created_at: peer.created_at,
        updated_at: peer.updated_at,
        ..common::PersistentCachePeer::default()
    }
}

impl SchedulerService {
    /// An answer in their words. The machine sends them nothing of an origin.
    pub(super) fn cache_response(
        &self,
        answer: api::AnnouncePeerResponse,
    ) -> api::AnnouncePersistentCachePeerResponse {
        let response = match answer.response {
            Some(Response::EmptyTaskResponse(_)) => Some(CacheResponse::EmptyPersistentCacheTaskResponse(
                api::EmptyPersistentCacheTaskResponse {},
            )),
            Some(Response::NormalTaskResponse(normal)) => Some(
                CacheResponse::NormalPersistentCacheTaskResponse(api::NormalPersistentCacheTaskResponse {
                    candidate_cache_parents: self.cache_parents(normal.candidate_parents),
                }),
            ),
            Some(Response::NeedBackToSourceResponse(_) | Response::MetadataOnlyResponse(_)) | None => None,
        };
        api::AnnouncePersistentCachePeerResponse { response, facts: answer.facts }
    }

    /// Parents as Dragonfly's validation wants them: with their task. All are of one.
    fn cache_parents(&self, parents: Vec<common::Peer>) -> Vec<common::PersistentCachePeer> {
        let task = parents.first().and_then(|peer| key(&peer.task.as_ref()?.id).ok());
        let known = task.and_then(|task| Some((self.kept(&task).ok()?, task)));
        let wire = known.as_ref().map(|(view, task)| common::PersistentCacheTask {
            // Where the copies are is asked for elsewhere.
            replicas: Vec::new(),
            ..self.wire_kept(task, view)
        });
        let is_kept = |host: &common::Host| {
            let replicas = known.iter().flat_map(|(view, _)| &view.replicas);
            replicas.filter(|copy| copy.host.as_str() == host.id).any(|copy| copy.persistent)
        };
        let parents = parents.into_iter().map(|peer| common::PersistentCachePeer {
            persistent: peer.host.as_ref().is_some_and(is_kept),
            task: wire.clone(),
            ..parent(peer)
        });
        parents.collect()
    }

    /// An import begins.
    pub(super) fn upload_started(
        self: &Arc<Self>,
        request: api::UploadPersistentCacheTaskStartedRequest,
    ) -> Result<(), Status> {
        let task = key(&request.task_id)?;
        let host = HostId::from(validate::given("host_id", &request.host_id)?);
        let peer = PeerId::from(validate::given("peer_id", &request.peer_id)?);
        if request.persistent_replica_count == 0 {
            return Err(validate::invalid("persistent_replica_count", "must be at least 1"));
        }
        let ttl = request.ttl.and_then(convert::duration).filter(|ttl| !ttl.is_zero());
        let ttl = ttl.ok_or_else(|| validate::invalid("ttl", "must be more than 0"))?;
        let cut = named_piece_length(request.piece_length)
            .and_then(|piece_length| Geometry::new(request.content_length, piece_length));
        let geometry = cut.map_err(|why| validate::invalid("piece_length", &why.to_string()))?;
        if geometry.piece_count() != request.piece_count {
            return Err(validate::invalid("piece_count", "must follow from the two lengths"));
        }
        let upload = Upload {
            task,
            host,
            peer,
            replicas: request.persistent_replica_count,
            tag: request.tag,
            application: request.application,
            geometry,
            ttl,
        };
        self.ask(|machine, now, out| machine.upload_started(upload, now, out)).map_err(refused)
    }

    /// An import is complete. Waits for as many replicas as the caller wants.
    pub(super) async fn upload_finished(
        self: &Arc<Self>,
        request: api::UploadPersistentCacheTaskFinishedRequest,
    ) -> Result<common::PersistentCacheTask, Status> {
        let task = key(&request.task_id)?;
        let host = HostId::from(validate::given("host_id", &request.host_id)?);
        let ack = usize::try_from(request.ack).unwrap_or(usize::MAX).max(1);
        let alive = self.inner.lock().machine.keepers();
        if ack > 1 && ack > alive {
            return Err(Status::failed_precondition(format!(
                "{ack} replicas are to be waited for and {alive} hosts live: wait for fewer, or start more daemons"
            )));
        }
        let crcs = request.crcs.into_iter().map(Crc).collect();
        // Dragonfly's daemons name none.
        let generation = Some(request.generation).filter(|generation| *generation > 0);
        let generation = generation.unwrap_or_else(|| self.wall_micros());
        self.ask(|machine, now, out| machine.upload_finished(&task, &host, generation, crcs, now, out))
            .map_err(refused)?;
        let deadline = tokio::time::sleep(REPLICATING);
        tokio::pin!(deadline);
        loop {
            let stepped = self.stepped.notified();
            tokio::pin!(stepped);
            // Before looking: a step in between is not missed.
            stepped.as_mut().enable();
            let view = self.kept(&task)?;
            if view.replicas_now() >= ack {
                return Ok(self.wire_kept(&task, &view));
            }
            if self.inner.lock().closing {
                return Err(Status::unavailable("the scheduler is shutting down"));
            }
            tokio::select! {
                () = &mut stepped => {}
                () = &mut deadline => {
                    return Err(Status::deadline_exceeded(format!(
                        "{} of {ack} replicas came about within {} s; the others are still being made",
                        view.replicas_now(),
                        REPLICATING.as_secs()
                    )));
                }
            }
        }
    }

    /// An import failed.
    pub(super) fn upload_failed(
        self: &Arc<Self>,
        request: &api::UploadPersistentCacheTaskFailedRequest,
    ) -> Result<(), Status> {
        let task = key(&request.task_id)?;
        let host = HostId::from(validate::given("host_id", &request.host_id)?);
        self.ask(|machine, now, out| machine.upload_failed(&task, &host, now, out)).map_err(refused)
    }

    /// What is known of a task.
    pub(super) fn stat_kept(
        &self,
        host_id: &str,
        task_id: &str,
    ) -> Result<common::PersistentCacheTask, Status> {
        validate::given("host_id", host_id)?;
        let task = key(task_id)?;
        Ok(self.wire_kept(&task, &self.kept(&task)?))
    }

    /// All tasks that are known.
    pub(super) fn all_kept(&self) -> Vec<TaskKey> {
        self.inner.lock().machine.all_kept(self.now())
    }

    /// What is known of a task, if anything.
    pub(super) fn look_at(&self, task: &TaskKey) -> Option<common::PersistentCacheTask> {
        self.kept(task).ok().map(|view| self.wire_kept(task, &view))
    }

    /// Deletes a task and its copies.
    pub(super) fn delete_kept(self: &Arc<Self>, host_id: &str, task_id: &str) -> Result<(), Status> {
        validate::given("host_id", host_id)?;
        let task = key(task_id)?;
        self.ask(|machine, now, out| machine.delete_kept(&task, now, out)).map_err(refused)
    }

    /// What is known of a peer.
    pub(super) fn stat_kept_peer(
        &self,
        host_id: &str,
        task_id: &str,
        peer_id: &str,
    ) -> Result<common::PersistentCachePeer, Status> {
        validate::given("host_id", host_id)?;
        let peer = PeerId::from(validate::given("peer_id", peer_id)?);
        let task = key(task_id)?;
        let view = self.kept(&task)?;
        let inner = self.inner.lock();
        let found = inner.machine.peer(&task, &peer);
        let found = found.ok_or_else(|| Status::not_found(format!("peer {peer} not found")))?;
        let host = inner.hosts.get(&found.host).map(|host| common::Host::clone(host));
        drop(inner);
        Ok(self.wire_peer(&found, host, self.wire_kept(&task, &view)))
    }

    /// Forgets a peer.
    pub(super) fn delete_kept_peer(
        self: &Arc<Self>,
        host_id: &str,
        task_id: &str,
        peer_id: &str,
    ) -> Result<(), Status> {
        validate::given("host_id", host_id)?;
        let peer = PeerId::from(validate::given("peer_id", peer_id)?);
        self.step(Event::PeerDeleted { task: key(task_id)?, peer });
        Ok(())
    }

    fn kept(&self, task: &TaskKey) -> Result<KeepView, Status> {
        let view = self.inner.lock().machine.kept(task, self.now());
        view.ok_or_else(|| refused(KeepError::Unknown(task.clone())))
    }

    fn wire_peer(
        &self,
        view: &PeerView,
        host: Option<common::Host>,
        task: common::PersistentCacheTask,
    ) -> common::PersistentCachePeer {
        common::PersistentCachePeer {
            id: view.id.to_string(),
            persistent: view.persistent,
            cost: Some(convert::wire_duration(view.updated.since(view.created))),
            state: view.state.name().to_owned(),
            task: Some(task),
            host,
            created_at: Some(self.wall(view.created)),
            updated_at: Some(self.wall(view.updated)),
            ..common::PersistentCachePeer::default()
        }
    }

    fn wire_kept(&self, task: &TaskKey, view: &KeepView) -> common::PersistentCacheTask {
        let inner = self.inner.lock();
        let replicas = view.replicas.iter().map(|copy| {
            let host = inner.hosts.get(&copy.host);
            ours::Replica {
                host_id: copy.host.to_string(),
                hostname: host.map(|host| host.hostname.clone()).unwrap_or_default(),
                ip: host.map(|host| host.ip.clone()).unwrap_or_default(),
                persistent: copy.persistent,
                complete: copy.complete,
                alive: copy.alive,
            }
        });
        let copies = view.replicas.iter().filter(|copy| copy.complete && copy.alive).count();
        common::PersistentCacheTask {
            id: task.id.to_string(),
            persistent_replica_count: view.target,
            current_persistent_replica_count: view.replicas_now() as u64,
            current_replica_count: copies as u64,
            tag: view.tag.clone(),
            application: view.application.clone(),
            piece_length: view.geometry.map_or(0, |geometry| geometry.piece_length()),
            content_length: view.geometry.map_or(0, |geometry| geometry.content_length()),
            piece_count: view.geometry.map_or(0, |geometry| geometry.piece_count()),
            state: view.state.to_owned(),
            ttl: Some(convert::wire_duration(view.ttl)),
            created_at: Some(self.wall(view.created)),
            updated_at: Some(self.wall(view.updated)),
            replicas: replicas.collect(),
            generation: view.generation,
            schedulers: u32::try_from(self.config.ring.len().max(1)).unwrap_or(u32::MAX),
        }
    }
}
