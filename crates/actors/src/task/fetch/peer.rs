//! One piece from a parent, over Vortex.

use std::net::SocketAddr;
use std::time::Duration;

use damselfly_core::download::{Failure, FailureKind};
use damselfly_core::{Class, Crc, PieceSpan};
use damselfly_storage::PieceSlot;
use damselfly_transport::Buffer;
use damselfly_transport::tcp::PieceBody;
use tokio::time::Instant;

use super::{FetchArgs, failure, storage_failure, write_failure};
use crate::connections::{ConnectionsMsg, Lent};
use crate::task::wire::Parent;

/// How long a lane may take to come: dialling is bounded by the pool itself, this bounds waiting for it.
const LANE_DEADLINE: Duration = Duration::from_secs(10);

/// What is read at a time while a limit counts.
const LIMITED_STEP: usize = 256 << 10;

pub(super) async fn fetch(
    args: &FetchArgs,
    span: PieceSpan,
    parent: &Parent,
    ledger: Option<Crc>,
) -> Result<(), Failure> {
    let started = Instant::now();
    let address = parent
        .vortex
        .ok_or_else(|| failure(FailureKind::Retry { after: None }, "parent named no piece port"))?;
    let key = args.content.key();
    let lent = lane(args, address, parent.ours).await?;
    // Before the request: an answer that nobody can take would break the lane for those behind it.
    let Some(mut slot) = args.slot(span)? else { return Ok(()) };
    let ticket = lent
        .request(key.kind, &key.id, span)
        .map_err(|why| from_parent(address, &why.to_string(), why.class()))?;
    drop(lent);
    let body = args.or_cancelled(ticket.response()).await?.map_err(|why| fetch_failure(address, &why))?;
    let promised = body.crc();
    tracing::debug!("answer begun");
    let buffer = args.or_cancelled(args.engine.buffers.acquire()).await?;
    let crc = Inflow { args, address, body, slot: &mut slot, buffer, filled: 0, crc: Default::default() };
    let crc = crc.receive(span).await?;
    check(args, span.number, address, ledger.or(promised), crc)?;
    tokio::task::block_in_place(|| slot.commit(crc)).map_err(|why| storage_failure(&why))?;
    args.engine.metrics.downloaded(crate::metrics::Traffic::Remote, span.length);
    args.stored(span.number, crc, started.elapsed());
    Ok(())
}

/// A piece's way from its lane through one buffer into its slot.
struct Inflow<'a> {
    args: &'a FetchArgs,
    address: SocketAddr,
    body: PieceBody,
    slot: &'a mut PieceSlot,
    buffer: Buffer,
    /// Bytes of the buffer that are still to be written.
    filled: usize,
    crc: crc32fast::Hasher,
}

impl Inflow<'_> {
    /// Writes the whole piece, and says what its CRC is.
    async fn receive(mut self, span: PieceSpan) -> Result<Crc, Failure> {
        let args = self.args;
        let limits = [&args.limit, &args.engine.limits.download];
        let mut patience = args.patience(span.number);
        while self.body.remaining() > 0 {
            let ready = args.or_cancelled(patience.wait(self.body.ready())).await??;
            ready.map_err(|why| fetch_failure(self.address, &why))?;
            let limited = limits.iter().any(|limit| limit.rate().is_some());
            let before = self.body.remaining();
            if self.fill(limited)? {
                tokio::task::block_in_place(|| self.drain(limited))?;
            }
            for limit in limits {
                args.or_cancelled(limit.acquire(before - self.body.remaining())).await?;
            }
        }
        self.body.finish().map_err(|why| fetch_failure(self.address, &why))?;
        Ok(Crc(self.crc.finalize()))
    }

    /// Reads what is there, without waiting for more. Says whether the buffer is to be written now.
    fn fill(&mut self, limited: bool) -> Result<bool, Failure> {
        let mut room = self.buffer.len();
        if limited {
            room = room.min(self.filled + LIMITED_STEP);
        }
        while self.filled < room && self.body.remaining() > 0 {
            let read = self.body.try_read(&mut self.buffer[self.filled..room]);
            let Some(read) = read.map_err(|why| fetch_failure(self.address, &why))? else { break };
            self.args.received(read as u64);
            self.filled += read;
        }
        Ok(self.filled == self.buffer.len() || self.body.remaining() == 0)
    }

    /// Writes what was read, and goes on with what has come since: to hand this worker's other tasks to another thread,
    /// as is done for whoever blocks, costs more than a read. While a limit counts, only what was read is written.
    fn drain(&mut self, limited: bool) -> Result<(), Failure> {
        loop {
            let bytes = &self.buffer[..std::mem::take(&mut self.filled)];
            self.crc.update(bytes);
            self.slot.write_at(self.slot.written(), bytes).map_err(write_failure)?;
            let stop = limited || self.body.remaining() == 0 || self.args.cancel.is_cancelled();
            if stop || !self.fill(limited)? {
                return Ok(());
            }
        }
    }
}

/// Compares a copy with what it must be. One that neither the ledger nor its sender vouches for counts only once another
/// parent has sent the same: until then its sender does not have the piece, and others are asked.
fn check(
    args: &FetchArgs,
    piece: u32,
    address: SocketAddr,
    expected: Option<Crc>,
    crc: Crc,
) -> Result<(), Failure> {
    match expected {
        Some(expected) if expected == crc => Ok(()),
        Some(expected) => {
            let message = format!(
                "parent {address} sent wrong bytes for piece {piece}: expected {expected}, got {crc}"
            );
            Err(failure(FailureKind::Wrong, message))
        }
        None if args.lore.confirms(args.content.meta().generation, piece, address, crc) => Ok(()),
        None => {
            let message = format!(
                "parent {address} sent piece {piece} without a digest, and nobody else has confirmed it"
            );
            Err(failure(FailureKind::Missing, message))
        }
    }
}

async fn lane(args: &FetchArgs, address: SocketAddr, ours: bool) -> Result<Lent, Failure> {
    let asked =
        args.engine.connections.ask(LANE_DEADLINE, |reply| ConnectionsMsg::Lease { address, ours, reply });
    match args.or_cancelled(asked).await? {
        Ok(Ok(lane)) => Ok(lane),
        Ok(Err(why)) => Err(failure(FailureKind::Retry { after: None }, format!("parent {address}: {why}"))),
        Err(why) => Err(failure(FailureKind::Retry { after: None }, why.to_string())),
    }
}

fn fetch_failure(address: SocketAddr, why: &damselfly_transport::tcp::FetchError) -> Failure {
    if why.kind() == damselfly_transport::tcp::FetchKind::Missing {
        return failure(FailureKind::Missing, format!("parent {address}: {why}"));
    }
    from_parent(address, &why.to_string(), why.class())
}

fn from_parent(address: SocketAddr, why: &str, class: Class) -> Failure {
    let kind = match class {
        Class::Retry => FailureKind::Retry { after: None },
        Class::OtherSource | Class::Fatal => FailureKind::Wrong,
    };
    failure(kind, format!("parent {address}: {why}"))
}
