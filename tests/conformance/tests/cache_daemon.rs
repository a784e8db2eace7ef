//! Persistent cache tasks of our daemon among Dragonfly's: at a scheduler and a parent of theirs, under the orders of that
//! scheduler, and with a child of theirs.

use std::time::{Duration, SystemTime};

use damselfly_conformance::cache::{check_task, export, import, stat, told};
use damselfly_conformance::parent::TheirParent;
use damselfly_conformance::scheduler::{CacheConversation, CacheSays, Says, TheirScheduler, Upload};
use damselfly_conformance::vortex::{Answer, read_answer, request};
use damselfly_conformance::{TASK, children, programs, rules};
use damselfly_core::{Crc, Geometry, Kind};
use damselfly_tests::Pattern;
use damselfly_tests::swarm::{Host, Swarm};
use dragonfly_api::common::v2::PersistentCacheTask;
use dragonfly_api::dfdaemon::v2::{
    DeletePersistentCacheTaskRequest, DownloadPersistentCacheTaskRequest,
    StatLocalPersistentCacheTaskRequest, SyncPersistentCachePiecesRequest, UpdatePersistentCacheTaskRequest,
    UploadPersistentCacheTaskRequest,
};
use dragonfly_api::scheduler::v2::announce_persistent_cache_peer_request::Request as Ask;
use prost_wkt_types::Duration as Span;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

const DEADLINE: Duration = Duration::from_secs(60);
const PIECE: u64 = 4 << 20;
const CONTENT: Pattern = Pattern { seed: 3, length: 2 * PIECE + 1 };

/// What somebody imported there.
fn imported(content: Pattern) -> PersistentCacheTask {
    let geometry = Geometry::derived(content.length).unwrap();
    let now = Some(SystemTime::now().into());
    PersistentCacheTask {
        id: TASK.to_owned(),
        persistent_replica_count: 2,
        current_persistent_replica_count: 1,
        current_replica_count: 1,
        piece_length: geometry.piece_length(),
        content_length: content.length,
        piece_count: geometry.piece_count(),
        state: "Succeeded".to_owned(),
        ttl: Some(Span { seconds: 3600, nanos: 0 }),
        created_at: now,
        updated_at: now,
        ..PersistentCacheTask::default()
    }
}

/// A host of ours at a scheduler of theirs that knows a task, which a parent of theirs has.
async fn among_theirs(content: Pattern) -> (Swarm, TheirScheduler, TheirParent) {
    let parent = TheirParent::start(content).await;
    let task = imported(content);
    let parents = vec![parent.cache_peer(task.clone())];
    let says = CacheSays { tasks: vec![task], parents, ..CacheSays::default() };
    let scheduler = TheirScheduler::with_cache(Says::Origin, says).await;
    let swarm = Swarm::join(1, &[scheduler.address()], "").await.unwrap();
    (swarm, scheduler, parent)
}

/// Whether this host's copy is a replica; `None` without a copy.
async fn copy(host: &Host) -> Option<bool> {
    let request = StatLocalPersistentCacheTaskRequest { task_id: TASK.to_owned(), remote_ip: None };
    match programs(host).await.stat_local_persistent_cache_task(request).await {
        Ok(copy) => Some(copy.into_inner().persistent),
        Err(why) if why.code() == Code::NotFound => None,
        Err(why) => panic!("{why:?}"),
    }
}

/// The arms of a conversation.
fn arms(conversation: &CacheConversation) -> Vec<&'static str> {
    let name = |request: &Ask| match request {
        Ask::RegisterPersistentCachePeerRequest(_) => "register",
        Ask::DownloadPersistentCachePeerStartedRequest(_) => "started",
        Ask::DownloadPieceFinishedRequest(_) => "piece",
        Ask::DownloadPersistentCachePeerFinishedRequest(_) => "finished",
        Ask::DownloadPersistentCachePeerFailedRequest(_) => "failed",
        _ => "other",
    };
    conversation.iter().map(|message| name(message.request.as_ref().unwrap())).collect()
}

fn registered(conversation: &CacheConversation) -> (bool, u64, u64) {
    match conversation[0].request.as_ref() {
        Some(Ask::RegisterPersistentCachePeerRequest(register)) => {
            (register.persistent, register.piece_length, register.piece_count)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_announced_to_their_scheduler() {
    let scheduler = TheirScheduler::start(Says::Origin).await;
    let mut swarm = Swarm::join(1, &[scheduler.address()], "").await.unwrap();
    let host = &swarm.hosts[0];
    let announced = scheduler.host().await;
    let path = host.path("in");
    for (seed, length) in [0, 1, PIECE, 2 * PIECE + 1].into_iter().enumerate() {
        let content = Pattern::new(seed as u64, length);
        tokio::fs::write(&path, content.to_vec()).await.unwrap();
        let request = UploadPersistentCacheTaskRequest {
            persistent_replica_count: 3,
            tag: Some("tag".to_owned()),
            ..import(&path)
        };
        let mut client = programs(host).await;
        let task = client.upload_persistent_cache_task(request.clone()).await.unwrap().into_inner();
        check_task(&task, content);
        let Upload::Started(started) = scheduler.upload().await else { panic!("no beginning") };
        assert_eq!((&started.host_id, &started.task_id), (&announced.id, &task.id));
        assert_eq!((started.persistent_replica_count, started.tag.as_deref()), (3, Some("tag")));
        assert_eq!((started.content_length, started.piece_count), (length, task.piece_count));
        assert_eq!(started.ttl.unwrap().seconds, 3600);
        let Upload::Finished(finished) = scheduler.upload().await else { panic!("no end") };
        assert_eq!((finished.host_id, finished.peer_id), (started.host_id, started.peer_id));
        // Go's scheduler refuses what is there. The content is the same, so the import succeeds.
        check_task(&client.upload_persistent_cache_task(request).await.unwrap().into_inner(), content);
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_their_scheduler_refuses_leaves_nothing() {
    let says = CacheSays { refuses_imports: true, ..CacheSays::default() };
    let scheduler = TheirScheduler::with_cache(Says::Origin, says).await;
    let mut swarm = Swarm::join(1, &[scheduler.address()], "").await.unwrap();
    let host = &swarm.hosts[0];
    let path = host.path("in");
    tokio::fs::write(&path, CONTENT.to_vec()).await.unwrap();
    for given in [None, Some("This is a test file".to_owned())] {
        let request =
            UploadPersistentCacheTaskRequest { content_for_calculating_task_id: given, ..import(&path) };
        let why = programs(host).await.upload_persistent_cache_task(request).await.unwrap_err();
        assert!(why.code() == Code::Internal && why.message().contains("redis is not there"), "{why:?}");
        let told = [scheduler.upload().await, scheduler.upload().await, scheduler.upload().await];
        let [Upload::Started(begun), Upload::Finished(_), Upload::Failed(failed)] = told else {
            panic!("{told:?}")
        };
        assert_eq!((begun.task_id, begun.peer_id), (failed.task_id, failed.peer_id));
        assert!(host.daemon().engine().store.list().is_empty());
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_comes_from_their_parent() {
    let (mut swarm, scheduler, parent) = among_theirs(CONTENT).await;
    let host = &swarm.hosts[0];
    let out = host.path("out");
    let mut client = programs(host).await;
    let exported =
        told(client.download_persistent_cache_task(export(TASK, Some(&out))).await.unwrap().into_inner());
    exported.await.unwrap().check(CONTENT, false);
    CONTENT.check_file(&out).unwrap();
    let mut seen = parent.seen();
    seen.served.sort_unstable();
    assert_eq!((seen.served, seen.wrong), (vec![0, 1, 2], Vec::new()));

    let conversation = scheduler.cache_conversation().await;
    assert_eq!(registered(&conversation), (false, PIECE, 3));
    assert_eq!(arms(&conversation), ["register", "started", "piece", "piece", "piece", "finished"]);
    let parent_id = parent.cache_peer(imported(CONTENT)).id;
    for message in &conversation {
        rules::cache_request(message).unwrap_or_else(|rule| panic!("{rule} missing or wrong in {message:?}"));
        if let Some(Ask::DownloadPieceFinishedRequest(finished)) = &message.request {
            assert_eq!(finished.piece.as_ref().unwrap().parent_id.as_ref(), Some(&parent_id));
        }
    }
    // The second time it is here.
    let exported =
        told(client.download_persistent_cache_task(export(TASK, None)).await.unwrap().into_inner());
    exported.await.unwrap().check(CONTENT, true);
    assert_eq!(parent.seen().served.len(), 3);
    check_task(&client.stat_persistent_cache_task(stat(TASK)).await.unwrap().into_inner(), CONTENT);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_content_is_exported_without_a_parent() {
    let (mut swarm, _scheduler, parent) = among_theirs(Pattern::new(0, 0)).await;
    let host = &swarm.hosts[0];
    let out = host.path("out");
    let mut client = programs(host).await;
    let exported =
        told(client.download_persistent_cache_task(export(TASK, Some(&out))).await.unwrap().into_inner());
    exported.await.unwrap().check(Pattern::new(0, 0), false);
    assert_eq!(std::fs::metadata(&out).unwrap().len(), 0);
    assert_eq!(parent.seen(), Default::default());
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn their_scheduler_has_replicas_made_kept_and_deleted() {
    let (mut swarm, scheduler, _parent) = among_theirs(CONTENT).await;
    let host = &swarm.hosts[0];
    let mut orders = children(host).await;
    let update = |persistent| UpdatePersistentCacheTaskRequest {
        task_id: TASK.to_owned(),
        persistent,
        remote_ip: Some("127.0.0.1".to_owned()),
    };
    assert_ne!(orders.update_persistent_cache_task(update(true)).await.unwrap_err().code(), Code::Ok);
    let known = orders.stat_persistent_cache_task(stat(TASK)).await.unwrap().into_inner();
    assert_eq!((known.id.as_str(), known.content_length), (TASK, CONTENT.length));

    // A copy of a user's becomes a replica.
    let mut client = programs(host).await;
    let exported =
        told(client.download_persistent_cache_task(export(TASK, None)).await.unwrap().into_inner());
    exported.await.unwrap().check(CONTENT, true);
    assert_eq!(copy(host).await, Some(false));
    orders.update_persistent_cache_task(update(true)).await.unwrap();
    assert_eq!(copy(host).await, Some(true));

    let delete = DeletePersistentCacheTaskRequest { task_id: TASK.to_owned(), remote_ip: None };
    // Dragonfly's daemon says yes to what it does not have.
    for _ in 0..2 {
        orders.delete_persistent_cache_task(delete.clone()).await.unwrap();
        assert_eq!(copy(host).await, None);
    }

    // A replica from nothing, and once more where it is.
    drop(scheduler.cache_conversation().await);
    for _ in 0..2 {
        let replicate = DownloadPersistentCacheTaskRequest {
            task_id: TASK.to_owned(),
            persistent: true,
            tag: Some(String::new()),
            application: Some(String::new()),
            remote_ip: Some("127.0.0.1".to_owned()),
            ..DownloadPersistentCacheTaskRequest::default()
        };
        let made = orders.download_persistent_cache_task(replicate).await.unwrap().into_inner();
        told(made).await.unwrap().check(CONTENT, false);
        assert_eq!(copy(host).await, Some(true));
    }
    let conversation = scheduler.cache_conversation().await;
    assert_eq!(registered(&conversation), (true, PIECE, 3));
    assert_eq!(arms(&conversation).last(), Some(&"finished"));

    let theirs_only = DownloadPersistentCacheTaskRequest {
        output_path: Some(host.path("out").display().to_string()),
        ..export(TASK, None)
    };
    let refused = orders.download_persistent_cache_task(theirs_only).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_orders() {
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let path = host.path("in");
    tokio::fs::write(&path, CONTENT.to_vec()).await.unwrap();
    let named = UploadPersistentCacheTaskRequest {
        content_for_calculating_task_id: Some("This is a test file".to_owned()),
        ..import(&path)
    };
    programs(host).await.upload_persistent_cache_task(named).await.unwrap();
    let mut orders = children(host).await;
    let delete = DeletePersistentCacheTaskRequest { task_id: TASK.to_owned(), remote_ip: None };
    let refused = orders.delete_persistent_cache_task(delete).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let update =
        UpdatePersistentCacheTaskRequest { task_id: TASK.to_owned(), persistent: false, remote_ip: None };
    let refused = orders.update_persistent_cache_task(update).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert_eq!(copy(host).await, Some(true));
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn their_child_fetches_every_piece() {
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let path = host.path("in");
    tokio::fs::write(&path, CONTENT.to_vec()).await.unwrap();
    let task = programs(host).await.upload_persistent_cache_task(import(&path)).await.unwrap().into_inner();
    let mut client = children(host).await;
    let asking = |task: &str| {
        let mut request = tonic::Request::new(SyncPersistentCachePiecesRequest {
            host_id: "127.0.0.1-child".to_owned(),
            task_id: task.to_owned(),
            interested_piece_numbers: vec![2, 0, 1],
        });
        request.set_timeout(Duration::from_secs(10));
        request
    };
    let mut places = client.sync_persistent_cache_pieces(asking(&task.id)).await.unwrap().into_inner();
    let (geometry, mut announced) = (Geometry::derived(CONTENT.length).unwrap(), Vec::new());
    while let Some(place) = timeout(DEADLINE, places.message()).await.unwrap().unwrap() {
        let span = geometry.piece(place.number).unwrap();
        assert_eq!((place.offset, place.length), (span.offset, span.length));
        let port = u16::try_from(place.tcp_port.unwrap()).unwrap();
        let mut stream = TcpStream::connect((place.ip.as_str(), port)).await.unwrap();
        stream.write_all(&request(Kind::PersistentCache, &task.id, place.number)).await.unwrap();
        let (mut reader, writer) = stream.into_split();
        let answer = read_answer(Kind::PersistentCache, &mut reader).await.unwrap();
        let Answer::Content(meta) = answer else { panic!("refused") };
        drop(writer);
        let mut bytes = Vec::new();
        timeout(DEADLINE, reader.read_to_end(&mut bytes)).await.unwrap().unwrap();
        CONTENT.check(span.offset, &bytes).unwrap();
        assert_eq!((meta.piece, meta.offset, meta.length), (place.number, span.offset, bytes.len() as u64));
        assert_eq!((meta.digest, meta.parent_id.as_str()), (Crc::of(&bytes).to_string(), ""));
        announced.push(place.number);
    }
    assert_eq!(announced, [2, 0, 1], "all that was asked for, in the order asked, and then the end");

    let refused = match client.sync_persistent_cache_pieces(asking(TASK)).await {
        Err(status) => status,
        Ok(stream) => stream.into_inner().message().await.unwrap_err(),
    };
    assert_eq!(refused.code(), Code::Internal, "{refused:?}");
    swarm.stop().await;
}
