//! Which parent is asked for which piece next.
//!
//! Work is pulled: a parent whose window has room gets the rarest missing piece it has. Of several with room the one
//! that would be done first is served first, so that the last few pieces do not go to the slowest.

use std::collections::BTreeMap;

use super::parents::{Company, Parent};
use super::{Download, Fetch};
use crate::{PeerId, PieceSet, mix};

/// How many candidates are compared for rarity; of more, those next in rotation count.
const COMPARED: usize = 2048;
/// The rate assumed while none is known. Only its comparison with queues matters.
const ASSUMED_RATE: f64 = (32 << 20) as f64;

impl Download {
    /// Starts attempts at parents until windows are full or nothing is left to ask for.
    pub(super) fn settle_pieces(&mut self) {
        let streaming = self.attempts.values().any(|attempt| {
            attempt.is_live() && attempt.is_stream() && self.now.since(attempt.moved) < self.config.stall
        });
        if self.known.geometry.is_none() || self.known.missing.is_empty() || streaming {
            return;
        }
        self.rescue();
        if !self.room_for_one() {
            return;
        }
        let mut exhausted: Vec<PeerId> = Vec::new();
        let burdens = self.burdens();
        let burden = |id: &PeerId| burdens.get(id).copied().unwrap_or(0.0);
        while self.room_for_one() {
            let next =
                self.parents_with_room().into_iter().filter(|id| !exhausted.contains(id)).min_by(|a, b| {
                    let sooner = || self.finish_of_one_more(a).total_cmp(&self.finish_of_one_more(b));
                    burden(b).total_cmp(&burden(a)).then_with(sooner)
                });
            let Some(parent) = next else {
                self.hedge(&exhausted);
                return;
            };
            match self.pick(&parent) {
                Some(piece) => self.start_at(parent, piece, false),
                None => exhausted.push(parent),
            }
        }
    }

    /// Seconds that each parent would need for what is missing here and to be had from no other parent. Whoever has most
    /// of that is served first while siblings swap: the quick ones can be asked for theirs in the end, too, but what only
    /// a slow one has would be waited for.
    fn burdens(&self) -> BTreeMap<PeerId, f64> {
        if !self.has_siblings() {
            return BTreeMap::new();
        }
        let usable = || self.parents.iter().filter(|(_, parent)| parent.is_usable());
        let alone = PieceSet::in_one_of(self.known.piece_count(), usable().map(|(_, parent)| &parent.has));
        let piece = self.known.geometry.map_or(0, |geometry| geometry.piece_length()) as f64;
        usable()
            .map(|(id, parent)| {
                let pieces = self.known.missing.common_count(&alone, &parent.has);
                (id.clone(), f64::from(pieces) * piece / self.rate_of(id))
            })
            .collect()
    }

    pub(super) fn start_at(&mut self, parent: PeerId, piece: u32, hedge: bool) {
        let crc = self.known.ledger.get(&piece).copied();
        self.start(Fetch::Piece { piece, parent, crc, hedge });
    }

    /// Whether the whole download may have one more attempt in flight. Those at stalled parents count apart.
    pub(super) fn room_for_one(&self) -> bool {
        let live = || {
            self.attempts
                .values()
                .filter(|attempt| attempt.is_live())
                .filter_map(|attempt| attempt.parent.as_ref())
        };
        let moving = live().filter(|id| self.parents.get(id).is_none_or(|parent| !parent.stalled)).count();
        moving < self.most_in_flight() && live().count() < 2 * self.config.max_in_flight
    }

    /// How many attempts may be in flight: fewer while the origin's bytes, which siblings wait for, share the link.
    fn most_in_flight(&self) -> usize {
        let leased = || self.attempts.values().any(|attempt| attempt.is_live() && attempt.parent.is_none());
        let most = self.config.max_in_flight;
        if self.has_siblings() && leased() { most.min(self.config.max_in_flight_leased) } else { most }
    }

    /// How many others fetch this task, too.
    pub(super) fn siblings(&self) -> usize {
        self.parents.values().filter(|parent| parent.listed && !parent.complete).count()
    }

    pub(super) fn has_siblings(&self) -> bool {
        self.siblings() > 0
    }

    /// Usable parents with room in their windows, in this peer's own order.
    pub(super) fn parents_with_room(&self) -> Vec<PeerId> {
        let piece_length = self.known.geometry.map_or(0, |geometry| geometry.piece_length());
        let company = match self.parents.values().filter(|parent| parent.is_usable()).count() {
            0 | 1 => Company::None,
            2 => Company::Some,
            _ if self.has_siblings() => Company::Swapping,
            _ => Company::Some,
        };
        self.parents_below(|parent| parent.window(&self.config, piece_length, company))
    }

    /// Usable parents with fewer attempts in flight than `most` says, in this peer's own order.
    pub(super) fn parents_below(&self, most: impl Fn(&Parent) -> usize) -> Vec<PeerId> {
        let mut ids: Vec<PeerId> = self
            .parents
            .iter()
            .filter(|(id, parent)| parent.is_usable() && self.live_at(id) < most(parent))
            .map(|(id, _)| id.clone())
            .collect();
        if !ids.is_empty() {
            let turn = self.spread(0) % ids.len() as u64;
            ids.rotate_left(turn as usize);
        }
        ids
    }

    /// The rate to reckon with, in bytes per second, above zero.
    pub(super) fn rate_of(&self, id: &PeerId) -> f64 {
        let own = self.parents.get(id).and_then(|parent| parent.rate);
        own.unwrap_or_else(|| {
            let rates: Vec<f64> = self.parents.values().filter_map(|parent| parent.rate).collect();
            if rates.is_empty() { ASSUMED_RATE } else { rates.iter().sum::<f64>() / rates.len() as f64 }
        })
        .max(1.0)
    }

    /// Seconds until the parent would have finished one more piece.
    pub(super) fn finish_of_one_more(&self, id: &PeerId) -> f64 {
        let piece = self.known.geometry.map_or(0, |geometry| geometry.piece_length());
        let queued: u64 = self
            .attempts
            .values()
            .filter(|attempt| attempt.is_live() && attempt.parent.as_ref() == Some(id))
            .map(|attempt| self.remaining(attempt))
            .sum();
        (queued + piece) as f64 / self.rate_of(id)
    }

    /// The rarest missing piece the parent has and nobody is fetching. Of equally rare ones that which this peer is to
    /// take first, see [`turn`].
    fn pick(&self, id: &PeerId) -> Option<u32> {
        let parent = self.parents.get(id)?;
        let others = || self.parents.values().filter(|other| other.listed);
        // With nobody to swap with, the order of reading is the best order.
        let swapping = self.has_siblings();
        let count = u64::from(self.known.piece_count().max(1));
        let start = if swapping { (self.spread(1) % count) as u32 } else { 0 };
        let everybody_complete = others().filter(|other| other.complete).count();
        let rarest_possible = everybody_complete.max(1);
        let mut best: Option<((usize, usize), u32)> = None;
        let free = self
            .known
            .missing
            .common_from(&parent.has, start)
            .filter(|&piece| self.outstanding(piece) == 0)
            .take(COMPARED);
        for piece in free {
            let holders = others().filter(|other| other.has.contains(piece)).count();
            if best.is_some_and(|((fewest, _), _)| holders > fewest) {
                continue;
            }
            let own = turn(self.config.fingerprint, piece);
            let before = others()
                .filter(|other| !other.has.contains(piece) && turn(other.fingerprint, piece) > own)
                .count();
            if best.is_none_or(|(least, _)| (holders, before) < least) {
                best = Some(((holders, before), piece));
                if holders <= rarest_possible && before == 0 {
                    break;
                }
            }
        }
        best.map(|(_, piece)| piece)
    }
}

/// Who is to take a piece first, of all who miss it: whose number is highest. All reckon the same, so each takes another part
/// of what only one host has and passes it on, and that host need not send every piece to everybody itself.
fn turn(fingerprint: u64, piece: u32) -> u64 {
    mix(fingerprint ^ mix(u64::from(piece)))
}
