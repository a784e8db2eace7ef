//! The TCP server, against lanes and against bare sockets that behave like Dragonfly's children.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use common::{Pieces, dial, fetch, fill, receive, start, task};
use damselfly_core::{Kind, PieceSpan};
use damselfly_transport::tcp::{FetchKind, SendPath, ServerOptions};
use damselfly_transport::vortex::{Answer, Decoded, ErrorCode, Request, decode_answer};
use damselfly_transport::{BufferPool, TokenBucket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MIB: usize = 1 << 20;

fn request(piece: u32) -> [u8; 74] {
    Request { id: 3, kind: Kind::Standard, task: task(), piece }.encode().expect("64 digits")
}

/// Reads an answer and its piece; `ahead` is what was read of the next one.
async fn answer_after(stream: &mut TcpStream, ahead: &mut BytesMut) -> (Answer, Vec<u8>) {
    let (answer, consumed) = loop {
        match decode_answer(ahead).expect("well-formed") {
            Decoded::Complete { answer, consumed } => break (answer, consumed),
            Decoded::Needs(_) => assert!(stream.read_buf(ahead).await.expect("open") > 0, "cut off"),
        }
    };
    ahead.advance(consumed);
    let Answer::Content { meta, .. } = &answer else {
        return (answer, Vec::new());
    };
    while ahead.len() < meta.length as usize {
        assert!(stream.read_buf(ahead).await.expect("open") > 0, "cut off");
    }
    let body = ahead.split_to(meta.length as usize).to_vec();
    (answer, body)
}

async fn answer(stream: &mut TcpStream) -> (Answer, Vec<u8>) {
    answer_after(stream, &mut BytesMut::new()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_of_sending_delivers_every_byte() {
    for (in_file, send, pool) in [
        (true, SendPath::Sendfile, 1 << 20),
        (true, SendPath::Buffered, 1 << 20),
        (true, SendPath::Buffered, 0),
        (false, SendPath::Sendfile, 1 << 20),
    ] {
        // Odd lengths, a short last piece, pieces larger than one step of the sender.
        let options = ServerOptions { send, pool: BufferPool::new(pool, 10_007), ..Default::default() };
        let server = start(Pieces::new(20 * MIB + 17, 6 * MIB as u64 + 1, in_file), options.clone()).await;
        let lane = dial(server.address, true).await;
        let tickets: Vec<_> = (0..4)
            .map(|n| lane.request(Kind::Standard, &task(), server.pieces.span(n)).expect("usable"))
            .collect();
        for (number, ticket) in (0u32..).zip(tickets) {
            assert!(receive(ticket, 99_991).await.expect("served") == server.pieces.expected(number));
        }
        assert_eq!(options.counters.figures().bytes, 20 * MIB as u64 + 17);
        assert_eq!(options.counters.figures().pieces, 4);
        assert_eq!(options.counters.figures().accepted, 1);
        assert_eq!(server.pieces.guards.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_half_closes_is_answered() {
    let server = start(Pieces::new(3 * MIB, MIB as u64, true), ServerOptions::default()).await;
    let mut child = TcpStream::connect(server.address).await.expect("listening");
    child.write_all(&request(1)).await.expect("open");
    child.shutdown().await.expect("open");
    let (answer, body) = answer(&mut child).await;
    assert!(matches!(answer, Answer::Content { kind: Kind::Standard, .. }));
    assert!(body == server.pieces.expected(1));
    assert_eq!(child.read(&mut [0]).await.expect("a clean end"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_in_odd_segments_are_answered_in_order() {
    let mut pieces = Pieces::new(10_000, 1_000, false);
    pieces.missing = Some(4);
    pieces.failing = Some(6);
    let server = start(pieces, ServerOptions::default()).await;
    let mut child = TcpStream::connect(server.address).await.expect("listening");
    let all: Vec<u8> = (0..11).flat_map(request).collect();
    child.set_nodelay(true).expect("open");
    for part in all.chunks(31) {
        child.write_all(part).await.expect("open");
        tokio::task::yield_now().await;
    }
    let mut ahead = BytesMut::new();
    for number in 0..11 {
        let (answer, body) = answer_after(&mut child, &mut ahead).await;
        match (number, answer) {
            (4 | 10, Answer::Error(error)) => {
                assert_eq!(error.code, ErrorCode::NotFound);
                assert_eq!(error.message, format!("piece {}-{number} not found", task()));
            }
            (6, Answer::Error(error)) => {
                assert_eq!(error.code, ErrorCode::Internal);
                assert_eq!(error.message, "failed to get piece: disk on fire");
            }
            (_, Answer::Content { meta, .. }) => {
                assert_eq!(meta.piece, number);
                assert!(body == server.pieces.expected(number));
            }
            (_, other) => panic!("{other:?} for piece {number}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_request_is_closed_without_an_answer() {
    let server = start(Pieces::new(10, 10, false), ServerOptions::default()).await;
    let mut wrong_length = request(0);
    wrong_length[5] = 67;
    let mut wrong_tag = request(0);
    wrong_tag[1] = 1;
    let mut persistent = request(0);
    persistent[1] = 2;
    for bytes in [
        &wrong_length[..],
        &wrong_tag[..],
        &persistent[..],
        &[0, 254, 0, 0, 0, 0],
        &[0, 0, 0],
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    ] {
        let mut child = TcpStream::connect(server.address).await.expect("listening");
        child.write_all(bytes).await.expect("open");
        if bytes.len() < 6 {
            child.shutdown().await.expect("open");
        }
        let mut rest = Vec::new();
        child.read_to_end(&mut rest).await.expect("a clean end");
        assert!(rest.is_empty(), "{bytes:?} was answered");
    }
    // In form, but for a task that cannot exist.
    let mut child = TcpStream::connect(server.address).await.expect("listening");
    let mut bad_id = request(0);
    bad_id[10] = b'X';
    child.write_all(&bad_id).await.expect("open");
    let (answer, _) = answer(&mut child).await;
    assert!(matches!(answer, Answer::Error(error) if error.code == ErrorCode::InvalidArgument));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_that_is_being_downloaded_is_waited_for_until_the_deadline() {
    let options = ServerOptions { piece: Duration::from_millis(200), ..Default::default() };
    let server = start(Pieces::new(1000, 100, false), options).await;
    let lane = dial(server.address, true).await;
    server.pieces.open.send_replace(false);
    let ticket = lane.request(Kind::Standard, &task(), server.pieces.span(0)).expect("usable");
    server.pieces.asked_now.notified().await;
    server.pieces.open.send_replace(true);
    assert!(receive(ticket, 64).await.expect("served") == server.pieces.expected(0));
    server.pieces.open.send_replace(false);
    let error = fetch(&lane, server.pieces.span(1)).await.expect_err("never complete");
    assert_eq!(error.kind(), FetchKind::Retry);
    assert!(error.to_string().contains("not complete within 200ms"), "{error}");
    assert!(lane.is_usable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_hangs_up_while_its_piece_is_waited_for_leaves_its_place() {
    let options = ServerOptions { max_connections: 1, ..Default::default() };
    let server = start(Pieces::new(1000, 100, false), options.clone()).await;
    server.pieces.open.send_replace(false);
    let mut gone = TcpStream::connect(server.address).await.expect("listening");
    gone.write_all(&request(0)).await.expect("open");
    server.pieces.asked_now.notified().await;
    rustix::net::sockopt::set_socket_linger(&gone, Some(Duration::ZERO)).expect("settable");
    drop(gone);
    // There is one place. Who hung up had it, and its piece never comes.
    let mut next = TcpStream::connect(server.address).await.expect("listening");
    next.write_all(&request(1)).await.expect("open");
    let asked = server.pieces.asked_now.notified();
    tokio::time::timeout(Duration::from_secs(20), asked).await.expect("the place is free");
    assert_eq!(options.counters.figures().failures, 1);

    // One that says no more but still listens is waited for.
    next.shutdown().await.expect("open");
    server.pieces.open.send_replace(true);
    let (answer, content) = answer(&mut next).await;
    assert!(matches!(answer, Answer::Content { .. }), "{answer:?}");
    assert!(content == server.pieces.expected(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_that_has_not_come_by_shutdown_is_not_waited_for() {
    let options = ServerOptions { grace: Duration::from_secs(3600), ..Default::default() };
    let server = start(Pieces::new(1000, 100, false), options).await;
    server.pieces.open.send_replace(false);
    let lane = dial(server.address, true).await;
    let ticket = lane.request(Kind::Standard, &task(), server.pieces.span(0)).expect("usable");
    server.pieces.asked_now.notified().await;
    server.shutdown.cancel();
    let error = receive(ticket, 64).await.expect_err("it never comes");
    assert_eq!(error.kind(), FetchKind::Retry);
    assert!(error.to_string().contains("shutting down"), "{error}");
    drop(lane);
    server.ended.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_the_provider_costs_that_connection_only() {
    let mut pieces = Pieces::new(1000, 100, false);
    pieces.panicking = Some(3);
    let options = ServerOptions::default();
    let server = start(pieces, options.clone()).await;
    let lane = dial(server.address, true).await;
    let error = fetch(&lane, server.pieces.span(3)).await.expect_err("panicked");
    assert_eq!(error.kind(), FetchKind::Retry);
    let lane = dial(server.address, true).await;
    assert!(fetch(&lane, server.pieces.span(2)).await.expect("served") == server.pieces.expected(2));
    assert_eq!(options.counters.figures().connections, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_drops_an_idle_connection_for_a_new_one() {
    let options = ServerOptions { max_connections: 2, ..Default::default() };
    let server = start(Pieces::new(1000, 100, false), options.clone()).await;
    let lanes = [dial(server.address, true).await, dial(server.address, true).await];
    for lane in &lanes {
        fetch(lane, server.pieces.span(0)).await.expect("served");
    }
    let third = dial(server.address, true).await;
    fetch(&third, server.pieces.span(1)).await.expect("served in an idle one's place");
    assert_eq!(lanes.iter().filter(|lane| lane.is_usable()).count(), 1);
    assert_eq!(options.counters.figures().accepted, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_half_spoken_connections_end() {
    let options = ServerOptions {
        idle: Duration::from_millis(50),
        request: Duration::from_millis(50),
        ..Default::default()
    };
    let server = start(Pieces::new(1000, 100, false), options).await;
    for bytes in [&[][..], &request(0)[..40]] {
        let mut child = TcpStream::connect(server.address).await.expect("listening");
        child.write_all(bytes).await.expect("open");
        assert_eq!(child.read(&mut [0]).await.expect("a clean end"), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_reads_nothing_is_dropped_and_frees_the_piece() {
    let stall = Duration::from_millis(100);
    let options = ServerOptions { stall, max_connections: 1, ..Default::default() };
    let server = start(Pieces::new(64 * MIB, 64 * MIB as u64, true), options.clone()).await;
    let mut child = TcpStream::connect(server.address).await.expect("listening");
    child.write_all(&request(0)).await.expect("open");
    let mut drained = Vec::new();
    // Nothing is read until the server has given up, which the next child learns by being served in its place.
    let missing = PieceSpan { number: 1, offset: 0, length: 1 };
    let next = dial(server.address, true).await;
    assert_eq!(fetch(&next, missing).await.expect_err("there is one piece").kind(), FetchKind::Missing);
    let _cut = child.read_to_end(&mut drained).await;
    assert!(drained.len() < 64 * MIB);
    assert_eq!(server.pieces.guards.load(Ordering::SeqCst), 0);
    assert_eq!(options.counters.figures().failures, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_lets_uploads_end_and_accepts_no_more() {
    let server = start(Pieces::new(32 * MIB, 32 * MIB as u64, true), ServerOptions::default()).await;
    let idle = dial(server.address, true).await;
    fetch(&idle, server.pieces.span(0)).await.expect("served");
    let lane = dial(server.address, true).await;
    let ticket = lane.request(Kind::Standard, &task(), server.pieces.span(0)).expect("usable");
    // A second request that will not be answered must not cost the first one's bytes (a reset would).
    let second = lane.request(Kind::Standard, &task(), server.pieces.span(0)).expect("usable");
    let mut body = ticket.response().await.expect("served");
    server.shutdown.cancel();
    let mut bytes = vec![0; 32 * MIB];
    assert_eq!(fill(&mut body, &mut bytes).await.expect("goes on"), 32 * MIB);
    assert!(bytes == server.pieces.expected(0));
    body.finish().expect("complete");
    let error = second.response().await.expect_err("the server is gone");
    assert_eq!(error.kind(), FetchKind::Retry);
    drop(lane);
    server.ended.await.expect("no panic");
    assert!(TcpStream::connect(server.address).await.is_err());
    assert!(!idle.is_usable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_cuts_off_what_exceeds_the_grace_period() {
    let options = ServerOptions { grace: Duration::from_millis(100), ..Default::default() };
    let server = start(Pieces::new(64 * MIB, 64 * MIB as u64, true), options).await;
    let mut child = TcpStream::connect(server.address).await.expect("listening");
    child.write_all(&request(0)).await.expect("open");
    server.pieces.asked_now.notified().await;
    server.shutdown.cancel();
    server.ended.await.expect("no panic");
    assert_eq!(server.pieces.guards.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_are_charged_against_the_limit() {
    // Blocked for good after the first step: only what was charged may have left.
    let limit = Arc::new(TokenBucket::new(Some(1)));
    let options = ServerOptions { limit: limit.clone(), ..Default::default() };
    let server = start(Pieces::new(4 * MIB, 4 * MIB as u64, true), options.clone()).await;
    let lane = dial(server.address, true).await;
    let ticket = lane.request(Kind::Standard, &task(), server.pieces.span(0)).expect("usable");
    let mut body = ticket.response().await.expect("served");
    let mut first = vec![0; 256 << 10];
    assert_eq!(fill(&mut body, &mut first).await.expect("charged"), 256 << 10);
    let more = tokio::time::timeout(Duration::from_millis(100), body.read(&mut [0])).await;
    assert!(more.is_err(), "more than was charged left the host");
    assert_eq!(options.counters.figures().bytes, 256 << 10);
    limit.set_rate(None);
    let mut rest = vec![0; 4 * MIB];
    assert_eq!(fill(&mut body, &mut rest).await.expect("goes on"), 4 * MIB - (256 << 10));
    body.finish().expect("complete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_content_file_that_is_too_short_breaks_the_connection() {
    for send in [SendPath::Sendfile, SendPath::Buffered] {
        let mut pieces = Pieces::new(1000, 1000, true);
        let common::Store::File(file) = &pieces.store else { unreachable!("made with a file") };
        file.set_len(600).expect("writable");
        pieces.digest = Some(String::new());
        let server = start(pieces, ServerOptions { send, ..Default::default() }).await;
        let lane = dial(server.address, true).await;
        let span = PieceSpan { number: 0, offset: 0, length: 1000 };
        let error = fetch(&lane, span).await.expect_err("400 bytes are missing");
        assert_eq!(error.kind(), FetchKind::Retry);
        assert!(error.to_string().contains("400 bytes"), "{error}");
    }
}
