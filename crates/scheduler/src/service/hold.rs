//! `damselfly.v1.Cluster/Hold`: the stream by which a daemon of ours lives in the scheduler's eyes.

use std::sync::Arc;

use damselfly_api::common::v2::PersistentCacheTask;
use damselfly_api::damselfly::v1 as ours;
use damselfly_core::{Kind, TaskKey};
use ours::hold_request::Request;
use ours::hold_response::Response as Reply;
use tokio::sync::oneshot;
use tonic::codegen::BoxStream;
use tonic::{Response, Status, Streaming};

use super::stream::outlet;
use super::{Face, SchedulerService, convert, validate};
use crate::machine::{Event, HoldId, HoldMessage, Order};

#[tonic::async_trait]
impl ours::cluster_server::Cluster for Face {
    async fn hold(
        &self,
        request: tonic::Request<Streaming<ours::HoldRequest>>,
    ) -> Result<Response<BoxStream<ours::HoldResponse>>, Status> {
        self.0.open_hold(request.into_inner())
    }

    async fn list_persistent_cache_tasks(
        &self,
        _request: tonic::Request<ours::ListPersistentCacheTasksRequest>,
    ) -> Result<Response<BoxStream<PersistentCacheTask>>, Status> {
        let service = Arc::clone(&self.0);
        // Each is looked at when its turn comes: what went meanwhile is not among them.
        let all = service.all_kept().into_iter().filter_map(move |task| service.look_at(&task)).map(Ok);
        Ok(Response::new(Box::pin(tokio_stream::iter(all))))
    }
}

impl SchedulerService {
    fn open_hold(
        self: &Arc<Self>,
        requests: Streaming<ours::HoldRequest>,
    ) -> Result<Response<BoxStream<ours::HoldResponse>>, Status> {
        let hold = HoldId(self.next_id());
        let (outlet, inlet, stopped) = outlet(self.config.queue);
        {
            let mut inner = self.inner.lock();
            if inner.closing {
                return Err(Status::unavailable("the scheduler is shutting down"));
            }
            inner.holds.insert(hold, outlet);
        }
        tokio::spawn(self.clone().read_hold(hold, requests, stopped));
        Ok(Response::new(Box::pin(inlet)))
    }

    async fn read_hold(
        self: Arc<Self>,
        hold: HoldId,
        mut requests: Streaming<ours::HoldRequest>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let late = tokio::time::sleep(self.config.first_message);
        tokio::pin!(late);
        let mut greeted = false;
        let ending = loop {
            let request = tokio::select! {
                _ = &mut stopped => break None,
                request = requests.message() => request,
                () = &mut late, if !greeted => break Some(super::too_late("hello")),
            };
            let message = match request {
                Ok(Some(ours::HoldRequest { request: Some(message) })) => message,
                // A later version's message is a sign of life too.
                Ok(Some(ours::HoldRequest { request: None })) => Request::Beat(ours::Beat::default()),
                Ok(None) => break None,
                Err(status) => break Some(status),
            };
            if greeted == matches!(message, Request::Hello(_)) {
                break Some(validate::invalid("request", "hello comes first and once"));
            }
            greeted = true;
            if let Err(status) = self.take_hold(hold, message) {
                break Some(status);
            }
        };
        self.step(Event::HoldClosed(hold));
        if let Some(outlet) = self.inner.lock().holds.remove(&hold) {
            outlet.end(ending);
        }
    }

    fn take_hold(self: &Arc<Self>, hold: HoldId, message: Request) -> Result<(), Status> {
        let message = match message {
            Request::Hello(hello) => {
                let mut host = hello.host.ok_or_else(|| validate::invalid("hello.host", "must be given"))?;
                host.incarnation = Some(hello.incarnation);
                let address = validate::host(&host)?;
                tracing::info!(host = %host.id, version = %hello.version, "a daemon holds");
                let info = convert::host(&host, address);
                let welcome = ours::Welcome {
                    epoch: self.epoch,
                    address: self.config.address.clone(),
                    ring: self.config.ring.clone(),
                };
                if let Some(outlet) = self.inner.lock().holds.get(&hold) {
                    outlet.send(ours::HoldResponse { response: Some(Reply::Welcome(welcome)) });
                }
                self.take_host(host, Event::Hold(hold, HoldMessage::Hello(Box::new(info))));
                return Ok(());
            }
            Request::Beat(_) => HoldMessage::Beat,
            Request::Done(ours::Done { order, error }) => {
                if let Some(why) = &error {
                    tracing::info!(order, why, "an order was not carried out");
                }
                HoldMessage::Done { order, error }
            }
            Request::Holdings(ours::Holdings { holdings, last }) => {
                let holdings = holdings.into_iter().map(convert::holding).collect::<Result<_, _>>()?;
                HoldMessage::Holdings { holdings, last }
            }
            Request::Tombstones(ours::Tombstones { tombstones }) => {
                let tombstones = tombstones.into_iter().map(convert::tombstone);
                HoldMessage::Tombstones(tombstones.collect::<Result<_, _>>()?)
            }
            Request::Leaving(leaving) => HoldMessage::Leaving { restarting: leaving.restarting },
        };
        self.step(Event::Hold(hold, message));
        Ok(())
    }
}

/// An order as it goes out.
pub(super) fn order(order: u64, what: Order) -> ours::HoldResponse {
    let kind = |task: &TaskKey| match task.kind {
        Kind::Standard => ours::TaskKind::Standard.into(),
        Kind::PersistentCache => ours::TaskKind::PersistentCache.into(),
        Kind::Cache => ours::TaskKind::Cache.into(),
    };
    let response = match what {
        Order::Replicate(task) => Reply::Replicate(ours::Replicate {
            order,
            kind: kind(&task),
            id: task.id.to_string(),
            // Its announce stream names them, and goes on naming them.
            parents: Vec::new(),
        }),
        Order::Drop(task, generation) => {
            Reply::Drop(ours::Drop { order, kind: kind(&task), id: task.id.to_string(), generation })
        }
        Order::Demote(task) => {
            Reply::Demote(ours::Demote { order, kind: kind(&task), id: task.id.to_string() })
        }
    };
    ours::HoldResponse { response: Some(response) }
}
