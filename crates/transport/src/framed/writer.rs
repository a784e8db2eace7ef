//! A body fed by whoever produces the stream: a server's response, or a client's request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use prost::Message;
use thiserror::Error;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::{Envelope, EnvelopeError, frame};

/// The stream cannot go on.
#[derive(Debug, Error)]
pub enum ClosedError {
    /// The client went away, or the connection to it ended.
    #[error("the client no longer reads the stream")]
    Gone,
    /// What should be sent cannot be.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The writer was given more or less content than it had announced; a bug of the producer.
    #[error("{given} bytes of content were given where {announced} had been announced")]
    ContentLength {
        /// Bytes announced.
        announced: u64,
        /// Bytes given, the refused ones included.
        given: u64,
    },
}

/// How a stream ends; set before the channel closes.
type Ending = Arc<Mutex<Option<Result<(), Status>>>>;

/// Makes a gRPC response whose messages are written through the [`FrameWriter`].
///
/// At most `ahead` chunks wait for a slow client; with chunks of 256 KiB, 4 keep a fast one busy.
#[must_use]
pub fn response(ahead: usize) -> (FrameWriter, http::Response<tonic::body::Body>) {
    let (writer, body) = body(ahead, true);
    let mut response = http::Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC);
    (writer, response)
}

/// A body whose messages are written through the [`FrameWriter`]; a response's ends with its status in trailers.
pub(super) fn body(ahead: usize, trailers: bool) -> (FrameWriter, tonic::body::Body) {
    let (chunks, queue) = mpsc::channel(ahead.max(1));
    let ending = Ending::default();
    let body = StreamBody { queue, ending: ending.clone(), trailers, ended: false };
    (FrameWriter { chunks, ending }, tonic::body::Body::new(body))
}

/// A response that refuses the call before any message.
#[must_use]
pub fn refusal(status: Status) -> http::Response<tonic::body::Body> {
    status.into_http()
}

pub(super) const GRPC: http::HeaderValue = http::HeaderValue::from_static("application/grpc");

/// Writes the messages of one response, or of one request.
///
/// Every method waits until the other side has taken what is ahead; that ends with the client at the latest. Dropped
/// without [`FrameWriter::end`], for a panic say, it ends the stream with an error, never as if all had been sent.
#[derive(Debug)]
pub struct FrameWriter {
    chunks: mpsc::Sender<Bytes>,
    ending: Ending,
}

impl FrameWriter {
    /// Sends a message without content.
    ///
    /// # Errors
    /// When the client is gone, or the message does not fit a frame.
    pub async fn message(&mut self, message: &impl Message) -> Result<(), ClosedError> {
        self.raw(frame(message)?).await
    }

    /// Begins a message with content, which is then written chunk by chunk.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn content(&mut self, envelope: Envelope) -> Result<ContentWriter<'_>, ClosedError> {
        self.raw(envelope.prefix.clone()).await?;
        Ok(ContentWriter { writer: self, envelope, given: 0 })
    }

    /// Waits until the client is gone, for producers that wait for something else meanwhile.
    pub async fn closed(&self) {
        self.chunks.closed().await;
    }

    /// Ends the stream with its status. An error after half a message is fine: the client sees the status.
    pub fn end(self, status: Result<(), Status>) {
        *self.ending.lock() = Some(status);
    }

    async fn raw(&self, bytes: Bytes) -> Result<(), ClosedError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.chunks.send(bytes).await.map_err(|_| ClosedError::Gone)
    }
}

/// Writes the content of one message.
#[derive(Debug)]
pub struct ContentWriter<'a> {
    writer: &'a mut FrameWriter,
    envelope: Envelope,
    given: u64,
}

impl ContentWriter<'_> {
    /// Waits until the next chunk would not have to wait, for producers that hold something costly meanwhile.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn ready(&mut self) -> Result<(), ClosedError> {
        // Nobody else writes, so the room is still there afterwards.
        self.writer.chunks.reserve().await.map(drop).map_err(|_| ClosedError::Gone)
    }

    /// Sends the next chunk, as it is: it is written to the socket from where it lies.
    ///
    /// # Errors
    /// When the client is gone, or this is more than was announced.
    pub async fn chunk(&mut self, bytes: Bytes) -> Result<(), ClosedError> {
        let (announced, given) = (self.envelope.length, self.given + bytes.len() as u64);
        if given > announced {
            return Err(ClosedError::ContentLength { announced, given });
        }
        self.given = given;
        self.writer.raw(bytes).await
    }

    /// Ends the message. A message that is not finished makes the stream undecodable: end it with an error then.
    ///
    /// # Errors
    /// When the client is gone, or content is missing.
    pub async fn finish(self) -> Result<(), ClosedError> {
        if self.given != self.envelope.length {
            return Err(ClosedError::ContentLength { announced: self.envelope.length, given: self.given });
        }
        self.writer.raw(self.envelope.suffix).await
    }
}

/// Chunks, then trailers.
struct StreamBody {
    queue: mpsc::Receiver<Bytes>,
    ending: Ending,
    /// Whether the status follows; a request ends without, or is reset.
    trailers: bool,
    ended: bool,
}

impl HttpBody for StreamBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(chunk) = ready!(self.queue.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        self.ended = true;
        let status = match self.ending.lock().take() {
            Some(Ok(())) => Status::new(Code::Ok, ""),
            Some(Err(status)) => status,
            None => Status::internal("the daemon failed while it was sending; ask again"),
        };
        if !self.trailers {
            return Poll::Ready((status.code() != Code::Ok).then_some(Err(status)));
        }
        let mut trailers = http::HeaderMap::new();
        Poll::Ready(Some(match status.add_header(&mut trailers) {
            Ok(()) => Ok(Frame::trailers(trailers)),
            Err(status) => Err(status),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
