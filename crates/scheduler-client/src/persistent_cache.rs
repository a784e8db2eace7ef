//! Persistent cache tasks at their scheduler.

use std::time::Duration;

use damselfly_api::common::v2::PersistentCacheTask;
use damselfly_api::damselfly::v1::ListPersistentCacheTasksRequest;
use damselfly_api::scheduler::v2::{
    DeletePersistentCacheTaskRequest, StatPersistentCacheTaskRequest, UploadPersistentCacheTaskFailedRequest,
    UploadPersistentCacheTaskFinishedRequest, UploadPersistentCacheTaskStartedRequest,
};
use damselfly_core::TaskId;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Status};

use crate::channel::ANSWER;
use crate::handle::{outcome, timed, unary};
use crate::{ClientError, SchedulerHandle};

impl SchedulerHandle {
    /// The scheduler's view of a persistent cache task.
    ///
    /// # Errors
    /// As for [`SchedulerHandle::stat_task`].
    pub async fn stat_persistent_cache_task(
        &self,
        host_id: &str,
        task: &TaskId,
    ) -> Result<PersistentCacheTask, ClientError> {
        let request =
            StatPersistentCacheTaskRequest { host_id: host_id.to_owned(), task_id: task.to_string() };
        let mut client = self.member.control_client();
        let call = client.stat_persistent_cache_task(timed(request));
        unary("StatPersistentCacheTask", self.address(), call).await
    }

    /// The persistent cache tasks that the scheduler knows. Each may take 10 s to come.
    ///
    /// # Errors
    /// As for [`SchedulerHandle::stat_task`]; `Unimplemented` by a scheduler of Dragonfly's.
    pub async fn list_persistent_cache_tasks(
        &self,
    ) -> Result<impl Stream<Item = Result<PersistentCacheTask, Status>> + Send + use<>, ClientError> {
        let mut client = self.member.cluster_client();
        // Its deadline is each task's, not the whole list's, which no scheduler could know.
        let call = client.list_persistent_cache_tasks(Request::new(ListPersistentCacheTasksRequest {}));
        let tasks = unary("ListPersistentCacheTasks", self.address(), call).await?.timeout(ANSWER);
        Ok(tasks.map(|task| {
            task.unwrap_or_else(|_| Err(Status::deadline_exceeded("the scheduler's list does not go on")))
        }))
    }

    /// Deletes a persistent cache task and its copies on all hosts.
    ///
    /// # Errors
    /// As for [`SchedulerHandle::stat_task`].
    pub async fn delete_persistent_cache_task(
        &self,
        host_id: &str,
        task: &TaskId,
    ) -> Result<(), ClientError> {
        let request =
            DeletePersistentCacheTaskRequest { host_id: host_id.to_owned(), task_id: task.to_string() };
        let mut client = self.member.control_client();
        let call = client.delete_persistent_cache_task(timed(request));
        unary("DeletePersistentCacheTask", self.address(), call).await
    }

    /// Says that an import begins, or that its content is here and about to be offered.
    ///
    /// # Errors
    /// `AlreadyExists` when a live task has the id; otherwise as for [`SchedulerHandle::stat_task`].
    pub async fn upload_persistent_cache_task_started(
        &self,
        request: UploadPersistentCacheTaskStartedRequest,
    ) -> Result<(), ClientError> {
        let mut client = self.member.control_client();
        let call = client.upload_persistent_cache_task_started(timed(request));
        unary("UploadPersistentCacheTaskStarted", self.address(), call).await
    }

    /// Says that an import is complete, so that it is replicated. With `request.ack` above 1 the scheduler answers when
    /// there are as many replicas, at most `patience` later.
    ///
    /// # Errors
    /// `FailedPrecondition` when there are fewer hosts than replicas to wait for, `DeadlineExceeded` when they do not come
    /// about in time; otherwise as for [`SchedulerHandle::stat_task`].
    pub async fn upload_persistent_cache_task_finished(
        &self,
        request: UploadPersistentCacheTaskFinishedRequest,
        patience: Duration,
    ) -> Result<PersistentCacheTask, ClientError> {
        let after = if request.ack > 1 { patience.max(ANSWER) } else { ANSWER };
        let mut request = Request::new(request);
        request.set_timeout(after);
        let mut client = self.member.control_client();
        let call = client.upload_persistent_cache_task_finished(request);
        let ended = tokio::time::timeout(after, call).await;
        outcome("UploadPersistentCacheTaskFinished", self.address(), after, ended)
    }

    /// Says that an import failed, so that its task is forgotten.
    ///
    /// # Errors
    /// As for [`SchedulerHandle::stat_task`].
    pub async fn upload_persistent_cache_task_failed(
        &self,
        request: UploadPersistentCacheTaskFailedRequest,
    ) -> Result<(), ClientError> {
        let mut client = self.member.control_client();
        let call = client.upload_persistent_cache_task_failed(timed(request));
        unary("UploadPersistentCacheTaskFailed", self.address(), call).await
    }
}
