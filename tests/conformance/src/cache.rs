//! Persistent cache tasks as Dragonfly's dfcache asks for them, and what it takes for an answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use damselfly_core::{ByteRange, Crc, Geometry};
use damselfly_tests::Pattern;
use dragonfly_api::common::v2::{PersistentCacheTask, Piece};
use dragonfly_api::dfdaemon::v2::download_persistent_cache_task_response::Response as Told;
use dragonfly_api::dfdaemon::v2::{
    DownloadPersistentCacheTaskRequest, DownloadPersistentCacheTaskResponse, StatPersistentCacheTaskRequest,
    UploadPersistentCacheTaskRequest,
};
use prost_wkt_types::Duration as Span;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::rules;

/// How long a test waits for the next message.
const DEADLINE: Duration = Duration::from_secs(60);

/// `dfcache import PATH` without flags, but for one replica.
#[must_use]
pub fn import(path: &Path) -> UploadPersistentCacheTaskRequest {
    UploadPersistentCacheTaskRequest {
        path: path.display().to_string(),
        persistent_replica_count: 1,
        ttl: Some(Span { seconds: 3600, nanos: 0 }),
        timeout: Some(Span { seconds: 1800, nanos: 0 }),
        remote_ip: Some("127.0.0.1".to_owned()),
        ..UploadPersistentCacheTaskRequest::default()
    }
}

/// `dfcache export ID --transfer-from-dfdaemon`, or with `output` without that flag.
#[must_use]
pub fn export(task: &str, output: Option<&Path>) -> DownloadPersistentCacheTaskRequest {
    DownloadPersistentCacheTaskRequest {
        task_id: task.to_owned(),
        tag: Some(String::new()),
        application: Some(String::new()),
        output_path: output.map(|path| path.display().to_string()),
        timeout: Some(Span { seconds: 7200, nanos: 0 }),
        need_piece_content: output.is_none(),
        remote_ip: Some("127.0.0.1".to_owned()),
        ..DownloadPersistentCacheTaskRequest::default()
    }
}

/// `dfcache stat ID`.
#[must_use]
pub fn stat(task: &str) -> StatPersistentCacheTaskRequest {
    StatPersistentCacheTaskRequest { task_id: task.to_owned(), remote_ip: Some("127.0.0.1".to_owned()) }
}

/// Whether a task is what an import of `content` makes, and all that their tools show of it is there.
///
/// # Panics
/// When it is not.
pub fn check_task(task: &PersistentCacheTask, content: Pattern) {
    rules::cache_task(task).unwrap_or_else(|rule| panic!("{rule} missing or wrong in {task:?}"));
    let geometry = Geometry::derived(content.length).expect("a geometry");
    assert_eq!(
        (task.content_length, task.piece_length, task.piece_count),
        (content.length, geometry.piece_length(), geometry.piece_count())
    );
    assert_eq!(task.state, "Succeeded");
}

/// An export as dfcache has read it to its end.
#[derive(Debug)]
pub struct Exported {
    /// Of the whole content.
    pub content_length: u64,
    /// By number.
    pub pieces: BTreeMap<u32, Piece>,
}

impl Exported {
    /// Whether these are the pieces of `content`, with their bytes where `bytes` says that they were asked for.
    ///
    /// # Panics
    /// When they are not.
    pub fn check(&self, content: Pattern, bytes: bool) {
        let geometry = Geometry::derived(content.length).expect("a geometry");
        assert_eq!(self.content_length, content.length);
        assert_eq!(
            self.pieces.keys().copied().collect::<Vec<_>>(),
            (0..geometry.piece_count()).collect::<Vec<_>>()
        );
        for (number, piece) in &self.pieces {
            let span = geometry.piece(*number).expect("one of them");
            assert_eq!((piece.offset, piece.length), (span.offset, span.length));
            assert!(piece.cost.is_some() && piece.created_at.is_some() && piece.traffic_type.is_some());
            let expected = content.bytes(ByteRange { start: span.offset, length: span.length });
            assert_eq!(piece.digest, Crc::of(&expected).to_string());
            assert_eq!(piece.content.is_some(), bytes, "piece {number}");
            assert!(
                piece.content.as_ref().is_none_or(|got| *got == expected),
                "piece {number} has other bytes"
            );
        }
    }
}

/// Reads an export's stream: the beginning first, then each piece once, because dfcache adds their lengths up.
///
/// # Errors
/// As the stream ends.
///
/// # Panics
/// When messages are missing, out of order, or without what their validation demands.
pub async fn told(mut stream: Streaming<DownloadPersistentCacheTaskResponse>) -> Result<Exported, Status> {
    let (mut content_length, mut pieces) = (None, BTreeMap::new());
    while let Some(message) = timeout(DEADLINE, stream.message()).await.expect("a message in time")? {
        rules::ids(&message.host_id, &message.task_id, &message.peer_id).expect("whose message it is");
        match message.response.expect("an arm that they know") {
            Told::DownloadPersistentCacheTaskStartedResponse(started) => {
                let first = content_length.replace(started.content_length).is_none() && pieces.is_empty();
                assert!(first, "the beginning comes once and first");
            }
            Told::DownloadPieceFinishedResponse(finished) => {
                let piece = finished.piece.expect("a piece");
                assert!(content_length.is_some(), "the beginning comes first");
                assert!(pieces.insert(piece.number, piece).is_none(), "each piece comes once");
            }
        }
    }
    Ok(Exported { content_length: content_length.expect("a beginning"), pieces })
}
