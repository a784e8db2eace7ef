//! What a panic costs (promise I8): as little as `ARCHITECTURE.md` says, and never the daemon.

use std::net::SocketAddr;

use damselfly_actors::kit::Faults;
use damselfly_tests::OriginServer;
use damselfly_tests::origin::Blob;
use damselfly_tests::swarm::{Host, Setup, Swarm, download, to_file, with_range};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::PIECE;

/// Two hosts, the second of which can be made to panic.
struct Scene {
    origin: OriginServer,
    swarm: Swarm,
    faults: Faults,
}

impl Scene {
    async fn new() -> Self {
        let origin = OriginServer::start().await.unwrap();
        let mut swarm = Swarm::start(1, "").await.unwrap();
        let faults = Faults::armable();
        swarm.add(Setup { faults: faults.clone(), ..Setup::default() }).await.unwrap();
        Self { origin, swarm, faults }
    }

    fn victim(&self) -> &Host {
        &self.swarm.hosts[1]
    }

    async fn gets(&self, blob: &Blob, name: &str) {
        self.victim().get(&blob.url, name).await.unwrap();
        blob.pattern.check_file(self.victim().path(name)).unwrap();
    }

    /// From the origin, from a peer, and to a peer.
    async fn serves_the_next_downloads(&mut self, seed: u64) {
        let cold = self.origin.blob(PIECE + 1, seed);
        self.gets(&cold, &format!("cold-{seed}")).await;
        let warm = self.origin.blob(PIECE + 2, seed);
        self.swarm.hosts[0].download(download(&warm.url)).await.unwrap();
        self.gets(&warm, &format!("warm-{seed}")).await;
        let other = &self.swarm.hosts[0];
        let told = other.get(&cold.url, &format!("passed-on-{seed}")).await.unwrap();
        assert_eq!(other.receipt(&told).await.unwrap().peer_bytes, cold.pattern.length);
        assert_eq!(self.origin.counts(&warm).body_bytes, warm.pattern.length);
    }

    async fn ends(mut self) {
        self.swarm.stop().await;
    }
}

/// A panic in something that belongs to one task, whose client does not notice.
async fn unnoticed(kind: &'static str, times: u32, seed: u64) {
    let mut scene = Scene::new().await;
    let blob = scene.origin.blob(3 * PIECE, seed);
    scene.faults.arm(kind, times);
    scene.gets(&blob, "out").await;
    assert_eq!(scene.faults.armed(kind), 0, "{kind} never ran");
    scene.serves_the_next_downloads(seed).await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_piece_fetch_it_costs_the_attempt() {
    unnoticed("piece-fetch", 2, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_scheduler_session_it_costs_the_session() {
    unnoticed("scheduler-session", 1, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_task_supervisor_it_costs_one_run() {
    unnoticed("task-supervisor", 1, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twice_in_a_task_supervisor_it_costs_the_clients_of_that_task() {
    let mut scene = Scene::new().await;
    let blob = scene.origin.blob(PIECE, 4);
    scene.faults.arm("task-supervisor", 2);
    let status = scene.victim().get(&blob.url, "out").await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    assert!(!scene.victim().path("out").try_exists().unwrap());
    scene.gets(&blob, "out").await;
    scene.serves_the_next_downloads(4).await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_supervisor_midway_its_pieces_are_kept_and_its_clients_attached_again() {
    let scene = Scene::new().await;
    let blob = scene.origin.blob(8 * PIECE, 5);
    let slow = damselfly_tests::origin::Behaviour { rate: Some(30 << 20), ..Default::default() };
    scene.origin.set(&blob, slow);
    let host = scene.victim();
    let mut call = host.open(to_file(&blob.url, &host.path("out"))).await.unwrap();
    call.pieces(2).await.unwrap();
    scene.faults.arm("task-supervisor", 1);
    call.finish().await.unwrap();
    assert_eq!(scene.faults.armed("task-supervisor"), 0);
    blob.pattern.check_file(host.path("out")).unwrap();
    // What was in flight, four pieces at most, may have been fetched twice.
    let sent = scene.origin.counts(&blob).body_bytes;
    assert!(sent <= blob.pattern.length + 4 * PIECE, "{sent}");
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_progress_stream_it_costs_that_client() {
    let mut scene = Scene::new().await;
    let blob = scene.origin.blob(PIECE, 6);
    scene.faults.arm("progress-stream", 1);
    let status = scene.victim().get(&blob.url, "out").await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    scene.gets(&blob, "out").await;
    scene.serves_the_next_downloads(6).await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_parent_watch_it_costs_the_watch() {
    let mut scene = Scene::new().await;
    let blob = scene.origin.blob(4 * PIECE, 7);
    // A parent that holds a part has to be watched.
    let part = with_range(download(&blob.url), 0, 2 * PIECE);
    scene.swarm.hosts[0].download(part).await.unwrap();
    scene.faults.arm("parent-watch", 1);
    scene.gets(&blob, "out").await;
    assert_eq!(scene.faults.armed("parent-watch"), 0);
    scene.serves_the_next_downloads(7).await;
    scene.ends().await;
}

/// A panic in something that all downloads from peers pass through.
async fn between_peers(kind: &'static str, seed: u64) {
    let mut scene = Scene::new().await;
    let blob = scene.origin.blob(3 * PIECE, seed);
    scene.swarm.hosts[0].download(download(&blob.url)).await.unwrap();
    scene.faults.arm(kind, 1);
    scene.gets(&blob, "out").await;
    assert_eq!(scene.faults.armed(kind), 0, "{kind} never ran");
    scene.serves_the_next_downloads(seed).await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_connection_it_costs_its_lanes() {
    between_peers("connection", 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_pool_it_costs_the_connections() {
    between_peers("connections", 9).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_registry_it_costs_the_clients_that_wait() {
    let mut scene = Scene::new().await;
    let blob = scene.origin.blob(PIECE, 10);
    let host = scene.victim();
    let (back, got) = tokio::join!(host.panics("tasks", "daemon/tasks"), host.get(&blob.url, "out"));
    back.unwrap();
    let status = got.unwrap_err();
    assert!(matches!(status.code(), Code::Internal | Code::Unavailable), "{status:?}");
    scene.gets(&blob, "out").await;
    scene.serves_the_next_downloads(10).await;
    scene.ends().await;
}

async fn http(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A panic in a service: it is started again, and everything answers as before.
async fn restarted(kind: &'static str, path: &str, seed: u64) {
    let mut scene = Scene::new().await;
    let host = scene.victim();
    host.panics(kind, path).await.unwrap();
    let ports = host.daemon().ports();
    assert!(http(ports.health, "/healthy").await.starts_with("HTTP/1.1 200"), "{kind}");
    assert!(http(ports.metrics, "/metrics").await.starts_with("HTTP/1.1 200"), "{kind}");
    scene.serves_the_next_downloads(seed).await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_piece_server_it_costs_a_restart() {
    restarted("vortex-tcp", "daemon/listeners/vortex-tcp", 11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_network_listener_it_costs_a_restart() {
    restarted("grpc", "daemon/listeners/grpc", 12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_local_listener_it_costs_a_restart() {
    restarted("grpc-local", "daemon/listeners/grpc-local", 13).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_health_page_it_costs_a_restart() {
    restarted("health", "daemon/listeners/health", 14).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_metrics_page_it_costs_a_restart() {
    restarted("metrics", "daemon/listeners/metrics", 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_collector_it_costs_a_restart() {
    restarted("collector", "daemon/collector", 16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_service_of_orders_it_costs_a_restart() {
    restarted("orders", "daemon/orders", 17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_host_announcer_it_costs_a_restart() {
    restarted("host-announcer", "daemon/host-announcer", 21).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_hold_it_costs_that_dialogue_which_begins_anew() {
    let mut scene = Scene::new().await;
    let host = scene.victim();
    let path = format!("daemon/holds/{}", scene.swarm.hosts[0].scheduler());
    host.panics("hold", &path).await.unwrap();
    host.sees_schedulers(1).await.unwrap();
    scene.serves_the_next_downloads(22).await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_group_of_listeners_it_costs_their_restart() {
    let mut scene = Scene::new().await;
    let host = scene.victim();
    // The group's handler runs when it starts a child again.
    let (group, child, ()) = tokio::join!(
        host.panics("group", "daemon/listeners"),
        host.comes_back("daemon/listeners/grpc-local"),
        async { scene.faults.arm("health", 1) },
    );
    group.unwrap();
    child.unwrap();
    assert!(http(host.daemon().ports().health, "/healthy").await.starts_with("HTTP/1.1 200"));
    scene.serves_the_next_downloads(18).await;
    scene.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_scheduler_it_costs_what_the_daemons_announce_again() {
    let origin = OriginServer::start().await.unwrap();
    let faults = Faults::armable();
    let mut swarm = Swarm::start(0, "").await.unwrap();
    swarm.add(Setup { faults: faults.clone(), ..Setup::default() }).await.unwrap();
    swarm.add(Setup::default()).await.unwrap();
    let before = origin.blob(2 * PIECE, 19);
    swarm.hosts[0].download(download(&before.url)).await.unwrap();
    swarm.hosts[0].panics("scheduler", "daemon/scheduler").await.unwrap();
    // One task that the dead scheduler knew, and one that it did not.
    for blob in [before, origin.blob(2 * PIECE, 20)] {
        let name = blob.pattern.seed.to_string();
        swarm.hosts[1].get(&blob.url, &name).await.unwrap();
        blob.pattern.check_file(swarm.hosts[1].path(&name)).unwrap();
    }
    swarm.stop().await;
}
