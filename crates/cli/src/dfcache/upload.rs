//! An import over the daemon's socket: what the source brings, in order, and on from where a broken connection left off.

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use damselfly_api::damselfly::v1::StatUploadRequest;
use damselfly_api::damselfly::v1::local_client::LocalClient;
use damselfly_api::dfdaemon::v2::write_persistent_cache_task_request::Request as Part;
use damselfly_api::dfdaemon::v2::{
    WritePersistentCacheTaskFinished, WritePersistentCacheTaskRequest, WritePersistentCacheTaskResponse,
    WritePersistentCacheTaskStarted,
};
use damselfly_transport::framed::{self, ClosedError, Envelope, FrameWriter};
use damselfly_transport::local::{Direction, PoolError, is_broken_connection};
use http::HeaderMap;
use thiserror::Error;
use tonic::{Code, Status};
use tracing::info;

use super::import::{Plan, TITLE, refused};
use super::source::{CHUNK, SourceError};
use crate::client::call;
use crate::endpoint::Daemon;
use crate::exit::Exit;
use crate::failure::{Failure, Reason, root_cause};
use crate::handing::{self, NotTaken};
use crate::ticker::Ticker;
use crate::units;

const WRITE: &str = "/dfdaemon.v2.DfdaemonDownload/WritePersistentCacheTask";
/// What waits for the socket: the frame of a chunk and its content.
const AHEAD: usize = 2;
/// How often a broken stream is taken up again.
const RETRIES: u32 = 3;
/// Before the first of these; twice as long before each further one.
const BACKOFF: Duration = Duration::from_millis(100);

/// What came of it.
#[derive(Debug)]
pub(super) struct Uploaded {
    pub(super) response: WritePersistentCacheTaskResponse,
    /// Bytes of the content.
    pub(super) bytes: u64,
    /// The first byte that this run sent.
    pub(super) resumed_at: u64,
}

/// Why nothing was imported.
#[derive(Debug, Error)]
pub(super) enum UploadError {
    /// The daemon does not know the call.
    #[error(transparent)]
    Unsupported(Status),
    /// The daemon does not take this file open.
    #[error(transparent)]
    NotTaken(NotTaken),
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// How the content comes to the daemon, and what the user should know of it first.
#[derive(Debug)]
pub(super) enum By {
    /// In messages.
    Chunks(Option<String>),
    /// The daemon reads the open file.
    Descriptor(Option<String>),
}

/// Why one stream ended without an import.
#[derive(Debug, Error)]
enum StreamError {
    #[error("the daemon answered with {0}")]
    Status(Status),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    #[error(transparent)]
    Closed(#[from] ClosedError),
    #[error("the daemon answered before it had everything; its version does not fit this dfcache")]
    Early,
    #[error("nothing came from {name} for {} (client.streaming.idleTimeout)", units::duration(*.idle))]
    SilentSource { name: String, idle: Duration },
    #[error("the daemon took nothing for {} (client.streaming.idleTimeout)", units::duration(*.idle))]
    SilentDaemon { idle: Duration },
}

impl From<StreamError> for UploadError {
    fn from(error: StreamError) -> Self {
        UploadError::Failed(match error {
            StreamError::Status(status) if status.code() == Code::Unimplemented => {
                return UploadError::Unsupported(status);
            }
            StreamError::NotTaken(why) => return UploadError::NotTaken(why),
            StreamError::Status(status) => refused(&status),
            StreamError::Source(why) => why.into(),
            StreamError::SilentSource { .. } | StreamError::SilentDaemon { .. } => {
                Failure::new(TITLE, Exit::Timeout, error)
            }
            StreamError::Early | StreamError::Closed(_) => Failure::new(TITLE, Exit::Failure, error),
        })
    }
}

impl StreamError {
    /// Whether no new connection was to be had: whoever says so has tried often enough.
    fn is_final(&self) -> bool {
        matches!(self, StreamError::Status(status) if status.source().is_some_and(|source| source.is::<PoolError>()))
    }

    /// How the connection failed, if that is what it did.
    fn broken(&self) -> Option<String> {
        match self {
            StreamError::Status(status) if is_broken_connection(status) && Reason::of(status).is_none() => {
                Some(format!("the connection to the daemon broke ({})", root_cause(status)))
            }
            StreamError::SilentDaemon { .. } => Some(format!("{self}; connecting anew")),
            _ => None,
        }
    }
}

/// Uploads what `plan` says, a file in several streams if the connection breaks.
pub(super) async fn run(
    plan: &Plan,
    daemon: &Daemon,
    by: &By,
    ticker: &mut Ticker,
) -> Result<Uploaded, UploadError> {
    let upload_id = plan.upload_id();
    let mut retries = 0;
    let mut first = None;
    if let By::Chunks(Some(warning)) = by {
        ticker.note(warning);
    }
    loop {
        let sent = async {
            let offset = ticker.beside(verified(plan, daemon, &upload_id)).await?;
            let resumed_at = *first.get_or_insert(offset);
            if offset > 0 {
                ticker.note(format!("dfcache: going on at {}", units::bytes(offset)));
            }
            info!(offset, upload_id, "upload starts");
            let (response, bytes) =
                write(plan, daemon, by, started(plan, &upload_id, offset), ticker).await?;
            Ok(Uploaded { response, bytes, resumed_at })
        };
        let error: StreamError = match sent.await {
            Ok(uploaded) => return Ok(uploaded),
            Err(error) => error,
        };
        let retried = |_: &String| !upload_id.is_empty() && retries < RETRIES && !error.is_final();
        let Some(broken) = error.broken().filter(retried) else {
            return Err(given_up(plan, error));
        };
        let wait = BACKOFF * 2_u32.pow(retries);
        ticker.note(format!("dfcache: {broken}"));
        ticker.beside(tokio::time::sleep(wait)).await;
        retries += 1;
    }
}

fn given_up(plan: &Plan, error: StreamError) -> UploadError {
    let hint = match (&error, plan.source.length()) {
        _ if error.broken().is_none() => "",
        (_, None) => "; what came from a pipe cannot be sent again, nothing was imported",
        (StreamError::SilentDaemon { .. }, Some(_)) => {
            "; run the command again, it goes on where this one ended"
        }
        (_, Some(_)) => "; it goes on where this one ended",
    };
    let mut error = UploadError::from(error);
    if let UploadError::Failed(failure) = &mut error {
        failure.message.push_str(hint);
    }
    error
}

/// How much of the upload the daemon has; 0 for one that it does not know, and for a pipe.
async fn verified(plan: &Plan, daemon: &Daemon, upload_id: &str) -> Result<u64, StreamError> {
    let Some(length) = plan.source.length().filter(|_| !upload_id.is_empty()) else { return Ok(0) };
    let request = StatUploadRequest { upload_id: upload_id.to_owned() };
    match LocalClient::new(daemon.channel.clone()).stat_upload(call(request)).await {
        // More than there is would be another file's.
        Ok(found) => Ok(Some(found.into_inner().verified_length).filter(|&at| at <= length).unwrap_or(0)),
        // What cannot tell is asked to take all of it.
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Ok(0),
        Err(status) => Err(StreamError::Status(status)),
    }
}

/// One stream, from `started.offset` to the end. Returns the answer and the content's length.
async fn write(
    plan: &Plan,
    daemon: &Daemon,
    by: &By,
    started: WritePersistentCacheTaskStarted,
    ticker: &mut Ticker,
) -> Result<(WritePersistentCacheTaskResponse, u64), StreamError> {
    let mut metadata = HeaderMap::new();
    if let By::Descriptor(warning) = by {
        let token = handing::hand_over(daemon, plan.source.file(), Direction::FromClient).await?;
        handing::name_token(&mut metadata, &token);
        warning.iter().for_each(|warning| ticker.note(warning));
    }
    let channel = match by {
        By::Chunks(_) => &daemon.content,
        By::Descriptor(_) => &daemon.channel,
    };
    let (writer, call) = framed::upload(channel, WRITE, metadata, AHEAD);
    tokio::pin!(call);
    let bytes = tokio::select! {
        biased;
        answer = &mut call => return match answer {
            Ok(_) => Err(StreamError::Early),
            Err(status) => Err(StreamError::Status(status)),
        },
        poured = pour(plan, by, started, writer, ticker) => poured?,
    };
    // Until the daemon has flushed it and as many copies stand as were asked for.
    let answer = ticker.beside(call).await;
    answer.map(|answer| (answer, bytes)).map_err(StreamError::Status)
}

/// The way into a stream.
struct Sending<'a> {
    writer: FrameWriter,
    idle: Duration,
    ticker: &'a mut Ticker,
}

impl Sending<'_> {
    /// Waits until `written` is on its way; false when nobody listens any more: the call says why.
    async fn taken(
        idle: Duration,
        ticker: &mut Ticker,
        written: impl Future<Output = Result<(), ClosedError>>,
    ) -> Result<bool, StreamError> {
        match ticker.beside(tokio::time::timeout(idle, written)).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(ClosedError::Gone)) => Ok(false),
            Ok(Err(why)) => Err(why.into()),
            Err(_elapsed) => Err(StreamError::SilentDaemon { idle }),
        }
    }

    async fn message(&mut self, part: Part) -> Result<bool, StreamError> {
        let message = WritePersistentCacheTaskRequest { request: Some(part) };
        Self::taken(self.idle, self.ticker, self.writer.message(&message)).await
    }

    /// `content` is not empty.
    async fn chunk(&mut self, content: Bytes) -> Result<bool, StreamError> {
        let writer = &mut self.writer;
        let written = async {
            let mut chunk = writer.content(Envelope::written_chunk(content.len() as u64)?).await?;
            chunk.chunk(content).await?;
            chunk.finish().await
        };
        Self::taken(self.idle, self.ticker, written).await
    }

    async fn finish(mut self) -> Result<(), StreamError> {
        let finished = Part::Finished(WritePersistentCacheTaskFinished { digest: None });
        if self.message(finished).await? {
            self.writer.end(Ok(()));
        }
        Ok(())
    }
}

/// Sends everything from `started.offset` on. Returns the content's length, also when nobody listens any more: the call
/// says why.
async fn pour(
    plan: &Plan,
    by: &By,
    started: WritePersistentCacheTaskStarted,
    writer: FrameWriter,
    ticker: &mut Ticker,
) -> Result<u64, StreamError> {
    ticker.reset();
    if let Some(length) = plan.source.length() {
        ticker.set_total(length);
    }
    let mut at = started.offset;
    ticker.add(at);
    let mut sending = Sending { writer, idle: plan.idle, ticker };
    if !sending.message(Part::Started(started)).await? {
        return Ok(at);
    }
    if matches!(by, By::Descriptor(_)) {
        sending.ticker.watch(plan.source.file());
        sending.finish().await?;
        return Ok(plan.source.length().unwrap_or(at));
    }
    // One chunk is in the channel of the call.
    let ahead = usize::try_from(plan.buffer).unwrap_or(usize::MAX) / CHUNK;
    let mut chunks = plan.source.read(at, ahead.saturating_sub(1))?;
    loop {
        let next = sending.ticker.beside(tokio::time::timeout(plan.idle, chunks.recv())).await;
        let Ok(next) = next else {
            return Err(StreamError::SilentSource { name: plan.source.name.clone(), idle: plan.idle });
        };
        let Some(content) = next.transpose()? else { break };
        let count = content.len() as u64;
        if !sending.chunk(content).await? {
            return Ok(at);
        }
        at += count;
        sending.ticker.add(count);
    }
    sending.finish().await?;
    Ok(at)
}

fn started(plan: &Plan, upload_id: &str, offset: u64) -> WritePersistentCacheTaskStarted {
    WritePersistentCacheTaskStarted {
        persistent_replica_count: plan.replicas,
        tag: plan.tag.clone(),
        application: plan.application.clone(),
        ttl: prost_types::Duration::try_from(plan.ttl).ok(),
        content_length: plan.source.length(),
        piece_length: plan.piece_length,
        content_for_calculating_task_id: plan.id_from.clone(),
        remote_ip: None,
        ack: plan.ack,
        content_id: plan.content_id.to_string(),
        upload_id: upload_id.to_owned(),
        offset,
    }
}
