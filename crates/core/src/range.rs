//! Byte ranges, and the `Range` header's ways of naming one.

use thiserror::Error;

/// `length` bytes from byte `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub length: u64,
}

impl ByteRange {
    /// The byte after the last one.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

/// A range before the content's length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RangeSpec {
    /// The whole content.
    Whole,
    /// `length` bytes from `start`; what lies past the end is cut off.
    Span(ByteRange),
    /// Everything from byte `start` (`bytes=START-`).
    From(u64),
    /// The last bytes (`bytes=-COUNT`).
    Last(u64),
}

/// Why a range cannot be served.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RangeError {
    /// Not a form of RFC 9110 §14.2 in bytes.
    #[error("malformed range {0:?}: expected bytes=START-END, bytes=START- or bytes=-COUNT")]
    Malformed(String),
    /// Nothing of the content is asked for.
    #[error("range starts at byte {start}, but the content has {content_length} bytes")]
    Unsatisfiable {
        /// First byte asked for.
        start: u64,
        /// Bytes of content.
        content_length: u64,
    },
    /// A range of no bytes.
    #[error("range of zero bytes")]
    Empty,
}

impl RangeSpec {
    /// Reads a `Range` header's value. Of several ranges the first counts, as in Dragonfly.
    ///
    /// # Errors
    /// [`RangeError::Malformed`] for anything but a byte range.
    pub fn parse_header(value: &str) -> Result<Self, RangeError> {
        let malformed = || RangeError::Malformed(value.to_owned());
        let list = value.trim().strip_prefix("bytes=").ok_or_else(malformed)?;
        let first = list.split(',').next().unwrap_or_default().trim();
        let (start, end) = first.split_once('-').ok_or_else(malformed)?;
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| malformed());
        match (start.trim().is_empty(), end.trim().is_empty()) {
            (true, true) => Err(malformed()),
            (true, false) => Ok(RangeSpec::Last(number(end)?)),
            (false, true) => Ok(RangeSpec::From(number(start)?)),
            (false, false) => {
                let (start, end) = (number(start)?, number(end)?);
                let length = end.checked_sub(start).and_then(|n| n.checked_add(1)).ok_or_else(malformed)?;
                Ok(RangeSpec::Span(ByteRange { start, length }))
            }
        }
    }

    /// The bytes meant, now that the length is known.
    ///
    /// # Errors
    /// When no byte of the content is meant. The whole of an empty content is fine.
    pub fn resolve(self, content_length: u64) -> Result<ByteRange, RangeError> {
        let (start, length) = match self {
            RangeSpec::Whole => return Ok(ByteRange { start: 0, length: content_length }),
            RangeSpec::Span(range) if range.length == 0 => return Err(RangeError::Empty),
            RangeSpec::Last(0) => return Err(RangeError::Empty),
            RangeSpec::Span(range) => (range.start, range.length),
            RangeSpec::From(start) => (start, u64::MAX),
            RangeSpec::Last(count) => (content_length.saturating_sub(count), count),
        };
        if start >= content_length {
            return Err(RangeError::Unsatisfiable { start, content_length });
        }
        Ok(ByteRange { start, length: length.min(content_length - start) })
    }
}
