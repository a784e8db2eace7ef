//! The TCP lane, against the server and against parents that misbehave.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use common::{Pieces, dial, fetch, fill, receive, start, task};
use damselfly_core::{Class, Crc, Kind, PieceSpan, TaskId};
use damselfly_transport::tcp::{DialOptions, FetchError, FetchKind, Lane, LaneError, ServerOptions};
use damselfly_transport::vortex::{ErrorCode, ErrorPacket, PieceMeta};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SOON: Duration = Duration::from_secs(10);
const SPAN: PieceSpan = PieceSpan { number: 7, offset: 700, length: 100 };

/// A parent that accepts once, reads one request and writes `answer` in pieces of `step` bytes; then does `after`.
async fn parent<F, T>(answer: Vec<u8>, step: usize, after: F) -> SocketAddr
where
    F: FnOnce(TcpStream) -> T + Send + 'static,
    T: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a child");
        stream.set_nodelay(true).expect("open");
        stream.read_exact(&mut [0; 74]).await.expect("a request");
        for part in answer.chunks(step) {
            if stream.write_all(part).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        after(stream).await;
    });
    address
}

async fn close(_: TcpStream) {}

async fn hold(mut stream: TcpStream) {
    while stream.read(&mut [0; 100]).await.is_ok_and(|read| read > 0) {}
}

fn content(meta: PieceMeta, kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    meta.encode(1, kind, &mut out).expect("short");
    out.extend_from_slice(body);
    out.to_vec()
}

fn good() -> (PieceMeta, Vec<u8>) {
    let body = common::noise(100);
    (PieceMeta { digest: Crc::of(&body).to_string(), ..PieceMeta::new(7, 700, 100) }, body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pieces_travel_over_few_lanes_in_order() {
    let server = start(Pieces::new(256 * 5000 - 13, 5000, true), ServerOptions::default()).await;
    let lanes = [
        dial(server.address, true).await,
        dial(server.address, true).await,
        dial(server.address, true).await,
        dial(server.address, true).await,
    ];
    let mut tasks = tokio::task::JoinSet::new();
    for (index, lane) in lanes.iter().enumerate() {
        let (lane, pieces) = (lane.clone(), server.pieces.clone());
        tasks.spawn(async move {
            let numbers: Vec<u32> = (0..256).filter(|n| *n as usize % 4 == index).collect();
            // Sixteen in flight at a time; their answers are awaited concurrently and in no particular order.
            for window in numbers.chunks(16) {
                let mut waiting = tokio::task::JoinSet::new();
                for &number in window {
                    let ticket = lane.request(Kind::Standard, &task(), pieces.span(number)).expect("usable");
                    let pieces = pieces.clone();
                    waiting.spawn(async move {
                        let bytes = receive(ticket, 1 + number as usize * 17).await.expect("served");
                        assert!(bytes == pieces.expected(number), "piece {number}");
                    });
                }
                while let Some(done) = waiting.join_next().await {
                    done.expect("no panic");
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    for lane in lanes {
        assert!(lane.is_usable() && lane.in_flight() == 0 && lane.idle_since().is_some());
        assert!(lane.rtt().is_some_and(|rtt| rtt < Duration::from_secs(1)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_one_request_and_is_never_half_closed() {
    let (meta, body) = good();
    let (told, tell) = tokio::sync::oneshot::channel();
    // The parent sends half, and then checks that the child's side is still open before it sends the rest.
    let answer = content(meta, Kind::Standard, &body);
    let rest = answer[answer.len() - 50..].to_vec();
    let address = parent(answer[..answer.len() - 50].to_vec(), 1000, move |mut stream| async move {
        let early = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut [0])).await;
        stream.write_all(&rest).await.expect("open");
        told.send(early.is_err()).expect("the test waits");
    })
    .await;
    let lane = dial(address, false).await;
    let ticket = lane.request(Kind::Standard, &task(), SPAN).expect("usable");
    assert!(!lane.is_usable());
    let refused = lane.request(Kind::Standard, &task(), SPAN).expect_err("one only");
    assert!(matches!(refused, LaneError::Broken { .. }), "{refused}");
    // Handles gone, ticket alive: still no half-close.
    drop(lane);
    assert_eq!(receive(ticket, 7).await.expect("served"), body);
    assert!(tell.await.expect("the parent lives"), "the child half-closed or sent more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_arrive_whole_however_they_are_cut() {
    for step in [1, 2, 9, 10, 11, 69, 70, 71, 1000] {
        let (meta, body) = good();
        let address = parent(content(meta.clone(), Kind::Standard, &body), step, close).await;
        let lane = dial(address, false).await;
        let ticket = lane.request(Kind::Standard, &task(), SPAN).expect("usable");
        let mut piece = ticket.response().await.expect("well-formed");
        assert_eq!(*piece.meta(), meta);
        assert_eq!(piece.crc(), Some(Crc::of(&body)));
        let mut bytes = vec![0; 200];
        assert_eq!(fill(&mut piece, &mut bytes).await.expect("whole"), 100);
        assert_eq!(bytes[..100], body);
        assert_eq!(piece.read(&mut bytes).await.expect("the end"), 0);
        piece.finish().expect("complete");
    }
}

async fn one(answer: Vec<u8>, ours: bool) -> (FetchError, Lane) {
    let address = parent(answer, 1000, hold).await;
    let lane = dial(address, ours).await;
    let error = fetch(&lane, SPAN).await.expect_err("a bad answer");
    (error, lane)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_with_another_geometry_or_tongue_is_wrong() {
    let (meta, body) = good();
    for (meta, kind, what) in [
        (PieceMeta { offset: 701, ..meta.clone() }, Kind::Standard, "offset"),
        (PieceMeta { length: 99, ..meta.clone() }, Kind::Standard, "length"),
        (PieceMeta { length: u64::MAX, ..meta.clone() }, Kind::Standard, "huge length"),
        (PieceMeta { piece: 8, ..meta.clone() }, Kind::Standard, "number"),
        (PieceMeta { digest: "md5:abc".to_owned(), ..meta.clone() }, Kind::Standard, "digest"),
        (meta.clone(), Kind::PersistentCache, "tag"),
    ] {
        let (error, lane) = one(content(meta, kind, &body), true).await;
        assert_eq!(error.kind(), FetchKind::Wrong, "{what}: {error}");
        assert_eq!(error.class(), Class::OtherSource);
        assert!(!lane.is_usable(), "{what}");
    }
    for garbage in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 1, 0, 0, 0, 8, 255, 255, 255, 255, 0],
        &[0, 254, 0, 0, 0, 0],
    ] {
        let (error, _) = one(garbage.to_vec(), true).await;
        assert_eq!(error.kind(), FetchKind::Wrong, "{garbage:?}: {error}");
    }
    // An empty digest promises nothing, and is no fault.
    let silent = PieceMeta { digest: String::new(), ..meta };
    let address = parent(content(silent, Kind::Standard, &body), 1000, close).await;
    let lane = dial(address, false).await;
    let piece = lane.request(Kind::Standard, &task(), SPAN).expect("usable").response().await;
    assert_eq!(piece.expect("well-formed").crc(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_carry_code_and_words() {
    for (code, kind) in [
        (ErrorCode::NotFound, FetchKind::Missing),
        (ErrorCode::Internal, FetchKind::Retry),
        (ErrorCode::Other(77), FetchKind::Retry),
    ] {
        let mut packet = BytesMut::new();
        ErrorPacket { code, message: "no such thing".to_owned() }.encode(0, &mut packet);
        for ours in [true, false] {
            let (error, lane) = one(packet.to_vec(), ours).await;
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains("no such thing"), "{error}");
            assert_eq!(lane.is_usable(), ours);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_that_closes_early_is_retried() {
    let (meta, body) = good();
    let whole = content(meta, Kind::Standard, &body);
    for cut in [0, 5, 6, 30, whole.len() - 100, whole.len() - 1] {
        let address = parent(whole[..cut].to_vec(), 1000, close).await;
        let lane = dial(address, true).await;
        let error = fetch(&lane, SPAN).await.expect_err("cut off");
        assert_eq!((error.kind(), error.class()), (FetchKind::Retry, Class::Retry), "{cut}: {error}");
        assert!(!lane.is_usable());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_lane_that_the_parent_closed_is_noticed_before_it_is_used() {
    let (meta, body) = good();
    let (closed, close_now) = tokio::sync::oneshot::channel();
    let address = parent(content(meta, Kind::Standard, &body), 1000, move |stream| async move {
        drop(stream);
        closed.send(()).expect("the test waits");
    })
    .await;
    let lane = dial(address, true).await;
    assert_eq!(fetch(&lane, SPAN).await.expect("served"), body);
    close_now.await.expect("closed");
    // The end travels through the loopback within the call, but readiness comes through the driver.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while lane.is_usable() {
        assert!(tokio::time::Instant::now() < deadline, "never noticed");
        tokio::task::yield_now().await;
    }
    let error = lane.request(Kind::Standard, &task(), SPAN).expect_err("closed");
    assert_eq!(error.class(), Class::Retry);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_ticket_or_body_breaks_those_behind_it() {
    let server = start(Pieces::new(100_000, 10_000, true), ServerOptions::default()).await;
    for drop_body in [false, true] {
        let lane = dial(server.address, true).await;
        let mut tickets: Vec<_> = (0..4)
            .map(|n| lane.request(Kind::Standard, &task(), server.pieces.span(n)).expect("usable"))
            .collect();
        assert_eq!(lane.in_flight(), 4);
        assert!(lane.idle_since().is_none());
        // The first comes through, the second is given up, the others learn of it.
        assert!(receive(tickets.remove(0), 512).await.expect("served") == server.pieces.expected(0));
        let second = tickets.remove(0);
        if drop_body {
            let mut body = second.response().await.expect("served");
            body.read(&mut [0; 10]).await.expect("open");
            let error = body.finish().expect_err("not at its end");
            assert_eq!(error.kind(), FetchKind::Retry);
        } else {
            drop(second);
        }
        assert!(!lane.is_usable());
        for ticket in tickets {
            let error = ticket.response().await.expect_err("broken");
            assert_eq!(error.class(), Class::Retry);
        }
        assert_eq!(lane.in_flight(), 0);
        assert!(lane.request(Kind::Standard, &task(), server.pieces.span(0)).is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_read_loses_nothing() {
    let (meta, body) = good();
    let whole = content(meta, Kind::Standard, &body);
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let rest = whole[whole.len() - 60..].to_vec();
    let address = parent(whole[..whole.len() - 60].to_vec(), 1000, move |mut stream| async move {
        wait.await.expect("told to go on");
        stream.write_all(&rest).await.expect("open");
        hold(stream).await;
    })
    .await;
    let lane = dial(address, true).await;
    let mut piece =
        lane.request(Kind::Standard, &task(), SPAN).expect("usable").response().await.expect("served");
    let mut bytes = vec![0; 100];
    let mut have = 0;
    while have < 40 {
        have += piece.read(&mut bytes[have..]).await.expect("open");
    }
    let waited = tokio::time::timeout(Duration::from_millis(20), piece.read(&mut bytes[have..])).await;
    assert!(waited.is_err());
    go.send(()).expect("the parent waits");
    assert_eq!(fill(&mut piece, &mut bytes[have..]).await.expect("whole"), 60);
    assert_eq!(bytes, body);
    piece.finish().expect("complete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_ends_at_the_deadline() {
    let (meta, body) = good();
    let whole = content(meta, Kind::Standard, &body);
    let mut options = DialOptions::new(true);
    options.deadlines.first_byte = Duration::from_millis(50);
    options.deadlines.stall = Duration::from_millis(50);
    options.deadlines.turn = Duration::from_millis(50);
    for (sent, waited_for) in [(0, "metadata"), (20, "metadata"), (whole.len() - 1, "next bytes")] {
        let address = parent(whole[..sent].to_vec(), 1000, hold).await;
        let lane = Lane::dial(address, options.clone()).await.expect("listening");
        let error = fetch(&lane, SPAN).await.expect_err("silent");
        assert_eq!((error.kind(), error.class()), (FetchKind::Timeout, Class::Retry));
        assert!(error.to_string().contains(waited_for), "{error}");
        assert!(!lane.is_usable());
    }
    let address = parent(whole, 1000, hold).await;
    let lane = Lane::dial(address, options).await.expect("listening");
    let first = lane.request(Kind::Standard, &task(), SPAN).expect("usable");
    let second = lane.request(Kind::Standard, &task(), SPAN).expect("usable");
    let error = second.response().await.expect_err("the first is never read");
    assert!(matches!(error, FetchError::Timeout { waiting_for: "an earlier answer", .. }), "{error}");
    drop(first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_takes_no_more_than_its_bound_and_only_ids_that_travel() {
    let address = parent(Vec::new(), 1, hold).await;
    let mut options = DialOptions::new(true);
    options.max_in_flight = 3;
    let lane = Lane::dial(address, options).await.expect("listening");
    let long = TaskId::parse(&"a".repeat(128)).expect("hex");
    let error = lane.request(Kind::Standard, &long, SPAN).expect_err("too long");
    assert_eq!(error.class(), Class::OtherSource);
    let tickets: Vec<_> =
        (0..3).map(|_| lane.request(Kind::Standard, &task(), SPAN).expect("room")).collect();
    let error = lane.request(Kind::Standard, &task(), SPAN).expect_err("full");
    assert!(matches!(error, LaneError::Busy { in_flight: 3, .. }), "{error}");
    assert!(lane.is_usable());
    drop(tickets);
    assert!(!lane.is_usable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_lane_ends_what_is_in_flight_only() {
    let server = start(Pieces::new(1000, 100, false), ServerOptions::default()).await;
    let lane = dial(server.address, true).await;
    let ticket = lane.request(Kind::Standard, &task(), server.pieces.span(2)).expect("usable");
    lane.close();
    assert!(lane.request(Kind::Standard, &task(), server.pieces.span(3)).is_err());
    assert!(receive(ticket, 64).await.expect("served") == server.pieces.expected(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_listening_is_told_apart_from_nobody_answering() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let error = Lane::dial(address, DialOptions::new(true)).await.expect_err("refused");
    assert!(matches!(error, LaneError::Dial { .. }) && error.class() == Class::Retry, "{error}");
    assert!(error.to_string().contains(&address.to_string()));
}

#[tokio::test]
async fn a_lane_ends_with_its_parent_and_not_before() {
    let server = start(Pieces::new(64 * 5000, 5000, false), ServerOptions::default()).await;
    let lane = dial(server.address, true).await;
    let watched = lane.clone();
    let mut ended = tokio::spawn(async move { watched.ended().await });
    for number in 0..64 {
        fetch(&lane, server.pieces.span(number)).await.expect("served");
    }
    // Content does not count as an end, nor does silence.
    tokio::task::yield_now().await;
    assert!(!ended.is_finished() && lane.is_usable());
    server.shutdown.cancel();
    tokio::time::timeout(SOON, &mut ended).await.expect("the parent has closed").expect("no panic");
    assert!(!lane.is_usable());
    drop(lane);
    tokio::time::timeout(SOON, server.ended).await.expect("no child is left").expect("no panic");
}

#[tokio::test]
async fn answers_on_their_way_survive_the_end_of_their_lane() {
    let (meta, body) = good();
    let (step, go_on) = tokio::sync::oneshot::channel();
    let bytes = content(meta, Kind::Standard, &body);
    let late = bytes.clone();
    let address = parent(bytes[..90].to_vec(), 90, move |mut stream: TcpStream| async move {
        go_on.await.expect("the child goes on");
        stream.write_all(&late[90..]).await.expect("the child listens");
        stream.shutdown().await.expect("open");
        hold(stream).await;
    })
    .await;
    let lane = dial(address, true).await;
    let ticket = lane.request(Kind::Standard, &task(), SPAN).expect("usable");
    step.send(()).expect("the parent waits");
    tokio::time::timeout(SOON, lane.ended()).await.expect("the parent has closed");
    assert!(lane.request(Kind::Standard, &task(), SPAN).is_err(), "no request would be answered");
    assert_eq!(receive(ticket, 16).await.expect("all of it came"), body);
}

#[tokio::test]
async fn a_lane_ends_when_an_answer_is_abandoned_or_it_is_closed_here() {
    let address = parent(Vec::new(), 1, hold).await;
    let lane = dial(address, true).await;
    let ticket = lane.request(Kind::Standard, &task(), SPAN).expect("usable");
    drop(ticket);
    tokio::time::timeout(SOON, lane.ended()).await.expect("its answers cannot be told apart");
    let lane = dial(address, true).await;
    lane.close();
    tokio::time::timeout(SOON, lane.ended()).await.expect("closed");
}
