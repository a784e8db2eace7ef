//! Vortex over TCP: a child made of their crate at our server, and our lane at a parent made of their crate. Both
//! behave as Dragonfly's daemons do: one request for each connection, half-closed by the child once it has read the
//! metadata, closed by the parent after its answer.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use damselfly_conformance::vortex::{Answer, content, read_answer, request};
use damselfly_conformance::{TASK, hex};
use damselfly_core::{Content, Crc, Kind, PieceSpan, TaskId};
use damselfly_transport::tcp::{
    DialOptions, FetchError, Lane, LaneError, PieceProvider, Served, ServedFuture, ServerOptions, serve,
};
use damselfly_transport::vortex::{ErrorCode, PieceMeta, REQUEST_LENGTH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vortex_protocol::tlv::error::{Code, Error as ErrorValue};
use vortex_protocol::{Header as TheirHeader, Vortex, tlv};

/// Long enough for anything here on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);
/// More than fits into the buffers of two sockets, so that it is sent in many parts.
const LENGTH: usize = 9 << 20;
const NUMBER: u32 = 3;

fn span() -> PieceSpan {
    PieceSpan { number: NUMBER, offset: u64::from(NUMBER) * LENGTH as u64, length: LENGTH as u64 }
}

static PIECE: LazyLock<Bytes> = LazyLock::new(|| {
    (0..LENGTH as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
});
static DIGEST: LazyLock<String> = LazyLock::new(|| Crc::of(&PIECE).to_string());

fn piece() -> Bytes {
    PIECE.clone()
}

fn meta() -> PieceMeta {
    PieceMeta {
        digest: DIGEST.clone(),
        parent_id: "10.0.0.7-node-d2a5c0de-0000-4000-8000-000000000000".to_owned(),
        cost: Duration::from_secs(3),
        created_at: 1_700_000_000,
        ..PieceMeta::new(span().number, span().offset, span().length)
    }
}

/// Has one piece, for every kind of task.
struct OnePiece(Content);

impl PieceProvider for OnePiece {
    fn piece<'a>(&'a self, _: Kind, task: &'a TaskId, number: u32) -> ServedFuture<'a> {
        Box::pin(async move {
            let meta = meta();
            let served = Served {
                content: self.0.clone(),
                offset: meta.offset,
                digest: meta.digest,
                parent_id: meta.parent_id,
                cost: meta.cost,
                created_at: meta.created_at,
                guard: Box::new(()),
            };
            Ok((task.as_str() == TASK && number == NUMBER).then_some(served))
        })
    }
}

async fn our_parent(content: Content) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(
        listener,
        Arc::new(OnePiece(content)),
        ServerOptions::default(),
        CancellationToken::new(),
    ));
    address
}

/// When their child ends its half of the connection.
#[derive(Clone, Copy, Debug)]
enum HalfClose {
    /// Nobody does, but a parent must cope.
    AfterRequest,
    /// As Dragonfly's.
    AfterMetadata,
}

/// Fetches a piece as their child does; the connection must end with the piece.
async fn their_child(parent: SocketAddr, kind: Kind, half_close: HalfClose) -> (PieceMeta, Vec<u8>) {
    let (mut reader, mut writer) = TcpStream::connect(parent).await.unwrap().into_split();
    writer.write_all(&request(kind, TASK, NUMBER)).await.unwrap();
    let mut writer = Some(writer);
    if let HalfClose::AfterRequest = half_close {
        writer = None;
    }
    let Answer::Content(meta) = read_answer(kind, &mut reader).await.unwrap() else { panic!("refused") };
    drop(writer);
    let mut body = Vec::new();
    reader.read_to_end(&mut body).await.unwrap();
    (meta, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn their_child_is_served_from_a_file_and_from_memory() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"before").unwrap();
    file.write_all(&piece()).unwrap();
    let on_disk = Content::File { file: Arc::new(file), offset: 6, length: LENGTH as u64 };
    for stored in [on_disk, Content::Bytes(piece())] {
        let parent = our_parent(stored).await;
        for kind in Kind::ALL {
            for half_close in [HalfClose::AfterMetadata, HalfClose::AfterRequest] {
                let fetched = timeout(DEADLINE, their_child(parent, kind, half_close)).await;
                let (received, body) = fetched.unwrap_or_else(|_| panic!("{kind} {half_close:?} hangs"));
                assert_eq!(received, meta(), "{kind} {half_close:?}");
                assert!(body == piece(), "{kind} {half_close:?}: {} bytes", body.len());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn their_child_reads_our_refusal() {
    let parent = our_parent(Content::Bytes(piece())).await;
    for (task, number) in [(TASK, NUMBER + 1), (&"0".repeat(64), NUMBER)] {
        let mut stream = TcpStream::connect(parent).await.unwrap();
        stream.write_all(&request(Kind::Standard, task, number)).await.unwrap();
        let answer = timeout(DEADLINE, read_answer(Kind::Standard, &mut stream)).await.unwrap().unwrap();
        let Answer::Error(error) = answer else { panic!("piece {number} of {task} came") };
        assert_eq!(error.code(), Code::NotFound);
        assert_eq!(error.message(), format!("piece {task}-{number} not found"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_that_ask_for_nothing_end_the_connection_without_an_answer() {
    let parent = our_parent(Content::Bytes(piece())).await;
    let value = tlv::download_persistent_piece::DownloadPersistentPiece::new(TASK.to_owned(), NUMBER);
    let packets: [Bytes; 4] = [
        Vortex::new(tlv::Tag::Close, Bytes::new()).unwrap().into(),
        Vortex::new(tlv::Tag::Reserved(100), Bytes::new()).unwrap().into(),
        Vortex::new(tlv::Tag::DownloadPersistentPiece, value.into()).unwrap().into(),
        // A request one byte short.
        hex("000000000043").into(),
    ];
    for packet in packets {
        let mut stream = TcpStream::connect(parent).await.unwrap();
        stream.write_all(&packet).await.unwrap();
        // With bytes unread the kernel says reset instead of end.
        let answer = timeout(DEADLINE, stream.read(&mut [0])).await.unwrap();
        assert!(matches!(answer, Ok(0) | Err(_)), "{packet:?} got an answer");
    }
}

/// What their parent does with the one request that it reads.
#[derive(Clone)]
enum Does {
    /// Sends a piece, whole.
    Serves(PieceMeta),
    /// Sends metadata of something else before the piece.
    Misleads(PieceMeta),
    /// Sends an error packet.
    Refuses(Code, &'static str),
    /// Closes without a word.
    Closes,
    /// Sends a piece but its last byte.
    Stops,
}

/// A parent made of their crate, for one connection: reads one request, answers and closes. Ends with what the child
/// asked for, and fails when the child ever sends more or ends its half before the piece is there.
async fn their_parent(does: Does) -> (SocketAddr, JoinHandle<(Kind, String, u32)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut packet = vec![0; REQUEST_LENGTH];
        stream.read_exact(&mut packet).await.unwrap();
        let (kind, task, number) = match Vortex::try_from(Bytes::from(packet)).unwrap() {
            Vortex::DownloadPiece(_, v) => (Kind::Standard, v.task_id().to_owned(), v.piece_number()),
            Vortex::DownloadPersistentCachePiece(_, v) => {
                (Kind::PersistentCache, v.task_id().to_owned(), v.piece_number())
            }
            Vortex::DownloadCachePiece(_, v) => (Kind::Cache, v.task_id().to_owned(), v.piece_number()),
            other => panic!("{other:?}"),
        };
        match does {
            Does::Serves(meta) => {
                let body = piece();
                let (most, last) = body.split_at(LENGTH - 1);
                stream.write_all(&content(kind, meta)).await.unwrap();
                stream.write_all(most).await.unwrap();
                nothing_more(&stream);
                stream.write_all(last).await.unwrap();
            }
            Does::Misleads(meta) => {
                stream.write_all(&content(kind, meta)).await.unwrap();
                // The child hangs up on it, before the end of the piece or after.
                drop(stream.write_all(&piece()).await);
                return (kind, task, number);
            }
            Does::Refuses(code, message) => {
                let value = ErrorValue::new(code, message.to_owned());
                let header = TheirHeader::new_error(u32::try_from(value.len()).unwrap());
                stream.write_all(&Bytes::from(header)).await.unwrap();
                stream.write_all(&Bytes::from(value)).await.unwrap();
            }
            Does::Closes => {}
            Does::Stops => {
                stream.write_all(&content(kind, meta())).await.unwrap();
                stream.write_all(&piece()[1..]).await.unwrap();
            }
        }
        nothing_more(&stream);
        (kind, task, number)
    });
    (address, served)
}

/// Neither a second request nor the end of the child's half.
fn nothing_more(stream: &TcpStream) {
    match stream.try_read(&mut [0]) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        other => panic!("the child went on or half-closed: {other:?}"),
    }
}

async fn fetch(lane: &Lane, kind: Kind) -> Result<(PieceMeta, Vec<u8>), FetchError> {
    let ticket = lane.request(kind, &TaskId::parse(TASK).unwrap(), span()).unwrap();
    let mut body = ticket.response().await?;
    let meta = body.meta().clone();
    let mut bytes = vec![0; LENGTH + 1];
    let mut filled = 0;
    while body.remaining() > 0 {
        filled += body.read(&mut bytes[filled..]).await?;
    }
    bytes.truncate(filled);
    body.finish()?;
    Ok((meta, bytes))
}

/// Our lane at such a parent.
async fn at(does: Does, kind: Kind) -> Result<(PieceMeta, Vec<u8>), FetchError> {
    let (parent, served) = their_parent(does).await;
    let lane = Lane::dial(parent, DialOptions::new(false)).await.unwrap();
    let fetched = timeout(DEADLINE, fetch(&lane, kind)).await.expect("an answer in time");
    let again = lane.request(kind, &TaskId::parse(TASK).unwrap(), span());
    assert!(matches!(again, Err(LaneError::Broken { .. })), "a second request to a parent of theirs");
    assert!(!lane.is_usable());
    drop(lane);
    let asked = timeout(DEADLINE, served).await.expect("the parent ends").expect("the child behaves");
    assert_eq!(asked, (kind, TASK.to_owned(), NUMBER));
    fetched
}

#[tokio::test(flavor = "multi_thread")]
async fn our_lane_fetches_from_a_parent_that_closes_after_one_answer() {
    for kind in Kind::ALL {
        let (received, bytes) = at(Does::Serves(meta()), kind).await.unwrap();
        assert_eq!(received, meta());
        assert!(bytes == piece());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_without_a_digest_comes_without_a_promise() {
    let silent = PieceMeta { digest: String::new(), ..meta() };
    let (parent, _served) = their_parent(Does::Serves(silent)).await;
    let lane = Lane::dial(parent, DialOptions::new(false)).await.unwrap();
    let ticket = lane.request(Kind::Standard, &TaskId::parse(TASK).unwrap(), span()).unwrap();
    let body = timeout(DEADLINE, ticket.response()).await.unwrap().unwrap();
    assert_eq!(body.crc(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_offset_and_length_they_tell_are_not_obeyed() {
    for wrong in [
        PieceMeta { offset: meta().offset + 1, ..meta() },
        PieceMeta { length: meta().length - 1, ..meta() },
        PieceMeta { piece: NUMBER + 1, ..meta() },
    ] {
        let error = at(Does::Misleads(wrong), Kind::Standard).await.unwrap_err();
        assert!(matches!(error, FetchError::Mismatch { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn their_refusals_arrive() {
    let pairs = [
        (Code::Unknown, ErrorCode::Unknown),
        (Code::InvalidArgument, ErrorCode::InvalidArgument),
        (Code::NotFound, ErrorCode::NotFound),
        (Code::Internal, ErrorCode::Internal),
        (Code::Reserved(77), ErrorCode::Other(77)),
    ];
    for (theirs, ours) in pairs {
        match at(Does::Refuses(theirs, "no such piece"), Kind::Standard).await {
            Err(FetchError::Refused { code, message, piece, .. }) => {
                assert_eq!((code, message.as_str(), piece), (ours, "no such piece", NUMBER));
            }
            other => panic!("{:?}", other.map(|(meta, _)| meta)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_closes_early_is_told_from_a_whole_piece() {
    match at(Does::Closes, Kind::Standard).await {
        Err(FetchError::Broken { missing, .. }) => assert_eq!(missing, LENGTH as u64),
        other => panic!("{:?}", other.map(|(meta, _)| meta)),
    }
    match at(Does::Stops, Kind::Standard).await {
        Err(FetchError::Broken { missing, .. }) => assert_eq!(missing, 1),
        other => panic!("{:?}", other.map(|(meta, _)| meta)),
    }
}
