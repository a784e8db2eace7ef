//! What a parent answers: a piece's metadata, or an error.

use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use damselfly_core::Kind;

use super::{CodecError, HEADER_LENGTH, Header, MAX_VALUE_LENGTH, Tag};

/// Bytes of metadata besides the digest and the parent's id.
const FIXED: usize = 45;
/// The only traffic type that is ever sent: from another peer.
const REMOTE_PEER: u8 = 1;

/// What precedes a piece's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PieceMeta {
    /// The piece's number.
    pub piece: u32,
    /// The piece's first byte, counted from the start of the content.
    pub offset: u64,
    /// How many bytes follow.
    pub length: u64,
    /// `crc32:<decimal>`, or empty where the parent promises nothing.
    pub digest: String,
    /// The peer the parent had the piece from; empty if from the origin or an import.
    pub parent_id: String,
    /// 1 from every known peer.
    pub traffic_type: u8,
    /// How long the parent took to get the piece. Whole seconds travel.
    pub cost: Duration,
    /// When the parent had the piece, in seconds since 1970.
    pub created_at: i64,
}

impl PieceMeta {
    /// Metadata of the piece at `offset`, `length` bytes, with the traffic type every peer sends.
    #[must_use]
    pub fn new(piece: u32, offset: u64, length: u64) -> Self {
        Self {
            piece,
            offset,
            length,
            digest: String::new(),
            parent_id: String::new(),
            traffic_type: REMOTE_PEER,
            cost: Duration::ZERO,
            created_at: 0,
        }
    }

    /// Appends header and metadata, after which the piece's bytes are due.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] when digest and parent id do not fit; nothing is appended then.
    pub fn encode(&self, id: u8, kind: Kind, out: &mut BytesMut) -> Result<(), CodecError> {
        let announced = FIXED as u64 + self.digest.len() as u64 + self.parent_id.len() as u64;
        let length = u32::try_from(announced).ok().filter(|length| *length as usize <= MAX_VALUE_LENGTH);
        let length = length.ok_or(CodecError::TooLong { announced })?;
        let header = Header { id, tag: Tag::Content(kind), length: 4 + length };
        out.reserve(HEADER_LENGTH + 4 + length as usize);
        out.put_slice(&header.encode());
        out.put_u32(length);
        out.put_u32(self.piece);
        out.put_u64(self.offset);
        out.put_u64(self.length);
        put_text(out, &self.digest);
        put_text(out, &self.parent_id);
        out.put_u8(self.traffic_type);
        out.put_u64(self.cost.as_secs());
        out.put_i64(self.created_at);
        Ok(())
    }

    /// Reads metadata, `bytes` being exactly that.
    fn decode(mut bytes: &[u8]) -> Result<Self, CodecError> {
        let length = bytes.len();
        if length < FIXED {
            return Err(CodecError::Length { expected: FIXED, actual: length });
        }
        let piece = bytes.get_u32();
        let offset = bytes.get_u64();
        let content_length = bytes.get_u64();
        let digest = take_text(&mut bytes, "digest length")?;
        let parent_id = take_text(&mut bytes, "parent id length")?;
        if bytes.len() != 1 + 8 + 8 {
            return Err(CodecError::Metadata("lengths do not add up"));
        }
        Ok(Self {
            piece,
            offset,
            length: content_length,
            digest,
            parent_id,
            traffic_type: bytes.get_u8(),
            cost: Duration::from_secs(bytes.get_u64()),
            created_at: bytes.get_i64(),
        })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the caller checked that all text fits MAX_VALUE_LENGTH")]
fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u32(text.len() as u32);
    out.put_slice(text.as_bytes());
}

fn take_text(bytes: &mut &[u8], what: &'static str) -> Result<String, CodecError> {
    let length = bytes.try_get_u32().map_err(|_| CodecError::Metadata(what))? as usize;
    let (text, rest) = bytes.split_at_checked(length).ok_or(CodecError::Metadata(what))?;
    *bytes = rest;
    match std::str::from_utf8(text) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(CodecError::Metadata("text is not UTF-8")),
    }
}

/// Why a parent cannot serve a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The parent does not say.
    Unknown,
    /// The parent could not make sense of the request.
    InvalidArgument,
    /// The parent does not have the piece.
    NotFound,
    /// The parent failed.
    Internal,
    /// A number without a meaning.
    Other(u8),
}

impl ErrorCode {
    /// Reads a code byte.
    #[must_use]
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            0 => ErrorCode::Unknown,
            1 => ErrorCode::InvalidArgument,
            2 => ErrorCode::NotFound,
            3 => ErrorCode::Internal,
            other => ErrorCode::Other(other),
        }
    }

    /// The code byte.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            ErrorCode::Unknown => 0,
            ErrorCode::InvalidArgument => 1,
            ErrorCode::NotFound => 2,
            ErrorCode::Internal => 3,
            ErrorCode::Other(byte) => byte,
        }
    }
}

/// A parent's refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ErrorPacket {
    /// What kind of refusal.
    pub code: ErrorCode,
    /// The parent's words. Bytes that are not UTF-8 arrive as replacement characters.
    pub message: String,
}

impl ErrorPacket {
    /// Appends the whole packet. A message that is too long is cut.
    pub fn encode(&self, id: u8, out: &mut BytesMut) {
        let mut end = self.message.len().min(MAX_VALUE_LENGTH - 1);
        while !self.message.is_char_boundary(end) {
            end -= 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "cut to MAX_VALUE_LENGTH above")]
        let header = Header { id, tag: Tag::Error, length: 1 + end as u32 };
        out.reserve(HEADER_LENGTH + 1 + end);
        out.put_slice(&header.encode());
        out.put_u8(self.code.to_byte());
        out.put_slice(&self.message.as_bytes()[..end]);
    }
}

/// A parent's answer, without the piece's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// `meta.length` bytes follow.
    Content {
        /// The kind the answering parent took the request for.
        kind: Kind,
        /// What it says about the piece.
        meta: PieceMeta,
    },
    /// The piece will not come.
    Error(ErrorPacket),
}

/// How far decoding came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// At least so many bytes in all are needed to go on; never more than [`super::MAX_ANSWER_LENGTH`].
    Needs(usize),
    /// The answer took the first `consumed` bytes; what follows is the piece's, or the next packet's.
    Complete {
        /// The answer.
        answer: Answer,
        /// How many bytes it took.
        consumed: usize,
    },
}

/// Reads an answer from the bytes received so far.
///
/// Like Dragonfly's children it goes by the metadata's own length field, not by the header's.
///
/// # Errors
/// When the bytes cannot become an answer, whatever follows.
pub fn decode_answer(bytes: &[u8]) -> Result<Decoded, CodecError> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LENGTH>() else {
        return Ok(Decoded::Needs(HEADER_LENGTH));
    };
    let header = Header::decode(*head);
    match header.tag {
        Tag::Content(kind) => {
            let Some((length, rest)) = rest.split_first_chunk::<4>() else {
                return Ok(Decoded::Needs(HEADER_LENGTH + 4));
            };
            let length = bounded(u32::from_be_bytes(*length))?;
            let Some(metadata) = rest.get(..length) else {
                return Ok(Decoded::Needs(HEADER_LENGTH + 4 + length));
            };
            let answer = Answer::Content { kind, meta: PieceMeta::decode(metadata)? };
            Ok(Decoded::Complete { answer, consumed: HEADER_LENGTH + 4 + length })
        }
        Tag::Error => {
            let length = bounded(header.length)?;
            let Some(value) = rest.get(..length) else {
                return Ok(Decoded::Needs(HEADER_LENGTH + length));
            };
            let Some((&code, message)) = value.split_first() else {
                return Err(CodecError::Length { expected: 1, actual: 0 });
            };
            let message = String::from_utf8_lossy(message).into_owned();
            let answer = Answer::Error(ErrorPacket { code: ErrorCode::from_byte(code), message });
            Ok(Decoded::Complete { answer, consumed: HEADER_LENGTH + length })
        }
        other => Err(CodecError::Tag(other.to_byte())),
    }
}

fn bounded(length: u32) -> Result<usize, CodecError> {
    if length as usize > MAX_VALUE_LENGTH {
        return Err(CodecError::TooLong { announced: length.into() });
    }
    Ok(length as usize)
}
