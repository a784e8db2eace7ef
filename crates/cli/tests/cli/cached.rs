//! The part of the played daemon that keeps persistent cache tasks.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use damselfly_api::common::v2::PersistentCacheTask;
use damselfly_api::damselfly::v1::{StatUploadRequest, StatUploadResponse};
use damselfly_api::dfdaemon::v2::write_persistent_cache_task_request::Request as Part;
use damselfly_api::dfdaemon::v2::{
    DeletePersistentCacheTaskRequest, DownloadPersistentCacheTaskRequest,
    DownloadPersistentCacheTaskResponse, ListLocalPersistentCacheTasksRequest,
    ListLocalPersistentCacheTasksResponse, ReadPersistentCacheTaskRequest, ReadPersistentCacheTaskResponse,
    StatLocalPersistentCacheTaskResponse, StatPersistentCacheTaskRequest, UploadPersistentCacheTaskRequest,
    WritePersistentCacheTaskRequest, WritePersistentCacheTaskResponse, WritePersistentCacheTaskStarted,
};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::fake::{Answered, Boxed, Script, TASK_ID, stream, unary};

/// What one call of WritePersistentCacheTask does.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    /// Take everything.
    Take,
    /// Break the connection when this many bytes of the content are there.
    Cut(usize),
    /// Take no more when this many bytes of the content are there.
    Stall(usize),
    /// Refuse it.
    Refuse(Status),
    /// Append to this file after the first chunk, and take everything.
    Append(PathBuf),
    /// Never take anything.
    Hang,
}

/// One message of an export, or what happens between two.
#[derive(Clone, Debug)]
pub(crate) enum Export {
    Say(Box<DownloadPersistentCacheTaskResponse>),
    /// Write these bytes to the request's output path.
    WriteOutput(Vec<u8>),
    Fail(Status),
}

/// What the daemon does with persistent cache tasks, and what it was told.
#[derive(Default)]
pub(crate) struct Cached {
    /// What calls of WritePersistentCacheTask do, one after the other; `None` is a daemon of Dragonfly's.
    pub(crate) writes: Option<Mutex<VecDeque<Write>>>,
    /// How every stream began.
    pub(crate) begun: Mutex<Vec<WritePersistentCacheTaskStarted>>,
    /// What of every upload is there.
    pub(crate) uploads: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Streams that came to their end.
    pub(crate) finished: AtomicUsize,
    /// The longest chunk that came, in bytes.
    pub(crate) longest: Mutex<usize>,
    /// Files that were to be imported by their path.
    pub(crate) paths: Mutex<Vec<UploadPersistentCacheTaskRequest>>,
    /// The task that is known; without one every question for it is answered with NOT_FOUND.
    pub(crate) task: Option<PersistentCacheTask>,
    pub(crate) local: Vec<StatLocalPersistentCacheTaskResponse>,
    /// Whether it removes tasks; otherwise it is a daemon of Dragonfly's.
    pub(crate) removes: bool,
    /// The answer to ReadPersistentCacheTask; `None` is a daemon of Dragonfly's.
    pub(crate) read: Option<(Vec<ReadPersistentCacheTaskResponse>, Option<Status>)>,
    /// The answer to DownloadPersistentCacheTask.
    pub(crate) exports: Vec<Export>,
    pub(crate) exported: Mutex<Vec<DownloadPersistentCacheTaskRequest>>,
}

impl Cached {
    /// A daemon that takes streams as `writes` say.
    pub(crate) fn writing(writes: impl IntoIterator<Item = Write>) -> Self {
        Self { writes: Some(Mutex::new(writes.into_iter().collect())), ..Self::default() }
    }

    /// The only upload there was.
    pub(crate) fn upload(&self) -> Vec<u8> {
        let uploads = self.uploads.lock().unwrap();
        assert_eq!(uploads.len(), 1, "uploads of {:?}", uploads.keys());
        uploads.values().next().unwrap().clone()
    }
}

/// A task as the scheduler knows it right after an import.
pub(crate) fn task(content_length: u64) -> PersistentCacheTask {
    PersistentCacheTask {
        id: TASK_ID.to_owned(),
        persistent_replica_count: 2,
        current_persistent_replica_count: 1,
        piece_length: 4 << 20,
        content_length,
        state: "Succeeded".to_owned(),
        ttl: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        created_at: Some(prost_types::Timestamp { seconds: 1_795_183_267, nanos: 0 }),
        ..PersistentCacheTask::default()
    }
}

pub(crate) async fn answer(
    script: Arc<Script>,
    cut: Arc<Notify>,
    request: http::Request<Incoming>,
) -> Answered {
    let path = request.uri().path().to_owned();
    let cache = &script.cache;
    match path.as_str() {
        "/dfdaemon.v2.DfdaemonDownload/WritePersistentCacheTask" => {
            let service =
                tower::service_fn(|request: Request<Streaming<WritePersistentCacheTaskRequest>>| {
                    write(script.clone(), cut.clone(), request.into_inner())
                });
            let codec =
                ProstCodec::<WritePersistentCacheTaskResponse, WritePersistentCacheTaskRequest>::default();
            Ok(tonic::server::Grpc::new(codec).client_streaming(service, request).await)
        }
        "/damselfly.v1.Local/StatUpload" if cache.writes.is_some() => {
            unary(request, |asked: StatUploadRequest| {
                let uploads = cache.uploads.lock().unwrap();
                let found = uploads.get(&asked.upload_id).ok_or_else(|| Status::not_found("no upload"))?;
                Ok(StatUploadResponse { verified_length: found.len() as u64 })
            })
            .await
        }
        "/dfdaemon.v2.DfdaemonDownload/UploadPersistentCacheTask" => {
            unary(request, |asked: UploadPersistentCacheTaskRequest| {
                let content = std::fs::read(&asked.path).unwrap();
                cache.paths.lock().unwrap().push(asked);
                Ok(task(content.len() as u64))
            })
            .await
        }
        "/dfdaemon.v2.DfdaemonDownload/StatPersistentCacheTask" => {
            unary(request, |asked: StatPersistentCacheTaskRequest| {
                let known = cache.task.clone().filter(|task| task.id == asked.task_id);
                known.ok_or_else(|| Status::not_found("task not found"))
            })
            .await
        }
        "/dfdaemon.v2.DfdaemonDownload/ListLocalPersistentCacheTasks" => {
            let tasks = cache.local.clone();
            unary(request, |_: ListLocalPersistentCacheTasksRequest| {
                Ok(ListLocalPersistentCacheTasksResponse { tasks })
            })
            .await
        }
        "/damselfly.v1.Local/DeletePersistentCacheTask" if cache.removes => {
            unary(request, |asked: DeletePersistentCacheTaskRequest| {
                script.orders.lock().unwrap().push(format!("delete {}", asked.task_id));
                Ok(())
            })
            .await
        }
        "/dfdaemon.v2.DfdaemonDownload/ReadPersistentCacheTask" => {
            stream(request, |asked: ReadPersistentCacheTaskRequest| {
                script.orders.lock().unwrap().push(format!("read {}", asked.task_id));
                let (messages, end) = cache.read.clone().ok_or_else(|| Status::unimplemented(""))?;
                let all: Vec<_> = messages.into_iter().map(Ok).chain(end.map(Err)).collect();
                Ok(Response::new(Box::pin(tokio_stream::iter(all)) as Boxed<_>))
            })
            .await
        }
        "/dfdaemon.v2.DfdaemonDownload/DownloadPersistentCacheTask" => {
            stream(request, |asked: DownloadPersistentCacheTaskRequest| {
                let mut told = Vec::new();
                for step in cache.exports.clone() {
                    match step {
                        Export::Say(message) => told.push(Ok(*message)),
                        Export::WriteOutput(content) => {
                            std::fs::write(asked.output_path.as_deref().unwrap(), content).unwrap();
                        }
                        Export::Fail(status) => told.push(Err(status)),
                    }
                }
                cache.exported.lock().unwrap().push(asked);
                Ok(Response::new(Box::pin(tokio_stream::iter(told)) as Boxed<_>))
            })
            .await
        }
        _ => Ok(Status::unimplemented(path).into_http()),
    }
}

async fn write(
    script: Arc<Script>,
    cut: Arc<Notify>,
    mut parts: Streaming<WritePersistentCacheTaskRequest>,
) -> Result<Response<WritePersistentCacheTaskResponse>, Status> {
    let cache = &script.cache;
    let unknown = || Status::unimplemented("unknown method WritePersistentCacheTask");
    let writes = cache.writes.as_ref().ok_or_else(unknown)?;
    let order = writes.lock().unwrap().pop_front().ok_or_else(|| Status::internal("asked too often"))?;
    let Some(Part::Started(started)) = parts.message().await?.and_then(|part| part.request) else {
        return Err(Status::invalid_argument("started comes first"));
    };
    let (id, offset) = (started.upload_id.clone(), usize::try_from(started.offset).unwrap());
    let length = started.content_length;
    cache.begun.lock().unwrap().push(started);
    match &order {
        Write::Refuse(status) => return Err(status.clone()),
        Write::Hang => std::future::pending::<()>().await,
        Write::Take | Write::Cut(_) | Write::Stall(_) | Write::Append(_) => {}
    }
    let mut append = match &order {
        Write::Append(path) => Some(path),
        _ => None,
    };
    let mut content = cache.uploads.lock().unwrap().get(&id).cloned().unwrap_or_default();
    if content.len() != offset {
        return Err(Status::out_of_range(format!("the upload goes on at {}", content.len())));
    }
    loop {
        let part = parts.message().await?.and_then(|part| part.request);
        match part {
            Some(Part::Chunk(chunk)) => {
                content.extend_from_slice(&chunk.content);
                let mut longest = cache.longest.lock().unwrap();
                *longest = (*longest).max(chunk.content.len());
            }
            Some(Part::Finished(_)) => {
                cache.finished.fetch_add(1, Ordering::Relaxed);
                break;
            }
            Some(Part::Started(_)) => return Err(Status::invalid_argument("started twice")),
            None => return Err(Status::aborted("the stream ended without finished")),
        }
        cache.uploads.lock().unwrap().insert(id.clone(), content.clone());
        if let Some(path) = append.take() {
            std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
        }
        if matches!(order, Write::Cut(at) if content.len() >= at) {
            cut.notify_one();
            std::future::pending::<()>().await;
        }
        if matches!(order, Write::Stall(at) if content.len() >= at) {
            std::future::pending::<()>().await;
        }
    }
    cache.uploads.lock().unwrap().insert(id, content.clone());
    if length.is_some_and(|length| length != content.len() as u64) {
        return Err(Status::invalid_argument("not as long as announced"));
    }
    let task = Some(task(content.len() as u64));
    Ok(Response::new(WritePersistentCacheTaskResponse { task_id: TASK_ID.to_owned(), task }))
}
