//! How Dragonfly 1.5 hands content to `dfcache export --transfer-from-dfdaemon`: one gRPC message per piece, its content in
//! a `Vec`, over its socket with tonic's settings.
//!
//! The messages are the generated ones but for the content, which is `Bytes` in ours.

use std::convert::Infallible;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use damselfly_api::dfdaemon::v2::{
    DownloadPersistentCacheTaskRequest, DownloadPersistentCacheTaskStartedResponse,
};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, ServerStreamingService};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::{BenchError, io};

/// Bytes of a piece.
pub const PIECE: u64 = 4 << 20;
const SERVICE: &str = "dfdaemon.v2.DfdaemonDownload";
const METHOD: &str = "/dfdaemon.v2.DfdaemonDownload/DownloadPersistentCacheTask";
/// Pieces read ahead of a client. Dragonfly's daemon would go on to thousands, which would cost it fresh memory.
const AHEAD: usize = 4;

#[derive(Clone, PartialEq, prost::Message)]
struct Piece {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(uint64, tag = "3")]
    offset: u64,
    #[prost(uint64, tag = "4")]
    length: u64,
    #[prost(bytes = "vec", optional, tag = "6")]
    content: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PieceFinished {
    #[prost(message, optional, tag = "1")]
    piece: Option<Piece>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Part {
    #[prost(oneof = "Arm", tags = "4, 5")]
    response: Option<Arm>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Arm {
    #[prost(message, tag = "4")]
    Started(DownloadPersistentCacheTaskStartedResponse),
    #[prost(message, tag = "5")]
    Piece(PieceFinished),
}

/// Serves every task as the content of one file.
#[derive(Clone, Debug)]
struct Daemon {
    file: Arc<PathBuf>,
}

impl NamedService for Daemon {
    const NAME: &'static str = SERVICE;
}

impl Service<http::Request<Body>> for Daemon {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let daemon = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            Ok(grpc.server_streaming(daemon, request).await)
        })
    }
}

impl ServerStreamingService<DownloadPersistentCacheTaskRequest> for Daemon {
    type Response = Part;
    type ResponseStream = ReceiverStream<Result<Part, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, _: Request<DownloadPersistentCacheTaskRequest>) -> Self::Future {
        let file = Arc::clone(&self.file);
        Box::pin(async move {
            let (parts, stream) = mpsc::channel(AHEAD);
            tokio::spawn(async move {
                if let Err(why) = send_pieces(&file, &parts).await {
                    // A client that has gone needs no answer.
                    drop(parts.send(Err(Status::internal(why.to_string()))).await);
                }
            });
            Ok(Response::new(ReceiverStream::new(stream)))
        })
    }
}

async fn send_pieces(path: &Path, parts: &mpsc::Sender<Result<Part, Status>>) -> std::io::Result<()> {
    let content_length = tokio::fs::metadata(path).await?.len();
    let mut next = Arm::Started(DownloadPersistentCacheTaskStartedResponse { content_length });
    let mut offset = 0;
    for number in 0.. {
        let sent = parts.send(Ok(Part { response: Some(next) })).await;
        let length = PIECE.min(content_length - offset);
        if sent.is_err() || length == 0 {
            break;
        }
        let mut file = File::open(path).await?;
        file.seek(SeekFrom::Start(offset)).await?;
        let mut content = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact(&mut content).await?;
        let piece = Piece { number, offset, length, content: Some(content) };
        next = Arm::Piece(PieceFinished { piece: Some(piece) });
        offset += length;
    }
    Ok(())
}

/// Serves the content of a file on a new socket, until the process ends.
///
/// # Errors
/// When the socket cannot be made or fails.
pub async fn serve(socket: &Path, file: &Path) -> Result<(), BenchError> {
    let listener = UnixListener::bind(socket).map_err(io("listen"))?;
    let daemon = Daemon { file: Arc::new(file.to_owned()) };
    let served = Server::builder().add_service(daemon).serve_with_incoming(UnixListenerStream::new(listener));
    served.await.map_err(|why| BenchError::Failed(format!("serve: {why}")))
}

/// Takes the content from [`serve`] and writes it to a file or device.
///
/// # Errors
/// When the stream breaks or the output cannot be written.
pub async fn receive(socket: &Path, output: &Path) -> Result<(), BenchError> {
    let failed = |why: &dyn std::fmt::Display| BenchError::Failed(format!("receive: {why}"));
    let endpoint =
        Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(|why| failed(&why))?;
    let channel = endpoint.connect().await.map_err(|why| failed(&why))?;
    let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    grpc.ready().await.map_err(|why| failed(&why))?;
    let request = DownloadPersistentCacheTaskRequest { need_piece_content: true, ..Default::default() };
    let codec = ProstCodec::<DownloadPersistentCacheTaskRequest, Part>::default();
    let method = http::uri::PathAndQuery::from_static(METHOD);
    let stream = grpc.server_streaming(Request::new(request), method, codec).await;
    let mut stream = stream.map_err(|why| failed(&why))?.into_inner();
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(output)
        .await
        .map_err(io("open the output"))?;
    let is_file = file.metadata().await.map_err(io("look at the output"))?.is_file();
    while let Some(part) = stream.message().await.map_err(|why| failed(&why))? {
        match part.response.ok_or_else(|| failed(&"an empty message"))? {
            Arm::Started(started) if is_file => {
                let none = rustix::fs::FallocateFlags::empty();
                rustix::fs::fallocate(&file, none, 0, started.content_length)
                    .map_err(|why| io("allocate the output")(why.into()))?;
            }
            Arm::Started(_) => {}
            Arm::Piece(PieceFinished { piece }) => {
                let piece = piece.ok_or_else(|| failed(&"no piece"))?;
                file.seek(SeekFrom::Start(piece.offset)).await.map_err(io("seek in the output"))?;
                let content = piece.content.ok_or_else(|| failed(&"no content"))?;
                file.write_all(&content).await.map_err(io("write the output"))?;
            }
        }
    }
    file.flush().await.map_err(io("write the output"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use damselfly_api::dfdaemon::v2::DownloadPersistentCacheTaskResponse;
    use damselfly_api::dfdaemon::v2::download_persistent_cache_task_response as generated;
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_piece_is_the_generated_message() {
        let piece = Piece { number: 7, offset: 9, length: 3, content: Some(vec![1, 2, 3]) };
        let part = Part { response: Some(Arm::Piece(PieceFinished { piece: Some(piece) })) };
        let read = DownloadPersistentCacheTaskResponse::decode(part.encode_to_vec().as_slice()).unwrap();
        let Some(generated::Response::DownloadPieceFinishedResponse(finished)) = read.response else {
            panic!("{read:?}");
        };
        let piece = finished.piece.unwrap();
        assert_eq!((piece.number, piece.offset, piece.length), (7, 9, 3));
        assert_eq!(piece.content.as_deref(), Some([1, 2, 3].as_slice()));
    }

    #[tokio::test]
    async fn content_arrives_whole_with_a_short_last_piece() {
        let dir = tempfile::tempdir().unwrap();
        let [socket, source, output] = ["socket", "source", "output"].map(|name| dir.path().join(name));
        let content: Vec<u8> = (0..PIECE * 2 + 11).map(|at| u8::try_from(at % 251).unwrap()).collect();
        std::fs::write(&source, &content).unwrap();
        let serving = serve(&socket, &source);
        tokio::select! {
            // The socket is there once this was polled for the first time, before the client.
            biased;
            ended = serving => panic!("{ended:?}"),
            received = receive(&socket, &output) => received.unwrap(),
        }
        assert!(std::fs::read(&output).unwrap() == content, "other bytes arrived");
    }
}
