//! gRPC message streams written and read by hand.
//!
//! Generated code gathers every message in one buffer, so content is copied once per side and a piece with its content
//! is held whole. Here the bytes around the content are encoded ([`Envelope`]), the content passes as it is, in
//! whatever chunks it comes, and the result is byte for byte what prost would have encoded. Clients that use generated
//! code do not notice; ours read with a [`FrameReader`], which hands content out as it arrives.
//!
//! A server answers a route with [`response`] and writes through its [`FrameWriter`]; [`read_request`] reads what was
//! asked, and [`FrameReader::of_request`] what a client streams. A client calls with [`call`], or streams with [`upload`].

mod decode;
mod envelope;
mod reader;
mod writer;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

pub use decode::{DecodeError, Decoder, Incoming};
pub use envelope::{Envelope, EnvelopeError, Level};
pub use reader::{FrameReader, call, read_request, upload};
pub use writer::{ClosedError, ContentWriter, FrameWriter, refusal, response};

/// Bytes before each message: a flag and the length.
pub const FRAME_HEADER: usize = 5;

/// Field numbers from the message down to the content, in `DownloadTaskResponse` and its siblings of the other kinds.
pub const DOWNLOAD_CONTENT: &[u32] = &[5, 1, 6];
/// Field numbers from the message down to the content, in `ReadPersistentCacheTaskResponse`.
pub const READ_CONTENT: &[u32] = &[2, 1];

/// Field numbers from the message down to the content, in `WritePersistentCacheTaskRequest`.
pub const WRITE_CONTENT: &[u32] = &[3, 1];

/// A whole message as one frame. For messages without content.
///
/// # Errors
/// When the message has 4 GiB or more.
pub fn frame(message: &impl Message) -> Result<Bytes, EnvelopeError> {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(FRAME_HEADER + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).map_err(|_| EnvelopeError::TooLong(length as u64))?);
    message.encode_raw(&mut out);
    Ok(out.freeze())
}

#[cfg(test)]
mod tests;
