//! Imports that are cut off, and go on where they were: whoever died.

use damselfly_api::dfdaemon::v2::{WritePersistentCacheTaskFinished, WritePersistentCacheTaskStarted};
use damselfly_core::Algorithm;
use damselfly_tests::Pattern;
use damselfly_tests::swarm::{Host, Swarm, import};
use tonic::Code;

use crate::PIECE;

const UPLOAD: &str = "mine";

/// An upload of `content`, from byte `offset` on.
fn named(content: Pattern, offset: u64) -> WritePersistentCacheTaskStarted {
    WritePersistentCacheTaskStarted {
        content_length: Some(content.length),
        upload_id: UPLOAD.to_owned(),
        offset,
        ..import()
    }
}

/// The same under an id that does not follow from the content.
fn given(content: Pattern, offset: u64) -> WritePersistentCacheTaskStarted {
    let id = Some("a model".to_owned());
    WritePersistentCacheTaskStarted { content_for_calculating_task_id: id, ..named(content, offset) }
}

/// Begins, and breaks off after `end` bytes.
async fn cut(host: &Host, started: WritePersistentCacheTaskStarted, content: Pattern, end: u64) {
    let broken = host.write_part(started, content, end, None).await.unwrap_err();
    assert_eq!(broken.code(), Code::Aborted, "{broken:?}");
    assert!(host.daemon().engine().store.list().is_empty(), "nothing of it is seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_upload_goes_on_where_it_was() {
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let host = &swarm.hosts[0];
    let content = Pattern::new(1, 3 * PIECE);
    cut(host, named(content, 0), content, 2 * PIECE + 1).await;
    assert_eq!(host.verified(UPLOAD).await.unwrap(), 2 * PIECE);
    assert_eq!(host.verified("other").await.unwrap(), 0);
    for wrong in [1, PIECE + 1, 3 * PIECE] {
        let wrong = host.write(named(content, wrong), content).await.unwrap_err();
        assert_eq!(wrong.code(), Code::FailedPrecondition, "{wrong:?}");
    }
    assert_eq!(host.verified(UPLOAD).await.unwrap(), 2 * PIECE, "that did not end it");
    let digest = Some(content.digest(Algorithm::Sha256));
    let finished = Some(WritePersistentCacheTaskFinished { digest });
    // What is sent twice is taken.
    let task = host.write_part(named(content, PIECE), content, content.length, finished).await.unwrap();
    assert_eq!(swarm.hosts[1].read(&task.id, None).await.unwrap(), content.to_vec());
    assert_eq!(host.verified(UPLOAD).await.unwrap(), 0);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_outlives_its_daemon() {
    let mut swarm = Swarm::start(2, "").await.unwrap();
    // The second has no scheduler of its own: the first one's lives on.
    for (seed, with_given_id, killed) in
        [(1, false, true), (2, true, true), (3, false, false), (4, true, false)]
    {
        let content = Pattern::new(seed, 3 * PIECE + 5);
        let started = |offset| if with_given_id { given(content, offset) } else { named(content, offset) };
        let host = &mut swarm.hosts[1];
        cut(host, started(0), content, 2 * PIECE + 5).await;
        if killed {
            host.kill().await;
        } else {
            host.stop().await;
        }
        host.restart().await.unwrap();
        host.daemon().engine().cluster.ready().await;
        assert!(host.daemon().engine().store.list().is_empty(), "nothing of it is seen");
        assert_eq!(host.verified(UPLOAD).await.unwrap(), 2 * PIECE);
        let task = host.write(started(2 * PIECE), content).await.unwrap();
        assert_eq!(swarm.hosts[0].read(&task.id, None).await.unwrap(), content.to_vec());
        swarm.hosts[1].delete_cache(&task.id).await.unwrap();
        swarm.hosts[1].keeps(&task.id, false).await.unwrap();
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_id_is_free_while_its_upload_rests() {
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let [first, second] = &swarm.hosts[..] else { unreachable!() };
    let (content, other) = (Pattern::new(1, 3 * PIECE), Pattern::new(2, PIECE));
    cut(second, given(content, 0), content, 2 * PIECE).await;
    let theirs = first.write(given(other, 0), other).await.unwrap();
    let taken = second.write(given(content, 2 * PIECE), content).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken:?}");
    assert_eq!(second.verified(UPLOAD).await.unwrap(), 2 * PIECE, "it rests on");
    first.delete_cache(&theirs.id).await.unwrap();
    let ours = second.write(given(content, 2 * PIECE), content).await.unwrap();
    assert_eq!(ours.id, theirs.id);
    assert_eq!(second.read(&ours.id, None).await.unwrap(), content.to_vec());
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_client_takes_an_upload_over() {
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let content = Pattern::new(1, 3 * PIECE);
    for end in [0, 2 * PIECE] {
        cut(host, named(content, 0), content, 2 * PIECE).await;
        let mut former = std::pin::pin!(host.write_and_hang(named(content, 2 * PIECE)));
        tokio::select! {
            ended = &mut former => panic!("{ended:?}"),
            imports = host.imports(1) => imports.unwrap(),
        }
        let (task, former) = tokio::join!(host.write(named(content, end), content), former);
        let former = former.unwrap_err();
        assert!(former.code() == Code::Aborted && former.message().contains("another client"), "{former:?}");
        let task = task.unwrap();
        assert_eq!(host.read(&task.id, None).await.unwrap(), content.to_vec());
        host.imports(0).await.unwrap();
        assert_eq!(host.verified(UPLOAD).await.unwrap(), 0);
        host.delete_cache(&task.id).await.unwrap();
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_for_what_can_be_sent_again() {
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let content = Pattern::new(1, 3 * PIECE);
    let piped = WritePersistentCacheTaskStarted { content_length: None, ..named(content, 0) };
    cut(host, piped, content, 2 * PIECE).await;
    assert_eq!(host.verified(UPLOAD).await.unwrap(), 0);
    let long = WritePersistentCacheTaskStarted { upload_id: "x".repeat(257), ..named(content, 0) };
    let long = host.write(long, content).await.unwrap_err();
    assert!(long.code() == Code::InvalidArgument && long.message().contains("256"), "{long:?}");
    // What is wrong from the start is not kept either.
    let digest = Some(Pattern::new(2, 3 * PIECE).digest(Algorithm::Sha256));
    let finished = Some(WritePersistentCacheTaskFinished { digest });
    host.write_part(named(content, 0), content, content.length, finished).await.unwrap_err();
    assert_eq!(host.verified(UPLOAD).await.unwrap(), 0);
    swarm.stop().await;
}
