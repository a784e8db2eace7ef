//! What a stream sends to the code that puts it on the wire.

use std::collections::BTreeMap;

use damselfly_api::common::v2::Piece;
use damselfly_api::damselfly::v1::Receipt;
use damselfly_core::{ByteRange, Content, Geometry, PeerId, PieceSpan};
use damselfly_storage::PieceRef;

/// The beginning of the story.
#[derive(Clone, Debug)]
pub struct Started {
    /// The download as a peer.
    pub peer_id: PeerId,
    /// How the content is cut.
    pub geometry: Geometry,
    /// The bytes the client asked for.
    pub range: ByteRange,
    /// Whether that is less than everything.
    pub partial: bool,
    /// The origin's response headers.
    pub headers: BTreeMap<String, String>,
    /// The pieces that touch the range.
    pub pieces: Vec<PieceSpan>,
    /// Whether the whole task was held before this download began.
    pub was_complete: bool,
}

/// One thing to send.
#[derive(Debug)]
pub enum Item {
    /// Comes first.
    Started(Started),
    /// A piece is there.
    Piece {
        /// Its description, without content.
        piece: Piece,
        /// Its content, where the client wants it.
        content: Option<PieceRef>,
    },
    /// The next bytes of the content; the reference keeps them from being evicted meanwhile.
    Chunk {
        /// The bytes.
        content: Content,
        /// The piece they are part of.
        piece: PieceRef,
    },
    /// Comes last.
    Finished(Receipt),
}
