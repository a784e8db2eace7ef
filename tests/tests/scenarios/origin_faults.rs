//! Origins that refuse, fail, die and change their mind.

use std::time::Duration;

use damselfly_tests::OriginServer;
use damselfly_tests::origin::{Behaviour, Gate, Trouble};
use damselfly_tests::swarm::{Swarm, download, task_of, to_file, with_header};
use tonic::{Code, Status};

use crate::PIECE;

/// The JSON that Dragonfly's clients read from a status' details, as far as needed here.
fn detail(status: &Status) -> String {
    String::from_utf8(status.details().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_the_client_with_status_and_headers() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    for code in [404, 401, 403, 410] {
        let blob = origin.named_blob(1000, 1, &code.to_string());
        let headers = vec![("X-Reason".to_owned(), "because".to_owned())];
        origin.set(&blob, Behaviour { status: Some(code), headers, ..Behaviour::default() });
        let status = host.get(&blob.url, "out").await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{status:?}");
        let detail = detail(&status);
        assert!(detail.contains(&format!("\"status_code\":{code}")), "{detail}");
        assert!(detail.contains("\"header\":{") && detail.contains("\"message\":"), "{detail}");
        assert!(status.message().contains(&code.to_string()), "{status:?}");
        assert!(!host.path("out").try_exists().unwrap());
        assert!(origin.counts(&blob).requests <= 2, "a refusal is final");
    }
    host.idles().await.unwrap();
    assert!(host.daemon().engine().store.list().is_empty(), "what failed at once leaves nothing behind");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_origin_is_asked_again_when_it_said() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(PIECE + 1, 2);
    let trouble = Trouble { requests: 2, status: 503, retry_after: Some(Duration::from_secs(1)) };
    origin.set(&blob, Behaviour { trouble: Some(trouble), ..Behaviour::default() });
    host.get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(host.path("out")).unwrap();
    let counts = origin.counts(&blob);
    assert_eq!((counts.refused, counts.body_bytes), (2, blob.pattern.length));
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_responses_are_taken_up_again() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(2 * PIECE, 3);
    origin.set(&blob, Behaviour { cut_after: Some(PIECE / 2), ..Behaviour::default() });
    let mut call = host.open(to_file(&blob.url, &host.path("out"))).await.unwrap();
    call.started().await.unwrap();
    origin.wait_until(&blob, |counts| counts.requests >= 3).await.unwrap();
    origin.set(&blob, Behaviour::default());
    call.finish().await.unwrap();
    blob.pattern.check_file(host.path("out")).unwrap();
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_dies_at_half_and_comes_back_is_asked_for_the_rest_only() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(6 * PIECE, 4);
    origin.set(&blob, Behaviour { rate: Some(30 << 20), ..Behaviour::default() });
    let mut call = host.open(to_file(&blob.url, &host.path("out"))).await.unwrap();
    call.pieces(3).await.unwrap();
    let addr = origin.addr();
    origin.kill().await;
    let origin = OriginServer::start_at(addr).await.unwrap();
    call.finish().await.unwrap();
    blob.pattern.check_file(host.path("out")).unwrap();
    let sent = origin.counts(&blob).body_bytes;
    assert!(sent <= 3 * PIECE, "{sent} bytes for the rest");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_hold_everything_do_without_an_origin() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(3, "").await.unwrap();
    let blob = origin.blob(5 * PIECE, 5);
    swarm.hosts[0].get(&blob.url, "out").await.unwrap();
    origin.kill().await;
    let (first, second) =
        tokio::join!(swarm.hosts[1].get(&blob.url, "out"), swarm.hosts[2].get(&blob.url, "out"));
    first.unwrap();
    second.unwrap();
    for host in &swarm.hosts {
        blob.pattern.check_file(host.path("out")).unwrap();
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_hold_halves_complete_each_other_after_the_origin_died() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let blob = origin.blob(4 * PIECE, 6);
    for (index, host) in swarm.hosts.iter().enumerate() {
        let start = index as u64 * 2 * PIECE;
        host.download(damselfly_tests::swarm::with_range(download(&blob.url), start, 2 * PIECE))
            .await
            .unwrap();
    }
    origin.kill().await;
    let (first, second) =
        tokio::join!(swarm.hosts[0].get(&blob.url, "out"), swarm.hosts[1].get(&blob.url, "out"));
    first.unwrap();
    second.unwrap();
    for host in &swarm.hosts {
        blob.pattern.check_file(host.path("out")).unwrap();
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_dies_for_good_fails_the_client_with_its_words() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(1000, 7);
    let status_of = |result: Result<_, Status>| result.map(|_: damselfly_tests::swarm::Told| ()).unwrap_err();
    let trouble = Trouble { requests: u64::MAX, status: 503, retry_after: Some(Duration::from_secs(3600)) };
    origin.set(&blob, Behaviour { trouble: Some(trouble), ..Behaviour::default() });
    let status = status_of(host.get(&blob.url, "out").await);
    assert!(status.message().contains("503"), "{status:?}");
    assert!(detail(&status).contains("\"status_code\":503"), "{status:?}");
    assert!(!host.path("out").try_exists().unwrap());
    // And nothing is held against it.
    origin.set(&blob, Behaviour::default());
    host.get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(host.path("out")).unwrap();
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_changes_midway_ends_up_as_the_new_version() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let blob = origin.blob(4 * PIECE, 8);
    let new = damselfly_tests::Pattern::new(99, blob.pattern.length);
    let gate = Gate::closed();
    origin.set(&blob, Behaviour { gate: Some((PIECE / 4, gate.clone())), ..Behaviour::default() });
    let host = &swarm.hosts[0];
    let path = host.path("out");
    let mut call = host.open(to_file(&blob.url, &path)).await.unwrap();
    call.started().await.unwrap();
    gate.holds(2).await.unwrap();
    // Responses under way still give the old bytes; whoever asks from now on gets the new ones.
    origin.set(
        &blob,
        Behaviour { gate: Some((PIECE / 4, gate.clone())), cut_after: Some(0), ..Behaviour::version(99) },
    );
    gate.open();
    origin.wait_until(&blob, |counts| counts.requests >= 3).await.unwrap();
    origin.set(&blob, Behaviour::version(99));
    call.finish().await.unwrap();
    new.check_file(&path).unwrap();
    let told = swarm.hosts[1].get(&blob.url, "out").await.unwrap();
    new.check_file(swarm.hosts[1].path("out")).unwrap();
    assert_eq!(swarm.hosts[1].receipt(&told).await.unwrap().origin_bytes, 0);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_users_the_one_whom_the_origin_rejects_fails_alone() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(2 * PIECE, 10);
    let gate = Gate::closed();
    let required = Behaviour::requiring("authorization", "Bearer right");
    origin.set(&blob, Behaviour { gate: Some((0, gate.clone())), gate_head: true, ..required });
    let ask = |token: &str, name: &str| {
        host.download(with_header(to_file(&blob.url, &host.path(name)), "Authorization", token))
    };
    let open = async {
        gate.holds(1).await.unwrap();
        gate.open();
    };
    let (right, wrong, ()) = tokio::join!(ask("Bearer right", "right"), ask("Bearer wrong", "wrong"), open);
    right.unwrap();
    blob.pattern.check_file(host.path("right")).unwrap();
    let status = wrong.unwrap_err();
    assert!(detail(&status).contains("\"status_code\":401"), "{status:?}");
    assert!(!host.path("wrong").try_exists().unwrap());
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_content_is_confirmed_for_every_further_client() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let blob = origin.blob(PIECE, 11);
    origin.set(&blob, Behaviour::requiring("authorization", "Bearer right"));
    let ask = |index: usize, token: &str, name: &str| {
        let host: &damselfly_tests::swarm::Host = &swarm.hosts[index];
        host.download(with_header(to_file(&blob.url, &host.path(name)), "Authorization", token))
    };
    ask(0, "Bearer right", "first").await.unwrap();
    // A local hit, and a peer that holds everything.
    for index in [0, 1] {
        let host = &swarm.hosts[index];
        let status = ask(index, "Bearer wrong", "wrong").await.unwrap_err();
        assert!(detail(&status).contains("\"status_code\":401"), "host {index}: {status:?}");
        let status = host.get(&blob.url, "wrong").await.unwrap_err();
        assert!(detail(&status).contains("\"status_code\":401"), "host {index}: {status:?}");
        assert!(!host.path("wrong").try_exists().unwrap());
        ask(index, "Bearer right", "right").await.unwrap();
        blob.pattern.check_file(host.path("right")).unwrap();
    }
    let sent = origin.counts(&blob).body_bytes;
    assert!(sent <= PIECE + 16, "{sent}: confirming takes a byte, not the content");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_download_can_be_tried_again() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(100, 12);
    origin.set(&blob, Behaviour { status: Some(404), ..Behaviour::default() });
    host.get(&blob.url, "out").await.unwrap_err();
    origin.set(&blob, Behaviour::default());
    host.get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(host.path("out")).unwrap();
    assert!(host.stat(&task_of(&download(&blob.url))).await.unwrap().finished_at.is_some());
    swarm.stop().await;
}
