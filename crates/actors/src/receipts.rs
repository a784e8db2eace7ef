//! Where the bytes of recent downloads came from.

use std::collections::{HashMap, VecDeque};

use damselfly_api::damselfly::v1::Receipt;
use parking_lot::Mutex;

/// Receipts kept; the oldest goes first.
const KEPT: usize = 4096;

/// Receipts of recent downloads, by the peer id and client that the download's responses carried.
#[derive(Debug, Default)]
pub struct Receipts(Mutex<(HashMap<String, Receipt>, VecDeque<String>)>);

impl Receipts {
    /// Keeps a receipt. A later one of the same peer replaces the former.
    pub fn put(&self, peer: String, receipt: Receipt) {
        let (by_peer, order) = &mut *self.0.lock();
        if by_peer.insert(peer.clone(), receipt).is_none() {
            order.push_back(peer);
        }
        if order.len() > KEPT
            && let Some(oldest) = order.pop_front()
        {
            by_peer.remove(&oldest);
        }
    }

    /// The receipt of a peer, unless it was forgotten.
    #[must_use]
    pub fn get(&self, peer: &str) -> Option<Receipt> {
        self.0.lock().0.get(peer).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(bytes: u64) -> Receipt {
        Receipt { origin_bytes: bytes, ..Receipt::default() }
    }

    #[test]
    fn the_oldest_receipts_are_forgotten_and_a_later_one_replaces_the_former() {
        let receipts = Receipts::default();
        for number in 0..=KEPT {
            receipts.put(number.to_string(), receipt(1));
        }
        assert_eq!(receipts.get("0"), None);
        receipts.put("1".to_owned(), receipt(2));
        receipts.put("1".to_owned(), receipt(3));
        assert_eq!(receipts.get("1"), Some(receipt(3)));
        assert!(receipts.get(&KEPT.to_string()).is_some());
        let kept = receipts.0.lock();
        assert_eq!((kept.0.len(), kept.1.len()), (KEPT, KEPT));
    }
}
