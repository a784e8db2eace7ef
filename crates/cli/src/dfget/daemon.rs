//! Downloads that a daemon performs: it writes the output, or else sends the content through its socket
//! ([`super::socket`]).

use damselfly_api::common::v2::{Download, Piece};
use damselfly_api::dfdaemon::v2::DownloadTaskRequest;
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_core::RangeSpec;
use damselfly_transport::local::Token;
use tonic::Request;
use tracing::{debug, info};

use super::plan::Plan;
use super::socket;
use super::story::{News, Story, StoryError};
use crate::by_daemon::{self, BY_DESCRIPTOR, BY_STREAM, Detour, Ordered, TellError, Tried};
use crate::endpoint::{self, At, Daemon};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::handing;
use crate::output::{FileOutput, Leftover, Output};
use crate::receipt::{self, Delivery};
use crate::ticker::Ticker;
use crate::transfer::{Sources, Transfer};

const PROGRAM: &str = "dfget";
pub(super) const TITLE: &str = "Downloading Failed!";
impl From<StoryError> for Failure {
    fn from(error: StoryError) -> Self {
        Failure::new(TITLE, Exit::Failure, error)
    }
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
    if plan.through_socket && !here {
        return socket::to_file(plan, output, daemon, ticker, "as asked".to_owned()).await;
    }
    if plan.range != RangeSpec::Whole && !here {
        // A daemon of Dragonfly's leaves the whole content's file, with holes.
        let reason = "a range is written by dfget".to_owned();
        return socket::to_file(plan, output, daemon, ticker, reason).await;
    }
    let mut detour = Detour::default();
    match Box::pin(by_path(plan, output, daemon, ticker)).await? {
        Tried::Done(delivery) => return Ok(delivery),
        Tried::Unsuitable { why, unusual } => detour.add(why, unusual),
    }
    ticker.reset();
    match Box::pin(by_descriptor(plan, output, daemon, ticker, &detour)).await? {
        Tried::Done(delivery) => return Ok(delivery),
        Tried::Unsuitable { why, unusual } => detour.add(why, unusual),
    }
    ticker.reset();
    detour.warning(PROGRAM, BY_STREAM).iter().for_each(|text| ticker.note(text));
    socket::to_file(plan, output, daemon, ticker, detour.reason().unwrap_or_default()).await
}

/// The daemon opens the output.
async fn by_path(
    plan: &Plan,
    output: &FileOutput,
    daemon: &Daemon,
    ticker: &mut Ticker,
) -> Result<Tried<Delivery>, Failure> {
    let Some(named) = output.path.to_str() else {
        return Ok(Tried::unsuitable("the output path is not UTF-8 and cannot be named to the daemon"));
    };
    let download = Download { output_path: Some(named.to_owned()), ..plan.download.clone() };
    let mut request = Request::new(DownloadTaskRequest { download: Some(download) });
    handing::name_seen(request.metadata_mut().as_mut(), handing::directory_of(&output.path));
    let tell = async |leftover: &mut Leftover<'_>| {
        tell(plan, daemon, request, "path", ticker, |is_ours| leftover.answered(is_ours)).await
    };
    let has_other_ways = !plan.download.force_hard_link;
    let tried = by_daemon::at_path(Ordered { output, named, has_other_ways }, tell, |told| told.bytes).await;
    told(tried, daemon, "path", String::new()).await
}

/// The daemon writes to the output that this process opened.
async fn by_descriptor(
    plan: &Plan,
    output: &FileOutput,
    daemon: &Daemon,
    ticker: &mut Ticker,
    detour: &Detour,
) -> Result<Tried<Delivery>, Failure> {
    let tell = async |token: &Token| {
        detour.warning(PROGRAM, BY_DESCRIPTOR).iter().for_each(|text| ticker.note(text));
        let download = Download { overwrite: false, ..plan.download.clone() };
        let mut request = Request::new(DownloadTaskRequest { download: Some(download) });
        handing::name_token(request.metadata_mut().as_mut(), token);
        tell(plan, daemon, request, "fd", ticker, |_| {}).await
    };
    let id = plan.task.as_str();
    let tried = by_daemon::into_descriptor(output, id, daemon, tell, |told| told.bytes).await;
    told(tried, daemon, "fd", detour.reason().unwrap_or_default()).await
}

/// What the daemon told to the end.
struct Told {
    story: Story,
    bytes: u64,
}

/// Has the daemon write the content and hears of it. `answered` learns whether the daemon is ours.
async fn tell(
    plan: &Plan,
    daemon: &Daemon,
    mut request: Request<DownloadTaskRequest>,
    transfer: &str,
    ticker: &mut Ticker,
    answered: impl FnOnce(bool),
) -> Result<Told, TellError> {
    request.set_timeout(plan.timeout);
    // The start lists every piece.
    let mut client =
        DfdaemonDownloadClient::new(daemon.channel.clone()).max_decoding_message_size(usize::MAX);
    let answer = ticker.beside(client.download_task(request)).await.map_err(TellError::Call)?;
    answered(endpoint::is_ours(answer.metadata()));
    let mut stream = answer.into_inner();
    let mut story = Story::new(plan.range);
    let mut bytes = 0;
    let failed = |why: StoryError| TellError::Failed(why.into());
    while let Some(message) = ticker.beside(stream.message()).await.map_err(TellError::Call)? {
        match story.take(message).map_err(failed)? {
            News::Started(range) => {
                log_start(&story, transfer);
                bytes = range.length;
                ticker.set_total(bytes);
            }
            News::Piece(piece) => {
                log_piece(&piece);
                ticker.add(piece.length);
            }
            News::Repeated => {}
        }
    }
    story.end().map_err(failed)?;
    Ok(Told { story, bytes })
}

async fn told(
    tried: Result<Tried<Told>, TellError>,
    daemon: &Daemon,
    mode: &str,
    reason: String,
) -> Result<Tried<Delivery>, Failure> {
    match tried.map_err(|why| why.failure(|status| Failure::of_call(TITLE, status)))? {
        Tried::Done(Told { story, bytes }) => {
            let transfer = Transfer { mode: mode.to_owned(), reason };
            Ok(Tried::Done(delivery(bytes, story, daemon, transfer).await))
        }
        Tried::Unsuitable { why, unusual } => Ok(Tried::Unsuitable { why, unusual }),
    }
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
