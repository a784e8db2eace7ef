//! Content through a daemon's socket, ours or Dragonfly's: to a file piece by piece, or to stdout in order.
//!
//! Content is written as it arrives and never gathered, so a piece may be larger than memory. A piece that turns out
//! damaged has been written by then: the file gets its name only when everything was right.

use damselfly_api::common::v2::{Download, Piece};
use damselfly_api::damselfly::v1::ReadTaskRequest;
use damselfly_api::dfdaemon::v2::download_task_response::Response;
use damselfly_api::dfdaemon::v2::{
    DownloadTaskRequest, DownloadTaskResponse, ReadPersistentCacheTaskResponse,
};
use damselfly_core::digest::Computed;
use damselfly_core::{Algorithm, ByteRange, Crc, Hasher};
use damselfly_transport::framed::{self, DOWNLOAD_CONTENT, Incoming, READ_CONTENT};
use tonic::{Code, Status};

use super::daemon::{TITLE, delivery, log_piece, log_start};
use super::plan::Plan;
use super::story::{News, Story, StoryError};
use crate::endpoint::Daemon;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::FileOutput;
use crate::part::Part;
use crate::reading::{self, Content, ReadError};
use crate::receipt::Delivery;
use crate::stdout::Stdout;
use crate::ticker::Ticker;
use crate::transfer::{Sources, Transfer};

const DOWNLOAD: &str = "/dfdaemon.v2.DfdaemonDownload/DownloadTask";
const READ: &str = "/damselfly.v1.Local/ReadTask";

/// A piece on its way into the part file.
struct Arriving {
    number: u32,
    length: u64,
    /// Where its next byte belongs in the whole content.
    at: u64,
    crc: Hasher,
    /// Reported before: its content is read and dropped.
    repeated: bool,
}

impl Arriving {
    fn wrong(number: u32, what: &str) -> Failure {
        let text = format!("piece {number} came from the daemon {what}; run the command again");
        Failure::new(TITLE, Exit::Failure, text)
    }

    fn begin(story: &Story, head: DownloadTaskResponse, length: u64) -> Result<Self, Failure> {
        let piece = match head.response {
            Some(Response::DownloadPieceFinishedResponse(finished)) => finished.piece,
            _ => None,
        };
        let piece = piece.ok_or(StoryError::Empty)?;
        let repeated = !story.expects(&piece)?;
        if length != piece.length {
            let what = format!("with {length} bytes instead of {}", piece.length);
            return Err(Self::wrong(piece.number, &what));
        }
        let crc = Hasher::new(Algorithm::Crc32);
        Ok(Self { number: piece.number, length, at: piece.offset, crc, repeated })
    }

    /// Writes what of `bytes` lies in `range`. Returns how much that was. Blocking.
    fn write(&mut self, part: &Part, range: ByteRange, bytes: &[u8]) -> Result<u64, Failure> {
        self.crc.update(bytes);
        let (from, to) = (self.at, self.at + bytes.len() as u64);
        self.at = to;
        let (start, end) = (range.start.max(from), range.end().min(to));
        if start >= end || self.repeated {
            return Ok(0);
        }
        let cut = |at: u64| usize::try_from(at - from).unwrap_or(bytes.len());
        part.write_at(start - range.start, &bytes[cut(start)..cut(end)])?;
        Ok(end - start)
    }

    /// Compares the finished piece with its digest.
    fn check(self, piece: &Piece) -> Result<(), Failure> {
        if (self.number, self.length) != (piece.number, piece.length) {
            return Err(Self::wrong(piece.number, "with the content of another"));
        }
        let digest = Crc::parse_piece_digest(&piece.digest)
            .map_err(|why| Self::wrong(self.number, &format!("with a {why}")))?;
        match (digest, self.crc.finish()) {
            (Some(expected), Computed::Crc32(computed)) if computed != expected.0 => {
                let computed = Crc(computed);
                Err(Self::wrong(self.number, &format!("damaged ({computed} instead of {expected})")))
            }
            _ => Ok(()),
        }
    }
}

/// Downloads to a file that appears when it is complete.
pub(super) async fn to_file(
    plan: &Plan,
    output: &FileOutput,
    daemon: &Daemon,
    ticker: &mut Ticker,
    reason: String,
) -> Result<Delivery, Failure> {
    let download = Download { need_piece_content: true, overwrite: false, ..plan.download.clone() };
    let request = DownloadTaskRequest { download: Some(download) };
    let failed = |status: Status| Failure::of_call(TITLE, &status);
    let call = framed::call::<DownloadTaskResponse>(&daemon.content, DOWNLOAD, &request, DOWNLOAD_CONTENT);
    let mut stream = ticker.beside(call).await.map_err(failed)?;
    let mut story = Story::new(plan.range);
    let mut writing: Option<(Part, ByteRange)> = None;
    let mut arriving: Option<Arriving> = None;
    while let Some(incoming) = ticker.beside(stream.next()).await.map_err(failed)? {
        let message = match incoming {
            Incoming::Begin { head, length } => {
                arriving = Some(Arriving::begin(&story, head, length)?);
                continue;
            }
            Incoming::Content(bytes) => {
                // `Story` expects no piece before the start, which opens the part.
                let (Some(piece), Some((part, range))) = (&mut arriving, &writing) else { continue };
                ticker.add(tokio::task::block_in_place(|| piece.write(part, *range, &bytes))?);
                continue;
            }
            Incoming::Message(message) => message,
        };
        match story.take(message)? {
            News::Started(range) => {
                ticker.set_total(range.length);
                let part = tokio::task::block_in_place(|| {
                    let part = Part::open(output, &story.task_id)?;
                    part.allocate(range.length).map(|()| part)
                })?;
                log_start(&story, "stream");
                writing = Some((part, range));
            }
            News::Piece(piece) => {
                let came = arriving.take();
                came.ok_or_else(|| Arriving::wrong(piece.number, "without content"))?.check(&piece)?;
                log_piece(&piece);
            }
            News::Repeated => arriving = None,
        }
    }
    story.end()?;
    let (part, range) = writing.ok_or(StoryError::NeverStarted)?;
    tokio::task::block_in_place(|| put_in_place(plan, part))?;
    let transfer = Transfer { mode: "stream".to_owned(), reason };
    Ok(delivery(range.length, story, daemon, transfer).await)
}

/// Checks the whole content's digest and gives the file its name. Blocking.
fn put_in_place(plan: &Plan, part: Part) -> Result<(), Failure> {
    if let Some(digest) = &plan.digest {
        let computed = part.digest(digest.algorithm())?;
        if !digest.matches(&computed) {
            let text = format!("digest mismatch expected: {digest}, actual: {computed}");
            return Err(Failure::new(TITLE, Exit::Digest, text));
        }
    }
    Ok(part.finish()?)
}

/// Downloads to stdout, in order.
pub(super) async fn to_stdout(
    plan: &Plan,
    daemon: &Daemon,
    ticker: &mut Ticker,
) -> Result<Delivery, Failure> {
    let failed = |status: Status| match status.code() {
        Code::Unimplemented => wrong(
            "-O - needs Damselfly's dfdaemon, and the daemon at this socket is another; name an output file",
        ),
        _ => Failure::of_call(TITLE, &status),
    };
    let request = ReadTaskRequest { download: Some(plan.download.clone()) };
    let call = framed::call::<ReadPersistentCacheTaskResponse>(&daemon.content, READ, &request, READ_CONTENT);
    let stream = ticker.beside(call).await.map_err(failed)?;
    let mut stdout = Stdout::open()?;
    let Content { started, finished, bytes } =
        reading::read(stream, plan.range, plan.timeout, &mut stdout, ticker).await.map_err(
            |why| match why {
                ReadError::Call(status) => failed(status),
                ReadError::Sink(failure) => failure,
                other => wrong(&other.to_string()),
            },
        )?;
    Ok(Delivery {
        task_id: started.task_id,
        host_id: started.host_id,
        peer_id: started.peer_id,
        bytes,
        content_length: started.content_length,
        sources: finished.receipt.as_ref().map(Sources::from),
        transfer: Transfer { mode: "stream".to_owned(), reason: "for stdout".to_owned() },
        was_complete: None,
    })
}

fn wrong(text: &str) -> Failure {
    Failure::new(TITLE, Exit::Failure, text)
}
