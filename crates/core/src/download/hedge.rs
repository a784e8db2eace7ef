//! Second requests: at once for what stalls, and at the end for what is late.

use super::attempts::Attempt;
use super::{AttemptId, Download, Fetch};
use crate::PeerId;

impl Download {
    /// Bytes an attempt has still to receive.
    pub(super) fn remaining(&self, attempt: &Attempt) -> u64 {
        attempt.piece.map_or(0, |piece| self.known.length_of(piece).saturating_sub(attempt.bytes))
    }

    /// Marks attempts that stand still: those of a stalled parent, and those that later ones of the same parent overtake.
    pub(super) fn mark_stalled_attempts(&mut self) {
        let (now, stall) = (self.now, self.config.stall);
        let live: Vec<AttemptId> = self
            .attempts
            .iter()
            .filter(|(_, attempt)| attempt.is_live() && attempt.piece.is_some())
            .map(|(&id, _)| id)
            .collect();
        for id in live {
            let Some(attempt) = self.attempts.get(&id) else { continue };
            let still = now.since(attempt.moved) >= stall;
            let stalled = still
                && match attempt.parent.as_ref() {
                    None => true,
                    Some(parent) => {
                        let overtaken = self.attempts.range(AttemptId(id.0 + 1)..).any(|(_, later)| {
                            later.parent.as_ref() == Some(parent)
                                && later.moved > attempt.moved
                                && later.bytes > 0
                        });
                        overtaken || self.parents.get(parent).is_none_or(|parent| parent.stalled)
                    }
                };
            if let Some(attempt) = self.attempts.get_mut(&id) {
                attempt.stalled = stalled;
            }
        }
    }

    /// Asks for stalled pieces elsewhere: at another parent, or at the origin where that is allowed. When both attempts
    /// at a piece stand still and somebody else could do better, the older one is given up.
    pub(super) fn rescue(&mut self) {
        let stalled: Vec<(AttemptId, u32)> = self
            .attempts
            .iter()
            .filter(|(_, attempt)| attempt.is_live() && attempt.stalled)
            .filter_map(|(&id, attempt)| Some((id, attempt.piece?)))
            .collect();
        for (id, piece) in stalled {
            let others =
                self.attempts.iter().filter(|(other, attempt)| **other != id && attempt.piece == Some(piece));
            let moving = others.clone().any(|(_, attempt)| !attempt.stalled || !attempt.is_live());
            if moving || self.known.held.contains(piece) {
                continue;
            }
            let parent = self.rescuer(piece);
            let from_origin = self.attempts.get(&id).is_some_and(|attempt| attempt.parent.is_none());
            let headers = if parent.is_none() && !from_origin { self.origin_spare_for(piece) } else { None };
            if parent.is_none() && headers.is_none() {
                continue;
            }
            if self.outstanding(piece) >= 2 {
                let oldest = self.attempts.iter().find(|(_, attempt)| attempt.piece == Some(piece));
                if let Some(started) = oldest.map(|(_, attempt)| attempt.started) {
                    self.cancel_where(|attempt| attempt.piece == Some(piece) && attempt.started <= started);
                }
            } else if let Some(parent) = parent {
                self.start_at(parent, piece, true);
            } else if let Some(headers) = headers {
                self.start(Fetch::OriginPiece { piece, headers, hedge: true });
            }
        }
    }

    /// The parent that would be done first with a piece that was not asked for there yet. Its present window does not
    /// count, only the widest: the piece has waited long enough.
    fn rescuer(&self, piece: u32) -> Option<PeerId> {
        if !self.room_for_one() {
            return None;
        }
        self.parents_below(|_| self.config.window.1)
            .into_iter()
            .filter(|id| self.parents.get(id).is_some_and(|parent| parent.has.contains(piece)))
            .filter(|id| !self.asked(id, piece))
            .min_by(|a, b| self.finish_of_one_more(a).total_cmp(&self.finish_of_one_more(b)))
    }

    fn asked(&self, id: &PeerId, piece: u32) -> bool {
        self.attempts
            .values()
            .any(|attempt| attempt.piece == Some(piece) && attempt.parent.as_ref() == Some(id))
    }

    /// The end game: when all that is missing is on its way, parents that have room are asked for the pieces that would be
    /// late elsewhere, or that lag on one of their own connections. Before, they will have something new soon, and what
    /// they would send twice is missed by others.
    pub(super) fn hedge(&mut self, idle: &[PeerId]) {
        if self.known.missing.iter().any(|piece| self.outstanding(piece) == 0) {
            return;
        }
        for parent in idle {
            while self.room_for_one()
                && self.parents_with_room().contains(parent)
                && let Some(piece) =
                    self.latest_worth_doubling(parent).or_else(|| self.latest_lagging(parent))
            {
                self.start_at(parent.clone(), piece, true);
            }
        }
    }

    /// The piece in flight elsewhere that this parent would have clearly sooner, the latest of them.
    fn latest_worth_doubling(&self, id: &PeerId) -> Option<u32> {
        let mine = self.finish_of_one_more(id);
        let worth = mine * 100.0 / f64::from(self.config.hedge_percent.max(1));
        let least = mine + self.config.hedge_least.as_secs_f64();
        self.latest(id, worth.max(least), |other, attempt| {
            (attempt.parent.as_ref() != Some(id)).then(|| self.finish_of(other)).flatten()
        })
    }

    /// The piece in flight at this parent whose connection is clearly slower than another one would be, the latest of them.
    fn latest_lagging(&self, id: &PeerId) -> Option<u32> {
        if self.live_at(id) >= self.config.lanes {
            return None;
        }
        let mine = self.finish_of_one_more(id);
        let worth = (2.0 * mine).max(mine + self.config.lane_hedge_least.as_secs_f64());
        self.latest(id, worth, |_, attempt| {
            (attempt.parent.as_ref() == Some(id)).then(|| self.finish_at_own_pace(attempt))
        })
    }

    /// Of the pieces that one attempt is at and the parent has, the one that takes longest, if that is `worth` seconds or
    /// more. `finish` says how long an attempt takes, of those that count. `None` for a parent whose rate is not known.
    fn latest(
        &self,
        id: &PeerId,
        worth: f64,
        finish: impl Fn(AttemptId, &Attempt) -> Option<f64>,
    ) -> Option<u32> {
        let parent = self.parents.get(id)?;
        parent.rate?;
        self.attempts
            .iter()
            .filter(|(_, attempt)| attempt.is_live())
            .filter_map(|(&other, attempt)| Some((other, attempt, attempt.piece?)))
            .filter(|&(_, _, piece)| {
                parent.has.contains(piece) && self.outstanding(piece) == 1 && !self.known.held.contains(piece)
            })
            .filter_map(|(other, attempt, piece)| Some((finish(other, attempt)?, piece)))
            .filter(|&(theirs, _)| theirs >= worth)
            .max_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, piece)| piece)
    }

    /// Seconds until an attempt will be over if its connection goes on as it did; if nothing has come yet, as long again
    /// as that has been so.
    fn finish_at_own_pace(&self, attempt: &Attempt) -> f64 {
        let Some((since, first)) = attempt.begun else {
            return self.now.since(attempt.started).as_secs_f64();
        };
        let seconds = self.now.since(since).as_secs_f64();
        let news = attempt.bytes.saturating_sub(first);
        if seconds == 0.0 { 0.0 } else { self.remaining(attempt) as f64 * seconds / news.max(1) as f64 }
    }

    /// Seconds until an attempt will be over: a parent answers in order, so what was asked before comes before. `None`
    /// where nothing can be said yet.
    fn finish_of(&self, id: AttemptId) -> Option<f64> {
        let attempt = self.attempts.get(&id)?;
        match &attempt.parent {
            Some(parent) => {
                let rate = self.parents.get(parent)?.rate?;
                let ahead: u64 = self
                    .attempts
                    .range(..=id)
                    .filter(|(_, other)| other.is_live() && other.parent.as_ref() == Some(parent))
                    .map(|(_, other)| self.remaining(other))
                    .sum();
                Some(ahead as f64 / rate.max(1.0))
            }
            None => {
                let elapsed = self.now.since(attempt.started).as_secs_f64();
                (attempt.bytes > 0).then(|| self.remaining(attempt) as f64 * elapsed / attempt.bytes as f64)
            }
        }
    }
}
