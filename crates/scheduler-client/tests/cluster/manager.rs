//! A manager that lists two clusters.

use std::net::SocketAddr;
use std::sync::Arc;

use damselfly_api::manager::v2::manager_server::{Manager, ManagerServer};
use damselfly_api::manager::v2::{
    ListSchedulersRequest, ListSchedulersResponse, Scheduler, SchedulerCluster, SourceType,
};
use damselfly_core::Kind;
use damselfly_scheduler_client::{Action, ManagerSource, Source, Subject};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::fake::{Fake, Me, PATIENCE, options, run, until};

struct FakeManager {
    schedulers: Vec<Scheduler>,
    asked: Arc<Mutex<Option<ListSchedulersRequest>>>,
}

#[tonic::async_trait]
impl Manager for FakeManager {
    async fn list_schedulers(
        &self,
        request: Request<ListSchedulersRequest>,
    ) -> Result<Response<ListSchedulersResponse>, Status> {
        *self.asked.lock() = Some(request.into_inner());
        Ok(Response::new(ListSchedulersResponse { schedulers: self.schedulers.clone() }))
    }
}

fn scheduler(address: SocketAddr, cluster: u64) -> Scheduler {
    let config = r#"{"load_limit": 50, "block_list": {"task": {"download": {"tags": ["bad"]}}}}"#;
    Scheduler {
        ip: address.ip().to_string(),
        port: address.port().into(),
        scheduler_cluster_id: cluster,
        scheduler_cluster: Some(SchedulerCluster {
            id: cluster,
            client_config: config.as_bytes().to_vec(),
            ..SchedulerCluster::default()
        }),
        ..Scheduler::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_healthy_schedulers_cluster_is_used() {
    let (healthy, foreign) = (Fake::start(false).await, Fake::start(false).await);
    let vacant = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = vacant.local_addr().unwrap();
    drop(vacant);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(None));
    let manager = FakeManager {
        schedulers: vec![scheduler(dead, 1), scheduler(healthy.address, 2), scheduler(foreign.address, 3)],
        asked: Arc::clone(&asked),
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let router = Server::builder().add_service(health_service).add_service(ManagerServer::new(manager));
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });

    let me = Me::new();
    let mut options = options(&me, &[]);
    options.source = Source::Manager(Box::new(ManagerSource {
        addr: format!("http://{address}"),
        commit: "abc".to_owned(),
        idc: Some("east".to_owned()),
        ..ManagerSource::default()
    }));
    let (cluster, _orders) = run(options);
    tokio::time::timeout(PATIENCE, cluster.ready()).await.unwrap();
    until(&cluster, "one scheduler", |cluster| cluster.schedulers().len() == 1).await;
    assert_eq!(cluster.schedulers()[0].address, healthy.address);
    let asked = asked.lock().clone().unwrap();
    assert_eq!(asked.source_type, i32::from(SourceType::PeerSource));
    assert_eq!((asked.hostname.as_str(), asked.ip.as_str()), ("me", "127.0.0.1"));
    assert_eq!((asked.version.as_str(), asked.commit.as_str()), ("test", "abc"));
    assert_eq!(asked.idc.as_deref(), Some("east"));
    let subject = Subject { tag: "bad", ..Subject::default() };
    let blocked = cluster.block_list().check(Kind::Standard, Action::Download, &subject).unwrap_err();
    assert_eq!(blocked.what, "tag");
}
