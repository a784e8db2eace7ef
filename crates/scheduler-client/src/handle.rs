//! One scheduler, as a task sees it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2::{Host, Peer, Task};
use damselfly_api::scheduler::v2::{
    DeleteHostRequest, DeletePeerRequest, DeleteTaskRequest, ListHostsRequest, StatPeerRequest,
    StatTaskRequest,
};
use damselfly_core::{PeerId, TaskId};
use tokio::time::error::Elapsed;
use tonic::{Code, Request, Response, Status};

use crate::ClientError;
use crate::channel::ANSWER;
use crate::member::Member;

/// A healthy scheduler that was picked for a task.
///
/// Two handles are equal when they mean the same scheduler in the same session: a scheduler that broke down and came
/// back has forgotten its peers, so its old handle differs from the new one.
#[derive(Clone, Debug)]
pub struct SchedulerHandle {
    pub(crate) member: Arc<Member>,
    pub(crate) ours: bool,
    pub(crate) session: u64,
}

impl PartialEq for SchedulerHandle {
    fn eq(&self, other: &Self) -> bool {
        self.member.address == other.member.address && self.session == other.session
    }
}

impl Eq for SchedulerHandle {}

impl SchedulerHandle {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.member.address
    }

    /// Whether it is ours: only then are our fields sent, and leases and facts come.
    #[must_use]
    pub fn ours(&self) -> bool {
        self.ours
    }

    /// Lets the cluster look at a scheduler whose failure says that it may be gone or may have forgotten this host.
    pub(crate) fn doubt(&self, error: ClientError) -> ClientError {
        if error.doubts_scheduler() {
            self.member.doubt.notify_one();
        }
        error
    }

    /// The scheduler's view of a task.
    ///
    /// # Errors
    /// When the scheduler refuses, does not know the task (`NotFound`), or does not answer within 10 s.
    pub async fn stat_task(&self, host_id: &str, task: &TaskId) -> Result<Task, ClientError> {
        let request = StatTaskRequest { host_id: host_id.to_owned(), task_id: task.to_string() };
        let mut client = self.member.control_client();
        unary("StatTask", self.address(), client.stat_task(timed(request))).await
    }

    /// Makes the scheduler forget this host's peers of a task, because it deleted its content.
    ///
    /// # Errors
    /// As for [`SchedulerHandle::stat_task`].
    pub async fn delete_task(&self, host_id: &str, task: &TaskId) -> Result<(), ClientError> {
        let request = DeleteTaskRequest { host_id: host_id.to_owned(), task_id: task.to_string() };
        let mut client = self.member.control_client();
        unary("DeleteTask", self.address(), client.delete_task(timed(request))).await
    }

    /// Takes this host off the scheduler's list, until it is announced the next time. A scheduler that does not know it
    /// is content.
    ///
    /// # Errors
    /// As for [`SchedulerHandle::stat_task`].
    pub async fn delete_host(&self, host_id: &str) -> Result<(), ClientError> {
        let mut client = self.member.control_client();
        let request = DeleteHostRequest { host_id: host_id.to_owned() };
        match unary("DeleteHost", self.address(), client.delete_host(timed(request))).await {
            Err(ClientError::Status { code: Code::NotFound, .. }) => Ok(()),
            told => told,
        }
    }

    /// The scheduler's view of a peer.
    ///
    /// # Errors
    /// As for [`SchedulerHandle::stat_task`].
    pub async fn stat_peer(&self, host_id: &str, task: &TaskId, peer: &PeerId) -> Result<Peer, ClientError> {
        let request = StatPeerRequest {
            host_id: host_id.to_owned(),
            task_id: task.to_string(),
            peer_id: peer.to_string(),
        };
        let mut client = self.member.control_client();
        unary("StatPeer", self.address(), client.stat_peer(timed(request))).await
    }

    /// Takes a peer off its task.
    ///
    /// # Errors
    /// As for [`SchedulerHandle::stat_task`].
    pub async fn delete_peer(&self, host_id: &str, task: &TaskId, peer: &PeerId) -> Result<(), ClientError> {
        let request = DeletePeerRequest {
            host_id: host_id.to_owned(),
            task_id: task.to_string(),
            peer_id: peer.to_string(),
        };
        let mut client = self.member.control_client();
        unary("DeletePeer", self.address(), client.delete_peer(timed(request))).await
    }

    /// The hosts the scheduler knows, of one type (0 normal, 1 super seed) or of all.
    ///
    /// # Errors
    /// As for [`SchedulerHandle::stat_task`].
    pub async fn list_hosts(&self, host_type: Option<u32>) -> Result<Vec<Host>, ClientError> {
        let request = ListHostsRequest { r#type: host_type };
        let mut client = self.member.control_client();
        Ok(unary("ListHosts", self.address(), client.list_hosts(timed(request))).await?.hosts)
    }
}

/// A unary request that tells the scheduler its deadline.
pub(crate) fn timed<Q>(request: Q) -> Request<Q> {
    let mut request = Request::new(request);
    request.set_timeout(ANSWER);
    request
}

/// Waits for a unary call as long as any may take.
pub(crate) async fn unary<A>(
    operation: &'static str,
    scheduler: SocketAddr,
    call: impl Future<Output = Result<Response<A>, Status>>,
) -> Result<A, ClientError> {
    outcome(operation, scheduler, ANSWER, tokio::time::timeout(ANSWER, call).await)
}

/// What came of a call that was waited for `after` long.
pub(crate) fn outcome<A>(
    operation: &'static str,
    scheduler: SocketAddr,
    after: Duration,
    ended: Result<Result<Response<A>, Status>, Elapsed>,
) -> Result<A, ClientError> {
    match ended {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(ClientError::status(operation, scheduler, &status)),
        Err(_) => Err(ClientError::Deadline { operation, scheduler, after }),
    }
}
