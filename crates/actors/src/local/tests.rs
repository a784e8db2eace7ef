use std::collections::HashSet;

use damselfly_api::damselfly::v1::local_client::LocalClient;
use damselfly_api::damselfly::v1::{
    CancelRequest, GetReceiptRequest, LimitRequest, ListClusterRequest, PauseRequest, Receipt, ResumeRequest,
    StatusRequest, TaskRef,
};
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_transport::local::connect;
use tonic::Code;
use tonic::transport::Channel;

use super::*;
use crate::daemon::Daemon;
use crate::testing::{daemon, empty, hold, key};

async fn channel(daemon: &Daemon) -> Channel {
    connect(daemon.socket()).await.unwrap()
}

fn reference(key: &TaskKey) -> Option<TaskRef> {
    let kind = damselfly_scheduler_client::kind_to_wire(key.kind);
    Some(TaskRef { kind, id: key.id.to_string() })
}

fn native(uid: u32) -> Caller {
    let mut caller = Caller::this_process();
    caller.uid = uid;
    caller
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_may_be_changed_by_their_users_the_daemon_and_root_only() {
    let (_home, daemon) = daemon("").await;
    let (engine, key) = (daemon.engine(), key('a'));
    let me = rustix::process::geteuid().as_raw();
    let (user, stranger) = (me + 1000, me + 1001);
    empty(&engine.store, &key, 1, Some(user));
    for (caller, expected) in [
        (native(user), None),
        (native(me), None),
        (native(0), None),
        (native(stranger), Some(Code::PermissionDenied)),
        (Caller::foreign(user, user), Some(Code::PermissionDenied)),
        (Caller::foreign(0, 0), Some(Code::PermissionDenied)),
        (Caller::foreign(me, me), Some(Code::PermissionDenied)),
    ] {
        let answer = may_change(engine, &caller, &key).err().map(|status| status.code());
        assert_eq!(answer, expected, "{caller:?}");
    }
    let unknown = crate::testing::key('b');
    assert_eq!(may_change(engine, &native(stranger), &unknown).unwrap_err().code(), Code::NotFound);
    assert_eq!(owner(&native(stranger)), Some(stranger));
    assert_eq!(owner(&Caller::foreign(stranger, stranger)), None);
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_told_listed_and_deleted() {
    let (_home, daemon) = daemon("").await;
    let (engine, key) = (daemon.engine(), key('a'));
    let content = empty(&engine.store, &key, 3, None);
    hold(&content, 1);
    drop(engine.uploads.begin(&key));
    let mut client = DfdaemonDownloadClient::new(channel(&daemon).await);
    let id = key.id.to_string();
    let ask =
        |task_id: &str| dfdaemon::StatLocalTaskRequest { task_id: task_id.to_owned(), ..Default::default() };
    let told = client.stat_local_task(ask(&id)).await.unwrap().into_inner();
    assert_eq!((told.content_length, told.piece_length, told.uploaded_count), (Some(3), Some(1), 1));
    let listed = client.list_local_tasks(dfdaemon::ListLocalTasksRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().tasks.len(), 1);
    let refused = client.stat_local_task(ask("../etc")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let absent = client.stat_local_task(ask(&"b".repeat(64))).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);

    let delete = |task_id: &str| dfdaemon::DeleteLocalTaskRequest {
        task_id: task_id.to_owned(),
        ..Default::default()
    };
    let pin = content.pin().unwrap();
    let busy = client.delete_local_task(delete(&id)).await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition, "{busy:?}");
    drop(pin);
    // A supervisor that nobody waits for is waited for.
    let pin = content.pin().unwrap();
    engine.live.insert(&key, &"p".into());
    let (shared, gone) = (Arc::clone(engine), key.clone());
    let ending = tokio::spawn(async move {
        drop(pin);
        shared.live.remove(&gone, &"p".into());
    });
    client.delete_local_task(delete(&id)).await.unwrap();
    ending.await.unwrap();
    assert_eq!(engine.uploads.of(&key).ever, 0);
    let absent = client.delete_local_task(delete(&id)).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
    let unknown = dfdaemon::StatTaskRequest { task_id: "b".repeat(64), ..Default::default() };
    assert_eq!(client.stat_task(unknown).await.unwrap_err().code(), Code::Internal);
    client.delete_host(()).await.unwrap();
    let text = engine.metrics.render((0, 0), Default::default(), 0).unwrap();
    for line in [
        "delete_local_task_total{type=\"0\"} 3",
        "delete_local_task_failure_total{type=\"0\"} 2",
        "stat_local_task_total{type=\"0\"} 3",
        "list_local_tasks_total{type=\"0\"} 1",
        "delete_host_total 1",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_are_remembered_and_what_does_not_run_cannot_be_cancelled() {
    let (_home, daemon) = daemon("").await;
    let (engine, key) = (daemon.engine(), key('a'));
    let content = empty(&engine.store, &key, 3, None);
    let mut client = LocalClient::new(channel(&daemon).await);
    client.pause(PauseRequest { task: reference(&key) }).await.unwrap();
    assert!(content.meta().paused);
    client.resume(ResumeRequest { task: reference(&key) }).await.unwrap();
    assert!(!content.meta().paused);
    let idle = client.cancel(CancelRequest { task: reference(&key) }).await.unwrap_err();
    assert_eq!(idle.code(), Code::FailedPrecondition);
    let mut limit = LimitRequest { task: reference(&key), bytes_per_second: 5 };
    client.limit(limit.clone()).await.unwrap();
    assert_eq!(engine.known.limit(&key), Some(5), "for its next run");
    (0..3).for_each(|number| hold(&content, number));
    let complete = client.limit(limit.clone()).await.unwrap_err();
    assert_eq!(complete.code(), Code::FailedPrecondition);
    assert!(
        complete.message().contains("is complete") && complete.message().ends_with("limited"),
        "{complete}"
    );
    limit.bytes_per_second = 0;
    client.limit(limit).await.unwrap();
    assert_eq!(engine.known.limit(&key), None);
    let complete = client.pause(PauseRequest { task: reference(&key) }).await.unwrap_err();
    assert_eq!(complete.code(), Code::FailedPrecondition);
    assert!(complete.message().ends_with("paused") && !content.meta().paused, "{complete}");
    for (task, code) in [
        (None, Code::InvalidArgument),
        (Some(TaskRef { kind: 99, id: key.id.to_string() }), Code::InvalidArgument),
        (Some(TaskRef { id: "x".to_owned(), ..reference(&key).unwrap() }), Code::InvalidArgument),
        (reference(&crate::testing::key('b')), Code::NotFound),
    ] {
        let refused = client.pause(PauseRequest { task: task.clone() }).await.unwrap_err();
        assert_eq!(refused.code(), code, "{task:?}");
    }
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_shows_host_tasks_and_actors() {
    let (_home, daemon) = daemon("").await;
    let engine = daemon.engine();
    for digit in ['a', 'b'] {
        hold(&empty(&engine.store, &key(digit), 2, None), 0);
    }
    engine.store.get(&key('b')).unwrap().set_paused(true).unwrap();
    hold(&engine.store.get(&key('a')).unwrap(), 1);
    let mut client = LocalClient::new(channel(&daemon).await);
    let mut stream = client.status(StatusRequest::default()).await.unwrap().into_inner();
    let (mut hosts, mut tasks, mut actors) = (Vec::new(), Vec::new(), HashSet::new());
    while let Some(part) = stream.message().await.unwrap() {
        hosts.extend(part.host);
        tasks.extend(part.tasks);
        actors.extend(part.actors.into_iter().map(|actor| actor.path));
    }
    let [status] = &hosts[..] else { panic!("{hosts:?}") };
    assert!(status.embedded_scheduler && status.storage.is_some());
    let host = status.host.as_ref().unwrap();
    let usage = engine.store.usage();
    let disk = host.disk.as_ref().unwrap();
    assert_eq!((disk.total, disk.used), (usage.total, usage.used));
    assert!(disk.free > 0 && host.memory.as_ref().unwrap().available > 0);
    let states: HashSet<_> = tasks.iter().map(|task| task.state.as_str()).collect();
    assert_eq!(states, HashSet::from(["complete", "paused"]));
    for path in ["daemon", "daemon/tasks", "daemon/connections", "daemon/listeners/grpc-local"] {
        assert!(actors.contains(path), "{path} is not among {actors:?}");
    }

    engine.receipts.put("me".to_owned(), Receipt { local_bytes: 7, ..Receipt::default() });
    let ask = |peer: &str| GetReceiptRequest { peer_id: peer.to_owned() };
    assert_eq!(client.get_receipt(ask("me")).await.unwrap().into_inner().local_bytes, 7);
    assert_eq!(client.get_receipt(ask("you")).await.unwrap_err().code(), Code::NotFound);
    client.list_cluster(ListClusterRequest::default()).await.unwrap();
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_tasks_that_do_not_run_the_status_shows_what_is_known() {
    let (_home, daemon) = daemon("").await;
    let engine = daemon.engine();
    for digit in ['a', 'b'] {
        hold(&empty(&engine.store, &key(digit), 2, None), 0);
    }
    empty(&engine.store, &key('c'), 2, None);
    engine.known.ran(&key('a'), crate::known::Sources { origin: 1, peers: 2, local: 3 });
    engine.known.set_limit(&key('a'), Some(9));
    let mut client = LocalClient::new(channel(&daemon).await);
    let mut stream = client.status(StatusRequest::default()).await.unwrap().into_inner();
    let mut tasks = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        tasks.extend(part.tasks);
    }
    let told = |digit| {
        let id = key(digit).id.to_string();
        tasks.iter().find(|status| status.task.as_ref().is_some_and(|task| task.id == id)).unwrap()
    };
    let ended = told('a');
    let sources = (ended.origin_bytes, ended.peer_bytes, ended.local_bytes);
    assert_eq!((sources, ended.bytes_per_second, ended.note.as_str()), ((1, 2, 3), 9, ""));
    assert!(told('b').note.contains("before this daemon started"), "{:?}", told('b'));
    assert_eq!(told('c').note, "", "nothing was fetched");
    // What is deleted is forgotten.
    let gone = dfdaemon::DeleteLocalTaskRequest { task_id: key('a').id.to_string(), ..Default::default() };
    DfdaemonDownloadClient::new(channel(&daemon).await).delete_local_task(gone).await.unwrap();
    assert_eq!(engine.known.sources(&key('a')), None);
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_answers_health_under_every_name() {
    let (_home, daemon) = daemon("").await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel(&daemon).await);
    for service in ["", "dfdaemon.v2.DfdaemonUpload", "dfdaemon.v2.DfdaemonDownload"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.unwrap().into_inner().status;
        assert_eq!(status, 1, "{service:?}");
    }
    daemon.shutdown(damselfly_scheduler_client::Departure::ForGood, std::time::Duration::from_secs(1)).await;
}
