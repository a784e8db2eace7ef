//! dfdaemon.v2.DfdaemonUpload: what schedulers and other daemons ask of this host.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_api::dfdaemon::v2::dfdaemon_upload_server::DfdaemonUpload;
use damselfly_core::{Geometry, Kind, PieceSet, PieceSpan, TaskKey};
use damselfly_scheduler_client::SchedulerInfo;
use damselfly_storage::TaskContent;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::engine::{Engine, Ports};
use crate::grpc::CallFrom;
use crate::host::Meters;
use crate::local::{persistent_cache, stat};
use crate::request::{self, key};
use crate::task::policy;

/// Messages waiting for a slow child.
const QUEUE: usize = 128;
/// How long a child may take nothing.
const STALLED: Duration = Duration::from_secs(10);
/// One SyncHost sample per this long.
const SAMPLE: Duration = Duration::from_secs(1);

/// The service.
#[derive(Clone, Debug)]
pub struct UploadService {
    engine: Arc<Engine>,
    ports: Ports,
}

impl UploadService {
    /// A service for this daemon, whose pieces are served at `ports`.
    #[must_use]
    pub fn new(engine: Arc<Engine>, ports: Ports) -> Self {
        Self { engine, ports }
    }

    /// What only schedulers may order over the network.
    fn check_order<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let from = request.extensions().get::<CallFrom>().map(|from| from.0);
        if from.is_some_and(|from| may_order(from, &self.engine.cluster.schedulers())) {
            return Ok(());
        }
        Err(Status::permission_denied(
            "only this host's schedulers change its tasks over the network: ask on the host itself, through the \
             daemon's socket",
        ))
    }

    /// The pieces of a task among `asked`, now and as they come.
    fn pieces(
        &self,
        key: TaskKey,
        asked: Vec<u32>,
    ) -> Result<ReceiverStream<Result<dfdaemon::SyncPiecesResponse, Status>>, Status> {
        let content = self.engine.store.get(&key);
        let content = content.filter(|_| !self.engine.config.upload.disable_shared);
        let content = content.ok_or_else(|| Status::internal(format!("task {} not found", key.id)))?;
        let (tx, rx) = mpsc::channel(QUEUE);
        let sync = Sync { engine: Arc::clone(&self.engine), ports: self.ports, key, content, tx };
        // Ends with the child, the task or the last piece.
        tokio::spawn(sync.run(asked));
        Ok(ReceiverStream::new(rx))
    }
}

/// Shows a child that this parent is ours.
fn marked<T>(stream: BoxStream<T>) -> Response<BoxStream<T>> {
    let mut response = Response::new(stream);
    response.metadata_mut().insert("x-damselfly", tonic::metadata::MetadataValue::from_static("1"));
    response
}

/// Whether a call from `address` is a scheduler's that orders by calls. Ours orders in its `Hold` and never calls, so
/// that it runs at an address gives the others there no rights.
fn may_order(address: IpAddr, schedulers: &[SchedulerInfo]) -> bool {
    schedulers.iter().any(|scheduler| {
        scheduler.healthy
            && !scheduler.ours
            && scheduler.address.ip().to_canonical() == address.to_canonical()
    })
}

/// One child's SyncPieces.
struct Sync {
    engine: Arc<Engine>,
    ports: Ports,
    key: TaskKey,
    content: Arc<TaskContent>,
    tx: mpsc::Sender<Result<dfdaemon::SyncPiecesResponse, Status>>,
}

/// What a child still wants to hear of.
enum Interest {
    /// As it asked, in its order: the number of pieces is not known yet.
    Asked(Vec<u32>),
    /// Pieces that were not held when it asked.
    Open { geometry: Geometry, pieces: PieceSet },
}

impl Sync {
    async fn send(&self, span: PieceSpan) -> Result<(), Gone> {
        let piece = dfdaemon::SyncPiecesResponse {
            number: span.number,
            offset: span.offset,
            length: span.length,
            ip: self.engine.identity.ip.to_string(),
            tcp_port: Some(self.ports.vortex.port().into()),
            quic_port: None,
        };
        self.tx.send_timeout(Ok(piece), STALLED).await.map_err(|_| Gone)
    }

    /// Sends every piece of interest that is held now and was not sent; returns what is left.
    async fn send_held(&self, interest: Interest) -> Result<Interest, Gone> {
        match interest {
            Interest::Asked(asked) => {
                let Some(geometry) = self.content.geometry() else { return Ok(Interest::Asked(asked)) };
                let (held, mut pieces) = (self.content.pieces(), PieceSet::new(geometry.piece_count()));
                for number in &asked {
                    pieces.insert(*number);
                }
                for number in asked {
                    if held.contains(number)
                        && pieces.remove(number)
                        && let Some(span) = geometry.piece(number)
                    {
                        self.send(span).await?;
                    }
                }
                Ok(Interest::Open { geometry, pieces })
            }
            Interest::Open { geometry, mut pieces } => {
                // 64 pieces at a time are looked at, and only those that are new are touched one by one.
                let new: Vec<u32> = self.content.pieces().common_from(&pieces, 0).collect();
                for number in new {
                    pieces.remove(number);
                    if let Some(span) = geometry.piece(number) {
                        self.send(span).await?;
                    }
                }
                Ok(Interest::Open { geometry, pieces })
            }
        }
    }

    /// Open only while a supervisor lives here and the content stays the same: its end means "nothing more here".
    async fn run(self, asked: Vec<u32>) {
        let mut changes = self.content.changes();
        let over = self.engine.live.until_over(&self.key);
        // In this order: a generation that begins in between is noticed.
        let mut most = self.content.pieces().len();
        let generation = self.content.meta().generation;
        let mut interest = Interest::Asked(asked);
        loop {
            changes.mark_unchanged();
            let Ok(left) = self.send_held(interest).await else { return };
            if matches!(&left, Interest::Open { pieces, .. } if pieces.is_empty()) {
                return;
            }
            interest = left;
            let Some(over) = over.as_ref().filter(|over| !over.is_cancelled()) else { return };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = over.cancelled() => {}
                () = self.tx.closed() => return,
            }
            // Pieces go only when one was wrong, or all of them with their generation or with the task.
            let held = self.content.pieces().len();
            if held < most && self.content.meta().generation != generation {
                return;
            }
            most = held;
        }
    }
}

/// The child is gone, or takes nothing.
struct Gone;

#[tonic::async_trait]
impl DfdaemonUpload for UploadService {
    async fn download_task(
        &self,
        request: Request<dfdaemon::DownloadTaskRequest>,
    ) -> Result<Response<BoxStream<dfdaemon::DownloadTaskResponse>>, Status> {
        let download =
            request.into_inner().download.ok_or_else(|| Status::invalid_argument("missing download"))?;
        request::check_remote(download.output_path.as_deref(), download.need_piece_content)?;
        let prepared = request::prepare(&self.engine, download, None)?;
        request::remote(&self.engine, prepared).await.map(Response::new)
    }

    async fn stat_task(
        &self,
        request: Request<dfdaemon::StatTaskRequest>,
    ) -> Result<Response<common::Task>, Status> {
        stat::stat_task(&self.engine, &request.into_inner().task_id).await.map(Response::new)
    }

    async fn stat_local_task(
        &self,
        request: Request<dfdaemon::StatLocalTaskRequest>,
    ) -> Result<Response<dfdaemon::StatLocalTaskResponse>, Status> {
        stat::stat_local(&self.engine, &request.into_inner().task_id).map(Response::new)
    }

    async fn delete_task(
        &self,
        request: Request<dfdaemon::DeleteTaskRequest>,
    ) -> Result<Response<()>, Status> {
        self.check_order(&request)?;
        let key = key(Kind::Standard, &request.into_inner().task_id)?;
        stat::delete(&self.engine, &key).await.map(Response::new)
    }

    async fn sync_pieces(
        &self,
        request: Request<dfdaemon::SyncPiecesRequest>,
    ) -> Result<Response<BoxStream<dfdaemon::SyncPiecesResponse>>, Status> {
        let request = request.into_inner();
        let key = key(Kind::Standard, &request.task_id)?;
        let pieces = self.pieces(key, request.interested_piece_numbers)?;
        Ok(marked(Box::pin(pieces)))
    }

    async fn sync_persistent_cache_pieces(
        &self,
        request: Request<dfdaemon::SyncPersistentCachePiecesRequest>,
    ) -> Result<Response<BoxStream<dfdaemon::SyncPersistentCachePiecesResponse>>, Status> {
        let request = request.into_inner();
        let key = key(Kind::PersistentCache, &request.task_id)?;
        let pieces = self.pieces(key, request.interested_piece_numbers)?;
        Ok(marked(Box::pin(pieces.map(|piece| piece.map(policy::to_cache)))))
    }

    async fn download_persistent_cache_task(
        &self,
        request: Request<dfdaemon::DownloadPersistentCacheTaskRequest>,
    ) -> Result<Response<BoxStream<dfdaemon::DownloadPersistentCacheTaskResponse>>, Status> {
        let request = request.into_inner();
        request::check_remote(request.output_path.as_deref(), request.need_piece_content)?;
        let prepared = request::prepare_export(&self.engine, request.into(), None).await?;
        request::remote(&self.engine, prepared).await.map(Response::new)
    }

    async fn update_persistent_cache_task(
        &self,
        request: Request<dfdaemon::UpdatePersistentCacheTaskRequest>,
    ) -> Result<Response<()>, Status> {
        self.check_order(&request)?;
        let request = request.into_inner();
        let key = key(Kind::PersistentCache, &request.task_id)?;
        persistent_cache::keep(&self.engine, &key, request.persistent).map(Response::new)
    }

    async fn stat_persistent_cache_task(
        &self,
        request: Request<dfdaemon::StatPersistentCacheTaskRequest>,
    ) -> Result<Response<common::PersistentCacheTask>, Status> {
        persistent_cache::stat(&self.engine, &request.into_inner().task_id).await.map(Response::new)
    }

    async fn delete_persistent_cache_task(
        &self,
        request: Request<dfdaemon::DeletePersistentCacheTaskRequest>,
    ) -> Result<Response<()>, Status> {
        self.check_order(&request)?;
        let key = key(Kind::PersistentCache, &request.into_inner().task_id)?;
        match stat::remove(&self.engine, &key).await {
            // The scheduler wants it gone.
            Err(why) if why.code() == tonic::Code::NotFound => Ok(Response::new(())),
            removed => removed.map(Response::new),
        }
    }

    async fn sync_host(
        &self,
        _request: Request<dfdaemon::SyncHostRequest>,
    ) -> Result<Response<BoxStream<common::Host>>, Status> {
        let (tx, rx) = mpsc::channel(1);
        let (engine, meters) = (Arc::clone(&self.engine), Meters::new(self.engine.identity.ip));
        // Ends with the caller.
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(SAMPLE);
            // The first tick comes at once and begins the first sample.
            ticks.tick().await;
            let _begun = meters.traffic();
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = tx.closed() => return,
                }
                let traffic = meters.traffic();
                let host = common::Host {
                    network: Some(meters.network(engine.config.upload.bandwidth_limit, traffic)),
                    ..common::Host::default()
                };
                if tx.send_timeout(Ok(host), STALLED).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

#[cfg(test)]
mod tests;
