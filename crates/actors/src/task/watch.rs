//! ParentWatch: SyncPieces to one parent, for as long as the supervisor wants to know what the parent has.
//!
//! Interest is asked for in windows of 65,536 pieces. The stream's end means "nothing more here", never "complete".

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::dfdaemon::v2::SyncPiecesRequest;
use damselfly_api::dfdaemon::v2::dfdaemon_upload_client::DfdaemonUploadClient;
use damselfly_core::download::FromParent;
use damselfly_core::{Geometry, TaskKey};
use futures_util::StreamExt as _;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::policy::Pieces;
use super::wire::Parent;
use super::{TaskMsg, policy};
use crate::connections::ConnectionsMsg;
use crate::engine::Engine;
use crate::kit::Seat;

/// Pieces asked about in one call.
const WINDOW: usize = 65_536;
/// Pieces passed on in one message at most.
const BATCH: usize = 1024;
/// How long connecting and the first response headers may take.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// What a watch needs to start.
#[derive(Debug)]
pub struct WatchArgs {
    /// The daemon's shared parts.
    pub engine: Arc<Engine>,
    /// The task.
    pub task: TaskKey,
    /// The parent.
    pub parent: Parent,
    /// Pieces not held yet.
    pub interest: Vec<u32>,
    /// To check what the parent says of its pieces.
    pub geometry: Option<Geometry>,
    /// Who hears.
    pub supervisor: ActorRef<TaskMsg>,
    /// Its seat on the board.
    pub seat: Seat,
}

/// The actor.
#[derive(Debug)]
pub struct ParentWatch;

impl WatchArgs {
    fn say(&self, what: FromParent, vortex: Option<SocketAddr>) {
        drop(self.supervisor.cast(TaskMsg::Parent(self.parent.id.clone(), what, vortex)));
    }

    async fn run(&self) -> FromParent {
        let asked = self
            .engine
            .connections
            .ask(OPEN_DEADLINE, |reply| ConnectionsMsg::Channel { address: self.parent.grpc, reply });
        let channel = match asked.await {
            Ok(channel) => channel,
            Err(why) => return FromParent::Lost(why.to_string()),
        };
        let mut client = DfdaemonUploadClient::new(channel);
        for window in self.interest.chunks(WINDOW) {
            let request = SyncPiecesRequest {
                host_id: self.engine.identity.host_id.to_string(),
                task_id: self.task.id.to_string(),
                interested_piece_numbers: window.to_vec(),
            };
            let opened = policy::sync_pieces(&mut client, self.task.kind, request);
            let opened = tokio::time::timeout(OPEN_DEADLINE, opened).await;
            let stream = match opened {
                Ok(Ok(pieces)) => pieces,
                Ok(Err(status)) => return FromParent::Lost(format!("SyncPieces: {}", status.message())),
                Err(_) => return FromParent::Lost("SyncPieces: no answer in time".to_owned()),
            };
            self.seat.show(format!("following {}", self.parent.grpc));
            if let Err(end) = self.follow(window, stream).await {
                return end;
            }
        }
        FromParent::Ended
    }

    /// Passes on what the parent says of one window, many pieces at a time where they come fast. Every piece is passed
    /// on once, whatever the parent repeats: that bounds the supervisor's mailbox.
    async fn follow(&self, window: &[u32], stream: Pieces) -> Result<(), FromParent> {
        let idle = self.engine.config.download.collected_piece_timeout;
        let lost = |why: &str| FromParent::Lost(format!("SyncPieces: {why}"));
        let mut awaited: HashSet<u32> = window.iter().copied().collect();
        let mut batches = stream.ready_chunks(BATCH);
        loop {
            let next = tokio::time::timeout(idle, batches.next()).await;
            let next = next.map_err(|_| lost(&format!("no word of a piece for {} s", idle.as_secs())))?;
            let Some(batch) = next else { return Ok(()) };
            let (mut numbers, mut vortex, mut end) = (Vec::with_capacity(batch.len()), None, None);
            for piece in batch {
                let piece = match piece {
                    Ok(piece) => piece,
                    Err(status) => {
                        end = Some(lost(status.message()));
                        break;
                    }
                };
                if let Some(wrong) = self.mismatch(piece.number, piece.offset, piece.length) {
                    return Err(FromParent::Mismatch(wrong));
                }
                let ip = piece.ip.parse::<std::net::IpAddr>().ok().map(|ip| ip.to_canonical());
                let port = piece.tcp_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
                vortex = ip.zip(port).map(SocketAddr::from).or(vortex);
                if awaited.remove(&piece.number) {
                    numbers.push(piece.number);
                }
            }
            if !numbers.is_empty() {
                self.say(FromParent::Has(numbers), vortex);
            }
            if let Some(end) = end {
                return Err(end);
            }
        }
    }

    fn mismatch(&self, number: u32, offset: u64, length: u64) -> Option<String> {
        let span = self.geometry?.piece(number);
        if span.is_some_and(|span| span.offset == offset && span.length == length) {
            return None;
        }
        Some(format!(
            "parent {} has piece {number} as {length} bytes from byte {offset}, we have {span:?}",
            self.parent.grpc
        ))
    }
}

impl Actor for ParentWatch {
    type Msg = ();
    type State = WatchArgs;
    type Arguments = WatchArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        args: WatchArgs,
    ) -> Result<WatchArgs, ActorProcessingErr> {
        myself.cast(())?;
        Ok(args)
    }

    async fn handle(
        &self,
        myself: ActorRef<()>,
        (): (),
        args: &mut WatchArgs,
    ) -> Result<(), ActorProcessingErr> {
        args.engine.faults.point("parent-watch");
        args.seat.show(format!("connecting to {}", args.parent.grpc));
        let end = args.run().await;
        args.say(end, None);
        myself.stop(None);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
