//! What a scheduler was told of this host's tasks, so that only changes need telling.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use damselfly_api::damselfly::v1::{HoldRequest, Holding, Holdings, Tombstone, Tombstones, hold_request};
use prost::Message;

use super::request;

/// Bytes of holdings in one message, about.
const MESSAGE: usize = 256 << 10;
/// CRCs in one holding: with these it takes a quarter of a message.
const CRCS: usize = 16 << 10;
/// Tombstones in one message.
const STONES: usize = 1024;

/// What was told within one stream.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By kind and id, a hash of the holding without its time left, which passes by itself, and without CRCs, which
    /// follow from the rest.
    told: HashMap<(i32, String), Told>,
    buried: HashSet<(i32, String, u64, bool)>,
}

#[derive(Clone, Debug)]
struct Told {
    hash: u64,
    generation: u64,
}

impl Ledger {
    /// Queues the full list, ended by a message marked as the last one even when there is nothing to tell.
    pub(super) fn first(
        &mut self,
        holdings: Vec<Holding>,
        tombstones: Vec<Tombstone>,
        queue: &mut VecDeque<HoldRequest>,
    ) {
        self.told = holdings.iter().map(|holding| (key(holding), told(holding))).collect();
        send(holdings.into_iter().flat_map(parts), true, queue);
        self.bury(tombstones, queue);
    }

    /// Queues what differs from what was told. A task that is gone is told as one of which no piece is held.
    pub(super) fn changes(
        &mut self,
        holdings: Vec<Holding>,
        tombstones: Vec<Tombstone>,
        queue: &mut VecDeque<HoldRequest>,
    ) {
        let now: HashMap<_, _> = holdings.iter().map(|holding| (key(holding), told(holding))).collect();
        let mut changed: Vec<Holding> = holdings
            .into_iter()
            .filter(|holding| {
                let key = key(holding);
                self.told.get(&key).map(|told| told.hash) != now.get(&key).map(|told| told.hash)
            })
            .collect();
        let gone = self.told.iter().filter(|(key, _)| !now.contains_key(*key));
        changed.extend(gone.map(|((kind, id), told)| Holding {
            kind: *kind,
            id: id.clone(),
            generation: told.generation,
            bitmap: vec![0], // empty would mean all pieces
            ..Holding::default()
        }));
        self.told = now;
        if !changed.is_empty() {
            send(changed, false, queue);
        }
        self.bury(tombstones, queue);
    }

    fn bury(&mut self, tombstones: Vec<Tombstone>, queue: &mut VecDeque<HoldRequest>) {
        // But for the time left, which passes by itself.
        let told = |stone: &Tombstone| (stone.kind, stone.id.clone(), stone.generation, stone.everywhere);
        let now: HashSet<_> = tombstones.iter().map(told).collect();
        let fresh: Vec<Tombstone> =
            tombstones.into_iter().filter(|stone| !self.buried.contains(&told(stone))).collect();
        self.buried = now;
        for part in fresh.chunks(STONES) {
            let tombstones = Tombstones { tombstones: part.to_vec() };
            queue.push_back(request(hold_request::Request::Tombstones(tombstones)));
        }
    }
}

fn key(holding: &Holding) -> (i32, String) {
    (holding.kind, holding.id.clone())
}

fn told(holding: &Holding) -> Told {
    let timeless = Holding { ttl_left: None, crcs: Vec::new(), ..holding.clone() };
    let mut hasher = DefaultHasher::new();
    timeless.encode_to_vec().hash(&mut hasher);
    // Whether there is a time at all is a fact; how much of it is left is not.
    holding.ttl_left.is_some().hash(&mut hasher);
    Told { hash: hasher.finish(), generation: holding.generation }
}

/// The holding, as often as its CRCs take.
fn parts(mut holding: Holding) -> Vec<Holding> {
    if holding.crcs.len() <= CRCS {
        return vec![holding];
    }
    let crcs = std::mem::take(&mut holding.crcs);
    let starts = (0u32..).step_by(CRCS);
    starts
        .zip(crcs.chunks(CRCS))
        .map(|(crcs_from, crcs)| Holding { crcs_from, crcs: crcs.to_vec(), ..holding.clone() })
        .collect()
}

fn send(holdings: impl IntoIterator<Item = Holding>, full: bool, queue: &mut VecDeque<HoldRequest>) {
    let message = |holdings, last| request(hold_request::Request::Holdings(Holdings { holdings, last }));
    let (mut part, mut size) = (Vec::new(), 0);
    for holding in holdings {
        let length = holding.encoded_len();
        if size + length > MESSAGE && !part.is_empty() {
            queue.push_back(message(std::mem::take(&mut part), false));
            size = 0;
        }
        size += length;
        part.push(holding);
    }
    queue.push_back(message(part, full));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(id: &str, bitmap: &[u8]) -> Holding {
        Holding { id: id.to_owned(), bitmap: bitmap.to_vec(), generation: 3, ..Holding::default() }
    }

    fn stone(id: &str) -> Tombstone {
        Tombstone { id: id.to_owned(), ..Tombstone::default() }
    }

    fn drain(queue: &mut VecDeque<HoldRequest>) -> Vec<hold_request::Request> {
        queue.drain(..).filter_map(|message| message.request).collect()
    }

    #[test]
    fn the_first_list_ends_even_when_empty() {
        let mut queue = VecDeque::new();
        Ledger::default().first(vec![], vec![], &mut queue);
        let expected = Holdings { holdings: vec![], last: true };
        assert_eq!(drain(&mut queue), [hold_request::Request::Holdings(expected)]);
    }

    #[test]
    fn long_lists_travel_in_parts_and_only_the_last_is_marked() {
        let mut queue = VecDeque::new();
        let all: Vec<Holding> = (0..50).map(|n| holding(&format!("{n:064}"), &[1; 20_000])).collect();
        Ledger::default().first(all.clone(), vec![], &mut queue);
        let parts: Vec<Holdings> = drain(&mut queue)
            .into_iter()
            .map(|request| match request {
                hold_request::Request::Holdings(holdings) => holdings,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(parts.len() > 2);
        assert!(parts.iter().rev().skip(1).all(|part| !part.last && part.encoded_len() < MESSAGE + 30_000));
        assert!(parts.last().unwrap().last);
        assert_eq!(parts.into_iter().flat_map(|part| part.holdings).collect::<Vec<_>>(), all);
    }

    #[test]
    fn many_crcs_travel_in_several_holdings() {
        let crcs: Vec<u32> = (0..40_000).collect();
        let long = Holding { crcs: crcs.clone(), ..holding("a", &[]) };
        let short = Holding { crcs: vec![7], ..holding("b", &[1]) };
        let (mut queue, mut ledger) = (VecDeque::new(), Ledger::default());
        ledger.first(vec![long, short.clone()], vec![], &mut queue);
        let mut told = Vec::new();
        for message in queue.drain(..) {
            assert!(message.encoded_len() < MESSAGE + 1024);
            let Some(hold_request::Request::Holdings(holdings)) = message.request else {
                panic!("{message:?}")
            };
            told.extend(holdings.holdings);
        }
        assert_eq!(told.pop(), Some(short));
        let mut expected = 0;
        for part in &told {
            assert_eq!((part.id.as_str(), part.crcs_from), ("a", expected));
            expected += u32::try_from(part.crcs.len()).unwrap();
        }
        assert!(told.len() > 1);
        assert_eq!(told.into_iter().flat_map(|part| part.crcs).collect::<Vec<_>>(), crcs);

        ledger.changes(vec![holding("a", &[]), holding("b", &[1])], vec![], &mut queue);
        assert_eq!(drain(&mut queue), [], "the same without CRCs is no change");
    }

    #[test]
    fn only_changes_are_told_and_time_passing_is_none() {
        let (mut queue, mut ledger) = (VecDeque::new(), Ledger::default());
        let left = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let with_ttl = |seconds| Holding { ttl_left: left(seconds), ..holding("a", &[1]) };
        ledger.first(vec![with_ttl(9), holding("b", &[1]), holding("c", &[])], vec![stone("x")], &mut queue);
        drain(&mut queue);

        ledger.changes(
            vec![with_ttl(8), holding("b", &[1]), holding("c", &[])],
            vec![stone("x")],
            &mut queue,
        );
        assert_eq!(drain(&mut queue), []);

        ledger.changes(
            vec![with_ttl(8), holding("b", &[3]), holding("d", &[])],
            vec![stone("x"), stone("y")],
            &mut queue,
        );
        let requests = drain(&mut queue);
        let [hold_request::Request::Holdings(told), hold_request::Request::Tombstones(stones)] =
            &requests[..]
        else {
            panic!("{requests:?}")
        };
        assert!(!told.last);
        assert_eq!(told.holdings, [holding("b", &[3]), holding("d", &[]), holding("c", &[0])]);
        assert_eq!(stones.tombstones, [stone("y")]);

        // One that is about more than it was is news.
        let wider = Tombstone { everywhere: true, ttl_left: left(7), ..stone("x") };
        let held = || vec![with_ttl(8), holding("b", &[3]), holding("d", &[])];
        ledger.changes(held(), vec![stone("x"), wider.clone(), stone("y")], &mut queue);
        let requests = drain(&mut queue);
        let [hold_request::Request::Tombstones(stones)] = &requests[..] else { panic!("{requests:?}") };
        assert_eq!(stones.tombstones, std::slice::from_ref(&wider));
        let older = Tombstone { ttl_left: left(6), ..wider };
        ledger.changes(held(), vec![stone("x"), older, stone("y")], &mut queue);
        assert_eq!(drain(&mut queue), []);

        ledger.changes(vec![with_ttl(8), holding("b", &[3]), holding("d", &[])], vec![], &mut queue);
        assert_eq!(drain(&mut queue), []);
    }
}
