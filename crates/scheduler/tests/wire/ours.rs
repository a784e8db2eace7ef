//! Our daemons.

use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_api::damselfly::v1 as ours;
use damselfly_api::scheduler::v2 as scheduler;
use ours::hold_request::Request as HoldRequest;
use ours::hold_response::Response as HoldResponse;
use scheduler::announce_peer_request::Request;
use scheduler::announce_peer_response::Response;
use tonic::Code;

use crate::kit::{MIB, TASK, download, download_of, host, our_host, piece, start, start_strict};

fn learned(pieces: u64) -> ours::Learned {
    ours::Learned {
        content_length: Some(pieces * 4 * MIB),
        piece_length: 4 * MIB,
        validator: Some(ours::Validator { etag: Some("\"v1\"".into()), last_modified: None }),
        ranges: Some(true),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_lone_peer_gets_lease_after_lease_and_a_good_end() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(our_host("a", 1)).await;
    let mut a = scheduler.register("a", "a-1", download()).await;
    let first = a.lease().await;
    assert_eq!(first.ranges, [ours::PieceRange { first: 0, count: 2 }]);
    a.send(scheduler::AnnouncePeerRequest { learned: Some(learned(20)), ..a.message(None) }).await;
    a.say(Request::DownloadPeerBackToSourceStartedRequest(Default::default())).await;
    let mut leased = first.ranges;
    let mut done = 0;
    while done < 20 {
        for range in leased {
            a.origin_pieces(range.first..range.first + range.count).await;
            done += range.count;
        }
        leased = if done < 20 { a.lease().await.ranges } else { Vec::new() };
    }
    a.say(Request::DownloadPeerFinishedRequest(Default::default())).await;
    a.assert_ends_well().await;
    assert_eq!(scheduler.service.counters().ledger_conflicts, 0);
}

#[tokio::test]
async fn a_second_peer_learns_of_the_content_and_of_the_first() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(our_host("a", 1)).await;
    scheduler.announce(our_host("b", 2)).await;
    let mut a = scheduler.register("a", "a-1", download()).await;
    a.lease().await;
    let mut b = scheduler.register("b", "b-1", download()).await;
    a.send(scheduler::AnnouncePeerRequest { learned: Some(learned(20)), ..a.message(None) }).await;
    let facts = b.facts().await;
    assert_eq!(facts.learned.unwrap().content_length, Some(80 * MIB));
    let (mut lease, mut parents) = (None, None);
    while lease.is_none() || parents.is_none() {
        match b.answer().await {
            Response::NeedBackToSourceResponse(response) => lease = response.lease,
            Response::NormalTaskResponse(response) if response.candidate_parents.is_empty() => {}
            Response::NormalTaskResponse(response) => parents = Some(response.candidate_parents),
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(lease.unwrap().ranges, [ours::PieceRange { first: 2, count: 4 }]);
    let parent = &parents.unwrap()[0];
    let host = parent.host.as_ref().unwrap();
    assert_eq!((parent.id.as_str(), host.tcp_port, host.incarnation), ("a-1", 4005, Some(1)));
    assert_eq!(parent.task.as_ref().unwrap().id, TASK);
    assert!(parent.task.as_ref().unwrap().request_header.is_empty(), "headers are never told");
    a.origin_pieces([0, 1]).await;
    let mut crcs = Vec::new();
    while crcs.len() < 2 {
        crcs.extend(b.facts().await.crcs);
    }
    assert_eq!(crcs, [100, 101]);
}

#[tokio::test]
async fn a_broken_hold_frees_the_leases_at_once() {
    let scheduler = start(|_| {}).await;
    let hold = scheduler.hold(our_host("a", 1), 1).await;
    scheduler.announce(our_host("b", 2)).await;
    let mut a = scheduler.register("a", "a-1", download()).await;
    let lease = a.lease().await;
    a.send(scheduler::AnnouncePeerRequest { learned: Some(learned(2)), ..a.message(None) }).await;
    let mut b = scheduler.register("b", "b-1", download()).await;
    assert_eq!(b.parents().await[0].id, "a-1");
    drop(hold);
    let taken = b.lease().await;
    assert_eq!(taken.ranges, lease.ranges);
    assert!(taken.id > lease.id);
}

#[tokio::test]
async fn hold_welcomes_and_restates_holdings() {
    let scheduler = start(|_| {}).await;
    let mut hold = scheduler.hold(our_host("a", 1), 1).await;
    let Some(HoldResponse::Welcome(welcome)) = hold.responses.message().await.unwrap().unwrap().response
    else {
        panic!("welcome comes first");
    };
    assert_eq!(welcome.address, scheduler.address.to_string());
    assert_eq!(welcome.ring, [scheduler.address.to_string()]);
    let mut other = scheduler.hold(our_host("c", 1), 1).await;
    let again = other.responses.message().await.unwrap().unwrap().response;
    assert_eq!(again, Some(HoldResponse::Welcome(welcome)), "one epoch for all");
    let holding = ours::Holding {
        kind: ours::TaskKind::Standard.into(),
        id: TASK.into(),
        content_length: Some(8 * MIB),
        piece_length: 4 * MIB,
        ..Default::default()
    };
    hold.say(HoldRequest::Holdings(ours::Holdings { holdings: vec![holding], last: true })).await;
    hold.say(HoldRequest::Beat(ours::Beat { seq: 1 })).await;
    scheduler.until(|snapshot| snapshot.tasks.iter().any(|task| task.has_available_peer)).await;
    scheduler.announce(our_host("b", 2)).await;
    let mut b = scheduler.register("b", "b-1", download_of(2)).await;
    let parents = b.parents().await;
    assert_eq!(parents[0].id, format!("a-{}-held", &TASK[..8]));
    assert_eq!(parents[0].state, "Succeeded");
    hold.say(HoldRequest::Tombstones(ours::Tombstones {
        tombstones: vec![ours::Tombstone { id: TASK.into(), ..Default::default() }],
    }))
    .await;
    // Nobody has the content now: B may fetch it, and its list is empty.
    assert_eq!(b.lease().await.ranges, [ours::PieceRange { first: 0, count: 2 }]);
    assert!(b.parents().await.is_empty());
}

#[tokio::test]
async fn a_hold_that_does_not_greet_is_refused() {
    let scheduler = start(|_| {}).await;
    let mut hold = scheduler.hold(our_host("a", 1), 1).await;
    hold.say(HoldRequest::Hello(ours::Hello::default())).await;
    hold.responses.message().await.unwrap();
    assert_eq!(hold.responses.message().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_registration_waits_for_its_host() {
    let scheduler = start(|_| {}).await;
    let mut a = scheduler.register("a", "a-1", download()).await;
    scheduler.announce(our_host("a", 1)).await;
    assert_eq!(a.lease().await.ranges.len(), 1);
    let mut nobody = scheduler.register("nobody", "n-1", download()).await;
    assert_eq!(nobody.error().await.code(), Code::NotFound);
}

#[tokio::test]
async fn a_piece_that_contradicts_the_ledger_is_reported_back() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(our_host("a", 1)).await;
    scheduler.announce(our_host("b", 2)).await;
    let mut a = scheduler.register("a", "a-1", download_of(4)).await;
    a.lease().await;
    a.origin_pieces(0..4).await;
    let mut b = scheduler.register("b", "b-1", download_of(4)).await;
    assert_eq!(b.parents().await.len(), 1);
    let wrong = common::Piece { digest: "crc32:1".into(), ..piece(2, Some("a-1")) };
    let finished = scheduler::DownloadPieceFinishedRequest { piece: Some(wrong) };
    b.say(Request::DownloadPieceFinishedRequest(finished)).await;
    let facts = b.facts().await;
    assert_eq!((facts.first, facts.crcs), (2, vec![102]));
    assert_eq!(scheduler.service.counters().ledger_conflicts, 1);
}

#[tokio::test]
async fn a_restarted_daemon_voids_its_former_peers() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(our_host("a", 1)).await;
    let mut a = scheduler.register("a", "a-1", download()).await;
    a.lease().await;
    scheduler.announce(our_host("a", 2)).await;
    assert_eq!(a.error().await.code(), Code::Aborted);
}

#[tokio::test]
async fn leases_and_facts_are_not_for_dragonflys() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(host("d")).await;
    let mut d = scheduler.register("d", "d-1", download_of(4)).await;
    let message = d.next().await.unwrap().unwrap();
    assert!(message.facts.is_none());
    match message.response.unwrap() {
        Response::NeedBackToSourceResponse(response) => assert!(response.lease.is_none()),
        other => panic!("expected the origin, got {other:?}"),
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_loses_its_stream_and_nobody_else_does() {
    let scheduler = start_strict(2, Duration::from_secs(30)).await;
    scheduler.announce(our_host("a", 1)).await;
    scheduler.announce(our_host("b", 2)).await;
    let mut a = scheduler.register("a", "a-1", download()).await;
    a.lease().await;
    let mut b = scheduler.register("b", "b-1", download()).await;
    // Every new version is told to B at once, and none fits into a window that nobody empties.
    for version in 0..40 {
        let learned = ours::Learned {
            validator: Some(ours::Validator { etag: Some(format!("{version}")), last_modified: None }),
            header: [("x".to_owned(), "x".repeat(200_000))].into(),
            ..learned(1)
        };
        a.send(scheduler::AnnouncePeerRequest { learned: Some(learned), ..a.message(None) }).await;
        while a.facts().await.learned.is_none() {}
    }
    assert_eq!(b.error().await.code(), Code::ResourceExhausted);
    a.origin_pieces([0]).await;
    a.say(Request::DownloadPeerFinishedRequest(Default::default())).await;
    a.assert_ends_well().await;
}

#[tokio::test]
async fn shutting_down_ends_every_stream() {
    let mut scheduler = start(|_| {}).await;
    let mut hold = scheduler.hold(our_host("a", 1), 1).await;
    let mut a = scheduler.register("a", "a-1", download()).await;
    a.lease().await;
    drop(scheduler.stop.take());
    assert_eq!(a.error().await.code(), Code::Unavailable);
    hold.responses.message().await.ok();
    assert_eq!(hold.responses.message().await.unwrap_err().code(), Code::Unavailable);
    drop((a, hold));
    tokio::time::timeout(Duration::from_secs(10), scheduler.served).await.unwrap().unwrap();
}
