//! What differs between kinds of task. Everything else exists once and is told the kind.
//!
//! Which Vortex tags a piece travels under follows from the kind in `damselfly-transport`, how long content lives in
//! `damselfly-storage`.

use damselfly_api::dfdaemon::v2::dfdaemon_upload_client::DfdaemonUploadClient;
use damselfly_api::dfdaemon::v2::{
    SyncPersistentCachePiecesRequest, SyncPersistentCachePiecesResponse, SyncPiecesRequest,
    SyncPiecesResponse,
};
use damselfly_api::scheduler::v2::AnnouncePeerRequest;
use damselfly_core::Kind;
use damselfly_scheduler_client::{AnnounceStream, ClientError, SchedulerHandle};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tonic::Status;
use tonic::transport::Channel;

/// What a parent says of its pieces, in the words of a standard task's.
pub(super) type Pieces = BoxStream<'static, Result<SyncPiecesResponse, Status>>;

/// Whether the content comes from somewhere outside the cluster.
pub(super) const fn has_origin(kind: Kind) -> bool {
    match kind {
        Kind::Standard | Kind::Cache => true,
        Kind::PersistentCache => false,
    }
}

/// Opens a peer's dialogue with the scheduler.
pub(super) async fn announce(
    scheduler: &SchedulerHandle,
    kind: Kind,
    register: AnnouncePeerRequest,
    persistent: bool,
) -> Result<AnnounceStream, ClientError> {
    match kind {
        Kind::Standard | Kind::Cache => scheduler.announce_peer(register).await,
        Kind::PersistentCache => scheduler.announce_persistent_cache_peer(register, persistent).await,
    }
}

/// Asks a parent for the pieces it has.
pub(super) async fn sync_pieces(
    client: &mut DfdaemonUploadClient<Channel>,
    kind: Kind,
    request: SyncPiecesRequest,
) -> Result<Pieces, Status> {
    match kind {
        Kind::Standard | Kind::Cache => Ok(client.sync_pieces(request).await?.into_inner().boxed()),
        Kind::PersistentCache => {
            let SyncPiecesRequest { host_id, task_id, interested_piece_numbers } = request;
            let request = SyncPersistentCachePiecesRequest { host_id, task_id, interested_piece_numbers };
            let stream = client.sync_persistent_cache_pieces(request).await?.into_inner();
            Ok(stream.map(|piece| piece.map(from_cache)).boxed())
        }
    }
}

fn from_cache(piece: SyncPersistentCachePiecesResponse) -> SyncPiecesResponse {
    let SyncPersistentCachePiecesResponse { number, offset, length, ip, tcp_port, quic_port } = piece;
    SyncPiecesResponse { number, offset, length, ip, tcp_port, quic_port }
}

/// The inverse, for children.
pub(crate) fn to_cache(piece: SyncPiecesResponse) -> SyncPersistentCachePiecesResponse {
    let SyncPiecesResponse { number, offset, length, ip, tcp_port, quic_port } = piece;
    SyncPersistentCachePiecesResponse { number, offset, length, ip, tcp_port, quic_port }
}
