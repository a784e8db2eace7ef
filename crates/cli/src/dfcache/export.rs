//! `dfcache export`: the daemon writes the file, or the content comes over its socket.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::dfdaemon::v2::{
    DownloadPersistentCacheTaskRequest, ReadPersistentCacheTaskRequest, ReadPersistentCacheTaskResponse,
};
use damselfly_core::{Digest, Hasher, RangeSpec};
use damselfly_transport::framed::{self, READ_CONTENT};
use damselfly_transport::local::Token;
use thiserror::Error;
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use self::story::Story;
use super::args::{Export, TransferMode};
use super::known::refused;
use super::settings::{ConflictError, Origin, Settings};
use super::spelling::{self, Spelling, SpellingError};
use crate::by_daemon::{self, BY_DESCRIPTOR, BY_PATH, BY_STREAM, Detour, Ordered, TellError, Tried};
use crate::client::{Limits, print_json};
use crate::endpoint::Daemon;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::handing;
use crate::output::{FileOutput, InvalidOutput, Leftover, Output};
use crate::part::Part;
use crate::progress::Progress;
use crate::reading::{self, Content, ReadError, Sink};
use crate::receipt::{self, Delivery, Receipt};
use crate::stdout::Stdout;
use crate::ticker::Ticker;
use crate::transfer::{Sources, Transfer};

mod story;

const PROGRAM: &str = "dfcache";
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
    #[error(transparent)]
    Spelling(#[from] SpellingError),
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
    /// What the daemon is to call an output file.
    spelling: Option<Spelling>,
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
        let of_this_run = origin.is_of_this_run();
        match (&output, transfer) {
            (Output::Stdout, _) if args.force_hard_link => {
                return Err(ConflictError::new("--force-hard-link", "-O -").into());
            }
            (Output::Stdout, TransferMode::Path | TransferMode::Fd) if of_this_run => {
                return Err(ConflictError::new(asked, "-O -").into());
            }
            (Output::Stdout, _) if matches!(settings.path_mapping.origin, Origin::Flag(_)) => {
                return Err(ConflictError::new(&settings.path_mapping.origin, "-O -").into());
            }
            (Output::File(_), TransferMode::Stream | TransferMode::Fd)
                if args.force_hard_link && of_this_run =>
            {
                return Err(ConflictError::new("--force-hard-link", asked).into());
            }
            (Output::Stdout, _) => transfer = TransferMode::Stream,
            (Output::File(_), _) if args.force_hard_link => transfer = TransferMode::Path,
            (Output::File(_), _) => {}
        }
        let spelling = match &output {
            Output::Stdout => None,
            Output::File(file) => Some(spelling::of_output(&file.path, settings)?),
        };
        Ok(Self {
            id: args.id.clone(),
            output,
            spelling,
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

    /// Why a way is taken.
    fn reason(&self, detour: &Detour) -> String {
        if let Some(reason) = detour.reason() {
            return reason;
        }
        let mapped = self.spelling.as_ref().filter(|spelling| spelling.mapped.is_some());
        match (self.transfer, mapped) {
            (TransferMode::Auto | TransferMode::Path, Some(spelling)) => {
                format!("mapped to {}", spelling.path.display())
            }
            (TransferMode::Auto, None) => String::new(),
            _ if self.asked.is_empty() => String::new(),
            _ => format!("as asked ({})", self.asked),
        }
    }

    /// The ways to try for a file, one after the other.
    fn ways(&self) -> &'static [Way] {
        match self.transfer {
            TransferMode::Auto => &[Way::Path, Way::Fd, Way::Stream],
            TransferMode::Path => &[Way::Path],
            TransferMode::Fd => &[Way::Fd, Way::Stream, Way::Path],
            TransferMode::Stream => &[Way::Stream, Way::Path],
        }
    }

    /// What is asked of the daemon however the content goes.
    fn request(&self) -> DownloadPersistentCacheTaskRequest {
        DownloadPersistentCacheTaskRequest {
            task_id: self.id.clone(),
            tag: Some(self.tag.clone()),
            application: Some(self.application.clone()),
            timeout: prost_types::Duration::try_from(self.timeout).ok(),
            digest: self.digest.as_ref().map(ToString::to_string),
            ..DownloadPersistentCacheTaskRequest::default()
        }
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
    let connect = async { Ok(settings.connect().await?) };
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

/// One way of transfer to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Path,
    Fd,
    Stream,
}

async fn export(plan: Arc<Plan>, daemon: Daemon, quiet: bool) -> Result<Delivery, Failure> {
    let mut ticker = Ticker::new(Progress::new(&plan.id, quiet));
    let file = match &plan.output {
        Output::Stdout => {
            let mut stdout = Stdout::open()?;
            let streamed = by_stream(&plan, &daemon, &mut stdout, &mut ticker, "for stdout".to_owned()).await;
            return streamed.map_err(|why| match why {
                StreamError::Failed(failure) => failure,
                unsupported => {
                    let text = format!(
                        "{unsupported}: it needs Damselfly's dfdaemon of this version; name an output file"
                    );
                    Failure::new(TITLE, Exit::Failure, text)
                }
            });
        }
        Output::File(file) => file,
    };
    let mut detour = Detour::default();
    for (index, way) in plan.ways().iter().enumerate() {
        let tried = match way {
            Way::Path => by_path(&plan, file, &daemon, &mut ticker, &detour).await?,
            Way::Fd => by_descriptor(&plan, file, &daemon, &mut ticker, &detour).await?,
            Way::Stream => {
                detour.warning(PROGRAM, BY_STREAM).iter().for_each(|text| ticker.note(text));
                match to_file(&plan, file, &daemon, &mut ticker, plan.reason(&detour)).await {
                    Ok(delivery) => Tried::Done(delivery),
                    Err(StreamError::Failed(failure)) => return Err(failure),
                    Err(unsupported) => Tried::unsuitable(unsupported),
                }
            }
        };
        match tried {
            Tried::Done(delivery) => return Ok(delivery),
            // Who asks for one way hears why it is another.
            Tried::Unsuitable { why, unusual } => {
                detour.add(why, unusual || (index == 0 && plan.transfer == TransferMode::Fd));
            }
        }
        ticker.reset();
    }
    Err(Failure::new(TITLE, Exit::Failure, detour.reason().unwrap_or_default()))
}

/// Why a stream delivered nothing.
#[derive(Debug, Error)]
enum StreamError {
    #[error("this daemon sends no streams ({})", .0.message())]
    Unsupported(Status),
    #[error(transparent)]
    Failed(#[from] Failure),
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
    let call = framed::call::<ReadPersistentCacheTaskResponse>(&daemon.content, READ, &request, READ_CONTENT);
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

/// The daemon opens the output.
async fn by_path(
    plan: &Plan,
    output: &FileOutput,
    daemon: &Daemon,
    ticker: &mut Ticker,
    detour: &Detour,
) -> Result<Tried<Delivery>, Failure> {
    let path = plan.spelling.as_ref().map_or(output.path.as_path(), |spelling| spelling.path.as_path());
    let Some(named) = path.to_str() else {
        return Ok(Tried::unsuitable("the output path is not UTF-8 and cannot be named to the daemon"));
    };
    let mut request = Request::new(DownloadPersistentCacheTaskRequest {
        output_path: Some(named.to_owned()),
        force_hard_link: plan.force_hard_link,
        overwrite: output.overwrite,
        ..plan.request()
    });
    handing::name_seen(request.metadata_mut().as_mut(), handing::directory_of(&output.path));
    detour.warning(PROGRAM, BY_PATH).iter().for_each(|text| ticker.note(text));
    let has_other_ways = plan.transfer == TransferMode::Auto;
    let tell = async |leftover: &mut Leftover<'_>| {
        story::tell(plan, daemon, request, "path", ticker, |is_ours| leftover.answered(is_ours)).await
    };
    let tried = by_daemon::at_path(Ordered { output, named, has_other_ways }, tell, |story| story.came).await;
    told(plan, tried, daemon, "path", plan.reason(detour)).await
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
        let mut request = Request::new(plan.request());
        handing::name_token(request.metadata_mut().as_mut(), token);
        story::tell(plan, daemon, request, "fd", ticker, |_| {}).await
    };
    let tried = by_daemon::into_descriptor(output, &plan.id, daemon, tell, |story| story.came).await;
    told(plan, tried, daemon, "fd", plan.reason(detour)).await
}

async fn told(
    plan: &Plan,
    tried: Result<Tried<Story>, TellError>,
    daemon: &Daemon,
    mode: &str,
    reason: String,
) -> Result<Tried<Delivery>, Failure> {
    match tried.map_err(|why| why.failure(|status| plan.refused(status)))? {
        Tried::Done(story) => Ok(Tried::Done(delivery(plan, story, daemon, mode, reason).await)),
        Tried::Unsuitable { why, unusual } => Ok(Tried::Unsuitable { why, unusual }),
    }
}

/// What was delivered, in the daemon's own numbers where it keeps a receipt, else by the piece reports.
async fn delivery(plan: &Plan, story: Story, daemon: &Daemon, mode: &str, reason: String) -> Delivery {
    let receipt = receipt::ask(&daemon.channel, &story.peer_id).await;
    let reason = match &receipt {
        Some(receipt) if reason.is_empty() => receipt.transfer_reason.clone(),
        _ => reason,
    };
    Delivery {
        task_id: plan.id.clone(),
        bytes: story.came,
        content_length: Some(story.came),
        sources: Some(receipt.as_ref().map_or_else(|| story.tally.sources(), Sources::from)),
        transfer: Transfer { mode: mode.to_owned(), reason },
        was_complete: None,
        host_id: story.host_id,
        peer_id: story.peer_id,
    }
}
