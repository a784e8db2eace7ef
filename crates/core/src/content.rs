//! Content as it passes between storage, transport and source.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;

/// A stretch of content: a descriptor with offset and length, or bytes already in memory.
///
/// Whoever holds a `Content` may read it as often as needed; a file's position is never moved (positional reads only).
#[derive(Clone, Debug)]
pub enum Content {
    /// `length` bytes of `file` from byte `offset`.
    File {
        /// An open, readable regular file or memfd.
        file: Arc<File>,
        /// First byte, counted from the start of the file.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Bytes in memory.
    Bytes(Bytes),
}

impl Content {
    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Content::File { length, .. } => *length,
            Content::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
