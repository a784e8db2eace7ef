//! dfdaemon.v2.DfdaemonDownload: what Dragonfly's tools ask of their daemon. DownloadTask is framed by hand beside it.

use std::sync::Arc;

use damselfly_api::common::v2 as common;
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_api::dfdaemon::v2::dfdaemon_download_server::DfdaemonDownload;
use damselfly_core::{Kind, TaskKey};
use damselfly_transport::local::Caller;
use futures_util::future::try_join_all;
use tonic::{Request, Response, Status};

use super::{asking_of, caller_of, may_change, persistent_cache, stat};
use crate::engine::Engine;
use crate::metrics::Call;
use crate::request;

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
        let key = request::key(Kind::Standard, id)?;
        may_change(&self.engine, &caller, &key)?;
        Ok(key)
    }

    /// Has the schedulers forget this host. The daemon itself does not leave: it goes on serving, and is back with its
    /// next announcement, as Dragonfly's.
    async fn off_the_schedulers(&self, caller: &Caller) -> Result<(), Status> {
        let own = rustix::process::geteuid().as_raw();
        if !caller.native || (caller.uid != 0 && caller.uid != own) {
            return Err(Status::permission_denied(
                "only the daemon's own user and root may take the host off the schedulers",
            ));
        }
        let (host, schedulers) = (self.engine.identity.host_id.as_str(), self.engine.cluster.healthy());
        let told = try_join_all(schedulers.iter().map(|scheduler| scheduler.delete_host(host))).await;
        told.map(drop).map_err(|why| Status::internal(why.to_string()))
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

    async fn upload_persistent_cache_task(
        &self,
        request: Request<dfdaemon::UploadPersistentCacheTaskRequest>,
    ) -> Result<Response<common::PersistentCacheTask>, Status> {
        let asking = asking_of(&request)?;
        persistent_cache::upload(&self.engine, &asking, request.into_inner()).await.map(Response::new)
    }

    async fn stat_persistent_cache_task(
        &self,
        request: Request<dfdaemon::StatPersistentCacheTaskRequest>,
    ) -> Result<Response<common::PersistentCacheTask>, Status> {
        persistent_cache::stat(&self.engine, &request.into_inner().task_id).await.map(Response::new)
    }

    async fn stat_local_persistent_cache_task(
        &self,
        request: Request<dfdaemon::StatLocalPersistentCacheTaskRequest>,
    ) -> Result<Response<dfdaemon::StatLocalPersistentCacheTaskResponse>, Status> {
        persistent_cache::stat_local(&self.engine, &request.into_inner().task_id).map(Response::new)
    }

    async fn list_local_persistent_cache_tasks(
        &self,
        _request: Request<dfdaemon::ListLocalPersistentCacheTasksRequest>,
    ) -> Result<Response<dfdaemon::ListLocalPersistentCacheTasksResponse>, Status> {
        let tasks = persistent_cache::list_local(&self.engine);
        Ok(Response::new(dfdaemon::ListLocalPersistentCacheTasksResponse { tasks }))
    }

    async fn delete_host(&self, request: Request<()>) -> Result<Response<()>, Status> {
        let caller = caller_of(&request)?;
        let answer = self.off_the_schedulers(&caller).await;
        self.engine.metrics.called(Call::DeleteHost, &answer);
        answer.map(Response::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::daemon;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_host_off_the_schedulers_is_still_their_host() {
        let (_home, daemon) = daemon("").await;
        let engine = daemon.engine();
        engine.cluster.ready().await;
        let service = DownloadService::new(Arc::clone(engine));
        let stranger = service.off_the_schedulers(&Caller::foreign(0, 0)).await.unwrap_err();
        assert_eq!(stranger.code(), tonic::Code::PermissionDenied);
        let scheduler = engine.cluster.healthy().remove(0);
        let listed = || async { scheduler.list_hosts(None).await.unwrap().len() };
        assert_eq!(listed().await, 1);
        // Twice, because nobody can know whether it was done before.
        for _ in 0..2 {
            service.off_the_schedulers(&Caller::this_process()).await.unwrap();
            assert_eq!(listed().await, 0);
        }
        assert!(!engine.cluster.members().is_empty(), "it does not leave for good");
        daemon.kill().await;
    }
}
