//! A scheduler made of their crate. Like Dragonfly's it sends response headers with the first answer, says nothing unasked,
//! ends an announce stream after the final message, and refuses what its validation would refuse. What it does about
//! persistent cache tasks is in `cache`.

mod cache;

use std::net::SocketAddr;
use std::time::Duration;

use dragonfly_api::common::v2::{
    CachePeer, CacheTask, Host, Peer, PersistentCachePeer, PersistentCacheTask, PersistentPeer,
    PersistentTask, Task,
};
use dragonfly_api::scheduler::v2::announce_peer_request::Request as Ask;
use dragonfly_api::scheduler::v2::announce_peer_response::Response as Say;
use dragonfly_api::scheduler::v2::scheduler_server::{Scheduler, SchedulerServer};
use dragonfly_api::scheduler::v2::{
    AnnounceCachePeerRequest, AnnounceCachePeerResponse, AnnounceHostRequest, AnnouncePeerRequest,
    AnnouncePeerResponse, AnnouncePersistentCachePeerRequest, AnnouncePersistentCachePeerResponse,
    AnnouncePersistentPeerRequest, AnnouncePersistentPeerResponse, DeleteCachePeerRequest,
    DeleteCacheTaskRequest, DeleteHostRequest, DeletePeerRequest, DeletePersistentCachePeerRequest,
    DeletePersistentCacheTaskRequest, DeletePersistentPeerRequest, DeletePersistentTaskRequest,
    DeleteTaskRequest, EmptyTaskResponse, ListHostsRequest, ListHostsResponse, MetadataOnlyResponse,
    NeedBackToSourceResponse, NormalTaskResponse, PreheatFileRequest, PreheatImageRequest,
    StatCachePeerRequest, StatCacheTaskRequest, StatFileRequest, StatFileResponse, StatImageRequest,
    StatImageResponse, StatPeerRequest, StatPersistentCachePeerRequest, StatPersistentCacheTaskRequest,
    StatPersistentPeerRequest, StatPersistentTaskRequest, StatTaskRequest,
    UploadPersistentCacheTaskFailedRequest, UploadPersistentCacheTaskFinishedRequest,
    UploadPersistentCacheTaskStartedRequest, UploadPersistentTaskFailedRequest,
    UploadPersistentTaskFinishedRequest, UploadPersistentTaskStartedRequest,
};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

pub use cache::{CacheConversation, CacheSays, Upload};

use crate::rules;
use crate::service::{Running, serve, service};

/// How long a test waits for what a daemon should say.
const DEADLINE: Duration = Duration::from_secs(60);

/// What it tells those who register.
#[derive(Clone, Debug)]
pub enum Says {
    /// Fetch from the origin.
    Origin,
    /// Fetch from these; and from the origin who comes back for more.
    Parents(Vec<Peer>),
    /// There is nothing to fetch.
    Empty,
    /// The stream breaks.
    Breaks,
}

/// All messages of one announce stream.
pub type Conversation = Vec<AnnouncePeerRequest>;

/// A running scheduler of theirs.
#[derive(Debug)]
pub struct TheirScheduler {
    running: Running,
    heard: Mutex<(mpsc::Receiver<Conversation>, mpsc::Receiver<Host>)>,
    cache: cache::Heard,
}

impl TheirScheduler {
    /// Starts one.
    ///
    /// # Panics
    /// When loopback has no port.
    pub async fn start(says: Says) -> Self {
        Self::with_cache(says, CacheSays::default()).await
    }

    /// Starts one that keeps persistent cache tasks and says this of them.
    ///
    /// # Panics
    /// When loopback has no port.
    pub async fn with_cache(says: Says, cache: CacheSays) -> Self {
        let (conversations, heard) = mpsc::channel(100);
        let (hosts, announced) = mpsc::channel(100);
        let (tasks, cache) = cache::Tasks::new(cache);
        let service = Service { says, conversations, hosts, tasks };
        let running = serve(Routes::new(SchedulerServer::new(service))).await;
        Self { running, heard: Mutex::new((heard, announced)), cache }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.running.address
    }

    /// The next announce stream that ends or has ended.
    ///
    /// # Panics
    /// When none does in time.
    pub async fn conversation(&self) -> Conversation {
        next(&mut self.heard.lock().await.0).await
    }

    /// The next announce stream of a persistent cache task that ends or has ended.
    ///
    /// # Panics
    /// When none does in time.
    pub async fn cache_conversation(&self) -> CacheConversation {
        next(&mut *self.cache.conversations.lock().await).await
    }

    /// What is said of an import next.
    ///
    /// # Panics
    /// When nothing is in time.
    pub async fn upload(&self) -> Upload {
        next(&mut *self.cache.uploads.lock().await).await
    }

    /// The next host that is announced.
    ///
    /// # Panics
    /// When none is in time.
    pub async fn host(&self) -> Host {
        next(&mut self.heard.lock().await.1).await
    }
}

async fn next<T>(heard: &mut mpsc::Receiver<T>) -> T {
    let next = tokio::time::timeout(DEADLINE, heard.recv()).await;
    next.expect("it is said in time").expect("the server runs")
}

struct Service {
    says: Says,
    conversations: mpsc::Sender<Conversation>,
    hosts: mpsc::Sender<Host>,
    tasks: cache::Tasks,
}

fn answer(says: &Says, request: &AnnouncePeerRequest) -> Option<AnnouncePeerResponse> {
    let origin = Say::NeedBackToSourceResponse(NeedBackToSourceResponse::default());
    let response = match (request.request.as_ref()?, says) {
        (Ask::RegisterPeerRequest(register), _)
            if register.download.as_ref().is_some_and(|d| d.metadata_only) =>
        {
            Say::MetadataOnlyResponse(MetadataOnlyResponse {})
        }
        (Ask::RegisterPeerRequest(_), Says::Parents(peers)) => {
            Say::NormalTaskResponse(NormalTaskResponse { candidate_parents: peers.clone() })
        }
        (Ask::RegisterPeerRequest(_), Says::Empty) => Say::EmptyTaskResponse(EmptyTaskResponse {}),
        (Ask::RegisterPeerRequest(_) | Ask::ReschedulePeerRequest(_), _) => origin,
        _ => return None,
    };
    Some(AnnouncePeerResponse { response: Some(response) })
}

fn is_final(request: &AnnouncePeerRequest) -> bool {
    matches!(
        request.request,
        Some(
            Ask::DownloadPeerFinishedRequest(_)
                | Ask::DownloadPeerFailedRequest(_)
                | Ask::DownloadPeerBackToSourceFinishedRequest(_)
                | Ask::DownloadPeerBackToSourceFailedRequest(_)
        )
    )
}

service! {
    impl Scheduler for Service {
        type AnnouncePeerStream = BoxStream<AnnouncePeerResponse>;

        async fn announce_peer(
            &self,
            request: Request<Streaming<AnnouncePeerRequest>>,
        ) -> Result<Response<Self::AnnouncePeerStream>, Status> {
            let mut requests = request.into_inner();
            let first = requests.message().await?.ok_or_else(|| Status::invalid_argument("no message"))?;
            rules::request(&first).map_err(Status::invalid_argument)?;
            if let Says::Breaks = self.says {
                drop(self.conversations.send(vec![first]).await);
                return Err(Status::internal("no more"));
            }
            let (responses, stream) = mpsc::channel(8);
            if let Some(response) = answer(&self.says, &first) {
                drop(responses.send(Ok(response)).await);
            }
            let (says, conversations) = (self.says.clone(), self.conversations.clone());
            tokio::spawn(async move {
                let mut told = vec![first];
                while let Ok(Some(request)) = requests.message().await {
                    let checked = rules::request(&request);
                    let (answer, is_final) = (answer(&says, &request), is_final(&request));
                    told.push(request);
                    if let Err(why) = checked {
                        drop(responses.send(Err(Status::invalid_argument(why))).await);
                        break;
                    }
                    if let Some(answer) = answer {
                        drop(responses.send(Ok(answer)).await);
                    }
                    if is_final {
                        break;
                    }
                }
                drop(responses);
                drop(conversations.send(told).await);
            });
            Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
        }

        async fn announce_host(&self, request: Request<AnnounceHostRequest>) -> Result<Response<()>, Status> {
            let host = request.into_inner().host.ok_or_else(|| Status::invalid_argument("no host"))?;
            rules::host(&host).map_err(Status::invalid_argument)?;
            drop(self.hosts.send(host).await);
            Ok(Response::new(()))
        }

        async fn delete_host(&self, _: Request<DeleteHostRequest>) -> Result<Response<()>, Status> {
            Ok(Response::new(()))
        }

        type AnnouncePersistentCachePeerStream = BoxStream<AnnouncePersistentCachePeerResponse>;

        async fn announce_persistent_cache_peer(
            &self,
            request: Request<Streaming<AnnouncePersistentCachePeerRequest>>,
        ) -> Result<Response<Self::AnnouncePersistentCachePeerStream>, Status> {
            self.tasks.announce(request.into_inner()).await.map(Response::new)
        }

        async fn upload_persistent_cache_task_started(
            &self,
            request: Request<UploadPersistentCacheTaskStartedRequest>,
        ) -> Result<Response<()>, Status> {
            self.tasks.started(request.into_inner()).await.map(Response::new)
        }

        async fn upload_persistent_cache_task_finished(
            &self,
            request: Request<UploadPersistentCacheTaskFinishedRequest>,
        ) -> Result<Response<PersistentCacheTask>, Status> {
            self.tasks.finished(request.into_inner()).await.map(Response::new)
        }

        async fn upload_persistent_cache_task_failed(
            &self,
            request: Request<UploadPersistentCacheTaskFailedRequest>,
        ) -> Result<Response<()>, Status> {
            self.tasks.failed(request.into_inner()).await.map(Response::new)
        }

        async fn stat_persistent_cache_task(
            &self,
            request: Request<StatPersistentCacheTaskRequest>,
        ) -> Result<Response<PersistentCacheTask>, Status> {
            self.tasks.stat(&request.into_inner().task_id).map(Response::new)
        }

        async fn delete_persistent_cache_task(
            &self,
            request: Request<DeletePersistentCacheTaskRequest>,
        ) -> Result<Response<()>, Status> {
            self.tasks.delete(&request.into_inner().task_id);
            Ok(Response::new(()))
        }
    }
    unary {
        stat_peer(StatPeerRequest) -> Peer;
        delete_peer(DeletePeerRequest) -> ();
        stat_task(StatTaskRequest) -> Task;
        delete_task(DeleteTaskRequest) -> ();
        list_hosts(ListHostsRequest) -> ListHostsResponse;
        stat_cache_peer(StatCachePeerRequest) -> CachePeer;
        delete_cache_peer(DeleteCachePeerRequest) -> ();
        stat_cache_task(StatCacheTaskRequest) -> CacheTask;
        delete_cache_task(DeleteCacheTaskRequest) -> ();
        stat_persistent_peer(StatPersistentPeerRequest) -> PersistentPeer;
        delete_persistent_peer(DeletePersistentPeerRequest) -> ();
        upload_persistent_task_started(UploadPersistentTaskStartedRequest) -> ();
        upload_persistent_task_finished(UploadPersistentTaskFinishedRequest) -> PersistentTask;
        upload_persistent_task_failed(UploadPersistentTaskFailedRequest) -> ();
        stat_persistent_task(StatPersistentTaskRequest) -> PersistentTask;
        delete_persistent_task(DeletePersistentTaskRequest) -> ();
        stat_persistent_cache_peer(StatPersistentCachePeerRequest) -> PersistentCachePeer;
        delete_persistent_cache_peer(DeletePersistentCachePeerRequest) -> ();
        preheat_image(PreheatImageRequest) -> ();
        stat_image(StatImageRequest) -> StatImageResponse;
        preheat_file(PreheatFileRequest) -> ();
        stat_file(StatFileRequest) -> StatFileResponse;
    }
    streams {
        announce_cache_peer(Streaming<AnnounceCachePeerRequest>)
            -> AnnounceCachePeerStream of AnnounceCachePeerResponse;
        announce_persistent_peer(Streaming<AnnouncePersistentPeerRequest>)
            -> AnnouncePersistentPeerStream of AnnouncePersistentPeerResponse;
    }
}
