//! Content from the origin: the first contact, pieces by range, and bodies of origins without ranges.

use std::sync::Arc;

use bytes::Bytes;
use damselfly_core::download::{Failure, FailureKind, FromAttempt, Learned, Validator};
use damselfly_core::{Crc, Geometry, PieceSet, PieceSpan};
use damselfly_source::{Request, Response, SourceError};
use damselfly_storage::{Facts, PieceSlot};
use tokio::time::Instant;

use super::{FetchArgs, failure, storage_failure, write_failure};
use crate::metrics::Traffic;
use crate::task::request::OriginRequest;

/// The first contact: its answer is what others would send a request of its own for. See [`super::Job::OriginFirst`].
pub(super) async fn first(
    args: &FetchArgs,
    request: &Arc<OriginRequest>,
    first_piece: bool,
) -> Result<(), Failure> {
    let guess = request.piece_length.unwrap_or(damselfly_core::geometry::MIN_PIECE_LENGTH);
    let last = if first_piece { guess.saturating_sub(1) } else { 0 };
    let started = Instant::now();
    let response = get(args, request, Some((0, Some(last))), None, None).await?;
    let learned = learn(args, request, &response)?;
    let geometry = geometry_of(&learned)?;
    let ranges = response.ranges;
    args.report(FromAttempt::Learned(learned));
    match geometry {
        _ if !first_piece => Ok(()),
        None => units(args, request, response).await,
        Some(geometry) if !ranges => bodies(args, geometry, response).await,
        Some(geometry) => {
            let Some(span) = geometry.piece(0) else { return Ok(()) };
            let Some(mut writer) = PieceWriter::open(args, span, started)? else { return Ok(()) };
            writer.fill(args, response).await?;
            if writer.done < span.length {
                // The content is so long that its pieces are longer than the first request could know.
                let rest = Some((writer.done, Some(span.length - 1)));
                let expect = args.content.meta().validator;
                let response =
                    get(args, request, rest, Some(&expect), Some(geometry.content_length())).await?;
                writer.fill(args, response).await?;
            }
            writer.commit(args)
        }
    }
}

/// One piece by range.
pub(super) async fn piece(
    args: &FetchArgs,
    span: PieceSpan,
    request: &Arc<OriginRequest>,
    expect: &Validator,
) -> Result<(), Failure> {
    let started = Instant::now();
    let range = Some((span.offset, Some(span.offset + span.length - 1)));
    let length = args.content.meta().geometry.map(|geometry| geometry.content_length());
    let response = get(args, request, range, Some(expect), length).await?;
    if !response.ranges {
        args.report(FromAttempt::Learned(learn(args, request, &response)?));
        return Err(failure(FailureKind::Retry { after: None }, "origin stopped serving ranges"));
    }
    let Some(mut writer) = PieceWriter::open(args, span, started)? else { return Ok(()) };
    writer.fill(args, response).await?;
    writer.commit(args)
}

/// The whole body, once more: what is held is read past and compared.
pub(super) async fn stream(
    args: &FetchArgs,
    request: &Arc<OriginRequest>,
    expect: &Validator,
) -> Result<(), Failure> {
    let length = args.content.meta().geometry.map(|geometry| geometry.content_length());
    let response = get(args, request, None, Some(expect), length).await?;
    let learned = learn(args, request, &response)?;
    match geometry_of(&learned)? {
        None => units(args, request, response).await,
        Some(geometry) => bodies(args, geometry, response).await,
    }
}

async fn get(
    args: &FetchArgs,
    request: &OriginRequest,
    range: Option<(u64, Option<u64>)>,
    expect: Option<&Validator>,
    expect_length: Option<u64>,
) -> Result<Response, Failure> {
    let request = Request {
        headers: request.headers.clone(),
        range,
        expect,
        expect_length,
        ..Request::new(request.url.clone())
    };
    let asking = args.engine.metrics.origin_request(request.url.scheme());
    args.or_cancelled(args.engine.origin.get(&request)).await?.map_err(|why| {
        asking.failed();
        why.into_failure()
    })
}

fn learn(args: &FetchArgs, request: &OriginRequest, response: &Response) -> Result<Learned, Failure> {
    let length = response.content_length;
    let private = args.engine.config.private_tasks && request.is_private();
    let geometry = length.map(|length| geometry(length, request.piece_length)).transpose()?;
    let facts =
        Facts { geometry, validator: response.validator.clone(), headers: response.headers.clone(), private };
    tokio::task::block_in_place(|| args.content.set_facts(facts)).map_err(|why| storage_failure(&why))?;
    Ok(Learned {
        content_length: length,
        piece_length: geometry.map_or(0, |geometry| geometry.piece_length()),
        validator: response.validator.clone(),
        headers: response.headers.clone(),
        ranges: Some(response.ranges),
        private,
    })
}

fn geometry(content_length: u64, piece_length: Option<u64>) -> Result<Geometry, Failure> {
    match piece_length {
        Some(piece_length) => Geometry::new(content_length, piece_length),
        None => Geometry::derived(content_length),
    }
    .map_err(|why| failure(FailureKind::Refused, why.to_string()))
}

fn geometry_of(learned: &Learned) -> Result<Option<Geometry>, Failure> {
    let Some(length) = learned.content_length else { return Ok(None) };
    Geometry::new(length, learned.piece_length)
        .map(Some)
        .map_err(|why| failure(FailureKind::Refused, why.to_string()))
}

async fn next(args: &FetchArgs, response: &mut Response) -> Result<Option<Bytes>, Failure> {
    taken(args, args.or_cancelled(response.chunk()).await?).await
}

/// Charges a chunk against the limits.
async fn taken(
    args: &FetchArgs,
    chunk: Result<Option<Bytes>, SourceError>,
) -> Result<Option<Bytes>, Failure> {
    let Some(chunk) = chunk.map_err(SourceError::into_failure)? else { return Ok(None) };
    let length = chunk.len() as u64;
    args.or_cancelled(args.limit.acquire(length)).await?;
    args.or_cancelled(args.engine.limits.download.acquire(length)).await?;
    args.or_cancelled(args.engine.limits.origin.acquire(length)).await?;
    args.received(length);
    Ok(Some(chunk))
}

/// Follows a body of known length from its first byte, piece by piece.
async fn bodies(args: &FetchArgs, geometry: Geometry, mut response: Response) -> Result<(), Failure> {
    let reserve = PieceSet::full(geometry.piece_count());
    tokio::task::block_in_place(|| args.content.reserve(&reserve)).map_err(|why| storage_failure(&why))?;
    let mut left = Bytes::new();
    for number in 0..geometry.piece_count() {
        let Some(span) = geometry.piece(number) else { break };
        let mut target = match PieceWriter::open(args, span, Instant::now())? {
            Some(writer) => Target::Write(writer),
            None => Target::Compare { crc: crc32fast::Hasher::new(), done: 0 },
        };
        while target.done() < span.length {
            if left.is_empty() {
                left = next(args, &mut response).await?.ok_or_else(|| short(target.done() + span.offset))?;
            }
            let take = usize::try_from(span.length - target.done()).unwrap_or(usize::MAX).min(left.len());
            target.take(&left.split_to(take))?;
        }
        target.end(args, span)?;
    }
    Ok(())
}

fn short(at: u64) -> Failure {
    failure(FailureKind::Retry { after: None }, format!("origin's body ended at byte {at}"))
}

enum Target {
    Write(PieceWriter),
    Compare { crc: crc32fast::Hasher, done: u64 },
}

impl Target {
    fn done(&self) -> u64 {
        match self {
            Target::Write(writer) => writer.done,
            Target::Compare { done, .. } => *done,
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Target::Write(writer) => writer.write(bytes),
            Target::Compare { crc, done } => {
                crc.update(bytes);
                *done += bytes.len() as u64;
                Ok(())
            }
        }
    }

    fn end(self, args: &FetchArgs, span: PieceSpan) -> Result<(), Failure> {
        match self {
            Target::Write(writer) => writer.commit(args),
            Target::Compare { crc, .. } => {
                let (got, held) = (Crc(crc.finalize()), args.content.crc(span.number));
                if held.is_some_and(|held| held != got) {
                    let now = args.content.meta().validator;
                    let message =
                        format!("origin's content changed: piece {} reads differently now", span.number);
                    return Err(failure(FailureKind::Changed(now), message));
                }
                Ok(())
            }
        }
    }
}

/// Follows a body of unknown length to its end.
async fn units(args: &FetchArgs, request: &OriginRequest, mut response: Response) -> Result<(), Failure> {
    let mut writer =
        tokio::task::block_in_place(|| args.content.unit_writer()).map_err(|why| storage_failure(&why))?;
    if let Some(piece_length) = request.piece_length {
        writer = writer.with_piece_length(piece_length);
    }
    let mut total = 0;
    while let Some(chunk) = next(args, &mut response).await? {
        tokio::task::block_in_place(|| writer.append(&chunk)).map_err(|why| storage_failure(&why))?;
        total += chunk.len() as u64;
    }
    let (geometry, crcs) =
        tokio::task::block_in_place(|| writer.finish()).map_err(|why| storage_failure(&why))?;
    args.engine.metrics.downloaded(Traffic::Origin, total);
    args.report(FromAttempt::Ended { geometry, crcs });
    Ok(())
}

/// Writes one piece from chunks of any size.
struct PieceWriter {
    slot: PieceSlot,
    crc: crc32fast::Hasher,
    done: u64,
    span: PieceSpan,
    started: Instant,
}

impl PieceWriter {
    /// `None` when the piece is held already; see [`FetchArgs::slot`].
    fn open(args: &FetchArgs, span: PieceSpan, started: Instant) -> Result<Option<Self>, Failure> {
        let slot = args.slot(span)?;
        Ok(slot.map(|slot| Self { slot, crc: crc32fast::Hasher::new(), done: 0, span, started }))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.crc.update(bytes);
        tokio::task::block_in_place(|| self.slot.write_at(self.done, bytes)).map_err(write_failure)?;
        self.done += bytes.len() as u64;
        Ok(())
    }

    /// Takes the body, and no byte past the piece.
    async fn fill(&mut self, args: &FetchArgs, mut response: Response) -> Result<(), Failure> {
        let mut patience = args.patience(self.span.number);
        while self.done < self.span.length {
            let chunk = args.or_cancelled(patience.wait(response.chunk())).await??;
            let Some(mut chunk) = taken(args, chunk).await? else { break };
            chunk.truncate(usize::try_from(self.span.length - self.done).unwrap_or(usize::MAX));
            self.write(&chunk)?;
        }
        Ok(())
    }

    fn commit(self, args: &FetchArgs) -> Result<(), Failure> {
        if self.done < self.span.length {
            return Err(short(self.span.offset + self.done));
        }
        let crc = Crc(self.crc.finalize());
        tokio::task::block_in_place(|| self.slot.commit(crc)).map_err(|why| storage_failure(&why))?;
        args.engine.metrics.downloaded(Traffic::Origin, self.span.length);
        args.stored(self.span.number, crc, self.started.elapsed());
        Ok(())
    }
}
