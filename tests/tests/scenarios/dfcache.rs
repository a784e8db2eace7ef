//! Files as replicated cache entries: imported on one host, exported on any.

use std::fs::File;
use std::io::Write as _;

use damselfly_actors::kit::Faults;
use damselfly_api::dfdaemon::v2::WritePersistentCacheTaskStarted;
use damselfly_core::ByteRange;
use damselfly_tests::Pattern;
use damselfly_tests::swarm::{Host, Setup, Swarm, import};
use tonic::Code;

use crate::PIECE;

fn known(content: Pattern) -> WritePersistentCacheTaskStarted {
    WritePersistentCacheTaskStarted { content_length: Some(content.length), ..import() }
}

fn put(host: &Host, name: &str, content: Pattern) {
    File::create(host.path(name)).unwrap().write_all(&content.to_vec()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_host_imports_any_host_exports() {
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let [first, second] = &swarm.hosts[..] else { unreachable!() };
    for (seed, length) in [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 17].into_iter().enumerate() {
        let content = Pattern::new(seed as u64, length);
        put(first, "in", content);
        let by_path = first.upload("in", 1, None).await.unwrap();
        assert_eq!((by_path.content_length, by_path.state.as_str()), (length, "Succeeded"), "{by_path:?}");
        // The same content by another way is the same task.
        let by_stream = first.write(known(content), content).await.unwrap();
        assert_eq!(by_stream.id, by_path.id);
        let mut piped = vec![first.write(import(), Pattern::new(100 + seed as u64, length)).await.unwrap()];
        if length == 0 {
            piped.clear(); // empty is empty, from a pipe too
        }
        for (task, content) in [(by_path, content)]
            .into_iter()
            .chain(piped.into_iter().map(|task| (task, Pattern::new(100 + seed as u64, length))))
        {
            for host in [second, first] {
                assert_eq!(host.read(&task.id, None).await.unwrap(), content.to_vec(), "read {length}");
                let told = host.export(&task.id, Some("out")).await.unwrap();
                assert_eq!((told.content_length, told.pieces.len()), (length, task.piece_count as usize));
                content.check_file(host.path("out")).unwrap();
                std::fs::remove_file(host.path("out")).unwrap();
                assert_eq!(host.export(&task.id, None).await.unwrap().content, content.to_vec());
            }
            if length > 2 {
                let range = ByteRange { start: length / 2, length: length / 2 };
                assert_eq!(second.read(&task.id, Some(range)).await.unwrap(), content.bytes(range));
            }
        }
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_replicated_and_outlives_its_host() {
    let mut swarm = Swarm::start(3, "").await.unwrap();
    let content = Pattern::new(1, 3 * PIECE + 5);
    let started = WritePersistentCacheTaskStarted { persistent_replica_count: 2, ack: 2, ..known(content) };
    let task = swarm.hosts[1].write(started, content).await.unwrap();
    assert_eq!((task.persistent_replica_count, task.current_persistent_replica_count), (2, 2), "{task:?}");
    let stat = swarm.hosts[2].stat_cache(&task.id).await.unwrap();
    let kept: Vec<_> =
        stat.replicas.iter().filter(|replica| replica.persistent && replica.complete).collect();
    assert_eq!((kept.len(), stat.state.as_str()), (2, "Succeeded"), "{stat:?}");
    // Whoever imported it goes; another has it.
    swarm.hosts[1].kill().await;
    let without = &swarm.hosts[if kept.iter().any(|replica| replica.hostname == "host2") { 0 } else { 2 }];
    assert_eq!(without.read(&task.id, None).await.unwrap(), content.to_vec());
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dies_with_a_host_is_made_good_on_another() {
    let mut swarm = Swarm::start(3, "replicaRepairDelay: 1s\n").await.unwrap();
    let content = Pattern::new(1, 2 * PIECE + 5);
    let started = WritePersistentCacheTaskStarted { persistent_replica_count: 2, ack: 2, ..known(content) };
    let task = swarm.hosts[1].write(started, content).await.unwrap();
    swarm.hosts[1].kill().await;
    for host in [&swarm.hosts[0], &swarm.hosts[2]] {
        host.keeps(&task.id, true).await.unwrap();
        assert_eq!(host.read(&task.id, None).await.unwrap(), content.to_vec());
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_replicas_than_hosts_are_not_waited_for() {
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let host = &swarm.hosts[0];
    let content = Pattern::new(1, PIECE);
    let started = WritePersistentCacheTaskStarted { persistent_replica_count: 3, ack: 3, ..known(content) };
    let refused = host.write(started, content).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains('3') && refused.message().contains('2'), "{refused:?}");
    assert!(host.daemon().engine().store.list().is_empty());
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_reaches_every_copy_and_the_id_is_free_again() {
    let mut swarm = Swarm::start(3, "").await.unwrap();
    let content = Pattern::new(1, 2 * PIECE);
    let named = |content: Pattern| WritePersistentCacheTaskStarted {
        persistent_replica_count: 3,
        ack: 3,
        content_for_calculating_task_id: Some("a model".to_owned()),
        ..known(content)
    };
    let [first, second, third] = &swarm.hosts[..] else { unreachable!() };
    let task = first.write(named(content), content).await.unwrap();
    let other = Pattern::new(2, PIECE);
    let taken = second.write(named(other), other).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken:?}");
    first.delete_cache(&task.id).await.unwrap();
    for host in [first, second, third] {
        host.keeps(&task.id, false).await.unwrap();
        let gone = host.read(&task.id, None).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound, "{gone:?}");
        assert!(gone.message().contains("deleted"), "{gone:?}");
    }
    let again = second.write(named(other), other).await.unwrap();
    assert_eq!(again.id, task.id);
    assert_eq!(third.read(&task.id, None).await.unwrap(), other.to_vec());
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_may_have_a_given_id() {
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let [first, second] = &swarm.hosts[..] else { unreachable!() };
    let content = Pattern::new(1, PIECE + 1);
    let named = WritePersistentCacheTaskStarted {
        content_for_calculating_task_id: Some("a model".to_owned()),
        ..import()
    };
    let task = first.write(named.clone(), content).await.unwrap();
    assert_eq!((task.content_length, task.piece_length), (content.length, 16 << 20), "{task:?}");
    assert_eq!(second.read(&task.id, None).await.unwrap(), content.to_vec());
    // Nobody knows before its end whether it is the same content.
    let taken = second.write(named, Pattern::new(2, PIECE)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken:?}");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_imports_and_exports_say_what_is_wrong_and_leave_nothing() {
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let content = Pattern::new(1, PIECE);
    let refuse = async |started: WritePersistentCacheTaskStarted, code: Code, says: &str| {
        let why = host.write(started, content).await.unwrap_err();
        assert!(why.code() == code && why.message().contains(says), "{why:?}");
        assert!(host.daemon().engine().store.list().is_empty());
    };
    refuse(WritePersistentCacheTaskStarted { ttl: None, ..known(content) }, Code::InvalidArgument, "ttl")
        .await;
    let none = WritePersistentCacheTaskStarted { persistent_replica_count: 0, ..known(content) };
    refuse(none, Code::InvalidArgument, "persistent_replica_count").await;
    let many = WritePersistentCacheTaskStarted { ack: 2, ..known(content) };
    refuse(many, Code::InvalidArgument, "ack").await;
    let odd = WritePersistentCacheTaskStarted { content_id: "md5".to_owned(), ..known(content) };
    refuse(odd, Code::InvalidArgument, "md5").await;
    let short = WritePersistentCacheTaskStarted { content_length: Some(PIECE + 1), ..import() };
    refuse(short, Code::InvalidArgument, "announced").await;
    let small = WritePersistentCacheTaskStarted { piece_length: Some(5), ..known(content) };
    refuse(small, Code::InvalidArgument, "piece_length").await;

    let unknown = "ab".repeat(32);
    for why in [host.read(&unknown, None).await.unwrap_err(), host.stat_cache(&unknown).await.unwrap_err()] {
        assert!(why.code() == Code::NotFound && why.message().contains("never imported"), "{why:?}");
    }
    let malformed = host.read("no id", None).await.unwrap_err();
    assert_eq!(malformed.code(), Code::InvalidArgument, "{malformed:?}");
    let absent = host.upload("absent", 1, None).await.unwrap_err();
    assert!(absent.message().contains("absent"), "{absent:?}");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_an_import_costs_this_import_only() {
    let (mut swarm, faults) = (Swarm::start(0, "").await.unwrap(), Faults::armable());
    swarm.add(Setup { faults: faults.clone(), ..Setup::default() }).await.unwrap();
    let host = &swarm.hosts[0];
    let content = Pattern::new(1, PIECE);
    faults.arm("import", 1);
    let crashed = host.write(known(content), content).await.unwrap_err();
    assert!(crashed.message().contains("crashed"), "{crashed:?}");
    let task = host.write(known(content), content).await.unwrap();
    assert_eq!(host.read(&task.id, None).await.unwrap(), content.to_vec());
    swarm.stop().await;
}
