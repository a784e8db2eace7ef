//! The board on which actors show what they are doing.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// One actor's line on the board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its seat's number: no other actor of this daemon ever had it.
    pub number: u64,
    /// Where the actor hangs in the supervision tree: names joined by `/`.
    pub path: String,
    /// What it is doing, in a few words.
    pub state: String,
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    taken: BTreeMap<u64, Snapshot>,
}

/// Every live actor of one daemon, with the state it last published. Reading it never waits for a mailbox.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Table>);

#[derive(Debug, Default)]
struct Table {
    seats: Mutex<Seats>,
    /// How many are taken.
    taken: watch::Sender<usize>,
}

impl Table {
    fn change<T>(&self, change: impl FnOnce(&mut Seats) -> T) -> T {
        let mut seats = self.seats.lock();
        let changed = change(&mut seats);
        // In the order of the changes. Whoever follows must not lock the seats while it borrows the number.
        self.taken.send_replace(seats.taken.len());
        changed
    }
}

impl Board {
    /// Takes a seat for an actor; dropping the seat leaves the board, however the actor ends.
    #[must_use]
    pub fn sit(&self, path: impl Into<String>) -> Seat {
        let path = path.into();
        let number = self.0.change(|seats| {
            let number = seats.next;
            seats.next += 1;
            seats.taken.insert(number, Snapshot { number, path, state: String::new() });
            number
        });
        Seat { board: self.clone(), number }
    }

    /// All live actors, ordered by path.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Snapshot> {
        let mut all: Vec<_> = self.0.seats.lock().taken.values().cloned().collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }

    /// How many actors live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.seats.lock().taken.len()
    }

    /// Follows how many actors live: changes whenever one sits down or leaves.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<usize> {
        self.0.taken.subscribe()
    }

    /// Whether no actor lives.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An actor's place on the board.
#[derive(Debug)]
pub struct Seat {
    board: Board,
    number: u64,
}

impl Seat {
    /// Publishes what the actor is doing now.
    pub fn show(&self, state: impl Into<String>) {
        if let Some(snapshot) = self.board.0.seats.lock().taken.get_mut(&self.number) {
            snapshot.state = state.into();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.board.0.change(|seats| seats.taken.remove(&self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_seat_leaves_the_board() {
        let board = Board::default();
        let a = board.sit("daemon/b");
        let b = board.sit("daemon/a");
        a.show("busy");
        assert_eq!(
            board.snapshot()[1],
            Snapshot { number: 0, path: "daemon/b".into(), state: "busy".into() }
        );
        drop(a);
        assert_eq!(board.len(), 1);
        drop(b);
        assert!(board.is_empty());
    }
}
