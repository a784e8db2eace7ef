//! How a task's content is cut into pieces (`docs/wire.md`, "Pieces").

use std::ops::Range;

use thiserror::Error;

use crate::ByteRange;

/// The smallest piece length that is derived or may be named, 4 MiB.
pub const MIN_PIECE_LENGTH: u64 = 4 << 20;
/// The largest piece length that is derived or may be named, 64 MiB.
pub const MAX_PIECE_LENGTH: u64 = 64 << 20;
/// The most pieces that content may have, 2^22: what a task is kept with grows with them, and a word from another host
/// must not make that grow without bound. Derived piece lengths reach it at 256 TiB.
pub const MAX_PIECES: u32 = 1 << 22;
/// Content is cut into about this many pieces where the bounds allow it.
const TARGET_PIECES: f64 = 500.0;

/// The piece length that every Dragonfly peer derives for `content_length` bytes.
///
/// Follows Dragonfly's arithmetic exactly, 64-bit float division included: two peers that disagree here cannot swap pieces.
#[must_use]
pub fn piece_length_for(content_length: u64) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the rule is defined in f64"
    )]
    let quotient = (content_length as f64 / TARGET_PIECES) as u64;
    if quotient >= MAX_PIECE_LENGTH {
        return MAX_PIECE_LENGTH;
    }
    quotient.next_power_of_two().clamp(MIN_PIECE_LENGTH, MAX_PIECE_LENGTH)
}

/// The piece length that a user names, if schedulers take it (`docs/wire.md`).
///
/// # Errors
/// When it is below 4 MiB or above 64 MiB.
pub fn named_piece_length(length: u64) -> Result<u64, GeometryError> {
    match length {
        ..MIN_PIECE_LENGTH => Err(GeometryError::TooSmall(length)),
        MIN_PIECE_LENGTH..=MAX_PIECE_LENGTH => Ok(length),
        _ => Err(GeometryError::TooLarge(length)),
    }
}

/// Why a geometry cannot exist.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GeometryError {
    /// A piece must hold at least one byte.
    #[error("piece length is zero")]
    ZeroPieceLength,
    /// Less than schedulers accept from a user.
    #[error("piece length {0} bytes is less than the minimum {MIN_PIECE_LENGTH} bytes (4MiB)")]
    TooSmall(u64),
    /// More than schedulers accept from a user.
    #[error("piece length {0} bytes is more than the maximum {MAX_PIECE_LENGTH} bytes (64MiB)")]
    TooLarge(u64),
    /// Piece numbers are 32 bits on the wire.
    #[error("{content_length} bytes in pieces of {piece_length} need more than 2^32 piece numbers")]
    TooManyPieces {
        /// Bytes of content.
        content_length: u64,
        /// Bytes per piece.
        piece_length: u64,
    },
    /// Nobody keeps so many pieces.
    #[error(
        "{content_length} bytes in pieces of {piece_length} are more than {MAX_PIECES} pieces; choose a larger piece length"
    )]
    PastLimit {
        /// Bytes of content.
        content_length: u64,
        /// Bytes per piece.
        piece_length: u64,
    },
}

/// Where a piece lies in its task's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PieceSpan {
    /// The piece's number, from 0.
    pub number: u32,
    /// First byte, counted from the start of the content.
    pub offset: u64,
    /// Number of bytes; only the last piece may be shorter than the piece length.
    pub length: u64,
}

/// Content length and piece length, and all that follows from the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    content_length: u64,
    piece_length: u64,
}

impl Geometry {
    /// # Errors
    /// When `piece_length` is zero or the pieces could not be numbered in 32 bits.
    pub fn new(content_length: u64, piece_length: u64) -> Result<Self, GeometryError> {
        if piece_length == 0 {
            return Err(GeometryError::ZeroPieceLength);
        }
        if content_length.div_ceil(piece_length) > u64::from(u32::MAX) {
            return Err(GeometryError::TooManyPieces { content_length, piece_length });
        }
        Ok(Self { content_length, piece_length })
    }

    /// The geometry every peer derives when nobody named a piece length.
    ///
    /// # Errors
    /// When the content is too long to number its pieces.
    pub fn derived(content_length: u64) -> Result<Self, GeometryError> {
        Self::new(content_length, piece_length_for(content_length))
    }

    /// The geometry that another host tells of, where a piece length of 0 means the derived one.
    ///
    /// # Errors
    /// When there would be more than [`MAX_PIECES`] pieces.
    pub fn told(content_length: u64, piece_length: u64) -> Result<Self, GeometryError> {
        let geometry = match piece_length {
            0 => Self::derived(content_length)?,
            piece_length => Self::new(content_length, piece_length)?,
        };
        if geometry.piece_count() > MAX_PIECES {
            return Err(GeometryError::PastLimit { content_length, piece_length: geometry.piece_length });
        }
        Ok(geometry)
    }

    /// Bytes of content.
    #[must_use]
    pub fn content_length(&self) -> u64 {
        self.content_length
    }

    /// Bytes per piece, the last one excepted.
    #[must_use]
    pub fn piece_length(&self) -> u64 {
        self.piece_length
    }

    /// How many pieces there are; 0 for empty content.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "`new` refuses more than u32::MAX pieces")]
    pub fn piece_count(&self) -> u32 {
        self.content_length.div_ceil(self.piece_length) as u32
    }

    /// Where piece `number` lies, or `None` past the end.
    #[must_use]
    pub fn piece(&self, number: u32) -> Option<PieceSpan> {
        (number < self.piece_count()).then(|| {
            let offset = u64::from(number) * self.piece_length;
            PieceSpan { number, offset, length: self.piece_length.min(self.content_length - offset) }
        })
    }

    /// The numbers of the pieces that touch `range`. Pieces travel whole, so this is what a ranged download wants.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "both ends are at most piece_count")]
    pub fn pieces_of(&self, range: ByteRange) -> Range<u32> {
        let end = range.end().min(self.content_length);
        if range.length == 0 || range.start >= end {
            return 0..0;
        }
        (range.start / self.piece_length) as u32..end.div_ceil(self.piece_length) as u32
    }

    /// The bytes of neighbouring pieces; what lies past the end has none.
    #[must_use]
    pub fn range_of(&self, pieces: Range<u32>) -> ByteRange {
        let place =
            |number: u32| u64::from(number).saturating_mul(self.piece_length).min(self.content_length);
        let start = place(pieces.start);
        ByteRange { start, length: place(pieces.end).saturating_sub(start) }
    }

    /// The whole content as a range.
    #[must_use]
    pub fn whole(&self) -> ByteRange {
        ByteRange { start: 0, length: self.content_length }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_pieces_are_those_that_the_pieces_have() {
        for content_length in [0, 1, 39, 40, 41, 200] {
            let geometry = Geometry::new(content_length, 40).expect("few pieces");
            for start in 0..7 {
                for end in start..8 {
                    let range = geometry.range_of(start..end);
                    let spans = (start..end).filter_map(|number| geometry.piece(number));
                    assert_eq!(range.length, spans.map(|span| span.length).sum::<u64>());
                    if range.length > 0 {
                        assert_eq!(geometry.pieces_of(range), start..end.min(geometry.piece_count()));
                    }
                }
            }
        }
    }
}
