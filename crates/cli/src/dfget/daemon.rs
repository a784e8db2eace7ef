//! Downloads that a daemon performs: it writes the output, or sends the content through its socket.

use std::path::Path;
use std::time::Duration;

use damselfly_api::common::v2::{Download, Piece};
use damselfly_api::damselfly::v1::local_client::LocalClient;
use damselfly_api::damselfly::v1::{GetReceiptRequest, ReadTaskRequest};
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_api::dfdaemon::v2::read_persistent_cache_task_response::Response as Read;
use damselfly_api::dfdaemon::v2::{DownloadTaskRequest, DownloadTaskResponse};
use damselfly_core::{ByteRange, Crc};
use tonic::{Code, Request, Status, Streaming};
use tracing::{debug, info};

use super::part::Part;
use super::plan::{FileOutput, Output, Plan};
use super::receipt::{Delivery, Sources, Transfer};
use super::story::{News, Story, StoryError};
use super::ticker::Ticker;
use crate::endpoint::Daemon;
use crate::exit::Exit;
use crate::failure::{Failure, Reason};

pub(super) const TITLE: &str = "Downloading Failed!";
/// Our daemon says so in its answers' metadata; then it keeps the output clean itself.
const OURS_KEY: &str = "x-damselfly";
/// The receipt is asked for when everything is done: it must not hold the end up.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(1);

impl From<StoryError> for Failure {
    fn from(error: StoryError) -> Self {
        Failure::new(TITLE, Exit::Failure, error)
    }
}

/// What became of asking the daemon to write the output.
enum ByDaemon {
    Done(Delivery),
    /// The daemon may not, or it wrote where this process cannot see it. The text says which.
    Unsuitable(String),
}

/// Downloads through `daemon` as `plan` says, whichever way works.
///
/// # Errors
/// What failed, ready to be reported. Nothing is left at the output.
pub(super) async fn run(plan: &Plan, daemon: &Daemon, ticker: &mut Ticker) -> Result<Delivery, Failure> {
    let output = match &plan.output {
        Output::Stdout => return to_stdout(plan, daemon, ticker).await,
        Output::File(output) => output,
    };
    let reason = if plan.through_socket {
        let asked = plan.range == damselfly_core::RangeSpec::Whole;
        if asked { "as asked" } else { "a range is written by dfget" }.to_owned()
    } else {
        match by_path(plan, output, daemon, ticker).await? {
            ByDaemon::Done(delivery) => return Ok(delivery),
            ByDaemon::Unsuitable(why) => {
                ticker.note(&format!("dfget: {why}; taking the content through its socket instead"));
                ticker.reset();
                why
            }
        }
    };
    through_socket(plan, output, daemon, ticker, reason).await
}

/// The start of a download's answer.
struct Answer {
    stream: Streaming<DownloadTaskResponse>,
    ours: bool,
}

async fn ask(plan: &Plan, daemon: &Daemon, download: Download) -> Result<Answer, Status> {
    // A piece with its content is one message, whatever its size.
    let mut client =
        DfdaemonDownloadClient::new(daemon.channel.clone()).max_decoding_message_size(usize::MAX);
    let mut request = Request::new(DownloadTaskRequest { download: Some(download) });
    request.set_timeout(plan.timeout);
    let response = client.download_task(request).await?;
    let ours = response.metadata().contains_key(OURS_KEY);
    Ok(Answer { stream: response.into_inner(), ours })
}

/// Removes what a foreign daemon left at an output that was not there before. Ours leaves nothing itself.
struct Leftover<'a> {
    path: &'a Path,
    armed: bool,
}

impl Drop for Leftover<'_> {
    fn drop(&mut self) {
        if self.armed {
            // Nothing there is what is wanted.
            let _removed = std::fs::remove_file(self.path);
        }
    }
}

async fn by_path(
    plan: &Plan,
    output: &FileOutput,
    daemon: &Daemon,
    ticker: &mut Ticker,
) -> Result<ByDaemon, Failure> {
    let Some(path) = output.path.to_str() else {
        return Ok(ByDaemon::Unsuitable(
            "the output path is not UTF-8 and cannot be named to the daemon".to_owned(),
        ));
    };
    let download = Download { output_path: Some(path.to_owned()), ..plan.download.clone() };
    let mut leftover = Leftover { path: &output.path, armed: false };
    let mut answer = match ask(plan, daemon, download).await {
        Ok(answer) => answer,
        Err(status) => return unsuitable(plan, &status),
    };
    leftover.armed = !answer.ours && !output.existed;
    let mut story = Story::new(plan.range);
    loop {
        let message = match ticker.beside(answer.stream.message()).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(status) => {
                // Somebody else's file: Dragonfly's daemon found it there before it wrote anything.
                leftover.armed &=
                    !status.message().contains("already exist") && status.code() != Code::AlreadyExists;
                return unsuitable(plan, &status);
            }
        };
        match story.take(message)? {
            News::Started(range) => {
                log_start(&story, "path");
                ticker.set_total(range.length);
            }
            News::Piece(piece) => {
                log_piece(&piece);
                ticker.add(piece.length);
            }
            News::Repeated => {}
        }
    }
    story.end()?;
    leftover.armed = false;
    match std::fs::metadata(&output.path) {
        Ok(found) if found.len() == story.content_length => {}
        Ok(found) => {
            return Err(Failure::new(
                TITLE,
                Exit::Failure,
                format!(
                    "{path} has {} bytes instead of {}: something else writes to it, or the daemon sees another file of \
                     this name; use --transfer-from-dfdaemon",
                    found.len(),
                    story.content_length
                ),
            ));
        }
        Err(why) => {
            return Ok(ByDaemon::Unsuitable(format!(
                "the daemon says that it wrote {path}, but here it cannot be seen ({why})"
            )));
        }
    }
    let transfer = Transfer { mode: "path".to_owned(), reason: String::new() };
    Ok(ByDaemon::Done(delivery(story.content_length, story, daemon, transfer).await))
}

fn unsuitable(plan: &Plan, status: &Status) -> Result<ByDaemon, Failure> {
    if Reason::of(status) == Some(Reason::Path) && !plan.download.force_hard_link {
        let why = format!("the daemon does not write to this output itself ({})", status.message());
        return Ok(ByDaemon::Unsuitable(why));
    }
    Err(Failure::of_call(TITLE, status))
}

async fn through_socket(
    plan: &Plan,
    output: &FileOutput,
    daemon: &Daemon,
    ticker: &mut Ticker,
    reason: String,
) -> Result<Delivery, Failure> {
    let download = Download { need_piece_content: true, overwrite: false, ..plan.download.clone() };
    let failed = |status: Status| Failure::of_call(TITLE, &status);
    let mut stream = ask(plan, daemon, download).await.map_err(failed)?.stream;
    let mut story = Story::new(plan.range);
    let mut writing: Option<(Part, ByteRange)> = None;
    while let Some(message) = ticker.beside(stream.message()).await.map_err(failed)? {
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
                // `Story` lets no piece through before the start.
                let Some((part, range)) = &writing else { continue };
                let written = tokio::task::block_in_place(|| write_piece(part, *range, &piece))?;
                log_piece(&piece);
                ticker.add(written);
            }
            News::Repeated => {}
        }
    }
    story.end()?;
    let (part, range) = writing.ok_or(StoryError::NeverStarted)?;
    tokio::task::block_in_place(|| {
        if let Some(digest) = &plan.digest {
            let computed = part.digest(digest.algorithm())?;
            if !digest.matches(&computed) {
                let text = format!("digest mismatch expected: {digest}, actual: {computed}");
                return Err(Failure::new(TITLE, Exit::Digest, text));
            }
        }
        part.finish().map_err(Failure::from)
    })?;
    let transfer = Transfer { mode: "stream".to_owned(), reason };
    Ok(delivery(range.length, story, daemon, transfer).await)
}

fn log_start(story: &Story, transfer: &str) {
    info!(
        task = story.task_id,
        peer = story.peer_id,
        length = story.content_length,
        transfer,
        "download started"
    );
}

fn log_piece(piece: &Piece) {
    debug!(piece = piece.number, length = piece.length, parent = piece.parent_id, "piece finished");
}

/// Checks a piece's content and writes the part of it that was asked for. Returns how much that was.
fn write_piece(part: &Part, range: ByteRange, piece: &Piece) -> Result<u64, Failure> {
    let wrong = |what: String| {
        let text = format!("piece {} came from the daemon {what}; run the command again", piece.number);
        Failure::new(TITLE, Exit::Failure, text)
    };
    let content = piece.content.as_deref().ok_or_else(|| wrong("without content".to_owned()))?;
    if content.len() as u64 != piece.length {
        return Err(wrong(format!("with {} bytes instead of {}", content.len(), piece.length)));
    }
    let digest = Crc::parse_piece_digest(&piece.digest).map_err(|why| wrong(format!("with a {why}")))?;
    if let Some(expected) = digest {
        let computed = Crc::of(content);
        if computed != expected {
            return Err(wrong(format!("damaged ({computed} instead of {expected})")));
        }
    }
    let start = range.start.max(piece.offset);
    let end = range.end().min(piece.offset.saturating_add(piece.length));
    if start >= end {
        return Ok(0);
    }
    let cut = |at: u64| usize::try_from(at - piece.offset).unwrap_or(content.len());
    part.write_at(start - range.start, &content[cut(start)..cut(end)])?;
    Ok(end - start)
}

async fn to_stdout(plan: &Plan, daemon: &Daemon, ticker: &mut Ticker) -> Result<Delivery, Failure> {
    let mut client = LocalClient::new(daemon.channel.clone()).max_decoding_message_size(usize::MAX);
    let mut request = Request::new(ReadTaskRequest { download: Some(plan.download.clone()) });
    request.set_timeout(plan.timeout);
    let failed = |status: Status| match status.code() {
        Code::Unimplemented => Failure::new(
            TITLE,
            Exit::Failure,
            "-O - needs Damselfly's dfdaemon, and the daemon at this socket is another; name an output file",
        ),
        _ => Failure::of_call(TITLE, &status),
    };
    let wrong = |text: &str| Failure::new(TITLE, Exit::Failure, text);
    let mut stream = client.read_task(request).await.map_err(failed)?.into_inner();
    let mut stdout = super::stdout::Stdout::open()?;
    let (mut begun, mut ended) = (None, None);
    let mut written = 0;
    while let Some(message) = ticker.beside(stream.message()).await.map_err(failed)? {
        match message.response {
            Some(Read::Started(started)) => {
                let range = started.content_length.map(|length| plan.range.resolve(length)).transpose();
                let range = range.map_err(StoryError::from)?;
                if let Some(range) = range {
                    ticker.set_total(range.length);
                }
                begun = Some((started, range));
            }
            Some(Read::Chunk(_)) if begun.is_none() => {
                return Err(wrong(
                    "the daemon sent content before it said what it sends; run the command again",
                ));
            }
            Some(Read::Chunk(chunk)) => {
                tokio::task::block_in_place(|| stdout.write(&chunk.content))?;
                written += chunk.content.len() as u64;
                ticker.add(chunk.content.len() as u64);
            }
            Some(Read::Finished(finished)) => ended = Some(finished),
            None => return Err(StoryError::Empty.into()),
        }
    }
    let (Some((started, range)), Some(finished)) = (begun, ended) else {
        return Err(wrong(
            "unknown download incomplete: the daemon ended the stream early; run the command again",
        ));
    };
    if let Some(range) = range.filter(|range| range.length != written) {
        let text = format!(
            "unknown download incomplete: {written} of {} bytes came; run the command again",
            range.length
        );
        return Err(wrong(&text));
    }
    let receipt = finished.receipt;
    Ok(Delivery {
        task_id: started.task_id,
        host_id: started.host_id,
        peer_id: started.peer_id,
        bytes: written,
        content_length: started.content_length,
        sources: receipt.as_ref().map(Sources::from),
        transfer: Transfer { mode: "stream".to_owned(), reason: "for stdout".to_owned() },
        was_complete: None,
    })
}

/// What was delivered, in the daemon's own numbers where it keeps a receipt, else by the piece reports.
async fn delivery(bytes: u64, story: Story, daemon: &Daemon, transfer: Transfer) -> Delivery {
    let mut client = LocalClient::new(daemon.channel.clone());
    let request = GetReceiptRequest { peer_id: story.peer_id.clone() };
    // Dragonfly's daemons do not know the call, and a receipt can be forgotten: the reports tell nearly as much.
    let receipt = match tokio::time::timeout(RECEIPT_TIMEOUT, client.get_receipt(request)).await {
        Ok(Ok(receipt)) => Some(receipt.into_inner()),
        Ok(Err(_)) | Err(_) => None,
    };
    let sources = receipt.as_ref().map_or_else(|| story.sources(), Sources::from);
    let reason = match &receipt {
        Some(receipt) if transfer.reason.is_empty() => receipt.transfer_reason.clone(),
        _ => transfer.reason,
    };
    Delivery {
        bytes,
        content_length: Some(story.content_length),
        sources: Some(sources),
        transfer: Transfer { mode: transfer.mode, reason },
        was_complete: Some(story.was_complete),
        task_id: story.task_id,
        host_id: story.host_id,
        peer_id: story.peer_id,
    }
}
