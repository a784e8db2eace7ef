//! The calls that carry content, framed by hand: no piece is ever held whole.
//!
//! Content goes from the store through a buffer of a pool of its own into the socket: a client that does not read holds
//! buffers that no download waits for, of its own user's share, and not for ever.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use bytes::Bytes;
use damselfly_api::common::v2 as common;
use damselfly_api::damselfly::v1::{ReadTaskRequest, Receipt};
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_api::dfdaemon::v2::read_persistent_cache_task_response::Response as Read;
use damselfly_core::Content;
use damselfly_transport::framed::{
    self, ClosedError, ContentWriter, Envelope, FrameReader, FrameWriter, WRITE_CONTENT,
};
use http::{Request, Response};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;

use super::buffers::{Buffers, Share};
use super::message::{Message, Names, Teller};
use super::{Asking, caller, owner, persistent_cache};
use crate::engine::Engine;
use crate::grpc::HangUp;
use crate::request::{self, Way};
use crate::stream::{Item, Started, Telling};

/// Chunks that wait for a slow client.
const AHEAD: usize = 4;
/// What one message of ReadTask carries at most.
const MESSAGE: u64 = 1 << 20;
/// How long a client may take nothing before its connection is closed, which gives back what it holds.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// What the handlers share.
#[derive(Clone, Debug)]
pub(super) struct Framing {
    pub(super) engine: Arc<Engine>,
    pub(super) buffers: Buffers,
    /// How long a client may take nothing.
    pub(super) patience: Duration,
}

/// One client's stream: what it may hold and how long it is waited for.
#[derive(Debug)]
struct Client {
    host: String,
    uid: u32,
    buffers: Share,
    patience: Duration,
    /// Absent where a request came without a connection.
    hang_up: Option<HangUp>,
}

impl Client {
    fn new(framing: &Framing, request: &http::Extensions) -> Result<Self, Status> {
        let uid = caller(request)?.uid;
        Ok(Self {
            host: framing.engine.identity.host_id.to_string(),
            uid,
            buffers: framing.buffers.of(uid),
            patience: framing.patience,
            hang_up: request.get().cloned(),
        })
    }

    /// Waits for the client to take something, but not for ever.
    async fn takes<T>(&self, write: impl Future<Output = Result<T, ClosedError>>) -> Result<T, Ended> {
        if let Ok(written) = tokio::time::timeout(self.patience, write).await {
            return Ok(written?);
        }
        tracing::info!(uid = self.uid, patience = ?self.patience, "connection closed: its client takes nothing");
        // An end of the stream would wait behind what the client does not take.
        if let Some(HangUp(connection)) = &self.hang_up {
            connection.cancel();
        }
        Err(Ended::Gone)
    }
}

/// Why a stream ends early.
enum Ended {
    /// The client sees this status.
    With(Status),
    /// Nobody is there to see anything.
    Gone,
}

impl From<ClosedError> for Ended {
    fn from(why: ClosedError) -> Self {
        match why {
            ClosedError::Gone => Self::Gone,
            other => Self::With(Status::internal(other.to_string())),
        }
    }
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::With(status)
    }
}

type Items = mpsc::Receiver<Result<Item, Status>>;

/// dfdaemon.v2.DfdaemonDownload/DownloadTask.
pub(super) async fn download_task(
    State(framing): State<Framing>,
    request: Request<axum::body::Body>,
) -> Response<Body> {
    match start_download(&framing, request).await {
        Ok((client, items, teller)) => {
            answer(items, move |first, items, writer| tell(client, teller, first, items, writer)).await
        }
        Err(status) => framed::refusal(status),
    }
}

async fn start_download(
    framing: &Framing,
    request: Request<axum::body::Body>,
) -> Result<(Client, Items, Teller<dfdaemon::DownloadTaskResponse>), Status> {
    let asking = Asking::new(caller(request.extensions())?, request.headers())?;
    let client = Client::new(framing, request.extensions())?;
    let message: dfdaemon::DownloadTaskRequest = framed::read_request(request.into_body()).await?;
    let download = message.download.ok_or_else(|| Status::invalid_argument("missing download"))?;
    let engine = &framing.engine;
    let way = Way { overwrite: download.overwrite, force_hard_link: download.force_hard_link };
    let output = request::output(engine, &asking, download.output_path.as_deref(), way).await?;
    let content = download.need_piece_content;
    let prepared = request::prepare(engine, download, owner(&asking.caller))?;
    let teller = Teller::new(client.host.clone(), prepared.key.id.to_string());
    Ok((client, request::start(engine, prepared, Telling::Pieces { content }, output), teller))
}

/// dfdaemon.v2.DfdaemonDownload/DownloadPersistentCacheTask.
pub(super) async fn download_persistent_cache_task(
    State(framing): State<Framing>,
    request: Request<axum::body::Body>,
) -> Response<Body> {
    match start_export(&framing, request).await {
        Ok((client, items, teller)) => {
            answer(items, move |first, items, writer| tell(client, teller, first, items, writer)).await
        }
        Err(status) => framed::refusal(status),
    }
}

async fn start_export(
    framing: &Framing,
    request: Request<axum::body::Body>,
) -> Result<(Client, Items, Teller<dfdaemon::DownloadPersistentCacheTaskResponse>), Status> {
    let asking = Asking::new(caller(request.extensions())?, request.headers())?;
    let client = Client::new(framing, request.extensions())?;
    let message: dfdaemon::DownloadPersistentCacheTaskRequest =
        framed::read_request(request.into_body()).await?;
    let engine = &framing.engine;
    let way = Way { overwrite: message.overwrite, force_hard_link: message.force_hard_link };
    let output = request::output(engine, &asking, message.output_path.as_deref(), way).await?;
    let content = message.need_piece_content;
    let prepared = request::prepare_export(engine, message.into(), owner(&asking.caller)).await?;
    let teller = Teller::new(client.host.clone(), prepared.key.id.to_string());
    Ok((client, request::start(engine, prepared, Telling::Pieces { content }, output), teller))
}

/// dfdaemon.v2.DfdaemonDownload/ReadPersistentCacheTask.
pub(super) async fn read_persistent_cache_task(
    State(framing): State<Framing>,
    request: Request<axum::body::Body>,
) -> Response<Body> {
    match start_reading_export(&framing, request).await {
        Ok((client, items, task)) => {
            answer(items, move |first, items, writer| read(client, task, first, items, writer)).await
        }
        Err(status) => framed::refusal(status),
    }
}

async fn start_reading_export(
    framing: &Framing,
    request: Request<axum::body::Body>,
) -> Result<(Client, Items, String), Status> {
    let caller = caller(request.extensions())?;
    let client = Client::new(framing, request.extensions())?;
    let message: dfdaemon::ReadPersistentCacheTaskRequest = framed::read_request(request.into_body()).await?;
    let prepared = request::prepare_export(&framing.engine, message.into(), owner(&caller)).await?;
    let task = prepared.key.id.to_string();
    Ok((client, request::start(&framing.engine, prepared, Telling::Ordered, None), task))
}

/// dfdaemon.v2.DfdaemonDownload/WritePersistentCacheTask.
pub(super) async fn write_persistent_cache_task(
    State(framing): State<Framing>,
    request: Request<axum::body::Body>,
) -> Response<Body> {
    let imported = async {
        let asking = Asking::new(caller(request.extensions())?, request.headers())?;
        let stream = FrameReader::of_request(request.into_body(), WRITE_CONTENT);
        persistent_cache::write(&framing.engine, &asking, stream).await
    };
    let sent = async {
        let answer = imported.await?;
        let (mut writer, response) = framed::response(1);
        // There is room for the one message, and the response is here: it waits for nobody.
        let sent = writer.message(&answer).await;
        writer.end(sent.map_err(|why| Status::internal(why.to_string())));
        Ok(marked(response))
    };
    sent.await.unwrap_or_else(framed::refusal)
}

/// Says that the answer is ours.
fn marked(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert("x-damselfly", http::HeaderValue::from_static("1"));
    response
}

/// damselfly.v1.Local/ReadTask.
pub(super) async fn read_task(
    State(framing): State<Framing>,
    request: Request<axum::body::Body>,
) -> Response<Body> {
    match start_reading(&framing, request).await {
        Ok((client, items, task)) => {
            answer(items, move |first, items, writer| read(client, task, first, items, writer)).await
        }
        Err(status) => framed::refusal(status),
    }
}

async fn start_reading(
    framing: &Framing,
    request: Request<axum::body::Body>,
) -> Result<(Client, Items, String), Status> {
    let caller = caller(request.extensions())?;
    let client = Client::new(framing, request.extensions())?;
    let message: ReadTaskRequest = framed::read_request(request.into_body()).await?;
    let download = message.download.ok_or_else(|| Status::invalid_argument("missing download"))?;
    if download.output_path.is_some() {
        return Err(Status::invalid_argument(
            "ReadTask has no output: use DownloadTask to write to output_path",
        ));
    }
    let prepared = request::prepare(&framing.engine, download, owner(&caller))?;
    let task = prepared.key.id.to_string();
    Ok((client, request::start(&framing.engine, prepared, Telling::Ordered, None), task))
}

/// Waits for the first item, so that a refusal is the call's status; the rest is written in the background.
async fn answer<F, Fut>(mut items: Items, write: F) -> Response<Body>
where
    F: FnOnce(Item, Items, FrameWriter) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    match items.recv().await {
        Some(Ok(first)) => {
            let (writer, response) = framed::response(AHEAD);
            // Ends with the items, or with the client.
            tokio::spawn(write(first, items, writer));
            marked(response)
        }
        Some(Err(status)) => framed::refusal(status),
        None => framed::refusal(crashed()),
    }
}

fn crashed() -> Status {
    Status::internal("the download's stream crashed; see the daemon's log")
}

/// Ends the client's stream as its items ended.
fn end(writer: FrameWriter, ended: Result<(), Ended>) {
    match ended {
        Ok(()) => writer.end(Ok(())),
        Err(Ended::With(status)) => writer.end(Err(status)),
        Err(Ended::Gone) => drop(writer),
    }
}

async fn tell<M: Message>(
    client: Client,
    mut teller: Teller<M>,
    first: Item,
    mut items: Items,
    mut writer: FrameWriter,
) {
    let told = async {
        let mut next = Some(Ok(first));
        let mut finished = false;
        while let Some(item) = next {
            let item = item?;
            finished |= matches!(item, Item::Finished(_));
            tell_one(&client, &mut teller, item, &mut writer).await?;
            next = items.recv().await;
        }
        if finished { Ok(()) } else { Err(Ended::With(crashed())) }
    };
    let told = told.await;
    end(writer, told);
}

async fn tell_one<M: Message>(
    client: &Client,
    teller: &mut Teller<M>,
    item: Item,
    writer: &mut FrameWriter,
) -> Result<(), Ended> {
    let Some(message) = teller.message(&item) else { return Ok(()) };
    let Item::Piece { piece, content: Some(content) } = item else {
        return client.takes(writer.message(&message)).await;
    };
    let Names { host, task, peer } = teller.names().clone();
    // The messages of all kinds have these fields in the same places.
    let envelope =
        Envelope::piece_finished(host, task, peer, piece).map_err(|why| Status::internal(why.to_string()))?;
    let mut out = client.takes(writer.content(envelope)).await?;
    send(client, &content.content, &mut out).await?;
    client.takes(out.finish()).await
}

async fn read(client: Client, task: String, first: Item, mut items: Items, mut writer: FrameWriter) {
    let done = async {
        let mut next = Some(Ok(first));
        let mut finished = false;
        while let Some(item) = next {
            match item? {
                Item::Started(started) => {
                    let started = response(Read::Started(began(started, &task, &client.host)));
                    client.takes(writer.message(&started)).await?;
                }
                Item::Chunk { content, piece } => {
                    chunks(&client, &content, &mut writer).await?;
                    drop(piece);
                }
                Item::Finished(receipt) => {
                    finished = true;
                    client.takes(writer.message(&response(Read::Finished(finish(receipt))))).await?;
                }
                Item::Piece { .. } => {}
            }
            next = items.recv().await;
        }
        if finished { Ok(()) } else { Err(Ended::With(crashed())) }
    };
    let done = done.await;
    end(writer, done);
}

fn response(response: Read) -> dfdaemon::ReadPersistentCacheTaskResponse {
    dfdaemon::ReadPersistentCacheTaskResponse { response: Some(response) }
}

fn began(started: Started, task: &str, host: &str) -> dfdaemon::ReadPersistentCacheTaskStarted {
    dfdaemon::ReadPersistentCacheTaskStarted {
        content_length: Some(started.geometry.content_length()),
        piece_length: started.geometry.piece_length(),
        task_id: task.to_owned(),
        host_id: host.to_owned(),
        peer_id: started.peer_id.to_string(),
        response_header: started.headers,
        range: started
            .partial
            .then_some(common::Range { start: started.range.start, length: started.range.length }),
    }
}

fn finish(receipt: Receipt) -> dfdaemon::ReadPersistentCacheTaskFinished {
    dfdaemon::ReadPersistentCacheTaskFinished { digest: None, receipt: Some(receipt) }
}

/// Content as messages of at most [`MESSAGE`] bytes.
async fn chunks(client: &Client, content: &Content, writer: &mut FrameWriter) -> Result<(), Ended> {
    let mut at = 0;
    while at < content.len() {
        let length = MESSAGE.min(content.len() - at);
        let part = crate::stream::part(content, at, length);
        let envelope = Envelope::chunk(length).map_err(|why| Status::internal(why.to_string()))?;
        let mut out = client.takes(writer.content(envelope)).await?;
        send(client, &part, &mut out).await?;
        client.takes(out.finish()).await?;
        at += length;
    }
    Ok(())
}

/// Content through pooled buffers, which come back when the socket has taken them. A buffer is asked for only when the
/// client takes more.
async fn send(client: &Client, content: &Content, out: &mut ContentWriter<'_>) -> Result<(), Ended> {
    let (file, offset, length) = match content {
        Content::Bytes(bytes) => return client.takes(out.chunk(bytes.clone())).await,
        Content::File { file, offset, length } => (file, *offset, *length),
    };
    let mut done = 0;
    while done < length {
        client.takes(out.ready()).await?;
        // Those who hold the others are waited for no longer than this.
        let lent = tokio::time::timeout(client.patience, client.buffers.acquire()).await;
        let mut buffer = lent.map_err(|_| {
            Status::resource_exhausted(
                "clients that do not read hold all of this user's stream buffers; end them or read on",
            )
        })?;
        let take = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
        tokio::task::block_in_place(|| file.read_exact_at(&mut buffer[..take], offset + done))
            .map_err(|why| Status::internal(format!("cannot read stored content: {why}")))?;
        client.takes(out.chunk(Bytes::from_owner(buffer).slice(..take))).await?;
        done += take as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
