//! The client's side, and reading requests.

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use prost::Message;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use super::{Decoder, FRAME_HEADER, FrameWriter, Incoming, frame, writer};

/// The longest message that is held whole. A started message lists every piece, about 20 bytes each.
const MAX_MESSAGE: usize = 64 << 20;
/// The longest request.
const MAX_REQUEST: usize = 4 << 20;

type Broken = Box<dyn std::error::Error + Send + Sync>;

/// Calls a method that answers with a stream of messages, whose content at field path `content` is to be handed out
/// as it arrives. `path` is `/package.Service/Method`.
///
/// # Errors
/// The status the server refused the call with, or UNAVAILABLE when it could not be reached.
pub async fn call<M: Message + Default>(
    channel: &(impl Service<http::Request<Body>, Response = http::Response<Body>, Error: Into<Broken>> + Clone),
    path: &'static str,
    request: &impl Message,
    content: &'static [u32],
) -> Result<FrameReader<M>, Status> {
    let body = frame(request).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let body = Body::new(Full::new(body));
    FrameReader::new(send(channel.clone(), path, http::HeaderMap::new(), body).await?, content)
}

/// Calls a method whose request is a stream of messages and whose answer is one. `metadata` goes with the call. The
/// request is written through the [`FrameWriter`], of which at most `ahead` chunks wait for the server; dropped without an
/// end, it resets the call.
pub fn upload<M, C>(
    channel: &C,
    path: &'static str,
    metadata: http::HeaderMap,
    ahead: usize,
) -> (FrameWriter, impl Future<Output = Result<M, Status>> + use<M, C>)
where
    M: Message + Default,
    C: Service<http::Request<Body>, Response = http::Response<Body>, Error: Into<Broken>> + Clone,
{
    let (writer, body) = writer::body(ahead, false);
    let channel = channel.clone();
    (writer, async move {
        let mut answer = FrameReader::<M>::new(send(channel, path, metadata, body).await?, &[])?;
        let Some(Incoming::Message(message)) = answer.next().await? else {
            return Err(Status::internal("the server answered with no message"));
        };
        match answer.next().await? {
            None => Ok(message),
            Some(_) => Err(Status::internal("the server answered with several messages instead of one")),
        }
    })
}

async fn send(
    channel: impl Service<http::Request<Body>, Response = http::Response<Body>, Error: Into<Broken>>,
    path: &'static str,
    metadata: http::HeaderMap,
    body: Body,
) -> Result<http::Response<Body>, Status> {
    let request = http::Request::post(path)
        .header(http::header::CONTENT_TYPE, writer::GRPC)
        .header(http::header::TE, "trailers")
        .body(body);
    let mut request =
        request.map_err(|error| Status::internal(format!("cannot form a request to {path}: {error}")))?;
    request.headers_mut().extend(metadata);
    let answer = channel.oneshot(request).await;
    answer.map_err(|error| Status::from_error(error.into()))
}

/// Reads the messages of one response, or of one request.
#[derive(Debug)]
pub struct FrameReader<M> {
    body: Body,
    decoder: Decoder<M>,
    /// Whether a status must come at the end, as a response's does.
    has_status: bool,
    ended: bool,
}

impl<M: Message + Default> FrameReader<M> {
    /// Reads `response`; `content` are the field numbers from `M` down to the content.
    ///
    /// # Errors
    /// The status, when the server refused the call.
    pub fn new(response: http::Response<Body>, content: &'static [u32]) -> Result<Self, Status> {
        let (head, body) = response.into_parts();
        if let Some(status) = Status::from_header_map(&head.headers)
            && status.code() != Code::Ok
        {
            return Err(status);
        }
        if head.status != http::StatusCode::OK {
            return Err(Status::unknown(format!("the server answered with HTTP status {}", head.status)));
        }
        let decoder = Decoder::new(content, MAX_MESSAGE);
        Ok(Self { body, decoder, has_status: true, ended: false })
    }

    /// Reads what a client streams; `content` as in [`Self::new`].
    pub fn of_request<B>(body: B, content: &'static [u32]) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let body = body.map_err(|error| Status::cancelled(format!("the request broke off: {error}")));
        Self {
            body: Body::new(body),
            decoder: Decoder::new(content, MAX_REQUEST),
            has_status: false,
            ended: false,
        }
    }

    /// The next message, or part of one; `None` at the end of a stream whose status is OK, or of a request.
    ///
    /// May be dropped and called again without losing anything.
    ///
    /// # Errors
    /// The stream's status, also when it ends within a message or without a status.
    pub async fn next(&mut self) -> Result<Option<Incoming<M>>, Status> {
        loop {
            if let Some(event) = self.decoder.decode().map_err(|error| Status::internal(error.to_string()))? {
                return Ok(Some(event));
            }
            if self.ended {
                return Ok(None);
            }
            let Some(frame) = self.body.frame().await else {
                if self.has_status {
                    return Err(Status::unavailable("the stream ended without a status"));
                }
                self.end()?;
                continue;
            };
            match frame?.into_data() {
                Ok(bytes) => self.decoder.feed(bytes),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.finish(&trailers)?;
                    }
                }
            }
        }
    }

    fn finish(&mut self, trailers: &http::HeaderMap) -> Result<(), Status> {
        let status = Status::from_header_map(trailers)
            .unwrap_or_else(|| Status::unavailable("the stream ended without a status"));
        if status.code() != Code::Ok {
            return Err(status);
        }
        self.end()
    }

    fn end(&mut self) -> Result<(), Status> {
        if !self.decoder.is_between_messages() {
            return Err(Status::internal("the stream ended within a message"));
        }
        self.ended = true;
        Ok(())
    }
}

/// Reads the one message of a request whose response is written by hand.
///
/// # Errors
/// The status to refuse the call with.
pub async fn read_request<M, B>(body: B) -> Result<M, Status>
where
    M: Message + Default,
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut body = std::pin::pin!(body);
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::cancelled(format!("the request broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_REQUEST {
            return Err(Status::resource_exhausted(format!("a request has at most {MAX_REQUEST} bytes")));
        }
        bytes.put(data);
    }
    let bytes = bytes.freeze();
    let Some((header, message)) = bytes.split_first_chunk::<FRAME_HEADER>() else {
        return Err(Status::invalid_argument("the request has no message"));
    };
    let [flag, length @ ..] = *header;
    if flag != 0 {
        return Err(Status::unimplemented("compressed requests are not supported"));
    }
    if u32::from_be_bytes(length) as usize != message.len() {
        return Err(Status::invalid_argument("the request's message has another length than announced"));
    }
    M::decode(bytes.slice(FRAME_HEADER..))
        .map_err(|error| Status::invalid_argument(format!("malformed request: {error}")))
}
