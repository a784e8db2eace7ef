//! Schedulers that do what a test tells them.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2::Host;
use damselfly_api::damselfly::v1::cluster_server::{Cluster as ClusterService, ClusterServer};
use damselfly_api::damselfly::v1::{
    HoldRequest, HoldResponse, Holding, Tombstone, Welcome, hold_request, hold_response,
};
use damselfly_api::scheduler::v2::scheduler_server::{Scheduler, SchedulerServer};
use damselfly_api::scheduler::v2::{
    AnnounceHostRequest, AnnouncePeerRequest, AnnouncePeerResponse, DeleteHostRequest, DeleteTaskRequest,
    ListHostsRequest, ListHostsResponse, StatTaskRequest,
};
use damselfly_scheduler_client::{Cluster, ClusterOptions, Holdings, HostProvider, Order, Source, Target};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

/// Long enough for anything that happens at all; no test measures time with it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

type BoxStream<T> = tonic::codegen::BoxStream<T>;

/// What a fake saw.
#[derive(Debug, Clone)]
pub(crate) enum Seen {
    Announced(Box<AnnounceHostRequest>),
    Deleted(String),
    Hold,
    Said(Box<hold_request::Request>),
    /// The client half-closed its Hold stream.
    HoldEnded,
}

/// How a fake answers.
#[derive(Clone)]
pub(crate) struct Script {
    /// Whether `Hold` is served at all.
    pub(crate) ours: bool,
    pub(crate) welcome: Welcome,
}

/// One of ours in its `epoch`th life, alone on its ring.
pub(crate) fn script(epoch: u64) -> impl FnOnce(SocketAddr) -> Script {
    move |address| Script {
        ours: true,
        welcome: Welcome { epoch, address: address.to_string(), ring: vec![address.to_string()] },
    }
}

#[derive(Clone)]
struct Service {
    script: Script,
    seen: mpsc::Sender<Seen>,
    /// Orders for whoever holds on.
    orders: watch::Receiver<Option<HoldResponse>>,
}

pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) seen: mpsc::Receiver<Seen>,
    pub(crate) orders: watch::Sender<Option<HoldResponse>>,
    /// One of its own, so that every connection dies with the fake.
    runtime: Option<Runtime>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Fake {
    pub(crate) async fn start(ours: bool) -> Self {
        let address = "127.0.0.1:0".parse().unwrap();
        Self::start_at(address, |address| Script { ours, ..script(1)(address) }).await
    }

    pub(crate) async fn start_tls(tls: ServerTlsConfig) -> Self {
        let server = Server::builder().tls_config(tls).unwrap();
        Self::start_with(server, "127.0.0.1:0".parse().unwrap(), script(1)).await
    }

    pub(crate) async fn start_at(address: SocketAddr, script: impl FnOnce(SocketAddr) -> Script) -> Self {
        Self::start_with(Server::builder(), address, script).await
    }

    async fn start_with(
        mut server: Server,
        address: SocketAddr,
        script: impl FnOnce(SocketAddr) -> Script,
    ) -> Self {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (seen_tx, seen) = mpsc::channel(10_000);
        let (orders, orders_rx) = watch::channel(None);
        let service = Service { script: script(address), seen: seen_tx, orders: orders_rx };
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let mut router =
            server.add_service(health_service).add_service(SchedulerServer::new(service.clone()));
        if service.script.ours {
            router = router.add_service(ClusterServer::new(service));
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            router.serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, seen, orders, runtime: Some(runtime) }
    }

    /// Waits for something that `pick` recognises.
    pub(crate) async fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(Seen) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let seen = self.seen.recv().await.expect("the fake lives");
                if let Some(found) = pick(seen) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never saw {what}"))
    }

    pub(crate) async fn kill(mut self) -> SocketAddr {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(|| runtime.shutdown_timeout(PATIENCE)).await.unwrap();
        self.address
    }
}

#[tonic::async_trait]
impl Scheduler for Service {
    async fn announce_host(&self, request: Request<AnnounceHostRequest>) -> Result<Response<()>, Status> {
        let _full = self.seen.try_send(Seen::Announced(Box::new(request.into_inner())));
        Ok(Response::new(()))
    }

    async fn delete_host(&self, request: Request<DeleteHostRequest>) -> Result<Response<()>, Status> {
        let _full = self.seen.try_send(Seen::Deleted(request.into_inner().host_id));
        Ok(Response::new(()))
    }

    async fn list_hosts(&self, _: Request<ListHostsRequest>) -> Result<Response<ListHostsResponse>, Status> {
        let host = Host { id: "somebody".to_owned(), ..Host::default() };
        Ok(Response::new(ListHostsResponse { hosts: vec![host] }))
    }

    async fn stat_task(
        &self,
        request: Request<StatTaskRequest>,
    ) -> Result<Response<damselfly_api::common::v2::Task>, Status> {
        assert!(request.metadata().contains_key("grpc-timeout"), "unary calls tell their deadline");
        Err(Status::not_found("task unknown"))
    }

    async fn delete_task(&self, _: Request<DeleteTaskRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn announce_peer(
        &self,
        request: Request<Streaming<AnnouncePeerRequest>>,
    ) -> Result<Response<BoxStream<AnnouncePeerResponse>>, Status> {
        assert!(!request.metadata().contains_key("grpc-timeout"), "streams have no deadline");
        let mut inbound = request.into_inner();
        // Like a Go server: no headers before the first message is there.
        let first = inbound.message().await?.ok_or_else(|| Status::invalid_argument("nothing said"))?;
        if first.peer_id == "refused" {
            return Err(Status::permission_denied("not you"));
        }
        let (tx, rx) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut count = 1;
            let _gone = tx.send(Ok(AnnouncePeerResponse::default())).await;
            while let Ok(Some(_)) = inbound.message().await {
                count += 1;
                let _gone = tx.send(Ok(AnnouncePeerResponse::default())).await;
            }
            if count == 3 {
                let _gone = tx.send(Err(Status::internal("three messages"))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

#[tonic::async_trait]
impl ClusterService for Service {
    async fn hold(
        &self,
        request: Request<Streaming<HoldRequest>>,
    ) -> Result<Response<BoxStream<HoldResponse>>, Status> {
        let _full = self.seen.try_send(Seen::Hold);
        let mut inbound = request.into_inner();
        let (tx, rx) = mpsc::channel(16);
        let welcome = hold_response::Response::Welcome(self.script.welcome.clone());
        tx.try_send(Ok(HoldResponse { response: Some(welcome) })).unwrap();
        let (seen, mut orders) = (self.seen.clone(), self.orders.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    request = inbound.message() => match request {
                        Ok(Some(HoldRequest { request: Some(request) })) => {
                            let _full = seen.try_send(Seen::Said(Box::new(request)));
                        }
                        Ok(Some(HoldRequest { request: None })) => {}
                        Ok(None) => {
                            let _full = seen.try_send(Seen::HoldEnded);
                            return;
                        }
                        Err(_) => return,
                    },
                    changed = orders.changed() => {
                        if changed.is_err() { return }
                        let order = orders.borrow_and_update().clone();
                        if let Some(order) = order {
                            let _gone = tx.send(Ok(order)).await;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

/// This host, and what it holds.
pub(crate) struct Me {
    pub(crate) held: Mutex<Vec<Holding>>,
    pub(crate) buried: Mutex<Vec<Tombstone>>,
    pub(crate) version: watch::Sender<u64>,
}

impl Me {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { held: Mutex::default(), buried: Mutex::default(), version: watch::Sender::new(0) })
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Vec<Holding>)) {
        change(&mut self.held.lock());
        self.version.send_modify(|version| *version += 1);
    }
}

impl HostProvider for Me {
    fn host(&self) -> Host {
        Host {
            id: "me".to_owned(),
            ip: "127.0.0.1".to_owned(),
            hostname: "me".to_owned(),
            incarnation: Some(77),
            tcp_port: 4005,
            ..Host::default()
        }
    }
}

impl Holdings for Me {
    fn snapshot(&self) -> Vec<Holding> {
        self.held.lock().clone()
    }

    fn listing(&self) -> Vec<Holding> {
        let with_crc = |holding| Holding { crcs: vec![5], ..holding };
        self.snapshot().into_iter().map(with_crc).collect()
    }

    fn tombstones(&self) -> Vec<Tombstone> {
        self.buried.lock().clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

pub(crate) fn options(me: &Arc<Me>, schedulers: &[SocketAddr]) -> ClusterOptions {
    let targets = schedulers
        .iter()
        .map(|address| Target { host: address.ip().to_string(), port: address.port() })
        .collect();
    ClusterOptions {
        source: Source::Join(targets),
        host: Arc::clone(me) as Arc<dyn HostProvider>,
        holdings: Arc::clone(me) as Arc<dyn Holdings>,
        version: "test".to_owned(),
        announce_interval: Duration::from_secs(300),
        refresh_interval: Duration::from_secs(60),
        tls: None,
        seed: false,
    }
}

/// A cluster whose futures run, as a daemon's actors would have them. Dropping it ends them.
pub(crate) struct Running {
    cluster: Arc<Cluster>,
    _task: JoinSet<()>,
}

impl Deref for Running {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

pub(crate) fn run(options: ClusterOptions) -> (Running, mpsc::Receiver<Order>) {
    let (cluster, orders) = Cluster::new(options).unwrap();
    let cluster = Arc::new(cluster);
    let mut task = JoinSet::new();
    task.spawn(attend(Arc::clone(&cluster)));
    (Running { cluster, _task: task }, orders)
}

async fn attend(cluster: Arc<Cluster>) {
    let changed = Notify::new();
    let (mut holds, mut held) = (JoinSet::new(), HashSet::new());
    let announcing = async {
        cluster.announce(|| changed.notify_one()).await;
        std::future::pending::<()>().await;
    };
    let mut announcing = pin!(announcing);
    loop {
        tokio::select! {
            () = &mut announcing => {}
            () = changed.notified() => {}
            Some(ended) = holds.join_next() => drop(held.remove(&ended.unwrap())),
        }
        for member in cluster.members() {
            if held.insert(member) {
                let cluster = Arc::clone(&cluster);
                holds.spawn(async move {
                    cluster.hold(member).await;
                    member
                });
            }
        }
    }
}

pub(crate) async fn start(me: &Arc<Me>, schedulers: &[SocketAddr]) -> (Running, mpsc::Receiver<Order>) {
    let (cluster, orders) = run(options(me, schedulers));
    tokio::time::timeout(PATIENCE, cluster.ready()).await.expect("a scheduler becomes healthy");
    (cluster, orders)
}

/// Waits until `condition` holds, looking again whenever the cluster changes.
pub(crate) async fn until(cluster: &Cluster, what: &str, condition: impl Fn(&Cluster) -> bool) {
    let mut changes = cluster.changes();
    let waiting = async {
        while !condition(cluster) {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("never came: {what}; {:?}", cluster.schedulers()));
}
