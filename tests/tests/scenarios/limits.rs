//! What users may do to a running task, and what does not fit.

use damselfly_api::damselfly::v1::{
    CancelRequest, LimitRequest, PauseRequest, ResumeRequest, TaskKind, TaskRef, TaskStatus,
};
use damselfly_tests::OriginServer;
use damselfly_tests::origin::{Behaviour, Blob, Gate};
use damselfly_tests::swarm::{Call, Host, Setup, Swarm, download, task_of, to_file};
use tonic::Code;

use crate::PIECE;

fn task(blob: &Blob) -> Option<TaskRef> {
    let id = task_of(&download(&blob.url)).to_string();
    Some(TaskRef { kind: TaskKind::Standard.into(), id })
}

async fn pause(host: &Host, blob: &Blob) {
    host.local_client().await.unwrap().pause(PauseRequest { task: task(blob) }).await.unwrap();
}

async fn resume(host: &Host, blob: &Blob) {
    host.local_client().await.unwrap().resume(ResumeRequest { task: task(blob) }).await.unwrap();
}

async fn limit(host: &Host, blob: &Blob, bytes_per_second: u64) {
    let request = LimitRequest { task: task(blob), bytes_per_second };
    host.local_client().await.unwrap().limit(request).await.unwrap();
}

async fn shown(host: &Host, blob: &Blob) -> TaskStatus {
    let tasks = host.status().await.unwrap().tasks;
    tasks.into_iter().find(|status| status.task == task(blob)).unwrap()
}

/// While this other content is fetched from beginning to end, the paused one has all the time to misbehave.
async fn something_else_happens(host: &Host, origin: &OriginServer, seed: u64) {
    let other = origin.blob(2 * PIECE, seed);
    host.download(download(&other.url)).await.unwrap();
}

/// A download with every response held in the middle of its piece: two until the first piece is there.
async fn held(host: &Host, origin: &OriginServer, blob: &Blob) -> (Gate, Call) {
    let gate = Gate::closed();
    origin.set(blob, Behaviour { gate: Some((PIECE / 2, gate.clone())), ..Behaviour::default() });
    let mut call = host.open(to_file(&blob.url, &host.path("out"))).await.unwrap();
    call.started().await.unwrap();
    gate.holds(2).await.unwrap();
    (gate, call)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_while_a_task_is_paused() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(6 * PIECE, 1);
    let (gate, call) = held(host, &origin, &blob).await;
    pause(host, &blob).await;
    // The daemon hangs up.
    gate.holds(0).await.unwrap();
    gate.open();
    let before = origin.counts(&blob);
    something_else_happens(host, &origin, 100).await;
    assert_eq!(origin.counts(&blob), before);
    assert_eq!(shown(host, &blob).await.state, "paused");
    resume(host, &blob).await;
    call.finish().await.unwrap();
    blob.pattern.check_file(host.path("out")).unwrap();
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_survives_a_restart() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &mut swarm.hosts[0];
    let blob = origin.blob(6 * PIECE, 2);
    origin.set(&blob, Behaviour { rate: Some(30 << 20), ..Behaviour::default() });
    let mut call = host.open(to_file(&blob.url, &host.path("out"))).await.unwrap();
    call.pieces(2).await.unwrap();
    pause(host, &blob).await;
    drop(call);
    host.stop().await;
    origin.wait_until_total(|counts| counts.open == 0).await.unwrap();
    host.restart().await.unwrap();
    assert_eq!(shown(host, &blob).await.state, "paused");
    let before = origin.counts(&blob);
    let mut call = host.open(to_file(&blob.url, &host.path("out"))).await.unwrap();
    call.pieces(2).await.unwrap();
    something_else_happens(host, &origin, 101).await;
    assert_eq!(origin.counts(&blob), before);
    resume(host, &blob).await;
    let told = call.finish().await.unwrap();
    blob.pattern.check_file(host.path("out")).unwrap();
    assert!(host.receipt(&told).await.unwrap().local_bytes >= 2 * PIECE);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_task_fails_its_clients_and_can_be_taken_up_again() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(6 * PIECE, 3);
    let (gate, call) = held(host, &origin, &blob).await;
    let mut other = host.open(download(&blob.url)).await.unwrap();
    other.started().await.unwrap();
    host.local_client().await.unwrap().cancel(CancelRequest { task: task(&blob) }).await.unwrap();
    for call in [call, other] {
        assert_eq!(call.finish().await.unwrap_err().code(), Code::Cancelled);
    }
    gate.holds(0).await.unwrap();
    gate.open();
    host.idles().await.unwrap();
    assert!(!host.path("out").try_exists().unwrap());
    let again = host.local_client().await.unwrap().cancel(CancelRequest { task: task(&blob) }).await;
    assert_eq!(again.unwrap_err().code(), Code::FailedPrecondition);
    host.get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(host.path("out")).unwrap();
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_a_task_back_until_it_is_lifted() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let blob = origin.blob(6 * PIECE, 4);
    let (gate, call) = held(host, &origin, &blob).await;
    limit(host, &blob, 1000).await;
    gate.open();
    something_else_happens(host, &origin, 102).await;
    let status = shown(host, &blob).await;
    assert_eq!((status.bytes_per_second, status.pieces_held), (1000, 0), "half a piece takes half an hour");
    limit(host, &blob, 0).await;
    call.finish().await.unwrap();
    blob.pattern.check_file(host.path("out")).unwrap();
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_does_not_fit_is_refused_with_numbers() {
    let origin = OriginServer::start().await.unwrap();
    let yaml = "gc:\n  policy:\n    diskThreshold: 16MiB\n";
    let mut swarm = Swarm::start(1, yaml).await.unwrap();
    let host = &swarm.hosts[0];
    let big = origin.blob(40 << 20, 5);
    let status = host.get(&big.url, "big").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    for number in [40 << 20, 16 << 20_u64] {
        let spelled =
            [number.to_string(), format!("{} MiB", number >> 20), format!("{}.0 MiB", number >> 20)];
        assert!(spelled.iter().any(|text| status.message().contains(text)), "no {number} in {status:?}");
    }
    assert!(!host.path("big").try_exists().unwrap());
    let sent = origin.counts(&big).body_bytes;
    assert!(sent <= PIECE, "{sent} bytes were fetched of what cannot be stored");
    let small = origin.blob(PIECE, 6);
    host.get(&small.url, "small").await.unwrap();
    small.pattern.check_file(host.path("small")).unwrap();
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_are_not_known_cannot_be_controlled() {
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(0, "").await.unwrap();
    let host = swarm.add(Setup::default()).await.unwrap();
    let blob = origin.blob(1, 7);
    let mut client = host.local_client().await.unwrap();
    let refused = client.pause(PauseRequest { task: task(&blob) }).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    let refused = client.pause(PauseRequest { task: None }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    swarm.stop().await;
}
