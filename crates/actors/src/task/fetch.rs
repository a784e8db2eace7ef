//! PieceFetch: one attempt at one piece (or at an origin's whole body), as an actor.
//!
//! It is spawned by the task supervisor with everything it needs, talks to nobody, and reports by its final state.
//! What it stores on the way is written to its [`Report`] before it is announced, so that the supervisor, which reads
//! the report whenever it is nudged and once more when the fetch has ended, sees every piece however the fetch ends.
//! A panic arrives at the supervisor as a failed actor and costs this attempt only. Bytes go from the socket through a
//! pooled buffer into the slot's extent and never into a mailbox.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use damselfly_core::download::{AttemptId, Failure, FailureKind, FromAttempt, Validator};
use damselfly_core::{Class, Crc, PieceSpan};
use damselfly_storage::{PieceSlot, StoreError, TaskContent};
use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::lore::Patience;
use super::TaskMsg;
use super::request::OriginRequest;
use super::wire::Parent;
use crate::engine::Engine;
use crate::kit::Seat;

mod lore;
mod origin;
mod peer;

pub use lore::Lore;

/// What a fetch has done so far.
#[derive(Debug, Default)]
pub struct Report {
    /// Content bytes received.
    pub bytes: AtomicU64,
    log: Mutex<Vec<FromAttempt>>,
}

impl Report {
    /// Takes what was reported since the last time.
    pub fn take(&self) -> Vec<FromAttempt> {
        std::mem::take(&mut self.log.lock())
    }
}

/// What to fetch from where; the supervisor resolved names to addresses and headers.
#[derive(Clone, Debug)]
pub enum Job {
    /// One piece from a parent.
    Piece {
        /// The piece.
        span: PieceSpan,
        /// The parent.
        parent: Parent,
        /// The ledger's CRC.
        crc: Option<Crc>,
        /// Whether another attempt is at the piece, too.
        hedge: bool,
    },
    /// First contact with the origin.
    OriginFirst {
        /// The request.
        request: Arc<OriginRequest>,
        /// Whether piece 0 is wanted.
        first_piece: bool,
    },
    /// One piece from the origin.
    OriginPiece {
        /// The piece.
        span: PieceSpan,
        /// The request.
        request: Arc<OriginRequest>,
        /// What the content's validator must be.
        expect: Validator,
        /// Whether another attempt is at the piece, too.
        hedge: bool,
    },
    /// The whole body of an origin without ranges.
    OriginStream {
        /// The request.
        request: Arc<OriginRequest>,
        /// What the content's validator must be.
        expect: Validator,
    },
}

/// Everything one attempt needs.
pub struct FetchArgs {
    /// The daemon's shared parts.
    pub engine: Arc<Engine>,
    /// Where the bytes go.
    pub content: Arc<TaskContent>,
    /// The attempt.
    pub attempt: AttemptId,
    /// What to do.
    pub job: Job,
    /// What attempts of this run have found out.
    pub lore: Arc<Lore>,
    /// Where to report.
    pub report: Arc<Report>,
    /// Whom to nudge.
    pub supervisor: ActorRef<TaskMsg>,
    /// Cancelled when the attempt is not wanted any more; selected against every socket read.
    pub cancel: CancellationToken,
    /// The task's own speed limit.
    pub limit: Arc<damselfly_transport::TokenBucket>,
    /// The attempt's span.
    pub span: tracing::Span,
    /// Its seat on the board.
    pub seat: Seat,
}

impl FetchArgs {
    fn report(&self, what: FromAttempt) {
        self.report.log.lock().push(what);
        drop(self.supervisor.cast(TaskMsg::Nudge(self.attempt)));
    }

    fn received(&self, bytes: u64) {
        self.report.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn stored(&self, piece: u32, crc: Crc, cost: Duration) {
        self.report(FromAttempt::Stored { piece, crc, cost });
    }

    /// Where the piece is written; beside another attempt that holds the slot, if one does. `None` when the piece is
    /// held already: an attempt of a run that crashed may have stored it after this run looked. It is verified, and
    /// reported.
    fn slot(&self, span: PieceSpan) -> Result<Option<PieceSlot>, Failure> {
        let (content, number) = (&self.content, span.number);
        let lent = tokio::task::block_in_place(|| match content.slot(number) {
            Err(StoreError::Busy { .. }) => content.scratch(number),
            lent => lent,
        });
        match (lent, content.crc(number)) {
            (Ok(slot), _) => Ok(Some(slot)),
            (Err(StoreError::AlreadyHeld { .. }), Some(crc)) => {
                self.stored(number, crc, Duration::ZERO);
                Ok(None)
            }
            (Err(why), _) => Err(storage_failure(&why)),
        }
    }

    /// How long the source may take for the piece.
    fn patience(&self, piece: u32) -> Patience<'_> {
        let limit = self.engine.config.download.piece_timeout;
        self.lore.patience(self.content.meta().generation, piece, limit)
    }

    /// Runs `future` unless the attempt is cancelled first.
    async fn or_cancelled<T>(&self, future: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(failure(FailureKind::Cancelled, "attempt cancelled")),
            result = future => Ok(result),
        }
    }
}

/// A failure without an origin's answer behind it.
pub(super) fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into(), status: None, headers: Default::default() }
}

/// A store's refusal: fatal, unless it only says that another attempt has the piece.
pub(super) fn storage_failure(why: &StoreError) -> Failure {
    match why.class() {
        Class::Fatal => failure(FailureKind::Storage, why.to_string()),
        Class::Retry | Class::OtherSource => failure(FailureKind::Cancelled, why.to_string()),
    }
}

/// A write that failed: the disk's fault, unless another attempt was faster.
#[expect(clippy::needless_pass_by_value, reason = "an adapter for map_err")]
pub(super) fn write_failure(why: std::io::Error) -> Failure {
    match StoreError::class_of(&why) {
        Class::Fatal => failure(FailureKind::Storage, format!("cannot write a piece: {why}")),
        Class::Retry | Class::OtherSource => failure(FailureKind::Cancelled, why.to_string()),
    }
}

/// The actor.
#[derive(Debug)]
pub struct PieceFetch;

/// Its state: the attempt, then its result.
pub enum FetchState {
    /// Not over.
    Pending(Box<FetchArgs>),
    /// Over.
    Over(Result<(), Failure>),
}

impl std::fmt::Debug for FetchState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FetchState::Pending(args) => write!(f, "Pending({:?})", args.attempt),
            FetchState::Over(result) => write!(f, "Over({result:?})"),
        }
    }
}

impl std::fmt::Debug for FetchArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FetchArgs")
            .field("attempt", &self.attempt)
            .field("job", &self.job)
            .finish_non_exhaustive()
    }
}

impl Actor for PieceFetch {
    type Msg = ();
    type State = FetchState;
    type Arguments = FetchArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        args: FetchArgs,
    ) -> Result<FetchState, ActorProcessingErr> {
        myself.cast(())?;
        Ok(FetchState::Pending(Box::new(args)))
    }

    async fn handle(
        &self,
        myself: ActorRef<()>,
        (): (),
        state: &mut FetchState,
    ) -> Result<(), ActorProcessingErr> {
        if let FetchState::Pending(args) = state {
            args.engine.faults.point("piece-fetch");
            let span = args.span.clone();
            let result = async {
                tracing::debug!("attempt begun");
                let result = match &args.job {
                    Job::Piece { span, parent, crc, .. } => peer::fetch(args, *span, parent, *crc).await,
                    Job::OriginFirst { request, first_piece } => {
                        origin::first(args, request, *first_piece).await
                    }
                    Job::OriginPiece { span, request, expect, .. } => {
                        origin::piece(args, *span, request, expect).await
                    }
                    Job::OriginStream { request, expect } => origin::stream(args, request, expect).await,
                };
                match &result {
                    Ok(()) => tracing::debug!("attempt done"),
                    Err(why) if why.kind == FailureKind::Cancelled => tracing::debug!("attempt cancelled"),
                    Err(why) => tracing::info!(kind = ?why.kind, why = %why.message, "attempt failed"),
                }
                result
            }
            .instrument(span)
            .await;
            *state = FetchState::Over(result);
        }
        myself.stop(None);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
