//! The scheduler's leave to fetch pieces from the origin.

use std::ops::Range;

use super::facts::Known;
use super::{Download, Lease, ToScheduler};
use crate::Tick;
use crate::pieces::runs;

/// The leases that live.
#[derive(Debug, Default)]
pub(super) struct Leases {
    live: Vec<Live>,
    /// The newest content generation, as the scheduler counts them.
    generation: u64,
}

#[derive(Debug)]
struct Live {
    lease: Lease,
    /// When it ends unless a piece is reported before.
    until: Tick,
}

impl Leases {
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Whether a lease names the piece.
    pub(super) fn covers(&self, piece: u32) -> bool {
        self.live.iter().any(|live| live.lease.ranges.iter().any(|range| range.contains(&piece)))
    }

    /// The leased pieces that are missing, ascending.
    pub(super) fn missing(&self, known: &Known) -> Vec<u32> {
        let mut numbers: Vec<u32> = self
            .live
            .iter()
            .flat_map(|live| pieces(&live.lease, known))
            .filter(|&piece| known.missing.contains(piece))
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// Another stream, where versions may be counted otherwise: from those that are restated there, if any.
    pub(super) fn count_anew(&mut self) {
        self.generation = self.live.iter().map(|live| live.lease.generation).max().unwrap_or_default();
    }

    /// Keeps a lease; those for older content end. Says whether it was kept.
    fn grant(&mut self, lease: Lease, now: Tick) -> bool {
        if lease.generation < self.generation {
            return false;
        }
        if lease.generation > self.generation {
            self.generation = lease.generation;
            self.live.clear();
        }
        self.live.retain(|live| live.lease.id != lease.id);
        let until = now + lease.silence;
        self.live.push(Live { lease, until });
        true
    }

    /// The scheduler heard of us: every lease's silence begins anew.
    pub(super) fn renew(&mut self, now: Tick) {
        for live in &mut self.live {
            live.until = now + live.lease.silence;
        }
    }

    /// What is left of every lease, for a scheduler that may have forgotten.
    pub(super) fn restate(&self, known: &Known) -> Vec<Lease> {
        self.live
            .iter()
            .map(|live| {
                let ranges = match known.geometry {
                    Some(_) => runs(pieces(&live.lease, known).filter(|&piece| !known.held.contains(piece))),
                    None => live.lease.ranges.clone(),
                };
                Lease { ranges, ..live.lease.clone() }
            })
            .filter(|lease| !lease.ranges.is_empty())
            .collect()
    }

    fn remove(&mut self, ended: impl Fn(&Live) -> bool) -> Vec<Lease> {
        let (gone, live) = std::mem::take(&mut self.live).into_iter().partition(|live| ended(live));
        self.live = live;
        gone.into_iter().map(|live| live.lease).collect()
    }
}

/// The pieces of a lease that exist.
fn pieces(lease: &Lease, known: &Known) -> impl Iterator<Item = u32> {
    let count = known.piece_count();
    let ranges: Vec<Range<u32>> =
        lease.ranges.iter().map(|range| range.start.min(count)..range.end.min(count)).collect();
    ranges.into_iter().flatten()
}

impl Download {
    pub(super) fn on_lease(&mut self, lease: Lease) {
        let id = lease.id;
        self.hear(lease.generation);
        if !self.leases.grant(lease, self.now) && !self.leases.live.iter().any(|live| live.lease.id == id) {
            self.tell(ToScheduler::Release(id));
        }
    }

    /// Ends leases that are done, that have fallen silent, or that are of no use here; unless they have ended by
    /// silence they are given back, so that another host can have the pieces.
    pub(super) fn settle_leases(&mut self) {
        if self.leases.is_empty() {
            return;
        }
        let now = self.now;
        if self.reads_unmeasured() {
            self.leases.renew(now);
        }
        // The scheduler has granted their pieces to others by now.
        drop(self.leases.remove(|live| live.until <= now));
        let usable = !self.paused && self.restart.is_none() && self.origin_is_open();
        if !usable && self.restart.is_none() {
            return self.release_leases();
        }
        if self.known.geometry.is_some() {
            let (known, attempts) = (&self.known, &self.attempts);
            let used = |piece: u32| {
                known.missing.contains(piece) || attempts.values().any(|attempt| attempt.piece == Some(piece))
            };
            let ended = self.leases.remove(|live| !pieces(&live.lease, known).any(used));
            for lease in ended {
                // Even where everything is held: the scheduler may not know that of every piece, and would keep the rest
                // from others for as long as this peer reports anything.
                self.tell(ToScheduler::Release(lease.id));
            }
        }
        if let Some(until) = self.leases.live.iter().map(|live| live.until).min() {
            self.wake_at(until);
        }
    }

    /// Whether this peer is the one that reads content of unknown length. It has nothing to report before the end, so
    /// the scheduler, which knows that, does not take its silence for an end; neither may this side.
    fn reads_unmeasured(&self) -> bool {
        self.known.geometry.is_none() && self.known.from_origin.is_some() && self.dialogue.is_ours()
    }

    /// Whether a piece among these is missing that neither a lease nor a parent will bring.
    fn lacks_lease(&self, mut pieces: Range<u32>) -> bool {
        let offered = |piece| self.parents.values().any(|parent| parent.listed && parent.has.contains(piece));
        pieces
            .any(|piece| self.known.missing.contains(piece) && !self.leases.covers(piece) && !offered(piece))
    }

    /// Our scheduler grants leases of one part of the content. Where clients want different parts it is told of another
    /// one as soon as what it was told of needs no leases, and else after a while: what that lacks may long be with others.
    pub(super) fn settle_wishes(&mut self) {
        let Some(geometry) = self.known.geometry.filter(|_| self.dialogue.is_ours()) else { return };
        if !self.dialogue.has_answered() || self.origin.whole.is_some() || !self.origin_is_open() {
            return;
        }
        let all = 0..geometry.piece_count();
        let (told, at) = self.dialogue.told_range;
        let told = told.map_or(all.clone(), |range| geometry.pieces_of(range));
        let is_told = |pieces: &Range<u32>| told.start <= pieces.start && pieces.end <= told.end;
        let mut others = self.clients.iter().filter_map(|waiting| waiting.wish.as_ref());
        let next = others.find(|wish| !is_told(&wish.pieces) && self.lacks_lease(wish.pieces.clone()));
        let Some(next) = next.cloned() else { return };
        if self.lacks_lease(told) && !self.due(at + self.config.reschedule_after) {
            return;
        }
        let range = Some(next.range).filter(|_| next.pieces != all);
        self.dialogue.told_range = (range, self.now);
        self.tell(ToScheduler::Wants(range));
    }

    /// Gives every lease back.
    pub(super) fn release_leases(&mut self) {
        for lease in self.leases.remove(|_| true) {
            self.tell(ToScheduler::Release(lease.id));
        }
    }
}
