//! Persistent cache tasks on one host, as programs on it ask for them.

use std::time::Duration;

use damselfly_api::common::v2::{PersistentCacheTask, Range};
use damselfly_api::damselfly::v1::StatUploadRequest;
use damselfly_api::dfdaemon::v2::download_persistent_cache_task_response::Response as Told;
use damselfly_api::dfdaemon::v2::read_persistent_cache_task_response::Response as Read;
use damselfly_api::dfdaemon::v2::write_persistent_cache_task_request::Request as Write;
use damselfly_api::dfdaemon::v2::{
    DeletePersistentCacheTaskRequest, DownloadPersistentCacheTaskRequest, PersistentCacheTaskChunk,
    ReadPersistentCacheTaskRequest, StatPersistentCacheTaskRequest, UploadPersistentCacheTaskRequest,
    WritePersistentCacheTaskFinished, WritePersistentCacheTaskRequest, WritePersistentCacheTaskStarted,
};
use damselfly_core::{ByteRange, Kind, TaskId, TaskKey};
use damselfly_scheduler_client::Holdings as _;
use tokio_stream::StreamExt as _;
use tonic::Status;

use super::{Host, PATIENCE};
use crate::Pattern;
use crate::wait::{self, Waited};

/// Bytes of content in one message of a stream.
const CHUNK: usize = 1 << 20;

/// An import as its client begins it: one replica for an hour.
#[must_use]
pub fn import() -> WritePersistentCacheTaskStarted {
    WritePersistentCacheTaskStarted {
        persistent_replica_count: 1,
        ttl: wire(Duration::from_secs(3600)),
        ..WritePersistentCacheTaskStarted::default()
    }
}

fn wire(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

fn message(request: Write) -> WritePersistentCacheTaskRequest {
    WritePersistentCacheTaskRequest { request: Some(request) }
}

/// What came of an export.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    /// Bytes of the whole content.
    pub content_length: u64,
    /// The pieces told, in order of coming.
    pub pieces: Vec<u32>,
    /// The content, where it was asked for.
    pub content: Vec<u8>,
}

impl Host {
    /// Streams `content` in.
    ///
    /// # Errors
    /// As the daemon answers.
    pub async fn write(
        &self,
        started: WritePersistentCacheTaskStarted,
        content: Pattern,
    ) -> Result<PersistentCacheTask, Status> {
        let end = Some(WritePersistentCacheTaskFinished::default());
        self.write_part(started, content, content.length, end).await
    }

    /// Streams the content from the offset in `started` up to `end` in, and ends the stream with `finished` or without.
    ///
    /// # Errors
    /// As the daemon answers.
    pub async fn write_part(
        &self,
        started: WritePersistentCacheTaskStarted,
        content: Pattern,
        end: u64,
        finished: Option<WritePersistentCacheTaskFinished>,
    ) -> Result<PersistentCacheTask, Status> {
        let offset = started.offset;
        let first = tokio_stream::once(message(Write::Started(started)));
        let chunks = (offset..end).step_by(CHUNK).map(move |start| {
            let length = (CHUNK as u64).min(end - start);
            let content = content.bytes(ByteRange { start, length }).into();
            message(Write::Chunk(PersistentCacheTaskChunk { content }))
        });
        let last = finished.map(|finished| message(Write::Finished(finished)));
        let stream = first.chain(tokio_stream::iter(chunks)).chain(tokio_stream::iter(last));
        let mut client = self.download_client().await?;
        let written = tokio::time::timeout(PATIENCE, client.write_persistent_cache_task(stream)).await;
        let written = written.map_err(|_| Status::deadline_exceeded("the test lost its patience"))??;
        Ok(written.into_inner().task.unwrap_or_default())
    }

    /// Begins an import, and then neither sends anything nor ends.
    ///
    /// # Errors
    /// As the daemon answers.
    pub async fn write_and_hang(
        &self,
        started: WritePersistentCacheTaskStarted,
    ) -> Result<PersistentCacheTask, Status> {
        let stream = tokio_stream::once(message(Write::Started(started))).chain(tokio_stream::pending());
        let mut client = self.download_client().await?;
        let written = tokio::time::timeout(PATIENCE, client.write_persistent_cache_task(stream)).await;
        let written = written.map_err(|_| Status::deadline_exceeded("the test lost its patience"))??;
        Ok(written.into_inner().task.unwrap_or_default())
    }

    /// Waits until so many imports are under way.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn imports(&self, count: usize) -> Result<(), Waited> {
        let board = &self.daemon().engine().board;
        let look = || board.snapshot().iter().filter(|seat| seat.path.starts_with("daemon/import ")).count();
        wait::following(board.changes(), look, |under_way| *under_way == count).await.map(drop)
    }

    /// How much of a broken upload is kept.
    ///
    /// # Errors
    /// As the daemon answers.
    pub async fn verified(&self, upload: &str) -> Result<u64, Status> {
        let request = StatUploadRequest { upload_id: upload.to_owned() };
        Ok(self.local_client().await?.stat_upload(request).await?.into_inner().verified_length)
    }

    /// Imports a file of the host's home, as Dragonfly's client does.
    ///
    /// # Errors
    /// As the daemon answers.
    pub async fn upload(
        &self,
        name: &str,
        replicas: u64,
        content: Option<&str>,
    ) -> Result<PersistentCacheTask, Status> {
        let request = UploadPersistentCacheTaskRequest {
            path: self.path(name).display().to_string(),
            persistent_replica_count: replicas,
            content_for_calculating_task_id: content.map(str::to_owned),
            ttl: wire(Duration::from_secs(3600)),
            ..UploadPersistentCacheTaskRequest::default()
        };
        Ok(self.download_client().await?.upload_persistent_cache_task(request).await?.into_inner())
    }

    /// Exports a task to a file of the host's home, or with its content in the messages.
    ///
    /// # Errors
    /// As the daemon answers.
    pub async fn export(&self, task: &str, name: Option<&str>) -> Result<Exported, Status> {
        let request = DownloadPersistentCacheTaskRequest {
            task_id: task.to_owned(),
            output_path: name.map(|name| self.path(name).display().to_string()),
            need_piece_content: name.is_none(),
            ..DownloadPersistentCacheTaskRequest::default()
        };
        let mut stream =
            self.download_client().await?.download_persistent_cache_task(request).await?.into_inner();
        let mut exported = Exported::default();
        while let Some(message) = stream.message().await? {
            match message.response {
                Some(Told::DownloadPersistentCacheTaskStartedResponse(started)) => {
                    exported.content_length = started.content_length;
                    exported.content = vec![0; usize::try_from(started.content_length).unwrap_or(0)];
                }
                Some(Told::DownloadPieceFinishedResponse(finished)) => {
                    let piece = finished.piece.unwrap_or_default();
                    exported.pieces.push(piece.number);
                    if let Some(content) = piece.content {
                        let at = usize::try_from(piece.offset).unwrap_or(usize::MAX);
                        exported.content[at..at + content.len()].copy_from_slice(&content);
                    }
                }
                None => {}
            }
        }
        Ok(exported)
    }

    /// Reads a task in order, or a part of it.
    ///
    /// # Errors
    /// As the daemon answers; DATA_LOSS for a stream that ends early.
    pub async fn read(&self, task: &str, range: Option<ByteRange>) -> Result<Vec<u8>, Status> {
        let request = ReadPersistentCacheTaskRequest {
            task_id: task.to_owned(),
            range: range.map(|range| Range { start: range.start, length: range.length }),
            ..ReadPersistentCacheTaskRequest::default()
        };
        let mut stream =
            self.download_client().await?.read_persistent_cache_task(request).await?.into_inner();
        let (mut content, mut finished) = (Vec::new(), false);
        while let Some(message) = stream.message().await? {
            match message.response {
                Some(Read::Chunk(chunk)) => content.extend_from_slice(&chunk.content),
                Some(Read::Finished(_)) => finished = true,
                Some(Read::Started(_)) | None => {}
            }
        }
        if finished { Ok(content) } else { Err(Status::data_loss("the stream ended early")) }
    }

    /// A task in its scheduler's eyes.
    ///
    /// # Errors
    /// As the daemon answers.
    pub async fn stat_cache(&self, task: &str) -> Result<PersistentCacheTask, Status> {
        let request = StatPersistentCacheTaskRequest { task_id: task.to_owned(), ..Default::default() };
        Ok(self.download_client().await?.stat_persistent_cache_task(request).await?.into_inner())
    }

    /// Deletes a task and all its copies.
    ///
    /// # Errors
    /// As the daemon answers.
    pub async fn delete_cache(&self, task: &str) -> Result<(), Status> {
        let request = DeletePersistentCacheTaskRequest { task_id: task.to_owned(), ..Default::default() };
        self.local_client().await?.delete_persistent_cache_task(request).await.map(drop)
    }

    /// Waits until this host has all of a task, or nothing of it.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn keeps(&self, task: &str, kept: bool) -> Result<(), Waited> {
        let engine = self.daemon().engine();
        let id = TaskId::parse(task).map_err(|why| Waited::Gone(why.to_string()))?;
        let key = TaskKey { kind: Kind::PersistentCache, id };
        let look =
            || engine.store.get(&key).map(|content| content.is_complete() && content.meta().persistent);
        let is = |found: &Option<bool>| if kept { *found == Some(true) } else { found.is_none() };
        wait::following(engine.holdings.changes(), look, is).await.map(drop)
    }
}
