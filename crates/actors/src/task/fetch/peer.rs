//! One piece from a parent, over Vortex.

use std::net::SocketAddr;
use std::time::Duration;

use damselfly_core::download::{Failure, FailureKind};
use damselfly_core::{Class, Crc, PieceSpan};
use tokio::time::Instant;

use super::{FetchArgs, failure, storage_failure, write_failure};
use crate::connections::{ConnectionsMsg, Lent};
use crate::task::wire::Parent;

/// How long a lane may take to come: dialling is bounded by the pool itself, this bounds waiting for it.
const LANE_DEADLINE: Duration = Duration::from_secs(10);

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
    let mut body = args.or_cancelled(ticket.response()).await?.map_err(|why| fetch_failure(address, &why))?;
    let promised = body.crc();
    let mut buffer = args.or_cancelled(args.engine.buffers.acquire()).await?;
    let mut crc = crc32fast::Hasher::new();
    let mut done = 0;
    let mut patience = args.patience(span.number);
    while done < span.length {
        let read = args.or_cancelled(patience.wait(body.fill(&mut buffer))).await??;
        let read = read.map_err(|why| fetch_failure(address, &why))?;
        let bytes = &buffer[..read];
        args.or_cancelled(args.limit.acquire(read as u64)).await?;
        args.or_cancelled(args.engine.limits.download.acquire(read as u64)).await?;
        crc.update(bytes);
        tokio::task::block_in_place(|| slot.write_at(done, bytes)).map_err(write_failure)?;
        done += read as u64;
        args.received(read as u64);
    }
    body.finish().map_err(|why| fetch_failure(address, &why))?;
    let crc = Crc(crc.finalize());
    check(args, span.number, address, ledger.or(promised), crc)?;
    tokio::task::block_in_place(|| slot.commit(crc)).map_err(|why| storage_failure(&why))?;
    args.engine.metrics.downloaded(crate::metrics::Traffic::Remote, span.length);
    args.stored(span.number, crc, started.elapsed());
    Ok(())
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
