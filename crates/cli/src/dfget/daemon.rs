//! Downloads that a daemon performs: it writes the output, or else sends the content through its socket
//! ([`super::socket`]).

use damselfly_api::common::v2::{Download, Piece};
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_api::dfdaemon::v2::{DownloadTaskRequest, DownloadTaskResponse};
use damselfly_core::RangeSpec;
use tonic::{Code, Request, Status, Streaming};
use tracing::{debug, info};

use super::plan::Plan;
use super::socket;
use super::story::{News, Story, StoryError};
use crate::endpoint::{self, At, Daemon};
use crate::exit::Exit;
use crate::failure::{Failure, Reason};
use crate::output::{FileOutput, Leftover, Output};
use crate::receipt::{self, Delivery};
use crate::ticker::Ticker;
use crate::transfer::{Sources, Transfer};

pub(super) const TITLE: &str = "Downloading Failed!";
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
        Output::Stdout => return socket::to_stdout(plan, daemon, ticker).await,
        Output::File(output) => output,
    };
    let here = matches!(daemon.at, At::Here(_));
    let reason = if plan.through_socket && !here {
        "as asked".to_owned()
    } else if plan.range != RangeSpec::Whole && !here {
        // A daemon of Dragonfly's leaves the whole content's file, with holes.
        "a range is written by dfget".to_owned()
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
    socket::to_file(plan, output, daemon, ticker, reason).await
}

/// The start of a download's answer.
struct Answer {
    stream: Streaming<DownloadTaskResponse>,
    ours: bool,
}

async fn ask(plan: &Plan, daemon: &Daemon, download: Download) -> Result<Answer, Status> {
    // The start lists every piece.
    let mut client =
        DfdaemonDownloadClient::new(daemon.channel.clone()).max_decoding_message_size(usize::MAX);
    let mut request = Request::new(DownloadTaskRequest { download: Some(download) });
    request.set_timeout(plan.timeout);
    let response = client.download_task(request).await?;
    let ours = endpoint::is_ours(response.metadata());
    Ok(Answer { stream: response.into_inner(), ours })
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
    let mut leftover = Leftover::new(&output.path);
    let mut answer = match ask(plan, daemon, download).await {
        Ok(answer) => answer,
        Err(status) => return unsuitable(plan, &status),
    };
    leftover.armed = !answer.ours && !output.existed;
    let mut story = Story::new(plan.range);
    let mut length = 0;
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
                length = range.length;
                ticker.set_total(length);
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
        Ok(found) if found.len() == length => {}
        Ok(found) => {
            return Err(Failure::new(
                TITLE,
                Exit::Failure,
                format!(
                    "{path} has {} bytes instead of {}: something else writes to it, or the daemon sees another file of \
                     this name; use --transfer-from-dfdaemon",
                    found.len(),
                    length
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
    Ok(ByDaemon::Done(delivery(length, story, daemon, transfer).await))
}

fn unsuitable(plan: &Plan, status: &Status) -> Result<ByDaemon, Failure> {
    if Reason::of(status) == Some(Reason::Path) && !plan.download.force_hard_link {
        let why = format!("the daemon does not write to this output itself ({})", status.message());
        return Ok(ByDaemon::Unsuitable(why));
    }
    Err(Failure::of_call(TITLE, status))
}

pub(super) fn log_start(story: &Story, transfer: &str) {
    info!(
        task = story.task_id,
        peer = story.peer_id,
        length = story.content_length,
        transfer,
        "download started"
    );
}

pub(super) fn log_piece(piece: &Piece) {
    debug!(piece = piece.number, length = piece.length, parent = piece.parent_id, "piece finished");
}

/// What was delivered, in the daemon's own numbers where it keeps a receipt, else by the piece reports.
pub(super) async fn delivery(bytes: u64, story: Story, daemon: &Daemon, transfer: Transfer) -> Delivery {
    // Where there is none, the reports tell nearly as much.
    let receipt = receipt::ask(&daemon.channel, &story.peer_id).await;
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
