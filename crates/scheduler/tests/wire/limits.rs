//! What nobody should have to believe, or wait for.

use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_api::damselfly::v1 as ours;
use damselfly_api::scheduler::v2 as scheduler;
use ours::hold_request::Request as HoldRequest;
use scheduler::announce_peer_request::Request;
use tonic::Code;

use crate::kit::{MIB, TASK, download, download_of, our_host, piece, start, start_strict};

#[tokio::test]
async fn a_piece_that_took_for_ages_does_not_stop_the_scheduler() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(our_host("a", 1)).await;
    let mut a = scheduler.register("a", "a-1", download_of(20)).await;
    a.lease().await;
    let ages = prost_types::Duration { seconds: i64::MAX, nanos: 0 };
    let finished = scheduler::DownloadPieceBackToSourceFinishedRequest {
        piece: Some(common::Piece { cost: Some(ages), ..piece(0, None) }),
    };
    a.say(Request::DownloadPieceBackToSourceFinishedRequest(finished)).await;
    a.origin_pieces(1..8).await;
    let silence = a.lease().await.silence.unwrap();
    assert!(silence.seconds <= 3 * 3600, "nor is its lease endless: {silence:?}");
}

#[tokio::test]
async fn a_message_larger_than_any_is_refused() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(our_host("a", 1)).await;
    let mut a = scheduler.open("a", "a-1").await;
    let large = common::Download { url: format!("https://a/{}", "x".repeat(17 << 20)), ..download() };
    let register = scheduler::RegisterPeerRequest { download: Some(large), restate: None };
    a.say(Request::RegisterPeerRequest(register)).await;
    assert_eq!(a.error().await.code(), Code::OutOfRange);
    let mut hold = scheduler.hold(our_host("b", 1), 1).await;
    hold.responses.message().await.unwrap();
    let holding = ours::Holding { bitmap: vec![1; 17 << 20], id: TASK.into(), ..Default::default() };
    hold.say(HoldRequest::Holdings(ours::Holdings { holdings: vec![holding], last: true })).await;
    assert_eq!(hold.responses.message().await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn the_longest_content_is_held_and_a_longer_one_is_not() {
    let scheduler = start(|_| {}).await;
    let hold = scheduler.hold(our_host("a", 1), 1).await;
    let holding = |id: &str, pieces: u64| ours::Holding {
        kind: ours::TaskKind::Standard.into(),
        id: id.into(),
        content_length: Some(pieces * 4 * MIB),
        piece_length: 4 * MIB,
        bitmap: vec![0xff; (pieces / 8) as usize],
        ..Default::default()
    };
    let holdings = vec![holding("abcdef01", (1 << 22) + 8), holding(TASK, 1 << 22)];
    hold.say(HoldRequest::Holdings(ours::Holdings { holdings, last: true })).await;
    scheduler.until(|snapshot| snapshot.tasks.iter().any(|task| task.has_available_peer)).await;
    let tasks = scheduler.service.snapshot().tasks;
    assert_eq!(tasks.iter().map(|task| task.key.id.as_str()).collect::<Vec<_>>(), [TASK]);
}

#[tokio::test]
async fn streams_that_begin_with_nothing_end() {
    let scheduler = start_strict(64, Duration::from_millis(200)).await;
    scheduler.announce(our_host("b", 2)).await;
    let mut hold = scheduler.hold(our_host("a", 1), 1).await;
    let mut b = scheduler.register("b", "b-1", download()).await;
    let mut mute = scheduler.open("a", "a-1").await;
    assert_eq!(mute.error().await.code(), Code::DeadlineExceeded);
    let mut unheld = scheduler.open_hold().await;
    assert_eq!(unheld.responses.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    // Whoever has begun may be silent for as long as it likes.
    hold.responses.message().await.unwrap();
    b.lease().await;
    b.send(scheduler::AnnouncePeerRequest { released_lease: Some(0), ..b.message(None) }).await;
    b.say(Request::DownloadPeerFailedRequest(Default::default())).await;
    b.assert_ends_well().await;
}
