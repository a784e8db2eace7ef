//! What was deleted and must not come back before its time to live would have ended.
//!
//! One small append-only file of fixed entries, each with a checksum: a torn last entry is dropped. It is rewritten
//! without the expired ones when the store opens and when they are the larger part.

use std::fs::OpenOptions;
use std::io;
use std::time::Duration;

use damselfly_core::{Crc, TaskId, TaskKey};

use crate::clock::{BootId, Moment};
use crate::error::StoreError;
use crate::layout::Layout;
use crate::sidecar::header::{kind_code, kind_of};
use crate::system::System;

/// Where a task was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This host's copy was.
    Here,
    /// All copies were: none of that generation may come back anywhere.
    Everywhere,
}

/// A deleted task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// Which task.
    pub key: TaskKey,
    /// The generation that was deleted; earlier ones are meant too.
    pub generation: u64,
    /// How long the deleted task would still have lived.
    pub left: Duration,
    /// Where it was deleted.
    pub reach: Reach,
}

const MAGIC: [u8; 16] = *b"damselfly-tomb 1";
/// kind, id length, reach, 1 of padding, crc, generation, boot, since boot, wall, left, id.
const ENTRY: usize = 8 + 8 + 16 + 8 + 8 + 8 + 128;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    key: TaskKey,
    generation: u64,
    from: Moment,
    left: Duration,
    reach: Reach,
}

impl Entry {
    fn left(&self, now: &Moment) -> Duration {
        self.left.saturating_sub(self.from.age(now))
    }

    fn encode(&self) -> [u8; ENTRY] {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX).to_le_bytes();
        let id = self.key.id.as_str().as_bytes();
        let mut entry = [0; ENTRY];
        entry[0] = kind_code(self.key.kind);
        entry[1] = u8::try_from(id.len()).unwrap_or(u8::MAX); // ids have at most 128 digits
        entry[2] = u8::from(self.reach == Reach::Everywhere);
        entry[8..16].copy_from_slice(&self.generation.to_le_bytes());
        entry[16..32].copy_from_slice(&self.from.boot.0);
        entry[32..40].copy_from_slice(&micros(self.from.since_boot));
        entry[40..48].copy_from_slice(&micros(self.from.wall));
        entry[48..56].copy_from_slice(&micros(self.left));
        entry[56..56 + id.len()].copy_from_slice(id);
        let crc = Crc::of(&entry).0; // over zeros in its own place
        entry[4..8].copy_from_slice(&crc.to_le_bytes());
        entry
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut entry: [u8; ENTRY] = bytes.try_into().ok()?;
        let crc = u32::from_le_bytes(entry[4..8].try_into().ok()?);
        entry[4..8].fill(0);
        if Crc::of(&entry).0 != crc {
            return None;
        }
        let long = |at: usize| Some(u64::from_le_bytes(entry[at..at + 8].try_into().ok()?));
        let time = |at: usize| long(at).map(Duration::from_micros);
        let id = std::str::from_utf8(entry.get(56..56 + usize::from(entry[1]))?).ok()?;
        let boot = BootId(entry[16..32].try_into().ok()?);
        Some(Self {
            key: TaskKey { kind: kind_of(entry[0])?, id: TaskId::parse(id).ok()? },
            generation: long(8)?,
            from: Moment { boot, since_boot: time(32)?, wall: time(40)? },
            left: time(48)?,
            reach: if entry[2] == 1 { Reach::Everywhere } else { Reach::Here },
        })
    }
}

/// All of them. The newest entry of a task counts.
#[derive(Debug, Default)]
pub(crate) struct Tombstones {
    entries: Vec<Entry>,
    /// The file has to be written anew before anything is appended: it is not there, or its end is torn.
    rewrite: bool,
}

impl Tombstones {
    pub(crate) fn load(layout: &Layout, now: &Moment) -> Result<Self, StoreError> {
        let path = layout.tombstones();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { rewrite: true, ..Self::default() });
            }
            Err(error) => return Err(StoreError::io("cannot read", &path, error)),
        };
        let whole = bytes.strip_prefix(&MAGIC).filter(|rest| rest.len().is_multiple_of(ENTRY));
        let read = bytes.get(MAGIC.len()..).unwrap_or_default().chunks(ENTRY);
        let count = read.len();
        let mut entries: Vec<Entry> = read.filter_map(Entry::decode).collect();
        let damaged = whole.is_none() || entries.len() != count;
        if damaged {
            tracing::warn!(
                path = %path.display(), kept = entries.len(),
                "the record of deleted tasks is damaged, keeping what is intact"
            );
        }
        let intact = entries.len();
        entries.retain(|entry| !entry.left(now).is_zero());
        Ok(Self { rewrite: damaged || entries.len() < intact, entries })
    }

    /// The generation up to which `key` was deleted.
    pub(crate) fn generation(&self, key: &TaskKey) -> Option<u64> {
        self.entries.iter().filter(|entry| entry.key == *key).map(|entry| entry.generation).max()
    }

    pub(crate) fn list(&self, now: &Moment) -> Vec<Tombstone> {
        let live = self.entries.iter().filter(|entry| !entry.left(now).is_zero());
        live.map(|entry| Tombstone {
            key: entry.key.clone(),
            generation: entry.generation,
            left: entry.left(now),
            reach: entry.reach,
        })
        .collect()
    }

    /// Records a deletion on disk and here.
    pub(crate) fn add(
        &mut self,
        layout: &Layout,
        system: &dyn System,
        key: &TaskKey,
        generation: u64,
        left: Duration,
        reach: Reach,
    ) -> Result<(), StoreError> {
        if left.is_zero() {
            return Ok(());
        }
        let now = system.now();
        let entry = Entry { key: key.clone(), generation, from: now, left, reach };
        let expired = self.entries.iter().filter(|entry| entry.left(&now).is_zero()).count();
        let place = self.entries.len();
        self.entries.push(entry.clone());
        let written = if self.rewrite || expired * 2 > place {
            self.rewrite(layout, system)
        } else {
            let path = layout.tombstones();
            let append = || -> io::Result<()> {
                let file = OpenOptions::new().write(true).open(&path)?;
                system.write_at(&file, &entry.encode(), (MAGIC.len() + place * ENTRY) as u64)?;
                // What was deleted must not come back because the power went away.
                system.flush(&file)
            };
            append().map_err(StoreError::at("cannot write", &path))
        };
        if written.is_err() {
            // Whatever the file's end looks like now, the next change writes it anew.
            self.rewrite = true;
            self.entries.pop();
        }
        written
    }

    /// What was recorded as deleted here, up to `generation`, was deleted everywhere.
    pub(crate) fn widen(
        &mut self,
        layout: &Layout,
        system: &dyn System,
        key: &TaskKey,
        generation: u64,
    ) -> Result<(), StoreError> {
        let meant = |entry: &&Entry| entry.key == *key && entry.generation <= generation;
        let Some(newest) = self.entries.iter().filter(meant).max_by_key(|entry| entry.generation) else {
            return Ok(());
        };
        let generation = newest.generation;
        let same = |entry: &&Entry| entry.key == *key && entry.generation == generation;
        if self.entries.iter().filter(same).any(|entry| entry.reach == Reach::Everywhere) {
            return Ok(());
        }
        let left = newest.left(&system.now());
        self.add(layout, system, key, generation, left, Reach::Everywhere)
    }

    /// Drops the expired ones here, and on disk when that is due anyway.
    pub(crate) fn expire(&mut self, layout: &Layout, system: &dyn System) -> Result<(), StoreError> {
        let now = system.now();
        let live = self.entries.iter().filter(|entry| !entry.left(&now).is_zero()).count();
        if live * 2 < self.entries.len() || (self.rewrite && !self.entries.is_empty()) {
            return self.rewrite(layout, system);
        }
        Ok(())
    }

    fn rewrite(&mut self, layout: &Layout, system: &dyn System) -> Result<(), StoreError> {
        let now = system.now();
        self.rewrite = true;
        self.entries.retain(|entry| !entry.left(&now).is_zero());
        let mut bytes = MAGIC.to_vec();
        self.entries.iter().for_each(|entry| bytes.extend_from_slice(&entry.encode()));
        layout.replace_tombstones(system, &bytes)?;
        self.rewrite = false;
        Ok(())
    }
}
