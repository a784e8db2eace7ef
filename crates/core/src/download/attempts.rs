//! Attempts: how they begin, what they report, how they end.

use std::time::Duration;

use super::{
    AttemptId, Download, Effect, Failure, FailureKind, Fetch, FromAttempt, HeadersId, LostClient, Source,
    ToScheduler,
};
use crate::{Crc, Geometry, PeerId, Tick};

/// Crashed attempts in a row that are simply begun again; from then on they count as failures of their source.
const FREE_CRASHES: u32 = 3;

/// An attempt whose end has not been reported yet.
#[derive(Debug)]
pub(super) struct Attempt {
    /// The one piece it is for; `None` when it reads from end to end, or only asks for the facts.
    pub(super) piece: Option<u32>,
    /// `None` is the origin.
    pub(super) parent: Option<PeerId>,
    headers: HeadersId,
    shape: Shape,
    state: State,
    pub(super) started: Tick,
    /// When it last received bytes.
    pub(super) moved: Tick,
    pub(super) bytes: u64,
    /// When the first bytes were heard of, and how many those were.
    pub(super) begun: Option<(Tick, u64)>,
    /// It does not move while others do.
    pub(super) stalled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Piece,
    First,
    Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    /// It has done what it was for.
    Done,
    Cancelled,
}

impl Attempt {
    /// Whether it still works at what it was begun for.
    pub(super) fn is_live(&self) -> bool {
        self.state == State::Live
    }

    pub(super) fn is_stream(&self) -> bool {
        self.shape == Shape::Stream
    }

    pub(super) fn source(&self) -> Source {
        match &self.parent {
            Some(parent) => Source::Parent(parent.clone()),
            None => Source::Origin(self.headers),
        }
    }
}

impl Download {
    /// How many attempts at the piece are under way, the cancelled ones that have not ended included: they may still
    /// write.
    pub(super) fn outstanding(&self, piece: u32) -> usize {
        self.attempts
            .values()
            .filter(|attempt| attempt.piece == Some(piece) && attempt.state != State::Done)
            .count()
    }

    pub(super) fn start(&mut self, fetch: Fetch) {
        if self.attempts.is_empty() {
            // Nobody ticked while nothing ran.
            self.last_tick = self.now;
        }
        let id = AttemptId(self.next_attempt);
        self.next_attempt += 1;
        let no_headers = HeadersId(0);
        let (piece, parent, headers, shape) = match &fetch {
            Fetch::Piece { piece, parent, .. } => {
                (Some(*piece), Some(parent.clone()), no_headers, Shape::Piece)
            }
            Fetch::OriginPiece { piece, headers, .. } => (Some(*piece), None, *headers, Shape::Piece),
            Fetch::OriginFirst { headers, first_piece } => {
                (first_piece.then_some(0), None, *headers, Shape::First)
            }
            Fetch::OriginStream { headers } => (None, None, *headers, Shape::Stream),
        };
        if let Some(parent) = &parent
            && self.live_at(parent) == 0
            && let Some(parent) = self.parents.get_mut(parent)
        {
            parent.begin(self.now);
        }
        let attempt = Attempt {
            piece,
            parent,
            headers,
            shape,
            state: State::Live,
            started: self.now,
            moved: self.now,
            bytes: 0,
            begun: None,
            stalled: false,
        };
        self.attempts.insert(id, attempt);
        self.emit(Effect::Fetch(id, fetch));
    }

    pub(super) fn cancel_where(&mut self, which: impl Fn(&Attempt) -> bool) {
        for (id, attempt) in &mut self.attempts {
            if attempt.is_live() && which(attempt) {
                attempt.state = State::Cancelled;
                self.out.push(Effect::Cancel(*id));
            }
        }
    }

    pub(super) fn cancel_all(&mut self) {
        self.cancel_where(|_| true);
    }

    pub(super) fn on_attempt(&mut self, id: AttemptId, message: FromAttempt) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        match message {
            FromAttempt::Over(result) => self.on_over(id, result),
            // Whatever an attempt at the old version still says is void.
            _ if self.restart.is_some() => {}
            FromAttempt::Learned(learned) => {
                if attempt.parent.is_some() || !attempt.is_live() {
                    return;
                }
                let end_to_end = learned.content_length.is_none() || learned.ranges == Some(false);
                if end_to_end && attempt.shape == Shape::First && attempt.piece.take().is_some() {
                    attempt.shape = Shape::Stream;
                }
                // Even when nobody waits any more: the piece that comes with it must find its place, and the next client
                // may join before it does.
                self.on_learned(learned);
            }
            FromAttempt::Stored { piece, crc, cost } => self.on_stored(id, piece, crc, cost),
            FromAttempt::Ended { geometry, crcs } => {
                if attempt.parent.is_none() {
                    self.on_ended(id, geometry, &crcs);
                }
            }
        }
    }

    fn on_stored(&mut self, id: AttemptId, piece: u32, crc: Crc, cost: Duration) {
        if piece >= self.known.piece_count() {
            return;
        }
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if attempt.piece == Some(piece) && attempt.is_live() {
            attempt.state = State::Done;
        }
        let (source, parent, started) = (attempt.source(), attempt.parent.clone(), attempt.started);
        let rest = self.known.length_of(piece).saturating_sub(attempt.bytes);
        if let Some(parent) = &parent {
            self.parent_delivered(parent, rest);
        }
        if self.known.held.contains(piece) {
            return;
        }
        let expected = self.known.ledger.get(&piece).copied();
        if expected.is_some_and(|expected| expected != crc) {
            self.emit(Effect::Invalidate(piece));
            match parent {
                Some(parent) => self.ban(&parent, piece),
                None => self.origin_contradicts(started, piece, crc),
            }
        } else if expected.is_none() && parent.as_ref().is_some_and(|parent| self.banned.contains(parent)) {
            // Nothing but a liar's word says that it is right.
            self.emit(Effect::Invalidate(piece));
        } else {
            self.take_piece(piece, crc, cost, source);
        }
    }

    /// A piece is verified: everybody hears of it.
    fn take_piece(&mut self, piece: u32, crc: Crc, cost: Duration, source: Source) {
        let parent = match &source {
            Source::Parent(parent) => Some(parent.clone()),
            Source::Origin(_) => {
                self.origin.delivered();
                None
            }
        };
        self.crashes = 0;
        self.stuck_since = None;
        self.dialogue.questions = 0;
        self.known.held.insert(piece);
        self.known.crcs.insert(piece, (crc, parent.clone()));
        self.emit(Effect::Verified { piece, source, cost });
        self.report(ToScheduler::PieceFinished { piece, crc, parent, cost });
        self.cancel_where(|attempt| attempt.piece == Some(piece));
        self.count_piece(piece);
    }

    /// An origin that did not tell the length has ended.
    fn on_ended(&mut self, id: AttemptId, geometry: Geometry, crcs: &[Crc]) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let (source, started) = (attempt.source(), attempt.started);
        let count = geometry.piece_count();
        if crcs.len() != count as usize {
            return;
        }
        if attempt.is_live() {
            attempt.state = State::Done;
        }
        if self.known.geometry.is_some_and(|known| known != geometry) {
            return self.begin_restart(self.known.validator.clone(), None);
        }
        if self.known.geometry.is_none() {
            let mut learned = self.known.from_origin.clone().unwrap_or_default();
            learned.content_length = Some(geometry.content_length());
            learned.piece_length = geometry.piece_length();
            self.adopt(geometry, &learned);
            self.known.from_origin = Some(learned);
            self.dialogue.learned_told = false;
            self.tell_learned();
        }
        let cost = self.now.since(started) / count.max(1);
        for (piece, crc) in (0..).zip(crcs) {
            let contradicted = self.known.ledger.get(&piece).is_some_and(|expected| expected != crc);
            if contradicted {
                self.emit(Effect::Invalidate(piece));
                self.origin_contradicts(started, piece, *crc);
            } else if !self.known.held.contains(piece) {
                self.take_piece(piece, *crc, cost, source.clone());
            }
        }
    }

    fn on_over(&mut self, id: AttemptId, result: Result<(), Failure>) {
        let Some(attempt) = self.attempts.remove(&id) else { return };
        if attempt.is_live() && self.restart.is_none() {
            match result {
                Ok(()) => self.on_end_without_piece(&attempt),
                Err(failure) => self.on_failure(&attempt, failure),
            }
        }
        if let Some(parent) = &attempt.parent {
            self.parent_rests(parent);
        }
    }

    /// An attempt says it succeeded, but has not stored what it was for.
    fn on_end_without_piece(&mut self, attempt: &Attempt) {
        let nothing_left = match (attempt.shape, attempt.piece) {
            (_, Some(piece)) => self.known.held.contains(piece),
            (Shape::Stream, None) => self.known.geometry.is_some() && self.known.missing.is_empty(),
            (_, None) => self.known.from_origin.is_some(),
        };
        if !nothing_left {
            let failure = Failure::retry("the content ended before everything had arrived");
            self.on_failure(attempt, failure);
        }
    }

    fn on_failure(&mut self, attempt: &Attempt, failure: Failure) {
        match (failure.kind.clone(), &attempt.parent) {
            (FailureKind::Storage, _) => {
                self.cancel_all();
                self.fail_everybody(|_| LostClient::Source(failure.clone()));
            }
            (FailureKind::Cancelled, _) if self.crashes < FREE_CRASHES => self.crashes += 1,
            (FailureKind::Wrong, Some(parent)) => self.ban(parent, attempt.piece.unwrap_or(0)),
            (FailureKind::Missing, Some(parent)) => self.parent_lacks(parent, attempt.piece),
            (FailureKind::Retry { after }, Some(parent)) => self.parent_failed(parent, after),
            // Only an origin can mean these; whatever a parent meant, it has not delivered.
            (_, Some(parent)) => self.parent_failed(parent, None),
            (FailureKind::Unauthorized, None) => self.origin_unauthorized(attempt.headers, failure),
            (FailureKind::Refused, None) => self.origin_refused(failure),
            (FailureKind::Changed(validator), None) => self.begin_restart(validator, None),
            // It found out that there are no ranges: the next attempt asks otherwise, at once.
            (_, None) if attempt.shape == Shape::Piece && self.known.ranges == Some(false) => {}
            (FailureKind::Retry { after }, None) => self.origin_retry(attempt.started, failure, after),
            (_, None) => self.origin_retry(attempt.started, failure, None),
        }
    }
}
