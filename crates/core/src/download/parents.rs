//! Parents: what they have, how fast they are, and which of them may be asked.

use std::time::Duration;

use super::config::backoff;
use super::{Config, Download, Effect, FromParent, ParentInfo, ToScheduler};
use crate::{PeerId, PieceSet, Tick};

/// How much a new sample counts against the rate so far.
const NEWNESS: f64 = 0.4;
/// The shortest stretch of time that says something about a rate.
const SHORTEST_SAMPLE: Duration = Duration::from_millis(1);
/// Failures in a row after which nobody hopes for a parent any more. It is still asked now and then.
const HOPELESS: u32 = 3;

/// Who serves beside a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Company {
    /// Nobody: what is queued there keeps nobody waiting.
    None,
    /// Somebody.
    Some,
    /// Several, to whom new pieces come all the time: the others fill the gap between two pieces of this one, and what is
    /// not asked for yet may be had from somebody else by then.
    Swapping,
}

/// One candidate parent.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) fingerprint: u64,
    ours: bool,
    /// Whether the scheduler's current list names it. Others only finish what they have begun.
    pub(super) listed: bool,
    pub(super) complete: bool,
    pub(super) has: PieceSet,
    /// Pieces it claimed and then did not have: it has to announce them again.
    denied: PieceSet,
    has_denied: bool,
    /// How often that cost it its SyncPieces stream, and when it may have a new one: a stream tells of each piece once.
    denials: u32,
    listen_anew: Option<Tick>,
    watch: Watch,
    failures: u32,
    pub(super) retry_at: Option<Tick>,
    /// None of its attempts has moved for [`Config::stall`].
    pub(super) stalled: bool,
    /// Bytes per second over all its attempts.
    pub(super) rate: Option<f64>,
    sampled_at: Tick,
    sampled_bytes: u64,
    /// Whether bytes have come since it was last idle.
    sending: bool,
    moved: Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Unopened,
    Open,
    Ended,
    Lost,
}

impl Parent {
    fn new(id: &PeerId, count: u32, now: Tick) -> Self {
        Self {
            fingerprint: id.fingerprint(),
            ours: false,
            listed: true,
            complete: false,
            has: PieceSet::new(count),
            denied: PieceSet::new(count),
            has_denied: false,
            denials: 0,
            listen_anew: None,
            watch: Watch::Unopened,
            failures: 0,
            retry_at: None,
            stalled: false,
            rate: None,
            sampled_at: now,
            sampled_bytes: 0,
            sending: false,
            moved: now,
        }
    }

    pub(super) fn resize(&mut self, count: u32) {
        self.has = if self.complete { PieceSet::full(count) } else { PieceSet::new(count) };
        self.denied = PieceSet::new(count);
    }

    /// Whether it may be asked for more.
    pub(super) fn is_usable(&self) -> bool {
        self.listed && !self.stalled && self.retry_at.is_none()
    }

    /// Whether it may yet give what is missing although it does not now. What it has denied is not hoped for.
    pub(super) fn gives_hope(&self, missing: &PieceSet) -> bool {
        let may_give = |piece| self.has.contains(piece) || !self.denied.contains(piece);
        self.is_candidate(missing) && missing.iter().any(may_give) && !self.stalled && !self.is_hopeless()
    }

    /// Whether it has denied something that is missing after it had claimed it.
    pub(super) fn disappoints(&self, missing: &PieceSet) -> bool {
        self.listed && self.denied.common_from(missing, 0).next().is_some()
    }

    /// Whether it failed so often in a row that nobody hopes for it any more.
    fn is_hopeless(&self) -> bool {
        self.failures > HOPELESS
    }

    /// Whether its bytes are progress before they are a piece. Of whoever fails, or has not what it announced, only
    /// pieces are: else what it begins again and again would hold up the search for another source for ever.
    fn makes_progress(&self) -> bool {
        !self.is_hopeless() && !self.has_denied
    }

    /// Whether it has something that is missing, or might come to have it.
    pub(super) fn is_candidate(&self, missing: &PieceSet) -> bool {
        let has_something = self.has.common_from(missing, 0).next().is_some();
        self.listed && (has_something || self.watch != Watch::Ended)
    }

    /// Attempts it should have in flight.
    pub(super) fn window(&self, config: &Config, piece_length: u64, company: Company) -> usize {
        let (least, most) = config.window;
        let (first, first_alone) = config.first_window;
        let (least, first, ahead) = match company {
            Company::None => (least.max(first_alone).min(most), first, 1),
            Company::Some => (least, first, 1),
            Company::Swapping => (1, 1, 0),
        };
        let Some(rate) = self.rate else { return first.clamp(least, most) };
        let pieces = rate * config.queue_time.as_secs_f64() / piece_length.max(1) as f64;
        // A float beyond the range of usize saturates.
        (pieces.ceil() as usize).saturating_add(ahead).clamp(least, most)
    }

    /// It goes from idle to busy: time without work says nothing about its rate.
    pub(super) fn begin(&mut self, now: Tick) {
        (self.moved, self.sampled_at, self.sampled_bytes, self.sending) = (now, now, 0, false);
    }

    fn progressed(&mut self, bytes: u64, now: Tick) {
        self.moved = now;
        self.sampled_bytes += bytes;
        self.sending = true;
        self.stalled = false;
    }

    fn sample(&mut self, now: Tick, shortest: Duration) {
        let elapsed = now.since(self.sampled_at);
        if elapsed < shortest {
            return;
        }
        if !self.sending {
            // Dialling and asking take their round trips: that is distance, not rate.
            self.sampled_at = now;
            return;
        }
        let seen = self.sampled_bytes as f64 / elapsed.as_secs_f64();
        self.rate = Some(self.rate.map_or(seen, |rate| rate + NEWNESS * (seen - rate)));
        (self.sampled_at, self.sampled_bytes) = (now, 0);
    }

    fn fail(&mut self, config: &Config, now: Tick, least: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + backoff(config.parent_backoff, self.failures).max(least));
    }

    /// The name of its state in snapshots.
    pub(super) fn state(&self) -> &'static str {
        match self.watch {
            _ if !self.listed => "dropped",
            _ if self.stalled => "stalled",
            _ if self.retry_at.is_some() => "backoff",
            Watch::Lost => "lost",
            Watch::Ended => "ended",
            Watch::Open | Watch::Unopened => "ready",
        }
    }
}

impl Download {
    /// Live attempts at a parent.
    pub(super) fn live_at(&self, parent: &PeerId) -> usize {
        self.attempts
            .values()
            .filter(|attempt| attempt.is_live() && attempt.parent.as_ref() == Some(parent))
            .count()
    }

    /// The scheduler's candidates: all there are, or more of them.
    pub(super) fn on_candidates(&mut self, list: Vec<ParentInfo>, replaces: bool) {
        if replaces {
            let gone: Vec<PeerId> =
                self.parents.keys().filter(|&id| !list.iter().any(|info| info.id == *id)).cloned().collect();
            for id in gone {
                self.unlist(&id);
            }
        }
        let (count, now) = (self.known.piece_count(), self.now);
        for info in list {
            let listed = self.parents.values().filter(|parent| parent.listed).count();
            let known = self.parents.get(&info.id).is_some_and(|parent| parent.listed);
            if self.banned.contains(&info.id) || (!known && listed >= self.config.max_parents) {
                continue;
            }
            let fresh = |id: &PeerId| Parent::new(id, count, now);
            let parent = self.parents.entry(info.id).or_insert_with_key(fresh);
            parent.listed = true;
            parent.ours = info.ours;
            // Whoever denied a piece is asked what it has: the scheduler's word on it is second-hand.
            if info.complete && !parent.complete && parent.denied.is_empty() {
                parent.complete = true;
                parent.has = PieceSet::full(count);
            }
            let lacks = self.known.missing.iter().any(|piece| !parent.has.contains(piece));
            if parent.watch == Watch::Ended && lacks {
                // It is offered again, so it may have got more since.
                parent.watch = Watch::Unopened;
            }
        }
    }

    /// A parent is not offered any more. What it has begun it may finish.
    fn unlist(&mut self, id: &PeerId) {
        let Some(parent) = self.parents.get_mut(id) else { return };
        parent.listed = false;
        if parent.watch == Watch::Open {
            parent.watch = Watch::Unopened;
            self.emit(Effect::Unwatch(id.clone()));
        }
    }

    pub(super) fn forget_parents(&mut self) {
        let ids: Vec<PeerId> = self.parents.keys().cloned().collect();
        for id in ids {
            self.unlist(&id);
        }
        self.parents.clear();
    }

    pub(super) fn on_parent(&mut self, id: &PeerId, message: FromParent) {
        let now = self.now;
        let Some(parent) = self.parents.get_mut(id) else { return };
        match message {
            FromParent::Has(pieces) => {
                for piece in pieces {
                    parent.has.insert(piece);
                    parent.denied.remove(piece);
                }
            }
            FromParent::Mismatch(_) => {
                let in_flight = self.attempts.values().find(|attempt| attempt.parent.as_ref() == Some(id));
                let piece = in_flight.and_then(|attempt| attempt.piece);
                let piece = piece.or_else(|| self.known.missing.iter().next()).unwrap_or(0);
                self.ban(id, piece);
            }
            FromParent::Ended if parent.watch == Watch::Open => parent.watch = Watch::Ended,
            FromParent::Lost(_) if parent.watch == Watch::Open => {
                parent.watch = Watch::Lost;
                parent.fail(&self.config, now, Duration::ZERO);
            }
            FromParent::Ended | FromParent::Lost(_) => {}
        }
    }

    /// The parent gave wrong bytes or another geometry: nothing more is taken from it, and the scheduler hears of it.
    pub(super) fn ban(&mut self, id: &PeerId, piece: u32) {
        if !self.banned.insert(id.clone()) {
            return;
        }
        self.unlist(id);
        self.parents.remove(id);
        self.cancel_where(|attempt| attempt.parent.as_ref() == Some(id));
        self.tell(ToScheduler::PieceFailed { piece, parent: id.clone() });
    }

    /// The parent does not have a piece that it was believed to have. It is believed again when it announces the piece
    /// again; how soon it may do that grows with every time, so that nobody who always lies is always asked.
    pub(super) fn parent_lacks(&mut self, id: &PeerId, piece: Option<u32>) {
        let now = self.now;
        let (Some(parent), Some(piece)) = (self.parents.get_mut(id), piece) else { return };
        parent.complete = false;
        parent.has.remove(piece);
        parent.denied.insert(piece);
        parent.has_denied = true;
        if parent.watch == Watch::Open && parent.listen_anew.is_none() {
            parent.denials = parent.denials.saturating_add(1);
            parent.listen_anew = Some(now + backoff(self.config.parent_backoff, parent.denials));
        }
    }

    pub(super) fn parent_failed(&mut self, id: &PeerId, after: Option<Duration>) {
        let now = self.now;
        if let Some(parent) = self.parents.get_mut(id) {
            // Several attempts that break together are one failure.
            if parent.retry_at.is_none() {
                parent.fail(&self.config, now, after.unwrap_or_default());
            }
        }
    }

    /// A piece of which `rest` bytes had not been seen on their way has come.
    pub(super) fn parent_delivered(&mut self, id: &PeerId, rest: u64) {
        let (now, idle) = (self.now, self.live_at(id) == 0);
        if let Some(parent) = self.parents.get_mut(id) {
            parent.failures = 0;
            parent.progressed(rest, now);
            if idle || parent.rate.is_none() {
                parent.sample(now, SHORTEST_SAMPLE);
            }
        }
    }

    /// An attempt at the parent has ended. When the last attempt at a stalled one has, it is left alone for a while.
    pub(super) fn parent_rests(&mut self, id: &PeerId) {
        let (now, idle) = (self.now, self.live_at(id) == 0);
        if let Some(parent) = self.parents.get_mut(id)
            && parent.stalled
            && idle
        {
            parent.stalled = false;
            parent.fail(&self.config, now, Duration::ZERO);
        }
    }

    /// Bytes have come in: rates and stalls.
    pub(super) fn on_tick(&mut self, progress: &[(super::AttemptId, u64)]) {
        let now = self.now;
        self.last_tick = now;
        for (id, bytes) in progress {
            let Some(attempt) = self.attempts.get_mut(id).filter(|attempt| attempt.is_live()) else {
                continue;
            };
            let Some(news) = bytes.checked_sub(attempt.bytes).filter(|&news| news > 0) else { continue };
            (attempt.bytes, attempt.moved) = (*bytes, now);
            attempt.begun.get_or_insert((now, *bytes));
            match attempt.parent.as_ref().map(|parent| self.parents.get_mut(parent)) {
                Some(Some(parent)) => {
                    parent.progressed(news, now);
                    if parent.makes_progress() {
                        self.stuck_since = None;
                    }
                }
                Some(None) => {}
                None => self.stuck_since = None,
            }
        }
        let (stall, shortest) = (self.config.stall, self.config.tick / 2);
        let busy: Vec<PeerId> =
            self.parents.keys().filter(|&parent| self.live_at(parent) > 0).cloned().collect();
        for id in busy {
            let Some(parent) = self.parents.get_mut(&id) else { continue };
            parent.sample(now, shortest);
            parent.stalled |= now.since(parent.moved) >= stall;
        }
        self.mark_stalled_attempts();
    }

    /// Closes the SyncPieces streams that have told of pieces that were not there, once their time has come.
    fn listen_anew(&mut self) {
        let (now, mut next) = (self.now, None);
        for (id, parent) in &mut self.parents {
            let Some(at) = parent.listen_anew else { continue };
            if at > now {
                next = Some(next.map_or(at, |next: Tick| next.min(at)));
                continue;
            }
            parent.listen_anew = None;
            if parent.watch == Watch::Open {
                parent.watch = Watch::Unopened;
                self.out.push(Effect::Unwatch(id.clone()));
            }
        }
        if let Some(at) = next {
            self.wake_at(at);
        }
    }

    /// Forgets, revives and watches parents.
    pub(super) fn settle_parents(&mut self) {
        let now = self.now;
        let attempts = &self.attempts;
        self.parents.retain(|id, parent| {
            parent.listed || attempts.values().any(|attempt| attempt.parent.as_ref() == Some(id))
        });
        self.listen_anew();
        let ids: Vec<PeerId> = self.parents.keys().cloned().collect();
        let something_to_get = self.known.geometry.is_some() && !self.known.missing.is_empty();
        for id in ids {
            let Some(parent) = self.parents.get_mut(&id) else { continue };
            if let Some(at) = parent.retry_at {
                if at > now {
                    self.wake_at(at);
                    continue;
                }
                parent.retry_at = None;
                if parent.watch == Watch::Lost {
                    parent.watch = Watch::Unopened;
                }
            }
            let unneeded = (parent.complete && parent.ours) || parent.listen_anew.is_some();
            if parent.listed && parent.watch == Watch::Unopened && something_to_get && !unneeded {
                parent.watch = Watch::Open;
                self.emit(Effect::Watch(id));
            }
        }
    }
}
