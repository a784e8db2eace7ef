//! Dragonfly's daemons.

use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_api::scheduler::v2 as scheduler;
use scheduler::announce_peer_request::Request;
use scheduler::announce_peer_response::Response;
use tonic::Code;

use crate::kit::{Recorder, TASK, download_of, host, piece, start, start_with};

#[tokio::test]
async fn the_first_goes_to_the_origin_and_the_second_to_the_first() {
    let scheduler = start(|_| {}).await;
    for name in ["a", "b"] {
        scheduler.announce(host(name)).await;
    }
    let mut a = scheduler.register("a", "a-1", download_of(3)).await;
    assert!(matches!(a.answer().await, Response::NeedBackToSourceResponse(_)));
    let mut b = scheduler.register("b", "b-1", download_of(3)).await;
    a.say(Request::DownloadPeerBackToSourceStartedRequest(Default::default())).await;
    a.origin_pieces(0..1).await;
    // B was waiting and is answered by A's progress.
    let parents = b.parents().await;
    assert_eq!(parents.len(), 1);
    assert_eq!((parents[0].id.as_str(), parents[0].state.as_str()), ("a-1", "BackToSource"));
    b.started().await;
    a.origin_pieces(1..3).await;
    a.say(Request::DownloadPeerBackToSourceFinishedRequest(Default::default())).await;
    a.assert_ends_well().await;
    for number in 0..2 {
        let finished = scheduler::DownloadPieceFinishedRequest { piece: Some(piece(number, Some("a-1"))) };
        b.say(Request::DownloadPieceFinishedRequest(finished)).await;
    }
    let used = common::Peer { id: "a-1".into(), ..Default::default() };
    b.say(Request::ReschedulePeerRequest(scheduler::ReschedulePeerRequest {
        candidate_parents: vec![used],
        description: Some("not all pieces are downloaded from parent".into()),
    }))
    .await;
    // Nobody is left, so it gets the origin; it may start again, and its stream ends after its last word.
    assert!(matches!(b.answer().await, Response::NeedBackToSourceResponse(_)));
    b.started().await;
    b.say(Request::DownloadPeerBackToSourceStartedRequest(Default::default())).await;
    b.origin_pieces(2..3).await;
    b.say(Request::DownloadPeerFinishedRequest(Default::default())).await;
    b.assert_ends_well().await;
}

#[tokio::test]
async fn nothing_comes_unasked() {
    let scheduler = start(|_| {}).await;
    for name in ["a", "b", "c"] {
        scheduler.announce(host(name)).await;
    }
    let mut a = scheduler.register("a", "a-1", download_of(3)).await;
    a.answer().await;
    a.say(Request::DownloadPeerBackToSourceStartedRequest(Default::default())).await;
    a.origin_pieces(0..3).await;
    let mut b = scheduler.register("b", "b-1", download_of(3)).await;
    assert_eq!(b.parents().await.len(), 1);
    b.started().await;
    a.say(Request::DownloadPeerBackToSourceFinishedRequest(Default::default())).await;
    a.assert_ends_well().await;
    let mut c = scheduler.register("c", "c-1", download_of(3)).await;
    c.parents().await;
    let unasked = tokio::time::timeout(Duration::from_millis(300), b.responses.message()).await;
    assert!(unasked.is_err(), "got {unasked:?}");
}

#[tokio::test]
async fn a_failed_peers_stream_ends_well() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(host("a")).await;
    let mut a = scheduler.register("a", "a-1", download_of(3)).await;
    a.answer().await;
    a.say(Request::DownloadPeerBackToSourceStartedRequest(Default::default())).await;
    a.say(Request::DownloadPieceBackToSourceFailedRequest(Default::default())).await;
    a.say(Request::DownloadPeerBackToSourceFailedRequest(Default::default())).await;
    a.assert_ends_well().await;
    let mut client = scheduler.client().await;
    let request = scheduler::StatTaskRequest { host_id: "a".into(), task_id: TASK.into() };
    let task = client.stat_task(request).await.unwrap().into_inner();
    assert_eq!((task.state.as_str(), task.content_length), ("Failed", 0));
}

#[tokio::test]
async fn empty_content_and_metadata_are_answered_at_once() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(host("a")).await;
    let mut empty = scheduler.register("a", "a-1", download_of(0)).await;
    assert!(matches!(empty.answer().await, Response::EmptyTaskResponse(_)));
    empty.started().await;
    empty.say(Request::DownloadPeerFinishedRequest(Default::default())).await;
    empty.assert_ends_well().await;
    let metadata = common::Download { metadata_only: true, ..download_of(3) };
    let mut metadata = scheduler.register("a", "a-2", metadata).await;
    assert!(matches!(metadata.answer().await, Response::MetadataOnlyResponse(_)));
    metadata.started().await;
    metadata.say(Request::DownloadPeerFinishedRequest(Default::default())).await;
    metadata.assert_ends_well().await;
}

#[tokio::test]
async fn a_seed_is_triggered_with_a_copy_of_the_download() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(host("a")).await;
    scheduler.announce(common::Host { r#type: 1, port: 4100, ..host("s-seed") }).await;
    let mut a = scheduler.register("a", "a-1", download_of(3)).await;
    let seed = common::Download { need_back_to_source: true, ..download_of(3) };
    let mut s = scheduler.register("s-seed", "s-1-seed", seed).await;
    assert!(matches!(s.answer().await, Response::NeedBackToSourceResponse(_)));
    s.say(Request::DownloadPeerBackToSourceStartedRequest(Default::default())).await;
    s.origin_pieces(0..1).await;
    assert_eq!(a.parents().await[0].id, "s-1-seed");
    let (address, download) = scheduler.outbound.seeds.lock()[0].clone();
    assert_eq!(address.port(), 4100);
    assert!(download.need_back_to_source);
    assert_eq!(download.output_path, None);
    assert_eq!(download.request_header["authorization"], "secret");
}

#[tokio::test]
async fn a_seed_that_cannot_be_triggered_leaves_the_origin() {
    let scheduler = start_with(|_| {}, Recorder { fail: true, ..Default::default() }).await;
    scheduler.announce(host("a")).await;
    scheduler.announce(common::Host { r#type: 1, ..host("s-seed") }).await;
    let mut a = scheduler.register("a", "a-1", download_of(3)).await;
    assert!(matches!(a.answer().await, Response::NeedBackToSourceResponse(_)));
}

#[tokio::test]
async fn low_priorities_are_refused_while_nobody_has_the_content() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(host("a")).await;
    for (priority, code) in
        [(common::Priority::Level1, Code::FailedPrecondition), (common::Priority::Level2, Code::NotFound)]
    {
        let download = common::Download { priority: priority.into(), ..download_of(3) };
        let mut a = scheduler.register("a", &format!("a-{priority:?}"), download).await;
        assert_eq!(a.error().await.code(), code);
    }
}

#[tokio::test]
async fn a_daemon_is_told_at_most_five_times() {
    let scheduler = start(|_| {}).await;
    for name in ["a", "b", "c", "d", "e", "f", "z"] {
        scheduler.announce(host(name)).await;
    }
    let mut others = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        let download = common::Download { need_back_to_source: true, ..download_of(3) };
        let mut peer = scheduler.register(name, &format!("{name}-1"), download).await;
        peer.answer().await;
        peer.say(Request::DownloadPeerBackToSourceStartedRequest(Default::default())).await;
        peer.origin_pieces(0..1).await;
        others.push(peer);
    }
    let mut z = scheduler.register("z", "z-1", download_of(3)).await;
    let mut told = 0;
    let status = loop {
        match z.next().await {
            Ok(Some(_)) => told += 1,
            Ok(None) => panic!("the stream ended well"),
            Err(status) => break status,
        }
        z.say(Request::ReschedulePeerRequest(Default::default())).await;
    };
    assert_eq!(told, 5);
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn the_rules_of_the_dialogue_are_kept() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(host("a")).await;
    let mut unregistered = scheduler.open("a", "a-1").await;
    unregistered.started().await;
    assert_eq!(unregistered.error().await.code(), Code::NotFound);
    let mut nameless = scheduler.open("a", "").await;
    nameless.started().await;
    let status = nameless.error().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("peer_id"), "{}", status.message());
    let mut armless = scheduler.open("a", "a-1").await;
    armless.send(armless.message(None)).await;
    assert_eq!(armless.error().await.code(), Code::InvalidArgument);
    let mut two = scheduler.register("a", "a-2", download_of(3)).await;
    two.answer().await;
    two.peer = "a-3".into();
    two.started().await;
    assert_eq!(two.error().await.code(), Code::InvalidArgument);
}
