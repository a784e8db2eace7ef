//! Sets of piece numbers.

use std::fmt;
use std::ops::Range;

/// Ascending numbers as runs of consecutive ones.
#[must_use]
pub fn runs(numbers: impl IntoIterator<Item = u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end == number => run.end += 1,
            _ => runs.push(number..number + 1), // there is no piece u32::MAX
        }
    }
    runs
}

/// A set of piece numbers below a fixed count, one bit each.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PieceSet {
    words: Vec<u64>,
    count: u32,
    len: u32,
}

impl PieceSet {
    /// The empty set over pieces `0..count`.
    #[must_use]
    pub fn new(count: u32) -> Self {
        Self { words: vec![0; count.div_ceil(64) as usize], count, len: 0 }
    }

    /// All pieces `0..count`.
    #[must_use]
    pub fn full(count: u32) -> Self {
        let mut set = Self::new(count);
        for number in 0..count {
            set.insert(number);
        }
        set
    }

    /// How many pieces there could be.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many pieces are in the set.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no piece is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether every piece is in the set. True of the empty content's set.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len == self.count
    }

    /// Whether `number` is in the set; false past the end.
    #[must_use]
    pub fn contains(&self, number: u32) -> bool {
        number < self.count && self.words[(number / 64) as usize] >> (number % 64) & 1 == 1
    }

    /// Puts `number` in; says whether it was new. Past the end nothing happens.
    pub fn insert(&mut self, number: u32) -> bool {
        let new = number < self.count && !self.contains(number);
        if new {
            self.words[(number / 64) as usize] |= 1 << (number % 64);
            self.len += 1;
        }
        new
    }

    /// Takes `number` out; says whether it was there.
    pub fn remove(&mut self, number: u32) -> bool {
        let there = self.contains(number);
        if there {
            self.words[(number / 64) as usize] &= !(1 << (number % 64));
            self.len -= 1;
        }
        there
    }

    /// The members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.words).flat_map(|(index, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros();
                    rest &= rest - 1;
                    index * 64 + bit
                })
            })
        })
    }

    /// Puts a run of numbers in. What lies past the end is left out.
    pub fn insert_range(&mut self, range: Range<u32>) {
        for number in range.start..range.end.min(self.count) {
            self.insert(number);
        }
    }

    /// The members of both sets, ascending from `start` and then from 0 up to `start`.
    pub fn common_from<'a>(&'a self, other: &'a PieceSet, start: u32) -> impl Iterator<Item = u32> + 'a {
        let start = start.checked_rem(self.count).unwrap_or(0);
        let (first, low_bits) = ((start / 64) as usize, (1u64 << (start % 64)) - 1);
        let words = self.words.len();
        // The first word is visited twice: its upper part at the beginning, its lower part at the end.
        (0..if words == 0 { 0 } else { words + 1 }).flat_map(move |step| {
            let index = (first + step) % words;
            let both = self.words[index] & other.words.get(index).copied().unwrap_or(0);
            let mut rest = match step {
                0 => both & !low_bits,
                last if last == words => both & low_bits,
                _ => both,
            };
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros();
                    rest &= rest - 1;
                    // Below `count`, which is a u32.
                    u32::try_from(index).unwrap_or(u32::MAX / 64) * 64 + bit
                })
            })
        })
    }

    /// The numbers that exactly one of `sets` has.
    #[must_use]
    pub fn in_one_of<'a>(count: u32, sets: impl IntoIterator<Item = &'a PieceSet>) -> Self {
        let mut once = Self::new(count);
        let mut often = vec![0u64; once.words.len()];
        for set in sets {
            for ((once, often), word) in once.words.iter_mut().zip(&mut often).zip(&set.words) {
                *often |= *once & word;
                *once |= word;
            }
        }
        for (once_word, often) in once.words.iter_mut().zip(&often) {
            *once_word &= !often;
            once.len += once_word.count_ones();
        }
        once
    }

    /// How many numbers all three sets have.
    #[must_use]
    pub fn common_count(&self, second: &PieceSet, third: &PieceSet) -> u32 {
        let words = self.words.iter().zip(&second.words).zip(&third.words);
        words.map(|((first, second), third)| (first & second & third).count_ones()).sum()
    }

    /// The numbers below the count that are not in the set, ascending.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.count).filter(|&number| !self.contains(number))
    }

    /// One bit per piece, piece 0 in the lowest bit of the first byte: the form `damselfly.v1` sends.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.count.div_ceil(8) as usize);
        bytes
    }

    /// Reads [`PieceSet::to_bytes`]'s form. Missing bytes are zero; bits past `count` are ignored.
    #[must_use]
    pub fn from_bytes(bytes: &[u8], count: u32) -> Self {
        let mut set = Self::new(count);
        for (index, byte) in (0u32..).zip(bytes.iter().take(count.div_ceil(8) as usize)) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                set.insert(index * 8 + bit);
            }
        }
        set
    }
}

impl fmt::Debug for PieceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PieceSet({}/{})", self.len, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_what_is_consecutive() {
        assert_eq!(runs([1, 2, 3, 7, 9, 10]), [1..4, 7..8, 9..11]);
        assert!(runs([]).is_empty());
    }
}
