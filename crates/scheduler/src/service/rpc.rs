//! `scheduler.v2.Scheduler`, call by call.

use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_api::scheduler::v2 as api;
use damselfly_core::{HostId, PeerId};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Face, convert, validate};
use crate::machine::Event;

/// How often a host announces itself that does not say how often.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(300);

const CACHE: &str = "cache tasks are not scheduled by this scheduler; use a standard task";
const PERSISTENT: &str = "persistent tasks are not scheduled by this scheduler; use a persistent cache task";
const PREHEAT: &str = "this scheduler does not preheat; download the content on a seed instead";

/// The implementation from its two halves: what is served, and what answers UNIMPLEMENTED with the reason.
macro_rules! scheduler {
    (
        serves { $($served:item)* }
        refuses { $($name:ident($request:ty) -> $response:ty, $why:ident;)* }
    ) => {
        #[tonic::async_trait]
        impl api::scheduler_server::Scheduler for Face {
            $($served)*

            $(
                async fn $name(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                    Err(Status::unimplemented($why))
                }
            )*
        }
    };
}

scheduler! {
    serves {

        async fn announce_peer(
            &self,
            request: Request<Streaming<api::AnnouncePeerRequest>>,
        ) -> Result<Response<BoxStream<api::AnnouncePeerResponse>>, Status> {
            self.0.open_announce(request.into_inner())
        }

        async fn stat_peer(&self, request: Request<api::StatPeerRequest>) -> Result<Response<common::Peer>, Status> {
            let request = request.into_inner();
            validate::given("host_id", &request.host_id)?;
            let id = PeerId::from(validate::given("peer_id", &request.peer_id)?);
            let key = validate::task("task_id", &request.task_id)?;
            let inner = self.0.inner.lock();
            let missing = || Status::not_found(format!("peer {id} not found"));
            let view = inner.machine.peer(&key, &id).ok_or_else(missing)?;
            let task = inner.machine.task(&key).ok_or_else(missing)?;
            let host = inner.hosts.get(&view.host);
            Ok(Response::new(convert::wire_peer(&view, &task, host.map(|host| &**host), &|tick| self.0.wall(tick))))
        }

        async fn delete_peer(&self, request: Request<api::DeletePeerRequest>) -> Result<Response<()>, Status> {
            let request = request.into_inner();
            validate::given("host_id", &request.host_id)?;
            let peer = PeerId::from(validate::given("peer_id", &request.peer_id)?);
            let task = validate::task("task_id", &request.task_id)?;
            self.0.step(Event::PeerDeleted { task, peer });
            Ok(Response::new(()))
        }

        async fn stat_task(&self, request: Request<api::StatTaskRequest>) -> Result<Response<common::Task>, Status> {
            let request = request.into_inner();
            validate::given("host_id", &request.host_id)?;
            let key = validate::task("task_id", &request.task_id)?;
            let view = self.0.inner.lock().machine.task(&key);
            let view = view.ok_or_else(|| Status::not_found(format!("task {} not found", key.id)))?;
            Ok(Response::new(convert::wire_task(&view, &|tick| self.0.wall(tick))))
        }

        async fn delete_task(&self, request: Request<api::DeleteTaskRequest>) -> Result<Response<()>, Status> {
            let request = request.into_inner();
            let host = HostId::from(validate::given("host_id", &request.host_id)?);
            let task = validate::task("task_id", &request.task_id)?;
            if !self.0.inner.lock().machine.knows_host(&host) {
                return Err(Status::not_found(format!("host {host} not found")));
            }
            self.0.step(Event::TaskDeleted { host, task });
            Ok(Response::new(()))
        }

        async fn announce_host(&self, request: Request<api::AnnounceHostRequest>) -> Result<Response<()>, Status> {
            let request = request.into_inner();
            let host = request.host.ok_or_else(|| validate::invalid("host", "must be given"))?;
            let address = validate::host(&host)?;
            let interval = request.interval.and_then(convert::duration).filter(|interval| !interval.is_zero());
            let info = convert::host(&host, address);
            self.0.take_host(host, Event::HostAnnounced(Box::new(info), interval.unwrap_or(DEFAULT_INTERVAL)));
            Ok(Response::new(()))
        }

        async fn list_hosts(
            &self,
            request: Request<api::ListHostsRequest>,
        ) -> Result<Response<api::ListHostsResponse>, Status> {
            let kind = request.into_inner().r#type;
            let inner = self.0.inner.lock();
            let hosts = inner.hosts.values().filter(|host| kind.is_none_or(|kind| host.r#type == kind));
            let mut hosts: Vec<common::Host> = hosts.map(|host| common::Host::clone(host)).collect();
            hosts.sort_by(|left, right| left.id.cmp(&right.id));
            Ok(Response::new(api::ListHostsResponse { hosts }))
        }

        async fn delete_host(&self, request: Request<api::DeleteHostRequest>) -> Result<Response<()>, Status> {
            let request = request.into_inner();
            let host = HostId::from(validate::given("host_id", &request.host_id)?);
            if !self.0.inner.lock().machine.knows_host(&host) {
                return Err(Status::not_found(format!("host {host} not found")));
            }
            self.0.step(Event::HostLeft(host));
            Ok(Response::new(()))
        }

        async fn announce_persistent_cache_peer(
            &self,
            request: Request<Streaming<api::AnnouncePersistentCachePeerRequest>>,
        ) -> Result<Response<BoxStream<api::AnnouncePersistentCachePeerResponse>>, Status> {
            self.0.open_persistent_cache_announce(request.into_inner())
        }

        async fn stat_persistent_cache_peer(
            &self,
            request: Request<api::StatPersistentCachePeerRequest>,
        ) -> Result<Response<common::PersistentCachePeer>, Status> {
            let request = request.into_inner();
            self.0.stat_kept_peer(&request.host_id, &request.task_id, &request.peer_id).map(Response::new)
        }

        async fn delete_persistent_cache_peer(
            &self,
            request: Request<api::DeletePersistentCachePeerRequest>,
        ) -> Result<Response<()>, Status> {
            let request = request.into_inner();
            self.0.delete_kept_peer(&request.host_id, &request.task_id, &request.peer_id).map(Response::new)
        }

        async fn upload_persistent_cache_task_started(
            &self,
            request: Request<api::UploadPersistentCacheTaskStartedRequest>,
        ) -> Result<Response<()>, Status> {
            self.0.upload_started(request.into_inner()).map(Response::new)
        }

        async fn upload_persistent_cache_task_finished(
            &self,
            request: Request<api::UploadPersistentCacheTaskFinishedRequest>,
        ) -> Result<Response<common::PersistentCacheTask>, Status> {
            self.0.upload_finished(request.into_inner()).await.map(Response::new)
        }

        async fn upload_persistent_cache_task_failed(
            &self,
            request: Request<api::UploadPersistentCacheTaskFailedRequest>,
        ) -> Result<Response<()>, Status> {
            self.0.upload_failed(&request.into_inner()).map(Response::new)
        }

        async fn stat_persistent_cache_task(
            &self,
            request: Request<api::StatPersistentCacheTaskRequest>,
        ) -> Result<Response<common::PersistentCacheTask>, Status> {
            let request = request.into_inner();
            self.0.stat_kept(&request.host_id, &request.task_id).map(Response::new)
        }

        async fn delete_persistent_cache_task(
            &self,
            request: Request<api::DeletePersistentCacheTaskRequest>,
        ) -> Result<Response<()>, Status> {
            let request = request.into_inner();
            self.0.delete_kept(&request.host_id, &request.task_id).map(Response::new)
        }
    }
    refuses {
        announce_cache_peer(Streaming<api::AnnounceCachePeerRequest>) -> BoxStream<api::AnnounceCachePeerResponse>, CACHE;
        stat_cache_peer(api::StatCachePeerRequest) -> common::CachePeer, CACHE;
        delete_cache_peer(api::DeleteCachePeerRequest) -> (), CACHE;
        stat_cache_task(api::StatCacheTaskRequest) -> common::CacheTask, CACHE;
        delete_cache_task(api::DeleteCacheTaskRequest) -> (), CACHE;
        announce_persistent_peer(Streaming<api::AnnouncePersistentPeerRequest>) -> BoxStream<api::AnnouncePersistentPeerResponse>, PERSISTENT;
        stat_persistent_peer(api::StatPersistentPeerRequest) -> common::PersistentPeer, PERSISTENT;
        delete_persistent_peer(api::DeletePersistentPeerRequest) -> (), PERSISTENT;
        upload_persistent_task_started(api::UploadPersistentTaskStartedRequest) -> (), PERSISTENT;
        upload_persistent_task_finished(api::UploadPersistentTaskFinishedRequest) -> common::PersistentTask, PERSISTENT;
        upload_persistent_task_failed(api::UploadPersistentTaskFailedRequest) -> (), PERSISTENT;
        stat_persistent_task(api::StatPersistentTaskRequest) -> common::PersistentTask, PERSISTENT;
        delete_persistent_task(api::DeletePersistentTaskRequest) -> (), PERSISTENT;
        preheat_image(api::PreheatImageRequest) -> (), PREHEAT;
        stat_image(api::StatImageRequest) -> api::StatImageResponse, PREHEAT;
        preheat_file(api::PreheatFileRequest) -> (), PREHEAT;
        stat_file(api::StatFileRequest) -> api::StatFileResponse, PREHEAT;
    }
}
