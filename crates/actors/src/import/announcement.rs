//! An import in the dialogue with its scheduler.

use std::sync::Arc;

use damselfly_api::common::v2::PersistentCacheTask;
use damselfly_api::scheduler::v2::{
    UploadPersistentCacheTaskFailedRequest, UploadPersistentCacheTaskFinishedRequest,
    UploadPersistentCacheTaskStartedRequest,
};
use damselfly_core::{Geometry, PeerId, TaskId};
use damselfly_scheduler_client::{ClientError, SchedulerHandle};
use damselfly_storage::Imported;
use tonic::{Code, Status};

use super::{REPLICATING, Wanted};
use crate::engine::Engine;
use crate::request::{at_scheduler, unknown};
use crate::task::wire;

/// An import as its scheduler knows it.
pub(super) struct Announcement {
    pub(super) engine: Arc<Engine>,
    pub(super) wanted: Wanted,
    pub(super) peer_id: PeerId,
    /// Where, and as what.
    pub(super) at: Option<(SchedulerHandle, TaskId)>,
}

impl Announcement {
    pub(super) fn geometry_beforehand(&self) -> Option<Geometry> {
        let length = self.wanted.content_length?;
        match self.wanted.piece_length {
            Some(piece_length) => Geometry::new(length, piece_length).ok(),
            None => Geometry::derived(length).ok(),
        }
    }

    /// The import begins, or is about to be offered.
    pub(super) async fn started(&mut self, id: &TaskId, geometry: Geometry) -> Result<(), Status> {
        let handle = self.engine.scheduler(id)?;
        let request = UploadPersistentCacheTaskStartedRequest {
            host_id: self.engine.identity.host_id.to_string(),
            task_id: id.to_string(),
            peer_id: self.peer_id.to_string(),
            persistent_replica_count: self.wanted.replicas,
            tag: self.wanted.tag.clone(),
            application: self.wanted.application.clone(),
            piece_length: geometry.piece_length(),
            content_length: geometry.content_length(),
            piece_count: geometry.piece_count(),
            ttl: wire::duration(self.wanted.ttl),
        };
        handle.upload_persistent_cache_task_started(request).await.map_err(|why| unknown(id, &why))?;
        self.at = Some((handle, id.clone()));
        Ok(())
    }

    /// The import is complete.
    async fn finished(&self, imported: &Imported) -> Result<PersistentCacheTask, Status> {
        let Some((handle, id)) = &self.at else {
            return Err(Status::internal("the import was not announced"));
        };
        let request = UploadPersistentCacheTaskFinishedRequest {
            host_id: self.engine.identity.host_id.to_string(),
            task_id: id.to_string(),
            peer_id: self.peer_id.to_string(),
            ack: if handle.ours() { self.wanted.ack } else { 0 },
            generation: if handle.ours() { imported.content.meta().generation } else { 0 },
            crcs: if handle.ours() { imported.crcs.iter().map(|crc| crc.0).collect() } else { Vec::new() },
        };
        let answer = handle.upload_persistent_cache_task_finished(request, REPLICATING).await;
        answer.map_err(|why| match why {
            // It may have come about all the same.
            ClientError::Deadline { .. } => Status::deadline_exceeded(why.to_string()),
            why => unknown(id, &why),
        })
    }

    /// The import failed.
    pub(super) async fn failed(&self, why: &Status) {
        let Some((handle, id)) = &self.at else { return };
        let request = UploadPersistentCacheTaskFailedRequest {
            host_id: self.engine.identity.host_id.to_string(),
            task_id: id.to_string(),
            peer_id: self.peer_id.to_string(),
            description: Some(why.message().to_owned()),
        };
        if let Err(why) = handle.upload_persistent_cache_task_failed(request).await {
            // It learns so when the import's time is over.
            tracing::info!(%id, %why, "scheduler not told of a failed import");
        }
    }
}

/// Makes what is here known to the cluster.
pub(super) async fn offer(
    announcement: &mut Announcement,
    imported: &Imported,
) -> Result<PersistentCacheTask, Status> {
    let content = &imported.content;
    let id = &content.key().id;
    if announcement.at.is_none()
        && let Some(geometry) = content.geometry()
    {
        let by_content = announcement.wanted.given.is_none();
        match announcement.started(id, geometry).await {
            // The id follows from the content: what is known there is this very content, and this host has it now.
            Err(why) if by_content && why.code() == Code::AlreadyExists => {
                return at_scheduler(&announcement.engine, id).await;
            }
            told => told?,
        }
    }
    announcement.finished(imported).await
}
