//! Who may fetch which pieces from the origin, and which pieces nobody takes care of.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use damselfly_core::{PeerId, PieceSet, Tick};

/// A live lease. A piece leaves it when it is done.
#[derive(Debug)]
struct Live {
    unfinished: BTreeSet<u32>,
    deadline: Tick,
}

/// The leases of one generation of a task, together with how many live hosts hold each piece.
///
/// The two are kept together because their difference is what counts: `free` is exactly the set of pieces that no
/// holder has and no lease covers. While the number of pieces is unknown, leases may reach past the end and nothing is
/// free.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    live: BTreeMap<(PeerId, u64), Live>,
    by_piece: BTreeMap<u32, (PeerId, u64)>,
    holders: Option<Vec<u32>>,
    free: BTreeSet<u32>,
}

impl Coverage {
    /// The number of pieces is known now. Leases lose what lies past the end; nobody holds anything yet.
    pub(super) fn set_count(&mut self, count: u32) {
        self.holders = Some(vec![0; count as usize]);
        let past: Vec<u32> = self.by_piece.range(count..).map(|(piece, _)| *piece).collect();
        for piece in past {
            self.take_out(piece);
        }
        self.free = (0..count).filter(|piece| !self.by_piece.contains_key(piece)).collect();
    }

    /// Forgets how many pieces there are and who holds them; leases stay.
    pub(super) fn reset(&mut self) {
        self.holders = None;
        self.free.clear();
    }

    fn refresh(&mut self, piece: u32) {
        let Some(holders) = &self.holders else { return };
        let Some(count) = holders.get(piece as usize) else { return };
        if *count == 0 && !self.by_piece.contains_key(&piece) {
            self.free.insert(piece);
        } else {
            self.free.remove(&piece);
        }
    }

    /// Takes a piece out of its lease; a lease without pieces is over.
    fn take_out(&mut self, piece: u32) -> Option<(PeerId, u64)> {
        let key = self.by_piece.remove(&piece)?;
        if let Some(live) = self.live.get_mut(&key) {
            live.unfinished.remove(&piece);
            if live.unfinished.is_empty() {
                self.live.remove(&key);
            }
        }
        self.refresh(piece);
        Some(key)
    }

    /// Counts one more holder; says whether it is the piece's first.
    pub(super) fn held(&mut self, piece: u32) -> bool {
        let Some(count) = self.holders.as_mut().and_then(|holders| holders.get_mut(piece as usize)) else {
            return false;
        };
        *count += 1;
        let first = *count == 1;
        self.refresh(piece);
        first
    }

    /// Counts one holder less.
    pub(super) fn lost(&mut self, piece: u32) {
        if let Some(count) = self.holders.as_mut().and_then(|holders| holders.get_mut(piece as usize)) {
            *count = count.saturating_sub(1);
        }
        self.refresh(piece);
    }

    pub(super) fn holders(&self, piece: u32) -> u32 {
        self.holders.as_ref().and_then(|holders| holders.get(piece as usize)).copied().unwrap_or(0)
    }

    /// Pieces without holder and lease, ascending.
    pub(super) fn free(&self) -> &BTreeSet<u32> {
        &self.free
    }

    /// Grants what of `pieces` no live lease covers; returns that, empty when there is no lease then.
    pub(super) fn grant(
        &mut self,
        id: u64,
        peer: &PeerId,
        pieces: impl Iterator<Item = u32>,
        deadline: Tick,
    ) -> BTreeSet<u32> {
        let granted: BTreeSet<u32> = pieces.filter(|piece| !self.by_piece.contains_key(piece)).collect();
        if granted.is_empty() {
            return granted;
        }
        let key = (peer.clone(), id);
        for &piece in &granted {
            self.by_piece.insert(piece, key.clone());
            self.refresh(piece);
        }
        self.live.insert(key, Live { unfinished: granted.clone(), deadline });
        granted
    }

    /// The piece is done for whoever leased it, if that is `peer`.
    pub(super) fn finish(&mut self, piece: u32, peer: &PeerId) {
        if self.leased_to(piece) == Some(peer) {
            self.take_out(piece);
        }
    }

    pub(super) fn leased_to(&self, piece: u32) -> Option<&PeerId> {
        self.by_piece.get(&piece).map(|(peer, _)| peer)
    }

    fn of(&self, peer: &PeerId) -> impl Iterator<Item = (&(PeerId, u64), &Live)> {
        let range = (peer.clone(), u64::MIN)..=(peer.clone(), u64::MAX);
        self.live.range(range)
    }

    /// Ends one lease of the peer; says whether it was live.
    pub(super) fn end(&mut self, peer: &PeerId, id: u64) -> bool {
        let Some(live) = self.live.remove(&(peer.clone(), id)) else { return false };
        for piece in live.unfinished {
            self.by_piece.remove(&piece);
            self.refresh(piece);
        }
        true
    }

    /// Ends all leases of the peer; says whether there were any.
    pub(super) fn end_all(&mut self, peer: &PeerId) -> bool {
        let ids: Vec<u64> = self.of(peer).map(|((_, id), _)| *id).collect();
        ids.into_iter().fold(false, |any, id| self.end(peer, id) | any)
    }

    /// Ends the leases of everybody else; says whose there were.
    pub(super) fn end_others(&mut self, peer: &PeerId) -> BTreeSet<PeerId> {
        let others: BTreeSet<PeerId> =
            self.live.keys().map(|(holder, _)| holder).filter(|holder| *holder != peer).cloned().collect();
        for other in &others {
            self.end_all(other);
        }
        others
    }

    /// Pieces the peer has leased and not finished.
    pub(super) fn unfinished(&self, peer: &PeerId) -> usize {
        self.of(peer).map(|(_, live)| live.unfinished.len()).sum()
    }

    pub(super) fn has_lease(&self, peer: &PeerId) -> bool {
        self.of(peer).next().is_some()
    }

    /// Whether anybody has a live lease.
    pub(super) fn any(&self) -> bool {
        !self.live.is_empty()
    }

    /// Whether anybody but `peer` has a live lease.
    pub(super) fn any_other(&self, peer: &PeerId) -> bool {
        self.live.keys().any(|(holder, _)| holder != peer)
    }

    /// The peer showed a sign of life: its leases run until `deadline`.
    pub(super) fn renew(&mut self, peer: &PeerId, deadline: Tick) {
        let range = (peer.clone(), u64::MIN)..=(peer.clone(), u64::MAX);
        for live in self.live.range_mut(range).map(|(_, live)| live) {
            live.deadline = live.deadline.max(deadline);
        }
    }

    /// Ends the leases whose silence is over; returns their holders.
    pub(super) fn expire(&mut self, now: Tick, exempt: Option<&PeerId>) -> BTreeSet<PeerId> {
        let over: Vec<(PeerId, u64)> = self
            .live
            .iter()
            .filter(|((peer, _), live)| live.deadline <= now && exempt != Some(peer))
            .map(|(key, _)| key.clone())
            .collect();
        over.into_iter()
            .map(|(peer, id)| {
                self.end(&peer, id);
                peer
            })
            .collect()
    }

    /// When the next lease ends by silence.
    pub(super) fn deadline(&self, exempt: Option<&PeerId>) -> Option<Tick> {
        self.live.iter().filter(|((peer, _), _)| exempt != Some(peer)).map(|(_, live)| live.deadline).min()
    }

    /// How many leases are live.
    pub(super) fn count(&self) -> usize {
        self.live.len()
    }

    /// What a model checks: leases and their index agree, no piece is leased twice, and `free` is what it says.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self, holders: impl Fn(u32) -> u32) {
        let mut seen = BTreeSet::new();
        for (key, live) in &self.live {
            assert!(!live.unfinished.is_empty(), "an empty lease is live");
            for piece in &live.unfinished {
                assert!(seen.insert(*piece), "piece {piece} is leased twice");
                assert_eq!(self.by_piece.get(piece), Some(key));
            }
        }
        assert_eq!(seen.len(), self.by_piece.len());
        for (piece, count) in (0u32..).zip(self.holders.iter().flatten()) {
            assert_eq!(*count, holders(piece), "holders of piece {piece}");
            assert_eq!(self.free.contains(&piece), *count == 0 && !seen.contains(&piece), "piece {piece}");
        }
    }
}

/// The pieces of `runs` that `held` does not have, at most `most`: a lease restated from outside may name billions, and
/// the same ones again and again.
pub(super) fn pieces_of(runs: &[Range<u32>], held: &PieceSet, most: usize) -> Vec<u32> {
    let looked_at = runs.iter().flat_map(Clone::clone).take(most.saturating_add(held.len() as usize));
    looked_at.filter(|piece| !held.contains(*piece)).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> PeerId {
        PeerId::from(name)
    }

    #[test]
    fn a_piece_is_leased_once() {
        let mut coverage = Coverage::default();
        coverage.set_count(10);
        assert_eq!(coverage.grant(1, &peer("a"), 0..4, Tick(9)).len(), 4);
        assert_eq!(coverage.grant(2, &peer("b"), 2..6, Tick(9)), BTreeSet::from([4, 5]));
        assert!(coverage.grant(3, &peer("c"), 0..6, Tick(9)).is_empty());
        assert_eq!(coverage.free().len(), 4);
        coverage.assert_consistent(|_| 0);
    }

    #[test]
    fn a_restated_lease_names_no_more_than_there_can_be() {
        let mut held = PieceSet::new(10);
        held.insert(1);
        assert_eq!(pieces_of(&[0..u32::MAX, 3..5], &held, 3), [0, 2, 3]);
        let mut again = vec![1..2; 1000];
        again.push(4..5);
        assert_eq!(pieces_of(&again, &held, 3), [0; 0], "looked at often enough");
    }

    #[test]
    fn ending_a_lease_frees_what_is_not_held() {
        let mut coverage = Coverage::default();
        coverage.set_count(4);
        coverage.grant(1, &peer("a"), 0..4, Tick(9));
        assert!(coverage.held(1));
        assert!(!coverage.held(1));
        coverage.finish(1, &peer("a"));
        coverage.finish(2, &peer("b"));
        assert_eq!(coverage.unfinished(&peer("a")), 3);
        assert!(coverage.end_all(&peer("a")));
        assert!(!coverage.end_all(&peer("a")));
        assert_eq!(coverage.free().iter().copied().collect::<Vec<_>>(), [0, 2, 3]);
        coverage.lost(1);
        coverage.lost(1);
        assert_eq!(coverage.free().len(), 4);
    }

    #[test]
    fn silence_ends_a_lease_unless_renewed() {
        let mut coverage = Coverage::default();
        coverage.set_count(8);
        coverage.grant(1, &peer("a"), 0..4, Tick(10));
        coverage.grant(2, &peer("b"), 4..8, Tick(10));
        coverage.renew(&peer("b"), Tick(20));
        assert_eq!(coverage.deadline(None), Some(Tick(10)));
        assert_eq!(coverage.expire(Tick(10), None), BTreeSet::from([peer("a")]));
        assert_eq!(coverage.deadline(None), Some(Tick(20)));
        assert!(coverage.expire(Tick(30), Some(&peer("b"))).is_empty());
        assert!(coverage.any() && !coverage.any_other(&peer("b")));
    }

    #[test]
    fn leases_past_the_end_are_cut_when_the_length_is_known() {
        let mut coverage = Coverage::default();
        coverage.grant(1, &peer("a"), 0..8, Tick(10));
        assert!(coverage.free().is_empty());
        coverage.set_count(3);
        assert_eq!(coverage.unfinished(&peer("a")), 3);
        coverage.set_count(0);
        assert!(!coverage.any());
    }
}
