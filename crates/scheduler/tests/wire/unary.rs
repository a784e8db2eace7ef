//! Unary calls, and what is refused.

use damselfly_api::common::v2 as common;
use damselfly_api::scheduler::v2 as scheduler;
use scheduler::announce_peer_request::Request;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::kit::{MIB, TASK, URL, download_of, host, start};

#[tokio::test]
async fn tasks_and_peers_can_be_looked_up_and_deleted() {
    let scheduler = start(|_| {}).await;
    let mut client = scheduler.client().await;
    scheduler.announce(host("a")).await;
    let stat_task = || scheduler::StatTaskRequest { host_id: "a".into(), task_id: TASK.into() };
    let stat_peer =
        || scheduler::StatPeerRequest { host_id: "a".into(), task_id: TASK.into(), peer_id: "a-1".into() };
    assert_eq!(client.stat_task(stat_task()).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.stat_peer(stat_peer()).await.unwrap_err().code(), Code::NotFound);
    let mut a = scheduler.register("a", "a-1", download_of(3)).await;
    a.answer().await;
    a.say(Request::DownloadPeerBackToSourceStartedRequest(Default::default())).await;
    a.origin_pieces(0..3).await;
    a.say(Request::DownloadPeerBackToSourceFinishedRequest(Default::default())).await;
    a.assert_ends_well().await;
    let task = client.stat_task(stat_task()).await.unwrap().into_inner();
    assert_eq!((task.url.as_str(), task.state.as_str()), (URL, "Succeeded"));
    assert_eq!((task.content_length, task.piece_count, task.peer_count), (12 * MIB, 3, 1));
    assert!(task.has_available_peer && task.request_header.is_empty());
    let peer = client.stat_peer(stat_peer()).await.unwrap().into_inner();
    assert_eq!((peer.state.as_str(), peer.pieces.len()), ("Succeeded", 3));
    assert_eq!(peer.host.unwrap().id, "a");
    let delete = |host: &str| scheduler::DeleteTaskRequest { host_id: host.into(), task_id: TASK.into() };
    assert_eq!(client.delete_task(delete("x")).await.unwrap_err().code(), Code::NotFound);
    client.delete_task(delete("a")).await.unwrap();
    assert_eq!(client.stat_peer(stat_peer()).await.unwrap_err().code(), Code::NotFound);
    let request =
        scheduler::DeletePeerRequest { host_id: "a".into(), task_id: TASK.into(), peer_id: "a-1".into() };
    client.delete_peer(request).await.unwrap();
}

#[tokio::test]
async fn hosts_are_listed_by_type_and_leave() {
    let scheduler = start(|_| {}).await;
    let mut client = scheduler.client().await;
    scheduler.announce(host("a")).await;
    scheduler.announce(common::Host { r#type: 1, ..host("s") }).await;
    let list = |kind| scheduler::ListHostsRequest { r#type: kind };
    let ids = |response: scheduler::ListHostsResponse| {
        response.hosts.into_iter().map(|host| host.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(client.list_hosts(list(None)).await.unwrap().into_inner()), ["a", "s"]);
    assert_eq!(ids(client.list_hosts(list(Some(1))).await.unwrap().into_inner()), ["s"]);
    let leave = || scheduler::DeleteHostRequest { host_id: "a".into() };
    client.delete_host(leave()).await.unwrap();
    assert_eq!(client.delete_host(leave()).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(ids(client.list_hosts(list(None)).await.unwrap().into_inner()), ["s"]);
    assert_eq!(scheduler.service.snapshot().hosts.len(), 1);
}

#[tokio::test]
async fn wrong_requests_name_the_field() {
    let scheduler = start(|_| {}).await;
    let mut client = scheduler.client().await;
    let announce = |host| scheduler::AnnounceHostRequest { host, interval: None };
    let wrong = common::Host { port: 80, ..host("a") };
    for (request, field) in [(announce(None), "host:"), (announce(Some(wrong)), "host.port:")] {
        let status = client.announce_host(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{}", status.message());
    }
    let request = scheduler::StatTaskRequest { host_id: "a".into(), task_id: String::new() };
    assert!(client.stat_task(request).await.unwrap_err().message().starts_with("task_id"));
}

#[tokio::test]
async fn what_is_not_scheduled_says_so() {
    let scheduler = start(|_| {}).await;
    let mut client = scheduler.client().await;
    let status = client.stat_persistent_task(scheduler::StatPersistentTaskRequest::default());
    let status = status.await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("persistent"), "{}", status.message());
    let status = client.preheat_file(scheduler::PreheatFileRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let stream = tokio_stream::iter([scheduler::AnnounceCachePeerRequest::default()]);
    assert_eq!(client.announce_cache_peer(stream).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn the_scheduler_is_healthy_by_both_names() {
    let running = start(|_| {}).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", running.address)).unwrap();
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    for service in ["", "scheduler.v2.Scheduler"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        assert_eq!(client.check(request).await.unwrap().into_inner().status, 1, "{service:?}");
    }
}
