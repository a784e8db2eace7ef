//! dfdaemon.v2.DfdaemonDownload: what Dragonfly's tools ask of their daemon. DownloadTask is framed by hand beside it.

use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_api::dfdaemon::v2::dfdaemon_download_server::DfdaemonDownload;
use damselfly_core::{Kind, TaskId, TaskKey};
use damselfly_scheduler_client::Departure;
use tonic::{Request, Response, Status};

use super::{caller_of, may_change, stat};
use crate::engine::Engine;
use crate::metrics::Call;

/// How long the schedulers may take to take note that this host goes.
const LEAVE: Duration = Duration::from_secs(5);

/// The service.
#[derive(Clone, Debug)]
pub struct DownloadService {
    engine: Arc<Engine>,
}

impl DownloadService {
    /// A service for this daemon.
    #[must_use]
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    fn changeable<T>(&self, request: &Request<T>, id: &str) -> Result<TaskKey, Status> {
        let caller = caller_of(request)?;
        let id = TaskId::parse(id).map_err(|why| Status::invalid_argument(why.to_string()))?;
        let key = TaskKey { kind: Kind::Standard, id };
        may_change(&self.engine, &caller, &key)?;
        Ok(key)
    }
}

#[tonic::async_trait]
impl DfdaemonDownload for DownloadService {
    async fn stat_task(
        &self,
        request: Request<dfdaemon::StatTaskRequest>,
    ) -> Result<Response<common::Task>, Status> {
        stat::stat_task(&self.engine, &request.into_inner().task_id).await.map(Response::new)
    }

    async fn stat_local_task(
        &self,
        request: Request<dfdaemon::StatLocalTaskRequest>,
    ) -> Result<Response<dfdaemon::StatLocalTaskResponse>, Status> {
        stat::stat_local(&self.engine, &request.into_inner().task_id).map(Response::new)
    }

    async fn list_local_tasks(
        &self,
        _request: Request<dfdaemon::ListLocalTasksRequest>,
    ) -> Result<Response<dfdaemon::ListLocalTasksResponse>, Status> {
        Ok(Response::new(dfdaemon::ListLocalTasksResponse { tasks: stat::list_local(&self.engine) }))
    }

    async fn delete_task(
        &self,
        request: Request<dfdaemon::DeleteTaskRequest>,
    ) -> Result<Response<()>, Status> {
        let key = self.changeable(&request, &request.get_ref().task_id)?;
        stat::delete(&self.engine, &key).await.map(Response::new)
    }

    async fn delete_local_task(
        &self,
        request: Request<dfdaemon::DeleteLocalTaskRequest>,
    ) -> Result<Response<()>, Status> {
        let key = self.changeable(&request, &request.get_ref().task_id)?;
        stat::delete_local(&self.engine, &key).await.map(Response::new)
    }

    async fn delete_host(&self, request: Request<()>) -> Result<Response<()>, Status> {
        let caller = caller_of(&request)?;
        let own = rustix::process::geteuid().as_raw();
        let allowed = caller.native && (caller.uid == 0 || caller.uid == own);
        let allowed = allowed.then_some(()).ok_or_else(|| {
            Status::permission_denied(
                "only the daemon's own user and root may take the host off the schedulers",
            )
        });
        self.engine.metrics.called(Call::DeleteHost, &allowed);
        allowed?;
        self.engine.cluster.leave(Departure::ForGood, LEAVE).await;
        Ok(Response::new(()))
    }
}
