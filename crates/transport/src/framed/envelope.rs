//! The bytes of a message before and after its content.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{
    DecodeContext, WireType, decode_key, encode_key, encode_varint, encoded_len_varint, key_len, skip_field,
};
use thiserror::Error;

use damselfly_api::common::v2::Piece;
use damselfly_api::dfdaemon::v2::DownloadTaskResponse;

use super::{DOWNLOAD_CONTENT, FRAME_HEADER, READ_CONTENT, WRITE_CONTENT};

/// Why there is no envelope.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EnvelopeError {
    /// gRPC lengths have 32 bits.
    #[error("a message of {0} bytes does not fit a gRPC frame (4 GiB)")]
    TooLong(u64),
    /// The surrounding message is not what prost encodes.
    #[error("malformed message around the content: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// One message on the way from the outermost to the content.
#[derive(Clone, Debug)]
pub struct Level {
    /// The message as prost encodes it without `field`.
    pub rest: Vec<u8>,
    /// The field that holds the next level's message, or at last the content.
    pub field: u32,
}

/// The frame of a message whose content passes separately: gRPC header and all that precedes the content, and what
/// follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub(super) prefix: Bytes,
    pub(super) suffix: Bytes,
    pub(super) length: u64,
}

impl Envelope {
    /// Wraps `length` bytes of content into `levels`, given from the outermost inwards.
    ///
    /// # Errors
    /// When the message would not fit a frame, or a level's bytes are no message.
    pub fn new(levels: &[Level], length: u64) -> Result<Self, EnvelopeError> {
        // From the inside out: `inner` is the length of what the level's field holds.
        let mut inner = length;
        let mut cuts = Vec::with_capacity(levels.len());
        for level in levels.iter().rev() {
            cuts.push((level, fields_up_to(&level.rest, level.field)?, inner));
            let head = key_len(level.field) + encoded_len_varint(inner);
            inner = inner.saturating_add((level.rest.len() + head) as u64);
        }
        let total = u32::try_from(inner).map_err(|_| EnvelopeError::TooLong(inner))?;
        let mut prefix = BytesMut::with_capacity(FRAME_HEADER + 128);
        prefix.put_u8(0);
        prefix.put_u32(total);
        for (level, cut, inner) in cuts.iter().rev() {
            prefix.extend_from_slice(&level.rest[..*cut]);
            encode_key(level.field, WireType::LengthDelimited, &mut prefix);
            encode_varint(*inner, &mut prefix);
        }
        let mut suffix = BytesMut::new();
        for (level, cut, _) in cuts {
            suffix.extend_from_slice(&level.rest[cut..]);
        }
        Ok(Self { prefix: prefix.freeze(), suffix: suffix.freeze(), length })
    }

    /// A `DownloadTaskResponse` (or its equal of another kind) that reports `piece` as finished, with
    /// `piece.length` bytes of content. Content in the messages themselves is ignored.
    ///
    /// # Errors
    /// When the piece does not fit a frame.
    pub fn piece_finished(
        host_id: String,
        task_id: String,
        peer_id: String,
        piece: Piece,
    ) -> Result<Self, EnvelopeError> {
        let length = piece.length;
        let outer = DownloadTaskResponse { host_id, task_id, peer_id, response: None };
        let piece = Piece { content: None, ..piece };
        let rests = [outer.encode_to_vec(), Vec::new(), piece.encode_to_vec()];
        let levels: Vec<Level> =
            rests.into_iter().zip(DOWNLOAD_CONTENT).map(|(rest, &field)| Level { rest, field }).collect();
        Self::new(&levels, length)
    }

    /// A `ReadPersistentCacheTaskResponse` with a chunk of `length` bytes. An empty chunk would be encoded without
    /// its field: do not send one.
    ///
    /// # Errors
    /// When the chunk does not fit a frame.
    pub fn chunk(length: u64) -> Result<Self, EnvelopeError> {
        Self::bare(READ_CONTENT, length)
    }

    /// The same for a `WritePersistentCacheTaskRequest`.
    ///
    /// # Errors
    /// As [`Self::chunk`].
    pub fn written_chunk(length: u64) -> Result<Self, EnvelopeError> {
        Self::bare(WRITE_CONTENT, length)
    }

    fn bare(path: &[u32], length: u64) -> Result<Self, EnvelopeError> {
        let levels: Vec<Level> = path.iter().map(|&field| Level { rest: Vec::new(), field }).collect();
        Self::new(&levels, length)
    }

    /// Bytes of content that belong into it.
    #[must_use]
    pub fn content_length(&self) -> u64 {
        self.length
    }

    /// Everything before the content, the gRPC header included.
    #[must_use]
    pub fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    /// Everything after the content.
    #[must_use]
    pub fn suffix(&self) -> &Bytes {
        &self.suffix
    }
}

/// How many bytes the fields numbered below `field` take; prost encodes in ascending order.
fn fields_up_to(message: &[u8], field: u32) -> Result<usize, prost::DecodeError> {
    let mut rest = message;
    while !rest.is_empty() {
        let before = rest.len();
        let (number, wire_type) = decode_key(&mut rest)?;
        if number > field {
            return Ok(message.len() - before);
        }
        skip_field(wire_type, number, &mut rest, DecodeContext::default())?;
    }
    Ok(message.len())
}
