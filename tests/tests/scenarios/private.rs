//! Content that only some may have, and who else may not (promise I11).

use damselfly_api::common::v2::Download;
use damselfly_core::{Kind, TaskKey};
use damselfly_tests::OriginServer;
use damselfly_tests::origin::{Behaviour, Blob};
use damselfly_tests::swarm::{Host, Swarm, task_of, to_file, with_header};
use tonic::Code;

use crate::PIECE;

/// A download whose id says nothing of its URL.
fn by_content(url: &str, host: &Host, name: &str) -> Download {
    Download { content_for_calculating_task_id: Some("a model".to_owned()), ..to_file(url, &host.path(name)) }
}

fn authorised(download: Download) -> Download {
    with_header(download, "Authorization", "Bearer right")
}

fn closed(origin: &OriginServer, blob: &Blob) {
    origin.set(blob, Behaviour::requiring("authorization", "Bearer right"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_own_origin_confirms_private_content() {
    let (origin, strangers) = (OriginServer::start().await.unwrap(), OriginServer::start().await.unwrap());
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.named_blob(PIECE, 1, "model");
    closed(&origin, &blob);
    // It says yes to everybody, of content that looks the same.
    let lure = strangers.named_blob(PIECE, 1, "model");
    let other_path = origin.named_blob(PIECE, 1, "public");
    host.download(authorised(by_content(&blob.url, host, "first"))).await.unwrap();
    for url in [&lure.url, &other_path.url] {
        for ask in [by_content(url, host, "lured"), authorised(by_content(url, host, "lured"))] {
            let status = host.download(ask).await.unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
            assert!(status.message().contains("another URL"), "{status:?}");
            assert!(!host.path("lured").try_exists().unwrap());
        }
    }
    // The version counts as well: the query may tell contents apart, and its values are not kept.
    let asked = origin.counts(&blob).requests;
    host.download(authorised(by_content(&blob.url, host, "second"))).await.unwrap();
    assert_eq!(origin.counts(&blob).requests, asked + 1);
    blob.pattern.check_file(host.path("second")).unwrap();
    let newer = Behaviour::version(9);
    origin.set(&blob, Behaviour { require: Some(("authorization".into(), "Bearer right".into())), ..newer });
    let status = host.download(authorised(by_content(&blob.url, host, "third"))).await.unwrap_err();
    assert!(status.message().contains("does not confirm"), "{status:?}");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_content_does_not_enter_a_task_made_for_another_url() {
    let (origin, strangers) = (OriginServer::start().await.unwrap(), OriginServer::start().await.unwrap());
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.named_blob(2 * PIECE, 1, "model");
    closed(&origin, &blob);
    let lure = strangers.named_blob(2 * PIECE, 1, "model");
    // A stranger makes the task first and gets nothing yet.
    strangers.set(&lure, Behaviour { status: Some(404), ..Behaviour::default() });
    host.download(by_content(&lure.url, host, "lured")).await.unwrap_err();
    host.download(authorised(by_content(&blob.url, host, "first"))).await.unwrap();
    blob.pattern.check_file(host.path("first")).unwrap();
    strangers.set(&lure, Behaviour::default());
    let status = host.download(by_content(&lure.url, host, "lured")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(!host.path("lured").try_exists().unwrap());
    swarm.stop().await;

    // Bytes of the stranger's are there already: the two do not mix.
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let part = damselfly_tests::swarm::with_range(by_content(&lure.url, host, "part"), 0, 1);
    host.download(part).await.unwrap();
    let status = host.download(authorised(by_content(&blob.url, host, "mine"))).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_makes_nobody_a_user_of_the_task() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(PIECE, 1);
    closed(&origin, &blob);
    let ask = to_file(&blob.url, &host.path("out"));
    let key = TaskKey { kind: Kind::Standard, id: task_of(&ask) };
    let owners = || host.daemon().engine().store.get(&key).map(|content| content.meta().owners.len());
    host.download(ask.clone()).await.unwrap_err();
    host.idles().await.unwrap();
    assert_eq!(owners(), None, "the origin said no, and nothing is left of the task");
    host.download(authorised(ask.clone())).await.unwrap();
    assert_eq!(owners(), Some(1), "the origin said yes");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_content_of_another_host_is_for_those_who_name_its_url() {
    let (origin, strangers) = (OriginServer::start().await.unwrap(), OriginServer::start().await.unwrap());
    let mut swarm = Swarm::start(3, "").await.unwrap();
    let [first, second, third] = &swarm.hosts[..] else { unreachable!() };
    let blob = origin.named_blob(2 * PIECE, 1, "model");
    closed(&origin, &blob);
    let lure = strangers.named_blob(2 * PIECE, 1, "model");
    first.download(authorised(by_content(&blob.url, first, "out"))).await.unwrap();

    // The scheduler gives it no parents: it has what its own URL names.
    let told = second.download(by_content(&lure.url, second, "lured")).await.unwrap();
    let receipt = second.receipt(&told).await.unwrap();
    assert_eq!((receipt.peer_bytes, receipt.origin_bytes), (0, 2 * PIECE), "{receipt:?}");
    assert_eq!(strangers.counts(&lure).body_bytes, 2 * PIECE);

    let status = third.download(by_content(&blob.url, third, "unasked")).await.unwrap_err();
    assert!(status.message().contains("401"), "{status:?}");
    assert!(!third.path("unasked").try_exists().unwrap());
    let told = third.download(authorised(by_content(&blob.url, third, "out"))).await.unwrap();
    let receipt = third.receipt(&told).await.unwrap();
    // A piece may have come from the peer while the origin was still refusing: its host has it, nobody was given it.
    let copied = receipt.peer_bytes + receipt.local_bytes;
    assert_eq!((copied, receipt.origin_bytes), (2 * PIECE, 0), "{receipt:?}");
    blob.pattern.check_file(third.path("out")).unwrap();
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_the_url_makes_content_private() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.named_blob(PIECE, 1, "model");
    origin.set(&blob, Behaviour::requiring("authorization", "Basic bWU6cmlnaHQ="));
    let (_, rest) = blob.url.split_once("://").unwrap();
    let with = |user: &str, name| by_content(&format!("http://{user}@{rest}"), host, name);
    host.download(with("me:right", "first")).await.unwrap();
    host.download(by_content(&blob.url, host, "anybody")).await.unwrap_err();
    host.download(with("me:wrong", "guessed")).await.unwrap_err();
    assert!(!host.path("anybody").try_exists().unwrap() && !host.path("guessed").try_exists().unwrap());
    host.download(with("me:right", "second")).await.unwrap();
    blob.pattern.check_file(host.path("second")).unwrap();
    swarm.stop().await;
}
