//! A task against a map of bytes.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use damselfly_core::download::Validator;
use damselfly_core::{ByteRange, Crc, PieceSet};
use proptest::prelude::*;

use crate::testing::{Bench, begin, bytes, facts, fetch, key};
use crate::{Committed, Store, StoreError, TaskContent};

const PIECES: u32 = 7;
const PIECE: u64 = 50;
const LENGTH: u64 = PIECE * 6 + 13;

#[derive(Clone, Debug)]
enum Op {
    /// A whole piece through a slot (or, if so, beside it).
    Put(u32, bool),
    /// A slot that is given back half-written.
    GiveUp(u32),
    /// Two attempts at once; the second one commits first.
    Race(u32),
    Invalidate(u32),
    Fetch(u32),
    Read(u64, u64),
    Reserve(Vec<u32>),
    Unpin,
    Generation,
    /// Closed properly or killed, and opened again.
    Restart(bool),
    /// Killed, and a byte of the content damaged before it is opened again.
    Damage(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let piece = || 0..PIECES;
    prop_oneof![
        4 => (piece(), any::<bool>()).prop_map(|(number, scratch)| Op::Put(number, scratch)),
        1 => piece().prop_map(Op::GiveUp),
        1 => piece().prop_map(Op::Race),
        1 => piece().prop_map(Op::Invalidate),
        2 => piece().prop_map(Op::Fetch),
        1 => (0..LENGTH + 10, 1..200u64).prop_map(|(offset, length)| Op::Read(offset, length)),
        1 => prop::collection::vec(piece(), 0..5).prop_map(Op::Reserve),
        1 => Just(Op::Unpin),
        1 => Just(Op::Generation),
        1 => any::<bool>().prop_map(Op::Restart),
        1 => (0..LENGTH).prop_map(Op::Damage),
    ]
}

struct Run {
    bench: Bench,
    store: Option<Arc<Store>>,
    task: Option<Arc<TaskContent>>,
    generation: u64,
    content: Vec<u8>,
    /// Pieces that are held and good.
    held: BTreeMap<u32, Vec<u8>>,
    /// Pieces that are held and damaged, not found out yet.
    damaged: Vec<u32>,
    reserved: PieceSet,
}

impl Run {
    fn new() -> Self {
        let bench = Bench::new();
        let (store, content) = (bench.open(), bytes(1, usize::try_from(LENGTH).unwrap()));
        let task = begin(&store, &key(1), &content, PIECE);
        let (held, reserved) = (BTreeMap::new(), PieceSet::new(PIECES));
        let (store, task) = (Some(store), Some(task));
        Self { bench, store, task, generation: 1, content, held, damaged: vec![], reserved }
    }

    fn part(&self, number: u32) -> Vec<u8> {
        crate::testing::part(self.task.as_ref().unwrap(), &self.content, number).to_vec()
    }

    fn occupied(&self, number: u32) -> bool {
        self.held.contains_key(&number) || self.damaged.contains(&number)
    }

    /// A damaged piece was looked at.
    fn found_out(&mut self, number: u32) {
        if let Some(place) = self.damaged.iter().position(|&known| known == number) {
            self.damaged.remove(place);
            self.reserved.insert(number);
        }
    }

    fn restart(&mut self, clean: bool) {
        if clean {
            self.store.as_ref().unwrap().shutdown().unwrap();
        }
        drop((self.task.take(), self.store.take()));
        let store = self.bench.open();
        self.task = store.get(&key(1));
        self.store = Some(store);
        self.reserved = PieceSet::new(PIECES);
    }

    fn apply(&mut self, op: Op) {
        let task = Arc::clone(self.task.as_ref().unwrap());
        match op {
            Op::Put(number, beside) => {
                let part = self.part(number);
                let slot = if beside { task.scratch(number) } else { task.slot(number) };
                if self.occupied(number) {
                    assert!(matches!(slot, Err(StoreError::AlreadyHeld { .. })));
                    return;
                }
                let mut slot = slot.unwrap();
                for (at, chunk) in (0..).step_by(20).zip(part.chunks(20)) {
                    slot.write_at(at, chunk).unwrap();
                }
                assert_eq!(slot.commit(Crc::of(&part)).unwrap(), Committed::Stored);
                self.publish(number, part);
            }
            Op::GiveUp(number) => {
                if let Ok(mut slot) = task.slot(number) {
                    slot.write_at(0, b"half").unwrap();
                    assert!(matches!(slot.commit(Crc(1)), Err(StoreError::Short { .. })));
                }
            }
            Op::Race(number) => {
                let part = self.part(number);
                if let (Ok(mut slow), Ok(mut fast)) = (task.slot(number), task.scratch(number)) {
                    slow.write_at(0, &vec![0xEE; part.len()]).unwrap();
                    fast.write_at(0, &part).unwrap();
                    assert_eq!(fast.commit(Crc::of(&part)).unwrap(), Committed::Stored);
                    assert!(slow.write_at(0, b"late").is_err());
                    assert_eq!(slow.commit(Crc(1)).unwrap(), Committed::AlreadyHeld);
                    self.publish(number, part);
                }
            }
            Op::Invalidate(number) => {
                task.invalidate(number).unwrap();
                if self.held.remove(&number).is_some() {
                    self.reserved.insert(number);
                }
                self.found_out(number);
            }
            Op::Fetch(number) => {
                assert_eq!(fetch(&task, number).as_ref(), self.held.get(&number));
                self.found_out(number);
            }
            Op::Read(offset, length) => self.read(&task, offset, length),
            Op::Reserve(numbers) => {
                task.reserve(&crate::testing::set(&task, &numbers)).unwrap();
                for number in numbers.into_iter().filter(|&number| !self.occupied(number)).collect::<Vec<_>>()
                {
                    self.reserved.insert(number);
                }
            }
            Op::Unpin => {
                drop(task.pin().unwrap());
                self.reserved = PieceSet::new(PIECES);
            }
            Op::Generation => {
                self.generation = task.begin_generation(self.generation + 1, Validator::default()).unwrap();
                self.content = bytes(self.generation, self.content.len());
                task.set_facts(facts(LENGTH, PIECE)).unwrap();
                self.held.clear();
                self.damaged.clear();
                self.reserved = PieceSet::new(PIECES);
            }
            Op::Restart(clean) => {
                drop(task);
                self.restart(clean);
            }
            Op::Damage(offset) => {
                drop(task);
                let number = u32::try_from(offset / PIECE).unwrap();
                if !self.damaged.contains(&number) {
                    self.bench.corrupt(&key(1), "data", offset);
                    if self.held.remove(&number).is_some() {
                        self.damaged.push(number);
                    }
                }
                self.restart(false);
            }
        }
    }

    fn publish(&mut self, number: u32, part: Vec<u8>) {
        self.held.insert(number, part);
        self.reserved.remove(number);
    }

    fn read(&mut self, task: &Arc<TaskContent>, offset: u64, length: u64) {
        let output = task.output_of(ByteRange { start: offset, length });
        if offset + length > LENGTH {
            assert!(matches!(output, Err(StoreError::OutOfRange { .. })));
            return;
        }
        let wanted = (offset / PIECE) as u32..(offset + length).div_ceil(PIECE) as u32;
        let missing: Vec<u32> = wanted.clone().filter(|number| !self.held.contains_key(number)).collect();
        match output {
            Ok(output) => {
                assert!(missing.is_empty());
                let to = tempfile::tempfile().unwrap();
                output.copy_to(&to, &|_| ()).unwrap();
                let start = usize::try_from(offset).unwrap();
                let expected = &self.content[start..][..usize::try_from(length).unwrap()];
                let mut read = vec![0; expected.len()];
                to.read_exact_at(&mut read, 0).unwrap();
                assert_eq!(read, expected);
            }
            Err(StoreError::Missing { first, count, .. }) => {
                assert_eq!((first, count as usize), (missing[0], missing.len()));
            }
            Err(error) => panic!("{error}"),
        }
        wanted.for_each(|number| self.found_out(number));
    }

    fn check(&self) {
        let (task, usage) = (self.task.as_ref().unwrap(), self.store.as_ref().unwrap().usage());
        let expected: Vec<u32> = (0..PIECES).filter(|&number| self.occupied(number)).collect();
        assert_eq!(task.pieces().iter().collect::<Vec<_>>(), expected);
        assert_eq!(task.is_complete(), expected.len() == PIECES as usize);
        assert_eq!(task.meta().generation, self.generation);
        let bytes = |numbers: &mut dyn Iterator<Item = u32>| -> u64 {
            numbers.map(|number| PIECE.min(LENGTH - u64::from(number) * PIECE)).sum()
        };
        assert_eq!(usage.used, bytes(&mut expected.into_iter()));
        assert_eq!(task.meta().held_bytes, usage.used);
        assert_eq!(usage.reserved, bytes(&mut self.reserved.iter()));
        assert!(!task.in_use());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_task_is_a_map_of_bytes(ops in prop::collection::vec(op(), 1..40)) {
        let mut run = Run::new();
        for op in ops {
            run.apply(op);
            run.check();
        }
        // In the end everything that is listed is either right or found out.
        for number in 0..PIECES {
            run.apply(Op::Fetch(number));
        }
        run.check();
    }
}
