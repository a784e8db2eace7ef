//! The CRC ledger of one generation of a task.

use damselfly_core::Crc;
use std::collections::BTreeMap;

/// The first CRC reported for each piece, from the origin or by a host that holds it. What is in stays: later reports are
/// judged by it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    crcs: BTreeMap<u32, Crc>,
    order: Vec<u32>,
}

impl Ledger {
    pub(super) fn get(&self, piece: u32) -> Option<Crc> {
        self.crcs.get(&piece).copied()
    }

    /// Enters `crc` unless the piece has an entry; says which one stands.
    pub(super) fn enter(&mut self, piece: u32, crc: Crc) -> Crc {
        if let Some(standing) = self.crcs.get(&piece) {
            return *standing;
        }
        self.crcs.insert(piece, crc);
        self.order.push(piece);
        crc
    }

    /// How many entries there are; a reader's cursor counts up to here.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// The entries made since `cursor`, as runs of consecutive pieces.
    pub(super) fn since(&self, cursor: usize) -> Vec<(u32, Vec<Crc>)> {
        let mut fresh: Vec<u32> = self.order.get(cursor..).unwrap_or_default().to_vec();
        fresh.sort_unstable();
        let mut runs: Vec<(u32, Vec<Crc>)> = Vec::new();
        for piece in fresh {
            let crc = self.crcs[&piece];
            match runs.last_mut() {
                Some((first, crcs)) if *first as usize + crcs.len() == piece as usize => crcs.push(crc),
                _ => runs.push((piece, vec![crc])),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_stands() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.enter(3, Crc(7)), Crc(7));
        assert_eq!(ledger.enter(3, Crc(8)), Crc(7));
        assert_eq!(ledger.get(3), Some(Crc(7)));
        assert_eq!(ledger.len(), 1);
    }

    #[test]
    fn a_reader_gets_runs_of_what_is_new() {
        let mut ledger = Ledger::default();
        for piece in [5, 1, 0, 9, 8] {
            ledger.enter(piece, Crc(piece));
        }
        let crcs = |pieces: &[u32]| pieces.iter().map(|&piece| Crc(piece)).collect::<Vec<_>>();
        assert_eq!(ledger.since(0), [(0, crcs(&[0, 1])), (5, crcs(&[5])), (8, crcs(&[8, 9]))]);
        assert_eq!(ledger.since(3), [(8, crcs(&[8, 9]))]);
        assert!(ledger.since(5).is_empty());
    }
}
