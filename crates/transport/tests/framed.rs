//! Hand-framed streams over the local socket, against generated code on the other side and against themselves.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use damselfly_api::common::v2::Piece;
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_api::dfdaemon::v2::{
    DownloadTaskRequest, DownloadTaskResponse, DownloadTaskStartedResponse, download_task_response,
};
use damselfly_transport::framed::{self, ClosedError, DOWNLOAD_CONTENT, Envelope, FrameReader, Incoming};
use damselfly_transport::local::{self, BindOptions, Caller, Connection, Listener};
use damselfly_transport::{Buffer, BufferPool};
use tonic::{Code, Status};

const PATH: &str = "/dfdaemon.v2.DfdaemonDownload/DownloadTask";
/// Not a multiple of the buffers'.
const PIECE: u64 = (8 << 20) + 12_345;
const PIECES: u32 = 3;

fn byte(piece: u32, at: u64) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ piece as u8
}

/// Answers DownloadTask by hand, and any tag of the request says how it goes wrong.
#[derive(Clone)]
struct Service {
    pool: BufferPool,
}

impl tonic::server::NamedService for Service {
    const NAME: &'static str = "dfdaemon.v2.DfdaemonDownload";
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<tonic::body::Body>, Infallible>> + Send>>;

impl tower::Service<http::Request<tonic::body::Body>> for Service {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Answer {
        let pool = self.pool.clone();
        Box::pin(async move {
            let caller = request.extensions().get::<std::sync::Arc<Caller>>().cloned();
            assert!(caller.is_some_and(|caller| caller.native), "services know their caller");
            let asked: DownloadTaskRequest = match framed::read_request(request.into_body()).await {
                Ok(asked) => asked,
                Err(status) => return Ok(framed::refusal(status)),
            };
            let Some(download) = asked.download else {
                return Ok(framed::refusal(Status::invalid_argument("missing download")));
            };
            let (writer, response) = framed::response(4);
            tokio::spawn(async move {
                // The client's going away is seen by the pool being whole again.
                let _gone = produce(writer, pool, download.tag.unwrap_or_default()).await;
            });
            Ok(response)
        })
    }
}

async fn produce(mut writer: framed::FrameWriter, pool: BufferPool, tag: String) -> Result<(), ClosedError> {
    let started =
        DownloadTaskStartedResponse { content_length: PIECE * u64::from(PIECES), ..Default::default() };
    writer
        .message(&DownloadTaskResponse {
            task_id: "task".to_owned(),
            response: Some(download_task_response::Response::DownloadTaskStartedResponse(started)),
            ..Default::default()
        })
        .await?;
    for number in 0..PIECES {
        let piece = Piece {
            number,
            offset: PIECE * u64::from(number),
            length: PIECE,
            digest: "crc32:1".to_owned(),
            traffic_type: Some(2),
            ..Default::default()
        };
        let envelope =
            Envelope::piece_finished("host".to_owned(), "task".to_owned(), "peer".to_owned(), piece)?;
        let mut content = writer.content(envelope).await?;
        let mut at = 0;
        while at < PIECE {
            let mut buffer: Buffer = pool.acquire().await;
            let count = (PIECE - at).min(buffer.len() as u64);
            for (byte_at, slot) in (at..).zip(&mut buffer[..count as usize]) {
                *slot = byte(number, byte_at);
            }
            content.chunk(Bytes::from_owner(buffer).slice(..count as usize)).await?;
            at += count;
            match (tag.as_str(), number) {
                ("fail", 1) => {
                    let mut status = Status::with_details(
                        Code::Internal,
                        "backend error: 404 – gone",
                        Bytes::from_static(b"{\"status_code\":404}"),
                    );
                    status.metadata_mut().insert("x-more", "told".parse().expect("ascii"));
                    writer.end(Err(status));
                    return Ok(());
                }
                ("panic", 1) => panic!("told to"),
                _ => {}
            }
        }
        content.finish().await?;
    }
    writer.end(Ok(()));
    Ok(())
}

struct Stage {
    _dir: tempfile::TempDir,
    path: PathBuf,
    pool: BufferPool,
}

fn stage() -> Stage {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = Listener::bind(BindOptions::new(dir.path().join("d.sock"))).expect("free");
    let path = listener.path().to_owned();
    let pool = BufferPool::new(3 << 20, BufferPool::DEFAULT_SIZE);
    let incoming = futures_util::stream::unfold(listener, |mut listener| async move {
        let connection = listener.accept().await;
        let Connection::Grpc(stream) = connection else { panic!("{connection:?}") };
        Some((Ok::<_, std::io::Error>(stream), listener))
    });
    let server = tonic::transport::Server::builder()
        .add_service(Service { pool: pool.clone() })
        .serve_with_incoming(incoming);
    tokio::spawn(server);
    Stage { _dir: dir, path, pool }
}

fn request(tag: &str) -> DownloadTaskRequest {
    let download = damselfly_api::common::v2::Download {
        url: "http://origin/file".to_owned(),
        tag: Some(tag.to_owned()),
        ..Default::default()
    };
    DownloadTaskRequest { download: Some(download) }
}

fn finished(response: DownloadTaskResponse) -> Piece {
    match response.response {
        Some(download_task_response::Response::DownloadPieceFinishedResponse(finished)) => {
            finished.piece.expect("has one")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_client_reads_what_is_framed_by_hand() {
    let stage = stage();
    let channel = local::connect(&stage.path).await.expect("listening");
    let mut client = DfdaemonDownloadClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut stream = client.download_task(request("")).await.expect("accepted").into_inner();
    let started = stream.message().await.expect("well-formed").expect("a message");
    assert!(matches!(
        started.response,
        Some(download_task_response::Response::DownloadTaskStartedResponse(_))
    ));
    for number in 0..PIECES {
        let piece = finished(stream.message().await.expect("well-formed").expect("a message"));
        assert_eq!((piece.number, piece.length, piece.traffic_type), (number, PIECE, Some(2)));
        let content = piece.content.expect("asked for");
        assert_eq!(content.len() as u64, PIECE);
        assert!((0..).zip(&content).all(|(at, &actual)| actual == byte(number, at)));
    }
    assert!(stream.message().await.expect("status OK").is_none());
}

/// Reads one piece by hand; the number of bytes.
async fn read_piece(reader: &mut FrameReader<DownloadTaskResponse>) -> Result<Piece, Status> {
    let mut at = 0;
    let mut number = None;
    loop {
        match reader.next().await?.expect("more") {
            Incoming::Begin { head, length } => {
                assert_eq!(length, PIECE);
                let piece = finished(head);
                assert_eq!(piece.length, PIECE);
                number = Some(piece.number);
            }
            Incoming::Content(bytes) => {
                let number = number.expect("begun");
                assert!((at..).zip(&bytes).all(|(at, &actual)| actual == byte(number, at)));
                at += bytes.len() as u64;
            }
            Incoming::Message(message) => {
                assert_eq!(at, PIECE);
                return Ok(finished(message));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_is_handed_out_as_it_arrives() {
    let stage = stage();
    let channel = local::connect(&stage.path).await.expect("listening");
    let mut reader = framed::call(&channel, PATH, &request(""), DOWNLOAD_CONTENT).await.expect("accepted");
    assert!(matches!(reader.next().await, Ok(Some(Incoming::Message(_)))));
    for number in 0..PIECES {
        let piece = read_piece(&mut reader).await.expect("whole");
        assert_eq!((piece.number, piece.traffic_type, piece.content), (number, Some(2), None));
    }
    assert_eq!(reader.next().await.expect("status OK"), None);
    assert_eq!(reader.next().await.expect("still"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_within_a_piece_is_the_status_everybody_sees() {
    let stage = stage();
    let channel = local::connect(&stage.path).await.expect("listening");
    let check = |status: &Status| {
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "backend error: 404 – gone");
        assert_eq!(status.details(), b"{\"status_code\":404}");
        assert_eq!(status.metadata().get("x-more").expect("told"), "told");
    };
    let mut reader =
        framed::call(&channel, PATH, &request("fail"), DOWNLOAD_CONTENT).await.expect("accepted");
    assert!(matches!(reader.next().await, Ok(Some(Incoming::Message(_)))));
    read_piece(&mut reader).await.expect("whole");
    check(&read_piece(&mut reader).await.expect_err("failed"));

    let mut client = DfdaemonDownloadClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut stream = client.download_task(request("fail")).await.expect("accepted").into_inner();
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "ended as if all had been sent"),
            Err(status) => break status,
        }
    };
    check(&status);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_panics_never_ends_the_stream_well() {
    let stage = stage();
    let channel = local::connect(&stage.path).await.expect("listening");
    let mut reader =
        framed::call(&channel, PATH, &request("panic"), DOWNLOAD_CONTENT).await.expect("accepted");
    assert!(matches!(reader.next().await, Ok(Some(Incoming::Message(_)))));
    read_piece(&mut reader).await.expect("whole");
    let status = read_piece(&mut reader).await.expect_err("broken off");
    assert_eq!(status.code(), Code::Internal);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_come_before_any_message() {
    let stage = stage();
    let channel = local::connect(&stage.path).await.expect("listening");
    let empty = DownloadTaskRequest { download: None };
    let refused = framed::call::<DownloadTaskResponse>(&channel, PATH, &empty, DOWNLOAD_CONTENT).await;
    let status = refused.expect_err("refused");
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "missing download"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_frees_its_buffers_when_it_goes() {
    let stage = stage();
    let channel = local::connect(&stage.path).await.expect("listening");
    let mut reader = framed::call(&channel, PATH, &request(""), DOWNLOAD_CONTENT).await.expect("accepted");
    while !matches!(reader.next().await, Ok(Some(Incoming::<DownloadTaskResponse>::Content(_)))) {}
    drop(reader);
    let whole = async {
        let mut all = Vec::new();
        while all.len() < stage.pool.capacity() {
            all.push(stage.pool.acquire().await);
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), whole).await.expect("all of them come back");
}
