//! A ticket for an answer, and the piece that comes with it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use damselfly_core::{Crc, Kind, PieceSpan};
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::{Shared, Turn};
use crate::tcp::FetchError;
use crate::vortex::{Answer, Decoded, ErrorPacket, PieceMeta, decode_answer};

/// What is read at first: more than any real header with its metadata, and little enough to copy.
const FIRST_READ: usize = 256;

/// One of a lane's unanswered requests.
///
/// Dropping it, or the body it becomes, before the end makes the lane unusable: the bytes still to come cannot be
/// told from the next answer's.
#[derive(Debug)]
pub struct Ticket {
    link: Link,
    turn: oneshot::Receiver<Turn>,
    kind: Kind,
    asked_at: Instant,
}

/// A place in the chain. Dropped before it was passed on, it poisons the lane.
#[derive(Debug)]
struct Link {
    shared: Arc<Shared>,
    piece: PieceSpan,
    next: Option<oneshot::Sender<Turn>>,
}

impl Link {
    /// The answer is complete: the next one's turn.
    fn pass_on(mut self, turn: Turn) {
        if let Some(next) = self.next.take() {
            self.shared.answered();
            // Fails only when the lane and all tickets behind are gone, and then nobody wants the turn.
            drop(next.send(turn));
        }
    }

    fn broken(&self, missing: u64, why: impl Into<String>) -> FetchError {
        let (peer, piece) = (self.shared.peer, self.piece.number);
        FetchError::Broken { peer, piece, missing, why: why.into() }
    }

    fn malformed(&self, why: impl Into<String>) -> FetchError {
        FetchError::Malformed { peer: self.shared.peer, piece: self.piece.number, why: why.into() }
    }

    fn timeout(&self, after: Duration, waiting_for: &'static str) -> FetchError {
        FetchError::Timeout { peer: self.shared.peer, piece: self.piece.number, after, waiting_for }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.next.is_some() {
            // Before the sender goes, so that whoever learns of it finds the lane unusable.
            self.shared.poison();
            self.shared.answered();
        }
    }
}

impl Ticket {
    pub(super) fn new(
        shared: Arc<Shared>,
        kind: Kind,
        piece: PieceSpan,
        turn: oneshot::Receiver<Turn>,
        next: oneshot::Sender<Turn>,
    ) -> Self {
        let link = Link { shared, piece, next: Some(next) };
        Self { link, turn, kind, asked_at: Instant::now() }
    }

    /// The piece asked for.
    #[must_use]
    pub fn piece(&self) -> PieceSpan {
        self.link.piece
    }

    /// Waits for this ticket's turn and reads the answer up to the piece's first byte.
    ///
    /// An answer for another place or length than the piece's is an error, as are malformed ones. After a refusal by
    /// a parent of ours the lane goes on; every other error ends it.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn response(self) -> Result<PieceBody, FetchError> {
        let Ticket { link, mut turn, kind, asked_at } = self;
        let deadlines = link.shared.options.deadlines;
        let length = link.piece.length;
        let mut waited = false;
        let turn = match turn.try_recv() {
            Ok(turn) => turn,
            Err(oneshot::error::TryRecvError::Closed) => {
                return Err(link.broken(length, "an earlier answer was abandoned or went wrong"));
            }
            Err(oneshot::error::TryRecvError::Empty) => {
                waited = true;
                match timeout(deadlines.turn, turn).await {
                    Ok(Ok(turn)) => turn,
                    Ok(Err(_)) => {
                        return Err(link.broken(length, "an earlier answer was abandoned or went wrong"));
                    }
                    Err(_) => return Err(link.timeout(deadlines.turn, "an earlier answer")),
                }
            }
        };
        let Ok(answered) = timeout(deadlines.first_byte, read_answer(turn, &link)).await else {
            return Err(link.timeout(deadlines.first_byte, "the answer's metadata"));
        };
        let (answer, turn) = answered?;
        if !waited {
            link.shared.observe_rtt(asked_at.elapsed());
        }
        match answer {
            Answer::Error(ErrorPacket { code, message }) => {
                let (peer, piece) = (link.shared.peer, link.piece.number);
                if link.shared.options.ours {
                    link.pass_on(turn);
                }
                Err(FetchError::Refused { peer, piece, code, message })
            }
            Answer::Content { kind: answered, .. } if answered != kind => {
                Err(link.malformed(format!("content of a {answered} where a {kind} was asked for")))
            }
            Answer::Content { meta, .. } => PieceBody::new(link, turn, meta),
        }
    }
}

/// Reads one answer; what was read beyond it stays in the turn.
async fn read_answer(mut turn: Turn, link: &Link) -> Result<(Answer, Turn), FetchError> {
    loop {
        let needs = match decode_answer(&turn.carried) {
            Ok(Decoded::Complete { answer, consumed }) => {
                turn.carried.advance(consumed);
                return Ok((answer, turn));
            }
            Ok(Decoded::Needs(needs)) => needs,
            Err(error) => return Err(link.malformed(error.to_string())),
        };
        let have = turn.carried.len();
        // `needs` is bounded by the codec, so a peer cannot make this large.
        turn.carried.resize(needs.max(FIRST_READ), 0);
        let read = turn.reader.read(&mut turn.carried[have..]).await;
        turn.carried.truncate(have + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Err(link.broken(link.piece.length, "closed by the parent before its answer")),
            Ok(_) => {}
            Err(error) => return Err(link.broken(link.piece.length, error.to_string())),
        }
    }
}

/// A piece on its way: exactly the bytes asked for, to be read into the caller's own buffers.
#[derive(Debug)]
pub struct PieceBody {
    link: Link,
    turn: Turn,
    meta: PieceMeta,
    crc: Option<Crc>,
    remaining: u64,
}

impl PieceBody {
    fn new(link: Link, turn: Turn, meta: PieceMeta) -> Result<Self, FetchError> {
        let expected = link.piece;
        if (meta.piece, meta.offset, meta.length) != (expected.number, expected.offset, expected.length) {
            let peer = link.shared.peer;
            let (number, offset, length) = (meta.piece, meta.offset, meta.length);
            return Err(FetchError::Mismatch { peer, expected, number, offset, length });
        }
        let crc = Crc::parse_piece_digest(&meta.digest).map_err(|error| link.malformed(error.to_string()))?;
        Ok(Self { link, turn, crc, remaining: meta.length, meta })
    }

    /// What the parent said of the piece; number, offset and length are as asked for.
    #[must_use]
    pub fn meta(&self) -> &PieceMeta {
        &self.meta
    }

    /// The piece's CRC as the parent has it; `None` where it promises nothing.
    #[must_use]
    pub fn crc(&self) -> Option<Crc> {
        self.crc
    }

    /// Bytes still to come.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Reads what is there, at least one byte; 0 at the end of the piece (or into an empty buffer).
    ///
    /// May be dropped and called again without losing a byte.
    ///
    /// # Errors
    /// When the connection ends before the piece does, or no byte comes within the stall deadline.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, FetchError> {
        loop {
            if let Some(read) = self.try_read(buffer)? {
                return Ok(read);
            }
            self.ready().await?;
        }
    }

    /// Waits until [`PieceBody::try_read`] may find something: bytes, the piece's end, or the connection's.
    ///
    /// # Errors
    /// When nothing comes within the stall deadline.
    pub async fn ready(&self) -> Result<(), FetchError> {
        if self.remaining == 0 || !self.turn.carried.is_empty() {
            return Ok(());
        }
        let stall = self.link.shared.options.deadlines.stall;
        match timeout(stall, self.turn.reader.readable()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.broken(&error.to_string())),
            Err(_) => Err(self.link.timeout(stall, "its next bytes")),
        }
    }

    /// Reads what is there without waiting; `None` when nothing is, 0 at the end of the piece (or into an empty buffer).
    ///
    /// # Errors
    /// When the connection ends before the piece does.
    pub fn try_read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, FetchError> {
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else {
            return Ok(Some(0));
        };
        let carried = self.turn.carried.len().min(most);
        self.turn.carried.copy_to_slice(&mut buffer[..carried]);
        // Usually more is there, and a few bytes alone are not worth a write.
        let read = match buffer.get_mut(carried..).filter(|rest| !rest.is_empty()) {
            Some(rest) => self.turn.reader.try_read(rest),
            None => Ok(0),
        };
        let read = match read {
            Ok(0) if carried == 0 => return Err(self.broken("closed by the parent")),
            Err(error) if carried == 0 && error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if carried == 0 => return Err(self.broken(&error.to_string())),
            // What is wrong with the connection is found out by the next one.
            read => carried + read.unwrap_or(0),
        };
        self.remaining -= read as u64;
        Ok(Some(read))
    }

    /// Hands the connection to the next ticket.
    ///
    /// # Errors
    /// [`FetchError::Broken`] when bytes of the piece are still to come; the lane is unusable then.
    pub fn finish(self) -> Result<(), FetchError> {
        if self.remaining > 0 {
            return Err(self.broken("given up by the reader"));
        }
        self.link.pass_on(self.turn);
        Ok(())
    }

    fn broken(&self, why: &str) -> FetchError {
        self.link.broken(self.remaining, why)
    }
}
