//! What a daemon tells during a download, checked as it comes in.

use std::collections::{BTreeMap, BTreeSet};

use damselfly_api::common::v2::Piece;
use damselfly_api::dfdaemon::v2::DownloadTaskResponse;
use damselfly_api::dfdaemon::v2::download_task_response::Response;
use damselfly_core::{ByteRange, RangeError, RangeSpec};
use thiserror::Error;

use crate::transfer::{Sources, Tally};

/// What a message meant.
#[derive(Debug)]
pub(super) enum News {
    /// The download began; these bytes of the content will come.
    Started(ByteRange),
    /// A piece is there.
    Piece(Piece),
    /// A piece that was reported before.
    Repeated,
}

/// The daemon broke the protocol, or the range does not fit the content.
#[derive(Debug, Error)]
pub(super) enum StoryError {
    #[error(
        "the daemon sent a message that is neither a start nor a piece; its version does not fit this dfget"
    )]
    Empty,
    #[error(
        "the daemon reported piece {0} before it said what it downloads; its version does not fit this dfget"
    )]
    BeforeStart(u32),
    #[error("the daemon began the download twice")]
    StartedTwice,
    #[error("the daemon reported piece {0}, which is not part of this download")]
    Unexpected(u32),
    #[error("the daemon announced pieces that leave a gap at byte {gap} of {content_length}")]
    Gap { gap: u64, content_length: u64 },
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error(
        "unknown download incomplete: the daemon ended its answer before it began; run the command again"
    )]
    NeverStarted,
    #[error(
        "unknown download incomplete: the daemon ended its answer without {missing} of {total} pieces (the first is piece \
         {first}); run the command again, it resumes"
    )]
    Incomplete { missing: usize, total: usize, first: u32 },
}

/// Everything told so far.
#[derive(Debug)]
pub(super) struct Story {
    wanted: RangeSpec,
    started: bool,
    pub(super) task_id: String,
    pub(super) host_id: String,
    pub(super) peer_id: String,
    pub(super) content_length: u64,
    /// Whether the daemon had everything before it was asked.
    pub(super) was_complete: bool,
    /// Offset and length of every piece that belongs to the download.
    pieces: BTreeMap<u32, (u64, u64)>,
    missing: BTreeSet<u32>,
    tally: Tally,
}

impl Story {
    /// Nothing told yet of the download of `wanted`.
    pub(super) fn new(wanted: RangeSpec) -> Self {
        Self {
            wanted,
            started: false,
            task_id: String::new(),
            host_id: String::new(),
            peer_id: String::new(),
            content_length: 0,
            was_complete: false,
            pieces: BTreeMap::new(),
            missing: BTreeSet::new(),
            tally: Tally::default(),
        }
    }

    /// Takes the next message.
    pub(super) fn take(&mut self, message: DownloadTaskResponse) -> Result<News, StoryError> {
        match message.response.ok_or(StoryError::Empty)? {
            Response::DownloadTaskStartedResponse(started) => {
                if std::mem::replace(&mut self.started, true) {
                    return Err(StoryError::StartedTwice);
                }
                (self.task_id, self.host_id, self.peer_id) =
                    (message.task_id, message.host_id, message.peer_id);
                (self.content_length, self.was_complete) = (started.content_length, started.is_finished);
                let range = self.wanted.resolve(self.content_length)?;
                self.pieces =
                    started.pieces.iter().map(|piece| (piece.number, (piece.offset, piece.length))).collect();
                self.missing = self.pieces.keys().copied().collect();
                self.check_cover(range)?;
                Ok(News::Started(range))
            }
            Response::DownloadPieceFinishedResponse(finished) => {
                let piece = finished.piece.ok_or(StoryError::Empty)?;
                self.take_piece(piece)
            }
        }
    }

    /// Whether `piece` is still to come, rather than there already.
    pub(super) fn expects(&self, piece: &Piece) -> Result<bool, StoryError> {
        if !self.started {
            return Err(StoryError::BeforeStart(piece.number));
        }
        if self.pieces.get(&piece.number) != Some(&(piece.offset, piece.length)) {
            return Err(StoryError::Unexpected(piece.number));
        }
        Ok(self.missing.contains(&piece.number))
    }

    fn take_piece(&mut self, piece: Piece) -> Result<News, StoryError> {
        if !self.expects(&piece)? {
            return Ok(News::Repeated);
        }
        self.missing.remove(&piece.number);
        self.tally.count(&piece);
        Ok(News::Piece(piece))
    }

    /// The announced pieces must hold every byte of `range`: what is written between them would be zeros.
    fn check_cover(&self, range: ByteRange) -> Result<(), StoryError> {
        let mut covered = range.start;
        for &(offset, length) in self.pieces.values() {
            if offset <= covered {
                covered = covered.max(offset.saturating_add(length));
            }
        }
        if covered < range.end() {
            return Err(StoryError::Gap { gap: covered, content_length: self.content_length });
        }
        Ok(())
    }

    /// Whether the stream may end here.
    pub(super) fn end(&self) -> Result<(), StoryError> {
        match self.missing.first() {
            _ if !self.started => Err(StoryError::NeverStarted),
            None => Ok(()),
            Some(&first) => {
                Err(StoryError::Incomplete { missing: self.missing.len(), total: self.pieces.len(), first })
            }
        }
    }

    /// Where the bytes came from, by the piece reports.
    pub(super) fn sources(&self) -> Sources {
        self.tally.sources()
    }
}

#[cfg(test)]
mod tests {
    use damselfly_api::common::v2::TrafficType;
    use damselfly_api::dfdaemon::v2::{DownloadPieceFinishedResponse, DownloadTaskStartedResponse};

    use super::*;

    fn piece(number: u32, offset: u64, length: u64) -> Piece {
        Piece { number, offset, length, ..Piece::default() }
    }

    fn started(content_length: u64, pieces: Vec<Piece>) -> DownloadTaskResponse {
        let started = DownloadTaskStartedResponse { content_length, pieces, ..Default::default() };
        DownloadTaskResponse {
            task_id: "t".to_owned(),
            response: Some(Response::DownloadTaskStartedResponse(started)),
            ..Default::default()
        }
    }

    fn finished(piece: Piece) -> DownloadTaskResponse {
        let response =
            Response::DownloadPieceFinishedResponse(DownloadPieceFinishedResponse { piece: Some(piece) });
        DownloadTaskResponse { response: Some(response), ..Default::default() }
    }

    fn from(mut piece: Piece, traffic: TrafficType, parent: &str) -> DownloadTaskResponse {
        piece.set_traffic_type(traffic);
        piece.parent_id = Some(parent.to_owned());
        finished(piece)
    }

    #[test]
    fn every_piece_once_in_any_order() {
        let mut story = Story::new(RangeSpec::Whole);
        story.take(started(9, vec![piece(0, 0, 4), piece(1, 4, 4), piece(2, 8, 1)])).unwrap();
        story.take(from(piece(2, 8, 1), TrafficType::LocalPeer, "")).unwrap();
        story.take(from(piece(0, 0, 4), TrafficType::RemotePeer, "p")).unwrap();
        assert!(matches!(story.take(from(piece(0, 0, 4), TrafficType::RemotePeer, "p")), Ok(News::Repeated)));
        let incomplete = story.end().unwrap_err().to_string();
        assert!(incomplete.contains("without 1 of 3 pieces (the first is piece 1)"), "{incomplete}");
        story.take(from(piece(1, 4, 4), TrafficType::BackToSource, "")).unwrap();
        assert!(story.end().is_ok());
        assert_eq!(story.sources(), Sources { origin: 4, peers: 4, local: 1, parents: 1 });
    }

    #[test]
    fn empty_content_has_no_pieces() {
        let mut story = Story::new(RangeSpec::Whole);
        assert!(matches!(story.end(), Err(StoryError::NeverStarted)));
        story.take(started(0, vec![])).unwrap();
        assert!(story.end().is_ok());
    }

    #[test]
    fn what_breaks_the_protocol() {
        let mut story = Story::new(RangeSpec::Whole);
        assert!(matches!(story.take(finished(piece(0, 0, 4))), Err(StoryError::BeforeStart(0))));
        assert!(matches!(story.take(DownloadTaskResponse::default()), Err(StoryError::Empty)));
        let gap = story.take(started(9, vec![piece(0, 0, 4), piece(2, 8, 1)]));
        assert!(matches!(gap, Err(StoryError::Gap { gap: 4, content_length: 9 })));

        let mut story = Story::new(RangeSpec::Whole);
        story.take(started(4, vec![piece(0, 0, 4)])).unwrap();
        assert!(matches!(story.take(started(4, vec![])), Err(StoryError::StartedTwice)));
        assert!(matches!(story.take(finished(piece(1, 4, 4))), Err(StoryError::Unexpected(1))));
        assert!(matches!(story.take(finished(piece(0, 0, 3))), Err(StoryError::Unexpected(0))));
    }

    #[test]
    fn a_range_needs_only_its_pieces() {
        let mut story = Story::new(RangeSpec::Last(2));
        let begun = story.take(started(9, vec![piece(1, 4, 4), piece(2, 8, 1)])).unwrap();
        assert!(matches!(begun, News::Started(ByteRange { start: 7, length: 2 })));
        let mut story = Story::new(RangeSpec::From(9));
        assert!(matches!(story.take(started(9, vec![])), Err(StoryError::Range(_))));
    }
}
