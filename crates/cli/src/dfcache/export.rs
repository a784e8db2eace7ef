//! `dfcache export`: the daemon writes the file, or the content comes over its socket.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2::Piece;
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_api::dfdaemon::v2::download_persistent_cache_task_response::Response as Told;
use damselfly_api::dfdaemon::v2::{
    DownloadPersistentCacheTaskRequest, DownloadPersistentCacheTaskResponse, ReadPersistentCacheTaskRequest,
    ReadPersistentCacheTaskResponse,
};
use damselfly_core::{Digest, Hasher, RangeSpec};
use damselfly_transport::framed::{self, READ_CONTENT};
use thiserror::Error;
use tokio::time::Instant;
use tonic::{Code, Request, Status};
use tracing::{debug, info};

use super::args::{Export, TransferMode};
use super::known::refused;
use super::settings::{ConflictError, Origin, Settings};
use crate::client::{Limits, print_json};
use crate::endpoint::{self, Daemon};
use crate::exit::Exit;
use crate::failure::{Failure, Reason};
use crate::output::{FileOutput, InvalidOutput, Leftover, Output};
use crate::part::Part;
use crate::progress::Progress;
use crate::reading::{self, Content, ReadError, Sink};
use crate::receipt::{self, Delivery, Receipt};
use crate::stdout::Stdout;
use crate::ticker::Ticker;
use crate::transfer::{Sources, Tally, Transfer};

const TITLE: &str = "Exporting Failed!";
const READ: &str = "/dfdaemon.v2.DfdaemonDownload/ReadPersistentCacheTask";

/// Arguments that parse and make no sense.
#[derive(Debug, Error)]
enum Invalid {
    #[error(transparent)]
    Output(#[from] InvalidOutput),
    #[error(transparent)]
    Digest(#[from] damselfly_core::DigestError),
    #[error(transparent)]
    Conflict(#[from] ConflictError),
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Failure::new("Validating Failed!", Exit::Failure, invalid)
    }
}

/// What to do.
#[derive(Debug)]
struct Plan {
    id: String,
    output: Output,
    tag: String,
    application: String,
    digest: Option<Digest>,
    force_hard_link: bool,
    timeout: Duration,
    transfer: TransferMode,
    /// Who said so; empty when nobody did.
    asked: String,
    /// How long a stream may move nothing.
    idle: Duration,
}

impl Plan {
    fn new(args: &Export, settings: &Settings) -> Result<Self, Invalid> {
        let output = Output::find(&args.output, args.overwrite)?;
        let digest = args.digest.as_deref().map(str::parse::<Digest>).transpose()?;
        let origin = &settings.transfer.origin;
        let mut transfer = settings.transfer.value;
        let asked = match origin {
            Origin::Default => String::new(),
            origin => format!("{origin} {transfer}"),
        };
        // What a file says for every export gives way to what this one needs.
        let from_file = matches!(origin, Origin::File(_) | Origin::Default);
        match (&output, transfer) {
            (Output::Stdout, _) if args.force_hard_link => {
                return Err(ConflictError::new("--force-hard-link", "-O -").into());
            }
            (Output::Stdout, TransferMode::Path) if !from_file => {
                return Err(ConflictError::new(asked, "-O -").into());
            }
            (Output::File(_), TransferMode::Stream) if args.force_hard_link && !from_file => {
                return Err(ConflictError::new("--force-hard-link", asked).into());
            }
            (Output::Stdout, _) => transfer = TransferMode::Stream,
            (Output::File(_), _) if args.force_hard_link => transfer = TransferMode::Path,
            (Output::File(_), _) => {}
        }
        Ok(Self {
            id: args.id.clone(),
            output,
            tag: args.tag.clone(),
            application: args.application.clone(),
            digest,
            force_hard_link: args.force_hard_link,
            timeout: args.timeout,
            transfer,
            asked,
            idle: settings.idle_timeout.value,
        })
    }

    fn by_request(&self) -> String {
        if self.asked.is_empty() { String::new() } else { format!("as asked ({})", self.asked) }
    }

    fn refused(&self, status: &Status) -> Failure {
        refused(TITLE, &self.id, status)
    }
}

/// Exports and prints how it went.
pub(super) async fn run(args: &Export, settings: &Settings, json: bool) -> Result<(), Failure> {
    let mut limits = Limits::begin(TITLE, args.timeout)?;
    let started = Instant::now();
    let plan = Arc::new(Plan::new(args, settings)?);
    let to_stdout = plan.output == Output::Stdout;
    let connect = async { Ok(endpoint::connect(settings.endpoint.value.as_deref()).await?) };
    let daemon = limits.within(false, connect).await?;
    let work = tokio::spawn(export(plan.clone(), daemon.clone(), args.no_progress || json));
    // What the daemon has fetched stays with it.
    let delivery = limits.carry_out(true, work).await?;
    let (elapsed, at) = (started.elapsed(), &daemon.at);
    let receipt =
        Receipt { name: &plan.id, url: None, output: &plan.output, delivery: &delivery, at, elapsed };
    if json {
        print_json(&receipt.json(), to_stdout);
    } else {
        // The content is there, whether anybody reads the receipt or not.
        let _printed = io::stderr().lock().write_all(receipt.text().as_bytes());
    }
    Ok(())
}

async fn export(plan: Arc<Plan>, daemon: Daemon, quiet: bool) -> Result<Delivery, Failure> {
    let mut ticker = Ticker::new(Progress::new(&plan.id, quiet));
    let file = match &plan.output {
        Output::Stdout => {
            let mut stdout = Stdout::open()?;
            return by_stream(&plan, &daemon, &mut stdout, &mut ticker, "for stdout".to_owned())
                .await
                .map_err(|why| why.failure(&plan, "name an output file"));
        }
        Output::File(file) => file,
    };
    if plan.transfer != TransferMode::Stream {
        match by_path(&plan, file, &daemon, &mut ticker, plan.by_request()).await? {
            ByDaemon::Done(delivery) => return Ok(delivery),
            ByDaemon::Unsuitable(why) => {
                ticker.note(&format!("dfcache: {why}; taking the content through its socket instead"));
                ticker.reset();
                return to_file(&plan, file, &daemon, &mut ticker, why)
                    .await
                    .map_err(|error| error.failure(&plan, "name an output that the daemon may write"));
            }
        }
    }
    match to_file(&plan, file, &daemon, &mut ticker, plan.by_request()).await {
        Ok(delivery) => Ok(delivery),
        Err(StreamError::Unsupported(status)) => {
            let why = format!("this daemon sends no streams ({})", status.message());
            ticker.note(&format!("dfcache: {why}; it writes the file itself instead (path)"));
            match by_path(&plan, file, &daemon, &mut ticker, why).await? {
                ByDaemon::Done(delivery) => Ok(delivery),
                ByDaemon::Unsuitable(why) => Err(Failure::new(TITLE, Exit::Failure, why)),
            }
        }
        Err(error) => Err(error.failure(&plan, "")),
    }
}

/// Why a stream delivered nothing.
#[derive(Debug, Error)]
enum StreamError {
    #[error("the daemon answered with {0}")]
    Unsupported(Status),
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl StreamError {
    /// `help` is what to do instead with a daemon that knows no streams.
    fn failure(self, plan: &Plan, help: &str) -> Failure {
        match self {
            StreamError::Failed(failure) => failure,
            StreamError::Unsupported(status) => {
                let mut failure = plan.refused(&status);
                failure.message = format!(
                    "this daemon sends no streams ({}): it needs Damselfly's dfdaemon of this version; {help}",
                    status.message()
                );
                failure
            }
        }
    }
}

/// What is written under another name first.
struct ToPart {
    part: Part,
    at: u64,
    /// What the content must be, and what came so far.
    digest: Option<(Digest, Hasher)>,
}

impl Sink for ToPart {
    fn begin(&mut self, length: Option<u64>) -> Result<(), Failure> {
        Ok(self.part.allocate(length.unwrap_or(0))?)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.part.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        if let Some((_, hasher)) = &mut self.digest {
            hasher.update(bytes);
        }
        Ok(())
    }
}

async fn to_file(
    plan: &Plan,
    output: &FileOutput,
    daemon: &Daemon,
    ticker: &mut Ticker,
    reason: String,
) -> Result<Delivery, StreamError> {
    let digest = plan.digest.clone().map(|digest| {
        let hasher = Hasher::new(digest.algorithm());
        (digest, hasher)
    });
    let part = tokio::task::block_in_place(|| Part::open(output, &plan.id)).map_err(Failure::from)?;
    let mut sink = ToPart { part, at: 0, digest };
    let delivery = by_stream(plan, daemon, &mut sink, ticker, reason).await?;
    if let Some((digest, hasher)) = sink.digest {
        let computed = hasher.finish();
        if !digest.matches(&computed) {
            let text = format!("digest mismatch expected: {digest}, actual: {computed}");
            return Err(Failure::new(TITLE, Exit::Digest, text).into());
        }
    }
    tokio::task::block_in_place(|| sink.part.finish()).map_err(Failure::from)?;
    Ok(delivery)
}

async fn by_stream(
    plan: &Plan,
    daemon: &Daemon,
    sink: &mut impl Sink,
    ticker: &mut Ticker,
    reason: String,
) -> Result<Delivery, StreamError> {
    let failed = |status: Status| match status.code() {
        Code::Unimplemented => StreamError::Unsupported(status),
        _ => StreamError::Failed(plan.refused(&status)),
    };
    let request = ReadPersistentCacheTaskRequest { task_id: plan.id.clone(), range: None, remote_ip: None };
    let call = framed::call::<ReadPersistentCacheTaskResponse>(&daemon.channel, READ, &request, READ_CONTENT);
    let stream = ticker.beside(call).await.map_err(failed)?;
    let read = reading::read(stream, RangeSpec::Whole, plan.idle, sink, ticker).await;
    let Content { started, finished, bytes } = read.map_err(|why| match why {
        ReadError::Call(status) => failed(status),
        ReadError::Sink(failure) => failure.into(),
        silent @ ReadError::Silent(_) => Failure::new(TITLE, Exit::Timeout, silent).into(),
        other => Failure::new(TITLE, Exit::Failure, other).into(),
    })?;
    let task_id = if started.task_id.is_empty() { plan.id.clone() } else { started.task_id };
    Ok(Delivery {
        task_id,
        host_id: started.host_id,
        peer_id: started.peer_id,
        bytes,
        content_length: started.content_length,
        sources: finished.receipt.as_ref().map(Sources::from),
        transfer: Transfer { mode: "stream".to_owned(), reason },
        was_complete: None,
    })
}

/// What became of asking the daemon to write the output.
enum ByDaemon {
    Done(Delivery),
    /// The daemon may not, or it wrote where this process cannot see it. The text says which.
    Unsuitable(String),
}

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
struct Story {
    length: Option<u64>,
    host_id: String,
    peer_id: String,
    pieces: BTreeSet<u32>,
    came: u64,
    tally: Tally,
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

async fn by_path(
    plan: &Plan,
    output: &FileOutput,
    daemon: &Daemon,
    ticker: &mut Ticker,
    reason: String,
) -> Result<ByDaemon, Failure> {
    let Some(path) = output.path.to_str() else {
        return Ok(ByDaemon::Unsuitable(
            "the output path is not UTF-8 and cannot be named to the daemon".to_owned(),
        ));
    };
    let mut request = Request::new(DownloadPersistentCacheTaskRequest {
        task_id: plan.id.clone(),
        persistent: false,
        tag: Some(plan.tag.clone()),
        application: Some(plan.application.clone()),
        output_path: Some(path.to_owned()),
        timeout: prost_types::Duration::try_from(plan.timeout).ok(),
        need_piece_content: false,
        force_hard_link: plan.force_hard_link,
        digest: plan.digest.as_ref().map(ToString::to_string),
        remote_ip: None,
        overwrite: output.overwrite,
    });
    request.set_timeout(plan.timeout);
    let mut client = DfdaemonDownloadClient::new(daemon.channel.clone());
    let mut leftover = Leftover::new(&output.path);
    let answer = match ticker.beside(client.download_persistent_cache_task(request)).await {
        Ok(answer) => answer,
        Err(status) => return unsuitable(plan, &status),
    };
    leftover.armed = !endpoint::is_ours(answer.metadata()) && !output.existed;
    let mut stream = answer.into_inner();
    let mut story = Story::default();
    loop {
        let message = match ticker.beside(stream.message()).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(status) => {
                // Somebody else's file: Dragonfly's daemon found it there before it wrote anything.
                leftover.armed &=
                    !status.message().contains("already exist") && status.code() != Code::AlreadyExists;
                return unsuitable(plan, &status);
            }
        };
        let known = story.length;
        if let Some(piece) = story.take(message)? {
            debug!(piece = piece.number, length = piece.length, parent = piece.parent_id, "piece finished");
            ticker.add(piece.length);
        }
        if let (None, Some(length)) = (known, story.length) {
            info!(task = plan.id, peer = story.peer_id, length, transfer = "path", "export started");
            ticker.set_total(length);
        }
    }
    let length = story.end()?;
    leftover.armed = false;
    match std::fs::metadata(&output.path) {
        Ok(found) if found.len() == length => {}
        Ok(found) => {
            let text = format!(
                "{path} has {} bytes instead of {length}: something else writes to it, or the daemon sees another file \
                 of this name; use --transfer stream",
                found.len()
            );
            return Err(Failure::new(TITLE, Exit::Failure, text));
        }
        Err(why) => {
            return Ok(ByDaemon::Unsuitable(format!(
                "the daemon says that it wrote {path}, but here it cannot be seen ({why})"
            )));
        }
    }
    Ok(ByDaemon::Done(delivery(plan, length, story, daemon, reason).await))
}

fn unsuitable(plan: &Plan, status: &Status) -> Result<ByDaemon, Failure> {
    if Reason::of(status) == Some(Reason::Path) && plan.transfer == TransferMode::Auto {
        let why = format!("the daemon does not write to this output itself ({})", status.message());
        return Ok(ByDaemon::Unsuitable(why));
    }
    Err(plan.refused(status))
}

/// What was delivered, in the daemon's own numbers where it keeps a receipt, else by the piece reports.
async fn delivery(plan: &Plan, bytes: u64, story: Story, daemon: &Daemon, reason: String) -> Delivery {
    let receipt = receipt::ask(&daemon.channel, &story.peer_id).await;
    let reason = match &receipt {
        Some(receipt) if reason.is_empty() => receipt.transfer_reason.clone(),
        _ => reason,
    };
    Delivery {
        task_id: plan.id.clone(),
        bytes,
        content_length: Some(bytes),
        sources: Some(receipt.as_ref().map_or_else(|| story.tally.sources(), Sources::from)),
        transfer: Transfer { mode: "path".to_owned(), reason },
        was_complete: None,
        host_id: story.host_id,
        peer_id: story.peer_id,
    }
}
