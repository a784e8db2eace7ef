//! What the attempts of one run have found out and the machine has no use for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use damselfly_core::Crc;
use damselfly_core::download::{Failure, FailureKind};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::failure;

/// Shared by all attempts of one run. It grows with pieces that made trouble, not with pieces.
#[derive(Debug, Default)]
pub struct Lore(Mutex<Generation>);

#[derive(Debug, Default)]
struct Generation {
    number: u64,
    pieces: HashMap<u32, Trouble>,
}

#[derive(Debug, Default)]
struct Trouble {
    /// Copies nobody vouched for, by the parent that sent them.
    unconfirmed: Vec<(SocketAddr, Crc)>,
    /// How often the piece took too long.
    overdue: u32,
}

impl Lore {
    fn piece<T>(&self, generation: u64, piece: u32, look: impl FnOnce(&mut Trouble) -> T) -> T {
        let mut current = self.0.lock();
        if current.number != generation {
            *current = Generation { number: generation, pieces: HashMap::new() };
        }
        look(current.pieces.entry(piece).or_default())
    }

    /// Whether another parent sent this copy of the piece, too. Otherwise the copy is remembered, and does not count yet:
    /// its sender said nothing that it could be held to.
    pub(super) fn confirms(&self, generation: u64, piece: u32, parent: SocketAddr, crc: Crc) -> bool {
        self.piece(generation, piece, |trouble| {
            let copies = &mut trouble.unconfirmed;
            let confirmed = copies.iter().any(|(sender, copy)| *sender != parent && *copy == crc);
            // What a parent sends now replaces what it sent before.
            copies.retain(|(sender, _)| *sender != parent);
            copies.push((parent, crc));
            confirmed
        })
    }

    /// How long a source may take for the piece: `limit`, doubled each time that this was too short, so that a host whose
    /// line is slow gets the piece at last.
    pub(super) fn patience(&self, generation: u64, piece: u32, limit: Duration) -> Patience<'_> {
        let current = self.0.lock();
        let trouble = current.pieces.get(&piece).filter(|_| current.number == generation);
        let doublings = trouble.map_or(0, |trouble| trouble.overdue.min(16));
        let whole = limit.saturating_mul(1 << doublings);
        Patience { lore: self, generation, piece, whole, left: whole }
    }
}

/// What is left of the time that a source may take for one piece. Waiting for this host's own limits does not count.
#[derive(Debug)]
pub(super) struct Patience<'a> {
    lore: &'a Lore,
    generation: u64,
    piece: u32,
    whole: Duration,
    left: Duration,
}

impl Patience<'_> {
    /// Waits for the source.
    pub(super) async fn wait<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Failure> {
        let began = Instant::now();
        let result = timeout(self.left, future).await;
        self.left = self.left.saturating_sub(began.elapsed());
        result.map_err(|_| {
            self.lore.piece(self.generation, self.piece, |trouble| trouble.overdue += 1);
            let (piece, whole) = (self.piece, self.whole);
            let message = format!("piece {piece} was not complete within {whole:?} (download.pieceTimeout)");
            failure(FailureKind::Retry { after: None }, message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    #[test]
    fn only_another_parents_equal_copy_of_the_same_version_confirms() {
        let lore = Lore::default();
        let (right, wrong) = (Crc(1), Crc(2));
        assert!(!lore.confirms(0, 7, parent(1), wrong));
        assert!(!lore.confirms(0, 7, parent(1), wrong), "a parent does not confirm itself");
        assert!(!lore.confirms(0, 7, parent(2), right));
        assert!(!lore.confirms(0, 8, parent(3), right), "another piece");
        assert!(!lore.confirms(1, 7, parent(3), right), "another version");
        assert!(!lore.confirms(1, 7, parent(4), wrong));
        assert!(lore.confirms(1, 7, parent(5), right));
        // Whoever says something else now confirms what it said before no more.
        assert!(!lore.confirms(2, 7, parent(1), right));
        assert!(!lore.confirms(2, 7, parent(1), wrong));
        assert!(!lore.confirms(2, 7, parent(2), right));
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_takes_its_time_in_all_and_twice_that_the_next_time() {
        let (lore, second) = (Lore::default(), Duration::from_secs(1));
        let limit = second * 3;
        for whole in [limit, limit * 2, limit * 4] {
            let mut patience = lore.patience(0, 7, limit);
            let began = Instant::now();
            let late = loop {
                if let Err(late) = patience.wait(tokio::time::sleep(second * 2)).await {
                    break late;
                }
                // The host's own limit takes as long as it likes.
                tokio::time::advance(second * 100).await;
            };
            assert_eq!(late.kind, FailureKind::Retry { after: None });
            let own = second * 100 * u32::try_from(whole.as_secs() / 2).unwrap();
            assert_eq!(began.elapsed(), whole + own, "{}", late.message);
        }
        assert_eq!(lore.patience(0, 8, limit).whole, limit, "another piece");
        assert_eq!(lore.patience(1, 7, limit).whole, limit, "another version");
    }
}
