//! The 16-byte piece record: `state u8 | 0 ×3 | crc u32 | generation u32 | check u32`.

use damselfly_core::{Crc, TaskKey};

use super::header::kind_code;

/// Bytes of one record.
pub(crate) const RECORD: usize = 16;

const HELD: u8 = 1;

fn check(key: &TaskKey, number: u32, record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..12]);
    hasher.update(&number.to_le_bytes());
    hasher.update(&[kind_code(key.kind)]);
    hasher.update(key.id.as_str().as_bytes());
    hasher.finalize()
}

/// The record of a held piece. Of the generation the lower half is kept: records are only compared with the header
/// beside them.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
pub(crate) fn encode(key: &TaskKey, number: u32, generation: u64, crc: Crc) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[0] = HELD;
    record[4..8].copy_from_slice(&crc.0.to_le_bytes());
    record[8..12].copy_from_slice(&(generation as u32).to_le_bytes());
    let check = check(key, number, &record);
    record[12..].copy_from_slice(&check.to_le_bytes());
    record
}

/// The piece's CRC if the record says, beyond doubt, that the piece is held in this generation.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is kept")]
pub(crate) fn decode(key: &TaskKey, number: u32, generation: u64, record: &[u8]) -> Option<Crc> {
    let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    let held = record.len() == RECORD
        && record[..4] == [HELD, 0, 0, 0]
        && word(8) == generation as u32
        && word(12) == check(key, number, record);
    held.then(|| Crc(word(4)))
}
