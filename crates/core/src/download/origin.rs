//! The origin: whether it may be asked, with whose headers, and how it bears up.

use std::collections::BTreeMap;
use std::time::Duration;

use super::attempts::Attempt;
use super::config::backoff;
use super::{Download, Failure, FailureKind, Fetch, HeadersId, ToScheduler};
use crate::{Crc, Tick};

/// Why the whole content may be fetched from the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// The scheduler said so. This stays.
    Granted,
    /// There is no scheduler, it has been silent, or it knows no way on. This ends with its next answer.
    Assumed,
}

/// What is known of the origin.
#[derive(Debug, Default)]
pub(super) struct Origin {
    /// Leave for every piece.
    pub(super) whole: Option<Leave>,
    /// Headers that were not let in.
    unauthorized: BTreeMap<HeadersId, Failure>,
    /// It said no for everybody, or failed too often in a row.
    pub(super) failed: Option<Failure>,
    failures: u32,
    /// Pieces that were not what the ledger says; what comes right in between does not make up for these.
    contradictions: u32,
    retry_at: Option<Tick>,
    /// A piece came from it in this run.
    gave_a_piece: bool,
    /// Attempts begun before this moment have had their failure counted.
    counted_from: Tick,
}

impl Origin {
    /// Gives the origin, and these headers with it, a new chance.
    pub(super) fn forgive(&mut self, headers: HeadersId) {
        self.unauthorized.remove(&headers);
        if self.failed.take().is_some() {
            (self.failures, self.contradictions, self.retry_at) = (0, 0, None);
        }
    }

    /// A piece came: whatever failed before is over.
    pub(super) fn delivered(&mut self) {
        (self.failures, self.retry_at) = (0, None);
        self.gave_a_piece = true;
    }
}

impl Download {
    /// The headers for the next request: those of the first client that allows it.
    fn origin_headers(&self) -> Option<HeadersId> {
        self.clients
            .iter()
            .filter(|waiting| waiting.client.may_use_origin)
            .map(|waiting| waiting.client.headers)
            .find(|headers| !self.origin.unauthorized.contains_key(headers))
    }

    /// Whether the origin could be asked, given leave.
    pub(super) fn origin_is_open(&self) -> bool {
        self.config.uses_origin && self.origin.failed.is_none() && self.origin_headers().is_some()
    }

    /// Whether there is leave to fetch this piece.
    pub(super) fn may_ask_origin_for(&self, piece: u32) -> bool {
        self.origin.whole.is_some() || self.leases.covers(piece)
    }

    /// Whether a request to the origin waits for nothing but the end of its backoff.
    pub(super) fn origin_recovers(&self) -> bool {
        let permitted = match self.known.geometry {
            Some(_) if self.known.stream_only() => self.origin.whole.is_some() || !self.leases.is_empty(),
            Some(_) => self.origin.whole.is_some() || !self.leases.missing(&self.known).is_empty(),
            None => self.may_meet_origin(),
        };
        self.origin.retry_at.is_some_and(|at| at > self.now) && self.origin_is_open() && permitted
    }

    /// Whether the first contact is allowed: with any leave, and before registering with a scheduler that wants to be
    /// told the length.
    fn may_meet_origin(&self) -> bool {
        self.origin.whole.is_some() || !self.leases.is_empty() || self.must_measure_first()
    }

    /// Whether the scheduler cannot be registered with before the origin told the length.
    pub(super) fn must_measure_first(&self) -> bool {
        self.config.foreign_scheduler
            && self.known.geometry.is_none()
            && !self.known.length_untold
            && self.dialogue.is_idle()
            && self.origin_is_open()
    }

    /// Starts what the origin may be asked for now.
    pub(super) fn settle_origin(&mut self) {
        let Some(headers) = self.origin_headers().filter(|_| self.origin_is_open()) else { return };
        if let Some(at) = self.origin.retry_at
            && !self.due(at)
        {
            return;
        }
        let running =
            self.attempts.values().filter(|attempt| attempt.is_live() && attempt.parent.is_none()).count();
        if self.known.geometry.is_none() || self.known.stream_only() {
            self.settle_origin_whole(headers, running);
            return;
        }
        let spare = self.origin_window().saturating_sub(running);
        let free = |piece: &u32| self.outstanding(*piece) == 0;
        let lowest: Vec<u32> = if self.origin.whole.is_some() {
            self.known.missing.iter().filter(free).take(spare).collect()
        } else {
            self.leases.missing(&self.known).into_iter().filter(free).take(spare).collect()
        };
        for piece in lowest {
            self.start(Fetch::OriginPiece { piece, headers, hedge: false });
        }
    }

    /// First contact, and content that can only be read from end to end: one attempt at a time.
    fn settle_origin_whole(&mut self, headers: HeadersId, running: usize) {
        if running > 0 || self.attempts.values().any(|attempt| attempt.parent.is_none()) {
            return;
        }
        if self.known.stream_only() {
            let permitted = self.origin.whole.is_some() || !self.leases.is_empty();
            if permitted && (self.known.geometry.is_none() || !self.known.missing.is_empty()) {
                self.start(Fetch::OriginStream { headers });
            }
        } else if self.may_meet_origin() {
            let first_piece = self.may_ask_origin_for(0) && self.first_piece_wanted();
            self.start(Fetch::OriginFirst { headers, first_piece });
        }
    }

    /// Attempts at the origin at a time. Those of all siblings share its line: the more there are, the later each piece
    /// would be done, and nothing can be swapped before.
    pub(super) fn origin_window(&self) -> usize {
        let siblings = self.siblings();
        let sharing = if self.origin.whole.is_some() {
            // Nobody shares out who fetches what: the others wait.
            siblings.min(1)
        } else if siblings > 0 || self.origin.gave_a_piece {
            siblings
        } else if self.attempts.values().any(|attempt| self.takes_long(attempt)) {
            // Of siblings it would have heard by now, and such an origin is better asked for two pieces.
            1
        } else {
            self.config.origin_window
        };
        (self.config.origin_window / (1 + sharing)).max(1)
    }

    fn takes_long(&self, attempt: &Attempt) -> bool {
        attempt.parent.is_none() && self.now.since(attempt.started) >= self.config.sibling_grace
    }

    /// Headers and spare room for a piece of a parent that stalled.
    pub(super) fn origin_spare_for(&self, piece: u32) -> Option<HeadersId> {
        let running =
            self.attempts.values().filter(|attempt| attempt.is_live() && attempt.parent.is_none()).count();
        let ready = self.origin.retry_at.is_none_or(|at| at <= self.now) && self.origin_is_open();
        let room = running < self.origin_window() && self.known.geometry.is_some();
        (ready && room && !self.known.stream_only() && self.may_ask_origin_for(piece))
            .then(|| self.origin_headers())
            .flatten()
    }

    /// An attempt that began at `started` failed in a way that may pass.
    pub(super) fn origin_retry(&mut self, started: Tick, failure: Failure, after: Option<Duration>) {
        if started >= self.origin.counted_from {
            self.origin.failures += 1;
            self.origin.counted_from = self.now + Duration::from_micros(1);
        }
        let wait = backoff(self.config.origin_backoff, self.origin.failures).max(after.unwrap_or_default());
        if self.origin.failures >= self.config.origin_tries || wait > self.config.hope_limit {
            return self.origin_refused(failure);
        }
        let at = self.now + wait;
        self.origin.retry_at = Some(self.origin.retry_at.map_or(at, |other| other.max(at)));
    }

    /// The origin gave another piece than the one in the ledger.
    pub(super) fn origin_contradicts(&mut self, started: Tick, piece: u32, crc: Crc) {
        let why = format!("piece {piece} from the origin has {crc}, other hosts received another");
        self.origin.contradictions += 1;
        if self.origin.contradictions >= self.config.origin_tries {
            self.origin_refused(Failure::retry(why));
        } else {
            self.origin_retry(started, Failure::retry(why), None);
        }
    }

    /// The origin is of no use to anybody here.
    pub(super) fn origin_refused(&mut self, failure: Failure) {
        if self.origin.failed.is_none() {
            self.tell(ToScheduler::OriginFailed(failure.clone()));
            self.origin.failed = Some(failure);
        }
    }

    /// These headers are not let in.
    pub(super) fn origin_unauthorized(&mut self, headers: HeadersId, failure: Failure) {
        self.origin.unauthorized.insert(headers, failure.clone());
        if self.origin_headers().is_none() {
            self.tell(ToScheduler::OriginFailed(failure.clone()));
        }
        self.fail_unauthorized(headers, &failure);
    }

    /// Takes leave for the whole content where nobody else decides.
    pub(super) fn assume_leave(&mut self) {
        self.origin.whole = Some(self.origin.whole.unwrap_or(Leave::Assumed));
    }

    /// The scheduler decides again.
    pub(super) fn end_assumed_leave(&mut self) {
        self.origin.whole = self.origin.whole.filter(|&leave| leave == Leave::Granted);
    }
}

impl Failure {
    pub(super) fn retry(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Retry { after: None },
            message: message.into(),
            status: None,
            headers: BTreeMap::new(),
        }
    }
}
