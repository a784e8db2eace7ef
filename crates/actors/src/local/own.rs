//! damselfly.v1.Local: what our own tools ask beyond Dragonfly's service.

use std::sync::Arc;

use damselfly_api::common::v2 as common;
use damselfly_api::damselfly::v1 as ours;
use damselfly_api::damselfly::v1::local_server::Local;
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_storage::UploadName;
use damselfly_transport::local::Direction;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::status::{self, Facts};
use super::{caller_of, control, owner, persistent_cache};
use crate::engine::Engine;
use crate::task::Control;

/// The service. ReadTask is framed by hand beside it.
#[derive(Debug)]
pub struct LocalService {
    engine: Arc<Engine>,
    facts: Arc<Facts>,
}

impl LocalService {
    /// A service for this daemon.
    #[must_use]
    pub fn new(engine: Arc<Engine>, facts: Arc<Facts>) -> Self {
        Self { engine, facts }
    }
}

#[tonic::async_trait]
impl Local for LocalService {
    async fn pause(&self, request: Request<ours::PauseRequest>) -> Result<Response<()>, Status> {
        let caller = caller_of(&request)?;
        control::control(&self.engine, &caller, request.into_inner().task, Control::Pause)
            .await
            .map(Response::new)
    }

    async fn resume(&self, request: Request<ours::ResumeRequest>) -> Result<Response<()>, Status> {
        let caller = caller_of(&request)?;
        control::control(&self.engine, &caller, request.into_inner().task, Control::Resume)
            .await
            .map(Response::new)
    }

    async fn cancel(&self, request: Request<ours::CancelRequest>) -> Result<Response<()>, Status> {
        let caller = caller_of(&request)?;
        control::control(&self.engine, &caller, request.into_inner().task, Control::Cancel)
            .await
            .map(Response::new)
    }

    async fn limit(&self, request: Request<ours::LimitRequest>) -> Result<Response<()>, Status> {
        let caller = caller_of(&request)?;
        let ours::LimitRequest { task, bytes_per_second } = request.into_inner();
        let limit = Control::Limit((bytes_per_second > 0).then_some(bytes_per_second));
        control::control(&self.engine, &caller, task, limit).await.map(Response::new)
    }

    async fn status(
        &self,
        _request: Request<ours::StatusRequest>,
    ) -> Result<Response<BoxStream<ours::StatusResponse>>, Status> {
        let parts = status::snapshot(&self.engine, &self.facts);
        Ok(Response::new(Box::pin(tokio_stream::iter(parts.into_iter().map(Ok)))))
    }

    async fn get_receipt(
        &self,
        request: Request<ours::GetReceiptRequest>,
    ) -> Result<Response<ours::Receipt>, Status> {
        let peer = request.into_inner().peer_id;
        let receipt = self.engine.receipts.get(&peer);
        receipt.map(Response::new).ok_or_else(|| Status::not_found(format!("no receipt of {peer} is kept")))
    }

    async fn open_descriptor(
        &self,
        request: Request<ours::OpenDescriptorRequest>,
    ) -> Result<Response<ours::OpenDescriptorResponse>, Status> {
        let caller = caller_of(&request)?;
        let direction = match request.into_inner().direction() {
            ours::Direction::FromClient => Direction::FromClient,
            ours::Direction::ToClient => Direction::ToClient,
            ours::Direction::Unspecified => {
                return Err(Status::invalid_argument(
                    "a descriptor is for reading or for writing: say which",
                ));
            }
        };
        let token = self.engine.descriptors.open(caller, direction)?;
        Ok(Response::new(ours::OpenDescriptorResponse { token: token.0.to_vec() }))
    }

    async fn stat_upload(
        &self,
        request: Request<ours::StatUploadRequest>,
    ) -> Result<Response<ours::StatUploadResponse>, Status> {
        let uid = owner(&*caller_of(&request)?);
        let name = request.into_inner().upload_id;
        let verified_length =
            uid.map_or(0, |uid| self.engine.store.verified_upload(&UploadName { uid, name }));
        Ok(Response::new(ours::StatUploadResponse { verified_length }))
    }

    async fn list_persistent_cache_tasks(
        &self,
        _request: Request<ours::ListPersistentCacheTasksRequest>,
    ) -> Result<Response<BoxStream<common::PersistentCacheTask>>, Status> {
        persistent_cache::list(&self.engine).await.map(Response::new)
    }

    async fn delete_persistent_cache_task(
        &self,
        request: Request<dfdaemon::DeletePersistentCacheTaskRequest>,
    ) -> Result<Response<()>, Status> {
        let caller = caller_of(&request)?;
        let id = request.into_inner().task_id;
        persistent_cache::delete(&self.engine, &caller, &id).await.map(Response::new)
    }

    async fn list_cluster(
        &self,
        _request: Request<ours::ListClusterRequest>,
    ) -> Result<Response<ours::ListClusterResponse>, Status> {
        let hosts = self.engine.cluster_hosts().await?;
        let schedulers = status::schedulers(&self.engine);
        Ok(Response::new(ours::ListClusterResponse { hosts, schedulers }))
    }
}
