//! Vortex packets as `vortex-protocol` makes and reads them, one function for all kinds of task where the crate has
//! a type for each.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chrono::DateTime;
use damselfly_core::Kind;
use damselfly_transport::vortex::PieceMeta;
use tokio::io::{AsyncRead, AsyncReadExt};
use vortex_protocol::tlv::Tag;
use vortex_protocol::tlv::cache_piece_content::CachePieceContent;
use vortex_protocol::tlv::download_cache_piece::DownloadCachePiece;
use vortex_protocol::tlv::download_persistent_cache_piece::DownloadPersistentCachePiece;
use vortex_protocol::tlv::download_piece::DownloadPiece;
use vortex_protocol::tlv::error::Error as ErrorValue;
use vortex_protocol::tlv::persistent_cache_piece_content::PersistentCachePieceContent;
use vortex_protocol::tlv::piece_content::PieceContent;
use vortex_protocol::{HEADER_SIZE, Header, Vortex};

/// The tag of their requests for pieces of such a task.
#[must_use]
pub fn request_tag(kind: Kind) -> Tag {
    match kind {
        Kind::Standard => Tag::DownloadPiece,
        Kind::PersistentCache => Tag::DownloadPersistentCachePiece,
        Kind::Cache => Tag::DownloadCachePiece,
    }
}

/// The tag of their answers with pieces of such a task.
#[must_use]
pub fn content_tag(kind: Kind) -> Tag {
    match kind {
        Kind::Standard => Tag::PieceContent,
        Kind::PersistentCache => Tag::PersistentCachePieceContent,
        Kind::Cache => Tag::CachePieceContent,
    }
}

/// A whole request packet of theirs.
///
/// # Panics
/// When their crate refuses its own value.
#[must_use]
pub fn request(kind: Kind, task: &str, piece: u32) -> Bytes {
    let value: Bytes = match kind {
        Kind::Standard => DownloadPiece::new(task.to_owned(), piece).into(),
        Kind::PersistentCache => DownloadPersistentCachePiece::new(task.to_owned(), piece).into(),
        Kind::Cache => DownloadCachePiece::new(task.to_owned(), piece).into(),
    };
    Vortex::new(request_tag(kind), value).expect("their own value").into()
}

/// What their parent sends before a piece's bytes: header and metadata.
///
/// # Panics
/// When `meta` has a time that theirs cannot express.
#[must_use]
pub fn content(kind: Kind, meta: PieceMeta) -> Bytes {
    let created = DateTime::from_timestamp(meta.created_at, 0).expect("a time of this era").naive_utc();
    let PieceMeta { piece, offset, length, digest, parent_id, traffic_type, cost, .. } = meta;
    let value: Bytes = match kind {
        Kind::Standard => {
            PieceContent::new(piece, offset, length, digest, parent_id, traffic_type, cost, created).into()
        }
        Kind::PersistentCache => PersistentCachePieceContent::new(
            piece,
            offset,
            length,
            digest,
            parent_id,
            traffic_type,
            cost,
            created,
        )
        .into(),
        Kind::Cache => {
            CachePieceContent::new(piece, offset, length, digest, parent_id, traffic_type, cost, created)
                .into()
        }
    };
    let header = Header::new(content_tag(kind), u32::try_from(value.len()).expect("short"));
    let mut packet = BytesMut::from(&Bytes::from(header)[..]);
    packet.extend_from_slice(&value);
    packet.freeze()
}

/// Reads the metadata in the value of their content packet.
///
/// # Errors
/// In the words of their decoder.
pub fn read_content(kind: Kind, value: Bytes) -> Result<PieceMeta, String> {
    macro_rules! read {
        ($type:ty) => {{
            let meta = <$type>::try_from(value).map_err(|error| error.to_string())?.metadata();
            PieceMeta {
                piece: meta.number,
                offset: meta.offset,
                length: meta.length,
                digest: meta.digest,
                parent_id: meta.parent_id,
                traffic_type: meta.traffic_type,
                cost: Duration::from_secs(meta.cost.as_secs()),
                created_at: meta.created_at.and_utc().timestamp(),
            }
        }};
    }
    Ok(match kind {
        Kind::Standard => read!(PieceContent),
        Kind::PersistentCache => read!(PersistentCachePieceContent),
        Kind::Cache => read!(CachePieceContent),
    })
}

/// An answer as their child reads it.
#[derive(Debug)]
pub enum Answer {
    /// `length` bytes follow.
    Content(PieceMeta),
    /// The piece will not come.
    Error(ErrorValue),
}

/// Reads an answer the way their child does: header, tag, length of the metadata, metadata.
///
/// # Errors
/// When the connection ends or their decoder refuses what it reads.
pub async fn read_answer(kind: Kind, stream: &mut (impl AsyncRead + Unpin)) -> Result<Answer, String> {
    let header = take(stream, HEADER_SIZE).await?;
    let header = Header::try_from(header).map_err(|error| error.to_string())?;
    if header.tag() == Tag::Error {
        let value = take(stream, header.length() as usize).await?;
        return Ok(Answer::Error(ErrorValue::try_from(value).map_err(|error| error.to_string())?));
    }
    if header.tag() != content_tag(kind) {
        return Err(format!("unexpected tag {:?}", header.tag()));
    }
    let length = take(stream, 4).await?;
    let metadata =
        take(stream, u32::from_be_bytes(length[..].try_into().expect("four bytes")) as usize).await?;
    let mut value = BytesMut::from(&length[..]);
    value.extend_from_slice(&metadata);
    if value.len() != header.length() as usize {
        return Err(format!("header says {} bytes, metadata has {}", header.length(), value.len()));
    }
    read_content(kind, value.freeze()).map(Answer::Content)
}

async fn take(stream: &mut (impl AsyncRead + Unpin), length: usize) -> Result<Bytes, String> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.map_err(|error| error.to_string())?;
    Ok(bytes.into())
}
