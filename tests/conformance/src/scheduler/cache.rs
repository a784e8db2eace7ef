//! The part of the scheduler about persistent cache tasks: it remembers what is imported, and offers the parents that the
//! test names.

use std::collections::HashMap;
use std::sync::Mutex as Locked;
use std::time::SystemTime;

use dragonfly_api::common::v2::{PersistentCachePeer, PersistentCacheTask};
use dragonfly_api::scheduler::v2::announce_persistent_cache_peer_request::Request as Ask;
use dragonfly_api::scheduler::v2::announce_persistent_cache_peer_response::Response as Say;
use dragonfly_api::scheduler::v2::{
    AnnouncePersistentCachePeerRequest, AnnouncePersistentCachePeerResponse,
    EmptyPersistentCacheTaskResponse, NormalPersistentCacheTaskResponse,
    UploadPersistentCacheTaskFailedRequest, UploadPersistentCacheTaskFinishedRequest,
    UploadPersistentCacheTaskStartedRequest,
};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Status, Streaming};

use crate::rules;

/// What it knows from the beginning, and does.
#[derive(Clone, Debug, Default)]
pub struct CacheSays {
    /// Tasks that somebody has imported.
    pub tasks: Vec<PersistentCacheTask>,
    /// Who is offered to those who register.
    pub parents: Vec<PersistentCachePeer>,
    /// It refuses the end of every import.
    pub refuses_imports: bool,
}

/// All messages of one announce stream.
pub type CacheConversation = Vec<AnnouncePersistentCachePeerRequest>;

/// What a daemon says of its import.
#[derive(Clone, Debug, PartialEq)]
pub enum Upload {
    /// It begins.
    Started(UploadPersistentCacheTaskStartedRequest),
    /// It is complete.
    Finished(UploadPersistentCacheTaskFinishedRequest),
    /// It failed.
    Failed(UploadPersistentCacheTaskFailedRequest),
}

/// What it heard, for the test.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) conversations: Mutex<mpsc::Receiver<CacheConversation>>,
    pub(super) uploads: Mutex<mpsc::Receiver<Upload>>,
}

/// The tasks.
pub(super) struct Tasks {
    says: CacheSays,
    tasks: Locked<HashMap<String, PersistentCacheTask>>,
    conversations: mpsc::Sender<CacheConversation>,
    uploads: mpsc::Sender<Upload>,
}

fn invalid(rule: String) -> Status {
    Status::invalid_argument(rule)
}

impl Tasks {
    pub(super) fn new(says: CacheSays) -> (Self, Heard) {
        let (conversations, heard) = mpsc::channel(100);
        let (uploads, told) = mpsc::channel(100);
        let tasks = says.tasks.iter().map(|task| (task.id.clone(), task.clone())).collect();
        let tasks = Self { says, tasks: Locked::new(tasks), conversations, uploads };
        (tasks, Heard { conversations: Mutex::new(heard), uploads: Mutex::new(told) })
    }

    pub(super) fn stat(&self, id: &str) -> Result<PersistentCacheTask, Status> {
        let tasks = self.tasks.lock().expect("no panic under the lock");
        tasks.get(id).cloned().ok_or_else(|| Status::not_found(format!("task {id} not found")))
    }

    pub(super) fn delete(&self, id: &str) {
        self.tasks.lock().expect("no panic under the lock").remove(id);
    }

    pub(super) async fn started(
        &self,
        request: UploadPersistentCacheTaskStartedRequest,
    ) -> Result<(), Status> {
        rules::upload(&request).map_err(invalid)?;
        if self.stat(&request.task_id).is_ok_and(|task| task.state != "Failed") {
            return Err(Status::already_exists(format!("task {} already exists", request.task_id)));
        }
        let now = Some(SystemTime::now().into());
        let task = PersistentCacheTask {
            id: request.task_id.clone(),
            persistent_replica_count: request.persistent_replica_count,
            tag: request.tag.clone(),
            application: request.application.clone(),
            piece_length: request.piece_length,
            content_length: request.content_length,
            piece_count: request.piece_count,
            state: "Uploading".to_owned(),
            ttl: request.ttl,
            created_at: now,
            updated_at: now,
            ..PersistentCacheTask::default()
        };
        self.tasks.lock().expect("no panic under the lock").insert(task.id.clone(), task);
        drop(self.uploads.send(Upload::Started(request)).await);
        Ok(())
    }

    pub(super) async fn finished(
        &self,
        request: UploadPersistentCacheTaskFinishedRequest,
    ) -> Result<PersistentCacheTask, Status> {
        rules::ids(&request.host_id, &request.task_id, &request.peer_id).map_err(invalid)?;
        let mut task = self.stat(&request.task_id)?;
        drop(self.uploads.send(Upload::Finished(request)).await);
        if self.says.refuses_imports {
            return Err(Status::internal("redis is not there"));
        }
        task.state = "Succeeded".to_owned();
        (task.current_persistent_replica_count, task.current_replica_count) = (1, 1);
        self.tasks.lock().expect("no panic under the lock").insert(task.id.clone(), task.clone());
        Ok(task)
    }

    pub(super) async fn failed(&self, request: UploadPersistentCacheTaskFailedRequest) -> Result<(), Status> {
        rules::ids(&request.host_id, &request.task_id, &request.peer_id).map_err(invalid)?;
        if request.description.as_deref() == Some("") {
            return Err(invalid("description".to_owned()));
        }
        self.delete(&request.task_id);
        drop(self.uploads.send(Upload::Failed(request)).await);
        Ok(())
    }

    pub(super) async fn announce(
        &self,
        mut requests: Streaming<AnnouncePersistentCachePeerRequest>,
    ) -> Result<BoxStream<AnnouncePersistentCachePeerResponse>, Status> {
        let first = requests.message().await?.ok_or_else(|| Status::invalid_argument("no message"))?;
        rules::cache_request(&first).map_err(invalid)?;
        let Some(Ask::RegisterPersistentCachePeerRequest(_)) = &first.request else {
            return Err(Status::failed_precondition("a stream begins with a registration"));
        };
        let task = self.stat(&first.task_id)?;
        let answer = if task.content_length == 0 {
            Say::EmptyPersistentCacheTaskResponse(EmptyPersistentCacheTaskResponse {})
        } else if self.says.parents.is_empty() {
            // Go's words when it finds none.
            return Err(Status::not_found("peer not found"));
        } else {
            let candidate_cache_parents = self.says.parents.clone();
            Say::NormalPersistentCacheTaskResponse(NormalPersistentCacheTaskResponse {
                candidate_cache_parents,
            })
        };
        let (responses, stream) = mpsc::channel(8);
        drop(responses.send(Ok(AnnouncePersistentCachePeerResponse { response: Some(answer) })).await);
        let conversations = self.conversations.clone();
        tokio::spawn(async move {
            let mut told = vec![first];
            while let Ok(Some(request)) = requests.message().await {
                let checked = rules::cache_request(&request);
                let is_final = matches!(
                    request.request,
                    Some(
                        Ask::DownloadPersistentCachePeerFinishedRequest(_)
                            | Ask::DownloadPersistentCachePeerFailedRequest(_)
                    )
                );
                told.push(request);
                if let Err(rule) = checked {
                    drop(responses.send(Err(invalid(rule))).await);
                    break;
                }
                if is_final {
                    break;
                }
            }
            drop(responses);
            drop(conversations.send(told).await);
        });
        Ok(Box::pin(ReceiverStream::new(stream)))
    }
}
