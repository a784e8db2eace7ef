//! What a daemon tells of content that it writes to an output.

use std::collections::BTreeSet;

use damselfly_api::common::v2::Piece;
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_api::dfdaemon::v2::download_persistent_cache_task_response::Response as Told;
use damselfly_api::dfdaemon::v2::{DownloadPersistentCacheTaskRequest, DownloadPersistentCacheTaskResponse};
use thiserror::Error;
use tonic::Request;
use tracing::{debug, info};

use super::{Plan, TITLE};
use crate::by_daemon::TellError;
use crate::endpoint::{self, Daemon};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::ticker::Ticker;
use crate::transfer::Tally;

/// The daemon broke the protocol.
#[derive(Debug, Error)]
enum StoryError {
    #[error(
        "the daemon sent a message that is neither a start nor a piece; its version does not fit this dfcache"
    )]
    Empty,
    #[error(
        "the daemon reported a piece before it said what it exports; its version does not fit this dfcache"
    )]
    BeforeStart,
    #[error(
        "unknown download incomplete: the daemon reported {came} of {length} bytes; run the command again, it resumes"
    )]
    Incomplete { came: u64, length: u64 },
}

impl From<StoryError> for Failure {
    fn from(error: StoryError) -> Self {
        Failure::new(TITLE, Exit::Failure, error)
    }
}

/// Everything told so far. The start lists no pieces: the export is whole when their lengths add up.
#[derive(Debug, Default)]
pub(super) struct Story {
    length: Option<u64>,
    pub(super) host_id: String,
    pub(super) peer_id: String,
    pieces: BTreeSet<u32>,
    /// Bytes reported.
    pub(super) came: u64,
    pub(super) tally: Tally,
}

impl Story {
    /// Takes the next message. Returns the piece, when it is a new one.
    fn take(&mut self, message: DownloadPersistentCacheTaskResponse) -> Result<Option<Piece>, StoryError> {
        match message.response.ok_or(StoryError::Empty)? {
            Told::DownloadPersistentCacheTaskStartedResponse(started) => {
                self.length = Some(started.content_length);
                (self.host_id, self.peer_id) = (message.host_id, message.peer_id);
                Ok(None)
            }
            Told::DownloadPieceFinishedResponse(finished) => {
                let piece = finished.piece.ok_or(StoryError::Empty)?;
                if self.length.is_none() {
                    return Err(StoryError::BeforeStart);
                }
                if !self.pieces.insert(piece.number) {
                    return Ok(None);
                }
                self.came = self.came.saturating_add(piece.length);
                self.tally.count(&piece);
                Ok(Some(piece))
            }
        }
    }

    /// Whether the stream may end here. Returns the content's length.
    fn end(&self) -> Result<u64, StoryError> {
        match self.length {
            Some(length) if length == self.came => Ok(length),
            length => Err(StoryError::Incomplete { came: self.came, length: length.unwrap_or(0) }),
        }
    }
}

/// Has the daemon write the content and hears of it. `answered` learns whether the daemon is ours.
pub(super) async fn tell(
    plan: &Plan,
    daemon: &Daemon,
    mut request: Request<DownloadPersistentCacheTaskRequest>,
    transfer: &str,
    ticker: &mut Ticker,
    answered: impl FnOnce(bool),
) -> Result<Story, TellError> {
    request.set_timeout(plan.timeout);
    let mut client = DfdaemonDownloadClient::new(daemon.channel.clone());
    let call = client.download_persistent_cache_task(request);
    let answer = ticker.beside(call).await.map_err(TellError::Call)?;
    answered(endpoint::is_ours(answer.metadata()));
    let mut stream = answer.into_inner();
    let mut story = Story::default();
    while let Some(message) = ticker.beside(stream.message()).await.map_err(TellError::Call)? {
        let known = story.length;
        if let Some(piece) = story.take(message).map_err(|why| TellError::Failed(why.into()))? {
            debug!(piece = piece.number, length = piece.length, parent = piece.parent_id, "piece finished");
            ticker.add(piece.length);
        }
        if let (None, Some(length)) = (known, story.length) {
            info!(task = plan.id, peer = story.peer_id, length, transfer, "export started");
            ticker.set_total(length);
        }
    }
    story.end().map_err(|why| TellError::Failed(why.into()))?;
    Ok(story)
}
