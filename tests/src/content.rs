//! Generated content and its checker.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use damselfly_core::{Algorithm, ByteRange, Hasher};
use thiserror::Error;

/// Content of `length` bytes, each a pure function of the seed and its offset.
///
/// Two seeds agree at no more offsets than chance allows, and so do two shifts of one seed: content in the wrong place
/// is found like wrong content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    /// Which content.
    pub seed: u64,
    /// Number of bytes.
    pub length: u64,
}

/// How content differs from its pattern.
#[derive(Debug, Error)]
pub enum Mismatch {
    /// A wrong byte, the first one.
    #[error("byte {offset} is {found:#04x}, expected {expected:#04x}")]
    Byte {
        /// Where, counted from the start of the whole content.
        offset: u64,
        /// What is there.
        found: u8,
        /// What should be there.
        expected: u8,
    },
    /// Too few or too many bytes.
    #[error("{found} bytes, expected {expected}")]
    Length {
        /// How many there are; one more than expected when reading stopped there.
        found: u64,
        /// How many there should be.
        expected: u64,
    },
    /// The content could not be read.
    #[error("cannot read the content")]
    Io(#[from] io::Error),
}

/// Bytes compared at a time.
const STEP: usize = 64 << 10;

impl Pattern {
    /// `length` bytes of the content named `seed`.
    #[must_use]
    pub fn new(seed: u64, length: u64) -> Self {
        Self { seed, length }
    }

    /// Writes the bytes from `offset` on into `buffer`, as if the content had no end.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let mut word = offset / 8;
        let skip = (offset % 8) as usize;
        let (head, rest) = buffer.split_at_mut(if skip == 0 { 0 } else { buffer.len().min(8 - skip) });
        if !head.is_empty() {
            head.copy_from_slice(&self.word(word)[skip..skip + head.len()]);
            word += 1;
        }
        for chunk in rest.chunks_mut(8) {
            chunk.copy_from_slice(&self.word(word)[..chunk.len()]);
            word += 1;
        }
    }

    /// The eight bytes from byte `8 × index` on: SplitMix64 of seed and index.
    fn word(&self, index: u64) -> [u8; 8] {
        let mut z = self.seed.rotate_left(32) ^ index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }

    /// The bytes of `range`, cut off at the end of the content.
    #[must_use]
    pub fn bytes(&self, range: ByteRange) -> Vec<u8> {
        let end = range.end().min(self.length);
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(range.start)).unwrap_or(usize::MAX)];
        self.fill(range.start, &mut bytes);
        bytes
    }

    /// The whole content. For small ones.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes(ByteRange { start: 0, length: self.length })
    }

    /// The whole content's digest in the form `--digest` takes, `sha256:…` and the like.
    #[must_use]
    pub fn digest(&self, algorithm: Algorithm) -> String {
        let mut hasher = Hasher::new(algorithm);
        let mut buffer = vec![0; STEP];
        let mut offset = 0;
        while offset < self.length {
            let step = STEP.min(usize::try_from(self.length - offset).unwrap_or(STEP));
            self.fill(offset, &mut buffer[..step]);
            hasher.update(&buffer[..step]);
            offset += step as u64;
        }
        hasher.finish().to_string()
    }

    /// Checks `bytes`, found at `offset`.
    ///
    /// # Errors
    /// Names the first wrong byte, or the number of bytes where they reach past the end.
    pub fn check(&self, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        let end = offset + bytes.len() as u64;
        if end > self.length {
            return Err(Mismatch::Length { found: end, expected: self.length });
        }
        let mut expected = vec![0; STEP.min(bytes.len())];
        let mut at = offset;
        for found in bytes.chunks(STEP) {
            let expected = &mut expected[..found.len()];
            self.fill(at, expected);
            if *expected != *found {
                let index = expected.iter().zip(found).take_while(|(left, right)| left == right).count();
                return Err(Mismatch::Byte {
                    offset: at + index as u64,
                    found: found[index],
                    expected: expected[index],
                });
            }
            at += found.len() as u64;
        }
        Ok(())
    }

    /// Checks that `reader` gives exactly the bytes of `range`. Blocks.
    ///
    /// # Errors
    /// Names the first wrong byte, the wrong number of bytes, or why reading failed.
    pub fn check_range(&self, range: ByteRange, mut reader: impl Read) -> Result<(), Mismatch> {
        let expected = range.end().min(self.length).saturating_sub(range.start);
        let mut buffer = vec![0; STEP];
        let mut found = 0;
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if found + count as u64 > expected {
                return Err(Mismatch::Length { found: found + count as u64, expected });
            }
            self.check(range.start + found, &buffer[..count])?;
            found += count as u64;
        }
        if found == expected { Ok(()) } else { Err(Mismatch::Length { found, expected }) }
    }

    /// Checks that `reader` gives exactly this content. Blocks.
    ///
    /// # Errors
    /// As [`Pattern::check_range`].
    pub fn check_reader(&self, reader: impl Read) -> Result<(), Mismatch> {
        self.check_range(ByteRange { start: 0, length: self.length }, reader)
    }

    /// Checks that the file at `path` is exactly this content. Blocks.
    ///
    /// # Errors
    /// As [`Pattern::check_range`].
    pub fn check_file(&self, path: impl AsRef<Path>) -> Result<(), Mismatch> {
        self.check_reader(File::open(path)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_byte_depends_on_its_offset_alone(seed: u64, start in 0..5000u64, length in 0..300u64) {
            let pattern = Pattern::new(seed, 5000);
            let whole = pattern.to_vec();
            let end = (start + length).min(5000);
            prop_assert_eq!(
                pattern.bytes(ByteRange { start, length }),
                &whole[start as usize..end as usize]
            );
            prop_assert!(pattern.check(start, &whole[start as usize..end as usize]).is_ok());
        }

        #[test]
        fn a_wrong_byte_is_found_where_it_is(seed: u64, at in 0..200_000usize, flip in 1..=255u8) {
            let pattern = Pattern::new(seed, 200_000);
            let mut bytes = pattern.to_vec();
            bytes[at] ^= flip;
            match pattern.check_reader(&bytes[..]) {
                Err(Mismatch::Byte { offset, found, .. }) => {
                    prop_assert_eq!((offset, found), (at as u64, bytes[at]));
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn other_seeds_and_shifts_agree_only_by_chance() {
        let pattern = Pattern::new(1, 65_536);
        let bytes = pattern.to_vec();
        let agreeing = |other: &[u8]| bytes.iter().zip(other).filter(|(left, right)| left == right).count();
        for seed in [0, 2, 3, u64::MAX] {
            assert!(agreeing(&Pattern::new(seed, 65_536).to_vec()) < 400, "seed {seed}");
        }
        for shift in [1, 7, 8, 4096] {
            assert!(agreeing(&bytes[shift..]) < 400, "shift {shift}");
        }
    }

    #[test]
    fn a_length_is_part_of_the_content() {
        let pattern = Pattern::new(9, 1000);
        let longer = Pattern::new(9, 1001).to_vec();
        assert!(pattern.check_reader(&longer[..1000]).is_ok());
        for bytes in [&longer[..999], &longer[..1001], &[]] {
            assert!(matches!(pattern.check_reader(bytes), Err(Mismatch::Length { expected: 1000, .. })));
        }
        assert!(matches!(pattern.check(999, &longer[999..]), Err(Mismatch::Length { found: 1001, .. })));
        assert!(Pattern::new(9, 0).check_reader(io::empty()).is_ok());
    }

    #[test]
    fn files_and_digests_are_checked() {
        let pattern = Pattern::new(7, 100_000);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pattern.to_vec()).unwrap();
        pattern.check_file(file.path()).unwrap();
        assert!(matches!(pattern.check_file("/nonexistent"), Err(Mismatch::Io(_))));

        let digest: damselfly_core::Digest = pattern.digest(Algorithm::Sha256).parse().unwrap();
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&pattern.to_vec());
        assert!(digest.matches(&hasher.finish()));
    }
}
