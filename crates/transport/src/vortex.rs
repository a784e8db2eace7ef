//! The Vortex packet codec (`docs/wire.md`, "Vortex").
//!
//! Pure functions over byte slices. Decoding never panics and never allocates more than the bytes it was given, so
//! whatever a peer sends can be passed in; [`decode_answer`] says how many more bytes it needs, and that number is
//! bounded by [`MAX_ANSWER_LENGTH`].

mod answer;

use damselfly_core::{IdError, Kind, TaskId};
use thiserror::Error;

pub use answer::{Answer, Decoded, ErrorCode, ErrorPacket, PieceMeta, decode_answer};

/// Bytes of a packet header.
pub const HEADER_LENGTH: usize = 6;
/// Bytes of a request's value.
pub const REQUEST_VALUE_LENGTH: usize = TaskId::WIRE_LENGTH + 4;
/// Bytes of a whole request.
pub const REQUEST_LENGTH: usize = HEADER_LENGTH + REQUEST_VALUE_LENGTH;
/// The longest piece metadata and the longest error message that are accepted. Real ones have about 150 bytes.
pub const MAX_VALUE_LENGTH: usize = 64 << 10;
/// The most bytes an answer without its piece content may have.
pub const MAX_ANSWER_LENGTH: usize = HEADER_LENGTH + 4 + MAX_VALUE_LENGTH;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tag {
    /// A child asks for a piece of a task of this kind.
    Request(Kind),
    /// A parent answers with a piece.
    Content(Kind),
    /// Nothing more will come. Nobody sends it.
    Close,
    /// A parent cannot serve the piece.
    Error,
    /// A number without a meaning here (the persistent tasks' 2 and 3 among them).
    Other(u8),
}

impl Tag {
    /// Reads a tag byte.
    #[must_use]
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Tag::Request(Kind::Standard),
            1 => Tag::Content(Kind::Standard),
            4 => Tag::Request(Kind::PersistentCache),
            5 => Tag::Content(Kind::PersistentCache),
            6 => Tag::Request(Kind::Cache),
            7 => Tag::Content(Kind::Cache),
            254 => Tag::Close,
            255 => Tag::Error,
            other => Tag::Other(other),
        }
    }

    /// The tag byte.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Tag::Request(Kind::Standard) => 0,
            Tag::Content(Kind::Standard) => 1,
            Tag::Request(Kind::PersistentCache) => 4,
            Tag::Content(Kind::PersistentCache) => 5,
            Tag::Request(Kind::Cache) => 6,
            Tag::Content(Kind::Cache) => 7,
            Tag::Close => 254,
            Tag::Error => 255,
            Tag::Other(byte) => byte,
        }
    }
}

/// Why bytes are no packet, or values cannot become one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CodecError {
    /// Fewer or more bytes than the packet must have.
    #[error("packet has {actual} bytes where {expected} are due")]
    Length {
        /// Bytes the form demands.
        expected: usize,
        /// Bytes there are.
        actual: usize,
    },
    /// A length field beyond what any peer sends; refused before anything is allocated for it.
    #[error("packet announces {announced} bytes; at most {MAX_VALUE_LENGTH} are accepted")]
    TooLong {
        /// The announced number of bytes.
        announced: u64,
    },
    /// A tag that is not expected at this place.
    #[error("unexpected packet tag {0}")]
    Tag(u8),
    /// Lengths inside the metadata that contradict each other.
    #[error("malformed piece metadata: {0}")]
    Metadata(&'static str),
    /// A task id that is none.
    #[error("request names no task: {0}")]
    TaskId(#[from] IdError),
    /// An id that the protocol has no room for.
    #[error("task id {0} has {len} digits, but only ids of 64 digits cross Vortex; fetch it over gRPC", len = .0.as_str().len())]
    IdLength(TaskId),
}

/// A packet's first six bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// Any number; nobody checks it, so nothing may be correlated by it.
    pub id: u8,
    /// What follows.
    pub tag: Tag,
    /// Bytes of the value; for content packets the piece's own bytes are not counted.
    pub length: u32,
}

impl Header {
    /// The header as it stands on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LENGTH] {
        let [a, b, c, d] = self.length.to_be_bytes();
        [self.id, self.tag.to_byte(), a, b, c, d]
    }

    /// Reads a header. Any six bytes are one.
    #[must_use]
    pub fn decode(bytes: [u8; HEADER_LENGTH]) -> Self {
        let [id, tag, a, b, c, d] = bytes;
        Self { id, tag: Tag::from_byte(tag), length: u32::from_be_bytes([a, b, c, d]) }
    }
}

/// A child's request for one whole piece.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// The packet's number.
    pub id: u8,
    /// The task's kind.
    pub kind: Kind,
    /// The task; its id must have 64 digits.
    pub task: TaskId,
    /// The piece's number.
    pub piece: u32,
}

impl Request {
    /// The request as it stands on the wire.
    ///
    /// # Errors
    /// [`CodecError::IdLength`] when the id does not have 64 digits.
    pub fn encode(&self) -> Result<[u8; REQUEST_LENGTH], CodecError> {
        let id = self.task.as_str().as_bytes();
        if id.len() != TaskId::WIRE_LENGTH {
            return Err(CodecError::IdLength(self.task.clone()));
        }
        let header =
            Header { id: self.id, tag: Tag::Request(self.kind), length: REQUEST_VALUE_LENGTH as u32 };
        let mut bytes = [0; REQUEST_LENGTH];
        let (head, value) = bytes.split_at_mut(HEADER_LENGTH);
        head.copy_from_slice(&header.encode());
        let (digits, piece) = value.split_at_mut(TaskId::WIRE_LENGTH);
        digits.copy_from_slice(id);
        piece.copy_from_slice(&self.piece.to_be_bytes());
        Ok(bytes)
    }

    /// Reads a whole request.
    ///
    /// # Errors
    /// When the tag asks for nothing that is served, a length is wrong, or the id is not 64 lower-case hex digits.
    pub fn decode(bytes: &[u8; REQUEST_LENGTH]) -> Result<Self, CodecError> {
        let Some((head, value)) = bytes.split_first_chunk::<HEADER_LENGTH>() else {
            return Err(CodecError::Length { expected: REQUEST_LENGTH, actual: bytes.len() });
        };
        let header = Header::decode(*head);
        let kind = Self::check_header(header)?;
        let Some((digits, piece)) = value.split_last_chunk::<4>() else {
            return Err(CodecError::Length { expected: REQUEST_VALUE_LENGTH, actual: value.len() });
        };
        let task = TaskId::parse(&String::from_utf8_lossy(digits))?;
        Ok(Self { id: header.id, kind, task, piece: u32::from_be_bytes(*piece) })
    }

    /// Checks that `header` begins a request, before its value is waited for; returns the kind asked for.
    ///
    /// # Errors
    /// When it is another packet, or a request of the wrong length.
    pub fn check_header(header: Header) -> Result<Kind, CodecError> {
        match header.tag {
            Tag::Request(kind) if header.length as usize == REQUEST_VALUE_LENGTH => Ok(kind),
            Tag::Request(_) => {
                Err(CodecError::Length { expected: REQUEST_VALUE_LENGTH, actual: header.length as usize })
            }
            other => Err(CodecError::Tag(other.to_byte())),
        }
    }
}

#[cfg(test)]
mod tests;
