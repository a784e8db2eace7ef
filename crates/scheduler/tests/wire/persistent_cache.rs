//! Persistent cache tasks: imports, their peers, and what hosts are asked for.

use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_api::damselfly::v1 as ours;
use damselfly_api::scheduler::v2 as scheduler;
use ours::hold_request::Request as HoldRequest;
use ours::hold_response::Response as HoldResponse;
use scheduler::announce_persistent_cache_peer_request::Request;
use scheduler::announce_persistent_cache_peer_response::Response;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::kit::{Hold, MIB, Running, TASK, host, our_host, piece, start, start_calling};
use crate::outbound::{Asked, Seed, serve};

fn started(host: &str, replicas: u64) -> scheduler::UploadPersistentCacheTaskStartedRequest {
    scheduler::UploadPersistentCacheTaskStartedRequest {
        host_id: host.into(),
        task_id: TASK.into(),
        peer_id: format!("{host}-import"),
        persistent_replica_count: replicas,
        tag: Some("models".into()),
        application: Some("app".into()),
        piece_length: 4 * MIB,
        content_length: 9 * MIB,
        piece_count: 3,
        ttl: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
    }
}

fn finished(host: &str) -> scheduler::UploadPersistentCacheTaskFinishedRequest {
    scheduler::UploadPersistentCacheTaskFinishedRequest {
        host_id: host.into(),
        task_id: TASK.into(),
        peer_id: format!("{host}-import"),
        ..Default::default()
    }
}

fn stat() -> scheduler::StatPersistentCacheTaskRequest {
    scheduler::StatPersistentCacheTaskRequest { host_id: "a".into(), task_id: TASK.into() }
}

fn delete() -> scheduler::DeletePersistentCacheTaskRequest {
    scheduler::DeletePersistentCacheTaskRequest { host_id: "a".into(), task_id: TASK.into() }
}

fn peer(id: &str) -> scheduler::StatPersistentCachePeerRequest {
    let (host_id, _) = id.split_once('-').unwrap();
    scheduler::StatPersistentCachePeerRequest {
        host_id: host_id.into(),
        task_id: TASK.into(),
        peer_id: id.into(),
    }
}

impl Running {
    async fn import(&self, host: &str, replicas: u64) -> common::PersistentCacheTask {
        let mut client = self.client().await;
        client.upload_persistent_cache_task_started(started(host, replicas)).await.unwrap();
        client.upload_persistent_cache_task_finished(finished(host)).await.unwrap().into_inner()
    }

    async fn stat(&self) -> Result<common::PersistentCacheTask, Status> {
        self.client().await.stat_persistent_cache_task(stat()).await.map(tonic::Response::into_inner)
    }

    /// Waits until there are so many replicas.
    async fn until_kept(&self, replicas: u64) {
        for _ in 0..1000 {
            if self.stat().await.unwrap().current_persistent_replica_count == replicas {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never reached: {:?}", self.stat().await);
    }

    /// A host of Dragonfly's that can be called.
    async fn daemon(&self, name: &str, daemon: &Seed) {
        let port = i32::from(serve(daemon.clone()).await.port());
        self.announce(common::Host { port, download_port: port, ..host(name) }).await;
    }

    async fn cache_peer(&self, id: &str) -> CachePeer {
        let (requests, receiver) = mpsc::channel(16);
        let mut client = self.client().await;
        let responses = client.announce_persistent_cache_peer(ReceiverStream::new(receiver)).await.unwrap();
        let (host_id, _) = id.split_once('-').unwrap();
        let peer = CachePeer {
            host: host_id.to_owned(),
            id: id.to_owned(),
            requests,
            responses: responses.into_inner(),
        };
        let register =
            scheduler::RegisterPersistentCachePeerRequest { persistent: true, ..Default::default() };
        peer.say(Request::RegisterPersistentCachePeerRequest(register)).await;
        peer
    }
}

/// An announce stream of a persistent cache task's peer, named `<host>-<anything>`.
struct CachePeer {
    host: String,
    id: String,
    requests: mpsc::Sender<scheduler::AnnouncePersistentCachePeerRequest>,
    responses: Streaming<scheduler::AnnouncePersistentCachePeerResponse>,
}

impl CachePeer {
    async fn say(&self, request: Request) {
        let message = scheduler::AnnouncePersistentCachePeerRequest {
            host_id: self.host.clone(),
            task_id: TASK.into(),
            peer_id: self.id.clone(),
            request: Some(request),
        };
        self.requests.send(message).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<Response>, Status> {
        let message = tokio::time::timeout(Duration::from_secs(20), self.responses.message());
        Ok(message.await.expect("no message came")?.map(|message| message.response.expect("an answer")))
    }
}

impl Hold {
    /// The next order.
    async fn order(&mut self) -> HoldResponse {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), self.responses.message());
            match message.await.expect("no order came").unwrap().expect("an open Hold").response.unwrap() {
                HoldResponse::Welcome(_) => {}
                order => return order,
            }
        }
    }

    async fn list(&self, holdings: Vec<ours::Holding>) {
        self.say(HoldRequest::Holdings(ours::Holdings { holdings, last: true })).await;
    }

    async fn done(&self, order: u64) {
        self.say(HoldRequest::Done(ours::Done { order, error: None })).await;
    }
}

fn holding(generation: u64) -> ours::Holding {
    ours::Holding {
        kind: ours::TaskKind::PersistentCache.into(),
        id: TASK.into(),
        generation,
        content_length: Some(9 * MIB),
        piece_length: 4 * MIB,
        persistent: true,
        replica_target: 1,
        ttl_left: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        tag: Some("models".into()),
        application: Some("app".into()),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_import_is_replicated_by_calls_to_dragonflys_hosts_and_deleted_so() {
    let scheduler = start_calling().await;
    let (importer, other) = (Seed::default(), Seed::default());
    scheduler.daemon("a", &importer).await;
    scheduler.client().await.upload_persistent_cache_task_started(started("a", 2)).await.unwrap();
    let task = scheduler.stat().await.unwrap();
    assert_eq!((task.state.as_str(), task.current_replica_count, task.generation), ("Uploading", 0, 0));
    let mut client = scheduler.client().await;
    let task = client.upload_persistent_cache_task_finished(finished("a")).await.unwrap().into_inner();
    assert_eq!((task.state.as_str(), task.current_persistent_replica_count), ("Succeeded", 1));
    assert_eq!((task.content_length, task.piece_count, task.piece_length), (9 * MIB, 3, 4 * MIB));
    assert!(task.generation > 0, "the importer named none");
    scheduler.daemon("d", &other).await;
    scheduler.until_kept(2).await;
    let asked = other.copies.lock().clone();
    let [Asked::Fetch(fetch)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((fetch.task_id.as_str(), fetch.persistent, fetch.output_path.as_deref()), (TASK, true, None));
    assert_eq!((fetch.tag.as_deref(), fetch.application.as_deref()), (Some("models"), Some("app")));
    assert!(importer.copies.lock().is_empty());
    client.delete_persistent_cache_task(delete()).await.unwrap();
    assert_eq!(scheduler.stat().await.unwrap_err().code(), Code::NotFound);
    let status = client.delete_persistent_cache_task(delete()).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    for daemon in [importer, other] {
        scheduler.until(|_| matches!(daemon.copies.lock().last(), Some(Asked::Delete(_)))).await;
    }
}

#[tokio::test]
async fn one_too_many_is_deleted_and_another_host_is_asked_where_one_fails() {
    let scheduler = start_calling().await;
    let (broken, works) = (Seed { fail: true, ..Seed::default() }, Seed::default());
    scheduler.announce(host("a")).await;
    scheduler.import("a", 1).await;
    // It has fetched the content without keeping it.
    scheduler.daemon("b", &broken).await;
    let mut b = scheduler.cache_peer("b-1").await;
    assert!(matches!(b.next().await.unwrap(), Some(Response::NormalPersistentCacheTaskResponse(_))));
    b.say(Request::DownloadPersistentCachePeerStartedRequest(Default::default())).await;
    for number in 0..3 {
        let finished =
            scheduler::DownloadPieceFinishedRequest { piece: Some(piece(number, Some("a-import"))) };
        b.say(Request::DownloadPieceFinishedRequest(finished)).await;
    }
    b.say(Request::DownloadPersistentCachePeerFinishedRequest(Default::default())).await;
    assert!(b.next().await.unwrap().is_none(), "it ends well");
    let peer = scheduler.client().await.stat_persistent_cache_peer(peer("b-1")).await.unwrap().into_inner();
    assert_eq!((peer.state.as_str(), peer.persistent), ("Succeeded", true));
    assert_eq!((peer.host.unwrap().id.as_str(), peer.task.unwrap().id.as_str()), ("b", TASK));
    // One replica was wanted: b's is one too many, and Dragonfly knows no way but to delete it. It fails.
    scheduler.until(|_| matches!(broken.copies.lock()[..], [Asked::Delete(_)])).await;
    let two = scheduler.stat().await.unwrap();
    assert_eq!((two.current_persistent_replica_count, two.current_replica_count), (2, 2));
    scheduler.import("a", 3).await;
    scheduler.daemon("c", &works).await;
    scheduler.until_kept(3).await;
    assert!(matches!(works.copies.lock()[..], [Asked::Fetch(_)]));
}

#[tokio::test]
async fn what_is_wrong_with_an_import_is_named() {
    let scheduler = start(|_| {}).await;
    let mut client = scheduler.client().await;
    let unknown = client.upload_persistent_cache_task_started(started("a", 1)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown:?}");
    scheduler.announce(host("a")).await;
    scheduler.announce(host("b")).await;
    let good = || started("a", 1);
    for (request, field) in [
        (started("a", 0), "persistent_replica_count"),
        (scheduler::UploadPersistentCacheTaskStartedRequest { ttl: None, ..good() }, "ttl"),
        (scheduler::UploadPersistentCacheTaskStartedRequest { piece_length: 5, ..good() }, "piece_length"),
        (scheduler::UploadPersistentCacheTaskStartedRequest { piece_count: 4, ..good() }, "piece_count"),
        (scheduler::UploadPersistentCacheTaskStartedRequest { task_id: String::new(), ..good() }, "task_id"),
        (scheduler::UploadPersistentCacheTaskStartedRequest { peer_id: String::new(), ..good() }, "peer_id"),
    ] {
        let status = client.upload_persistent_cache_task_started(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().starts_with(field), "{field}: {}", status.message());
    }
    let early = client.upload_persistent_cache_task_finished(finished("a")).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "{early:?}");
    client.upload_persistent_cache_task_started(good()).await.unwrap();
    let taken = client.upload_persistent_cache_task_started(started("b", 1)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken:?}");
    let anothers = client.upload_persistent_cache_task_finished(finished("b")).await.unwrap_err();
    assert_eq!(anothers.code(), Code::FailedPrecondition, "{anothers:?}");
    let many = scheduler::UploadPersistentCacheTaskFinishedRequest { ack: 3, ..finished("a") };
    let many = client.upload_persistent_cache_task_finished(many).await.unwrap_err();
    assert!(many.code() == Code::FailedPrecondition && many.message().contains('3'), "{many:?}");
    let failed = |host: &str| scheduler::UploadPersistentCacheTaskFailedRequest {
        host_id: host.into(),
        task_id: TASK.into(),
        peer_id: format!("{host}-import"),
        description: Some("disk full".into()),
    };
    let anothers = client.upload_persistent_cache_task_failed(failed("b")).await.unwrap_err();
    assert_eq!(anothers.code(), Code::FailedPrecondition, "{anothers:?}");
    client.upload_persistent_cache_task_failed(failed("a")).await.unwrap();
    assert_eq!(scheduler.stat().await.unwrap_err().code(), Code::NotFound);
    client.upload_persistent_cache_task_started(started("b", 1)).await.unwrap();
}

#[tokio::test]
async fn a_peer_is_told_parents_and_never_an_origin() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(host("a")).await;
    scheduler.announce(host("b")).await;
    let mut early = scheduler.cache_peer("b-0").await;
    assert_eq!(early.next().await.unwrap_err().code(), Code::NotFound);
    scheduler.import("a", 1).await;
    let mut b = scheduler.cache_peer("b-1").await;
    let Some(Response::NormalPersistentCacheTaskResponse(normal)) = b.next().await.unwrap() else { panic!() };
    let parents = normal.candidate_cache_parents;
    assert_eq!(parents.len(), 1, "{parents:?}");
    assert_eq!((parents[0].id.as_str(), parents[0].host.as_ref().unwrap().id.as_str()), ("a-import", "a"));
    b.say(Request::DownloadPersistentCachePeerStartedRequest(Default::default())).await;
    // Whoever failed it is not offered to it again, and nobody else is there.
    let blocked = scheduler::DownloadPieceFailedRequest {
        piece_number: Some(0),
        parent_id: "a-import".into(),
        temporary: true,
    };
    b.say(Request::DownloadPieceFailedRequest(blocked)).await;
    let failed = scheduler::DownloadPersistentCachePeerFailedRequest { description: Some("none".into()) };
    b.say(Request::DownloadPersistentCachePeerFailedRequest(failed)).await;
    assert!(b.next().await.unwrap().is_none());
    let mut client = scheduler.client().await;
    let seen = client.stat_persistent_cache_peer(peer("b-1")).await.unwrap().into_inner();
    assert_eq!(seen.state, "Failed");
    let gone = scheduler::DeletePersistentCachePeerRequest {
        host_id: "b".into(),
        task_id: TASK.into(),
        peer_id: "b-1".into(),
    };
    client.delete_persistent_cache_peer(gone).await.unwrap();
    let gone = client.stat_persistent_cache_peer(peer("b-1")).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound, "{gone:?}");
}

#[tokio::test]
async fn empty_content_needs_no_parents() {
    let scheduler = start(|_| {}).await;
    scheduler.announce(host("a")).await;
    scheduler.announce(host("b")).await;
    let empty = scheduler::UploadPersistentCacheTaskStartedRequest {
        content_length: 0,
        piece_count: 0,
        ..started("a", 1)
    };
    let mut client = scheduler.client().await;
    client.upload_persistent_cache_task_started(empty).await.unwrap();
    client.upload_persistent_cache_task_finished(finished("a")).await.unwrap();
    let mut b = scheduler.cache_peer("b-1").await;
    let answer = b.next().await.unwrap();
    assert!(matches!(answer, Some(Response::EmptyPersistentCacheTaskResponse(_))), "{answer:?}");
}

#[tokio::test]
async fn an_acknowledgement_waits_for_replicas_that_are_ordered_over_hold() {
    let scheduler = start(|_| {}).await;
    let mut a = scheduler.hold(our_host("a", 1), 1).await;
    let mut b = scheduler.hold(our_host("b", 1), 1).await;
    b.list(Vec::new()).await;
    scheduler.until(|snapshot| snapshot.hosts.len() == 2).await;
    let mut client = scheduler.client().await;
    client.upload_persistent_cache_task_started(started("a", 2)).await.unwrap();
    let request = scheduler::UploadPersistentCacheTaskFinishedRequest {
        ack: 2,
        crcs: vec![1, 2, 3],
        generation: 77,
        ..finished("a")
    };
    let waiting = tokio::spawn(async move { client.upload_persistent_cache_task_finished(request).await });
    let HoldResponse::Replicate(replicate) = b.order().await else { panic!("a replica is to be made") };
    assert_eq!((replicate.id.as_str(), replicate.kind()), (TASK, ours::TaskKind::PersistentCache));
    assert!(!waiting.is_finished());
    b.done(replicate.order).await;
    let task = waiting.await.unwrap().unwrap().into_inner();
    assert_eq!((task.current_persistent_replica_count, task.generation), (2, 77));
    assert_eq!(task.replicas.iter().filter(|copy| copy.persistent && copy.alive).count(), 2);
    // Fewer are wanted: one of the two keeps its copy as an ordinary one.
    b.list(vec![holding(77)]).await;
    a.list(vec![holding(77)]).await;
    scheduler.import("a", 1).await;
    let (order, hold) = tokio::select! {
        order = a.order() => (order, &a),
        order = b.order() => (order, &b),
    };
    let HoldResponse::Demote(demote) = order else { panic!("one of two is too many: {order:?}") };
    assert_eq!(demote.id, TASK);
    hold.done(demote.order).await;
    scheduler.until_kept(1).await;
    assert_eq!(scheduler.stat().await.unwrap().current_replica_count, 2);
}

#[tokio::test]
async fn a_scheduler_that_starts_anew_learns_what_lives_and_what_was_deleted() {
    let scheduler = start(|_| {}).await;
    let a = scheduler.hold(our_host("a", 1), 1).await;
    let mut b = scheduler.hold(our_host("b", 1), 1).await;
    a.list(vec![holding(9)]).await;
    scheduler.until(|snapshot| !snapshot.tasks.is_empty()).await;
    let task = scheduler.stat().await.unwrap();
    assert_eq!((task.tag.as_deref(), task.application.as_deref()), (Some("models"), Some("app")));
    assert_eq!((task.generation, task.state.as_str()), (9, "Succeeded"));
    let stone = |generation| ours::Tombstone {
        kind: ours::TaskKind::PersistentCache.into(),
        id: TASK.into(),
        generation,
        everywhere: true,
        ttl_left: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
    };
    // Of an earlier import, of which a host that was away has a copy.
    a.say(HoldRequest::Tombstones(ours::Tombstones { tombstones: vec![stone(8)] })).await;
    b.list(vec![holding(9)]).await;
    scheduler.until(|snapshot| snapshot.hosts.iter().all(|host| host.peers == 1)).await;
    a.say(HoldRequest::Tombstones(ours::Tombstones { tombstones: vec![stone(9)] })).await;
    let HoldResponse::Drop(dropped) = b.order().await else { panic!("the copy is to be deleted") };
    assert_eq!((dropped.id.as_str(), dropped.generation), (TASK, 9));
    assert_eq!(scheduler.stat().await.unwrap_err().code(), Code::NotFound);
}
