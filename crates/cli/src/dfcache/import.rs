//! `dfcache import`: over the socket, or by a path that the daemon reads.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2::PersistentCacheTask;
use damselfly_api::dfdaemon::v2::UploadPersistentCacheTaskRequest;
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_core::PERSISTENT_CACHE_TTL;
use damselfly_core::geometry::named_piece_length;
use damselfly_transport::local::Seen;
use thiserror::Error;
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use super::args::{Ack, ContentId, Import, TransferMode};
use super::receipt;
use super::settings::{ConflictError, Origin, Settings};
use super::source::{CHUNK, Source, SourceError};
use super::spelling::{self, Spelling, SpellingError};
use super::upload::{self, By};
use crate::by_daemon::{BY_DESCRIPTOR, BY_PATH, BY_STREAM, Detour, Tried};
use crate::client::{Limits, print_json};
use crate::endpoint::Daemon;
use crate::exit::Exit;
use crate::failure::{Failure, Reason};
use crate::handing;
use crate::progress::Progress;
use crate::ticker::Ticker;
use crate::transfer::Transfer;

const PROGRAM: &str = "dfcache";
pub(super) const TITLE: &str = "Importing Failed!";

/// Arguments that parse and make no sense.
#[derive(Debug, Error)]
enum Invalid {
    #[error("--ttl is {}: expected 5m to 7d", humantime::format_duration(*.0))]
    Ttl(Duration),
    #[error(transparent)]
    PieceLength(#[from] damselfly_core::GeometryError),
    #[error(transparent)]
    Conflict(#[from] ConflictError),
    #[error(transparent)]
    Spelling(#[from] SpellingError),
    #[error("{given} is for files that the daemon reads itself, and {source_name} is {what}; leave it out")]
    Nameless { given: String, source_name: String, what: &'static str },
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Failure::new("Validating Failed!", Exit::Failure, invalid)
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Failure::new(TITLE, Exit::Failure, error)
    }
}

/// What to do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) source: Source,
    /// What the daemon is to call a file.
    spelling: Option<Spelling>,
    pub(super) replicas: u64,
    pub(super) tag: Option<String>,
    pub(super) application: Option<String>,
    pub(super) piece_length: Option<u64>,
    pub(super) ttl: Duration,
    pub(super) timeout: Duration,
    pub(super) id_from: Option<String>,
    pub(super) content_id: ContentId,
    /// Copies to wait for, at least 1.
    pub(super) ack: u32,
    pub(super) transfer: TransferMode,
    /// Who said so; `None` when nobody did.
    transfer_asked: Option<String>,
    /// Bytes that may be read ahead of the socket.
    pub(super) buffer: u64,
    /// How long a stream may move nothing.
    pub(super) idle: Duration,
}

impl Plan {
    /// Checks what needs no file.
    fn check(args: &Import, settings: &Settings) -> Result<(), Invalid> {
        args.piece_length.map(|length| named_piece_length(length.as_u64())).transpose()?;
        if !PERSISTENT_CACHE_TTL.contains(&args.ttl) {
            return Err(Invalid::Ttl(args.ttl));
        }
        if let Ack::Count(count) = args.ack
            && u64::from(count) > args.persistent_replica_count
        {
            let replicas = format!("--persistent-replica-count {}", args.persistent_replica_count);
            return Err(ConflictError::new(format!("--ack {count}"), replicas).into());
        }
        if settings.transfer.value != TransferMode::Path {
            return Ok(());
        }
        let path = format!("{} path", settings.transfer.origin);
        // The call that names a path has no room for these.
        if settings.content_id.value != ContentId::Sha256 {
            let content_id = format!("{} {}", settings.content_id.origin, settings.content_id.value);
            return Err(ConflictError::new(path, content_id).into());
        }
        match args.ack {
            Ack::Count(1) => Ok(()),
            _ if args.persistent_replica_count == 1 => Ok(()),
            Ack::Count(count) => Err(ConflictError::new(path, format!("--ack {count}")).into()),
            Ack::All => Err(ConflictError::new(path, "--ack all").into()),
        }
    }

    /// Refuses what was asked for this run and what has no path cannot do. What a file says for every import gives way.
    fn check_nameless(settings: &Settings, source: &Source) -> Result<(), Invalid> {
        let Settings { transfer, path_mapping, .. } = settings;
        let is_for_others = match transfer.value {
            TransferMode::Path => true,
            TransferMode::Fd => source.length().is_none(),
            TransferMode::Auto | TransferMode::Stream => false,
        };
        let given = if is_for_others && transfer.origin.is_of_this_run() {
            format!("{} {}", transfer.origin, transfer.value)
        } else if let Origin::Flag(flag) = &path_mapping.origin {
            flag.clone()
        } else {
            return Ok(());
        };
        let what = if source.length().is_some() { "a file without a path" } else { "a pipe" };
        Err(Invalid::Nameless { given, source_name: source.name.clone(), what })
    }

    fn new(args: &Import, settings: &Settings, source: Source) -> Result<Self, Invalid> {
        let asked = settings.transfer.origin != Origin::Default;
        let transfer_asked =
            asked.then(|| format!("{} {}", settings.transfer.origin, settings.transfer.value));
        let spelling = match source.path() {
            None => {
                Self::check_nameless(settings, &source)?;
                None
            }
            Some(path) => Some(spelling::of_input(path, settings)?),
        };
        Ok(Self {
            source,
            spelling,
            replicas: args.persistent_replica_count,
            tag: args.tag.clone(),
            application: args.application.clone(),
            piece_length: args.piece_length.map(|length| length.as_u64()),
            ttl: args.ttl,
            timeout: args.timeout,
            id_from: args.content_for_calculating_task_id.clone(),
            content_id: settings.content_id.value,
            ack: match args.ack {
                Ack::Count(count) => count,
                Ack::All => u32::try_from(args.persistent_replica_count).unwrap_or(u32::MAX),
            },
            transfer: settings.transfer.value,
            transfer_asked,
            buffer: settings.buffer_size.value,
            idle: settings.idle_timeout.value,
        })
    }

    /// The ways to try, one after the other.
    fn ways(&self) -> &'static [Way] {
        let Some(length) = self.source.length() else { return &[Way::Stream] };
        let mapped = self.spelling.as_ref().is_some_and(|spelling| spelling.mapped.is_some());
        match self.transfer {
            TransferMode::Path if self.spelling.is_some() => &[Way::Path],
            TransferMode::Fd => &[Way::Fd, Way::Stream, Way::Path],
            TransferMode::Auto if mapped && self.not_by_path().is_none() => {
                &[Way::Path, Way::Fd, Way::Stream]
            }
            TransferMode::Auto | TransferMode::Path if length > CHUNK as u64 => {
                &[Way::Fd, Way::Stream, Way::Path]
            }
            _ => &[Way::Stream, Way::Path],
        }
    }

    /// What to leave out so that a path will do: the call that names one has no room for everything.
    fn not_by_path(&self) -> Option<&'static str> {
        match &self.spelling {
            None if self.source.length().is_some() => Some("name the file instead of -"),
            None => Some("import a file instead of a pipe"),
            Some(_) if self.content_id != ContentId::Sha256 => Some("leave --content-id out"),
            Some(_) if self.ack > 1 => Some("leave --ack out"),
            Some(_) => None,
        }
    }

    /// Why a way is taken.
    fn reason(&self, detour: &Detour) -> String {
        if let Some(reason) = detour.reason() {
            return reason;
        }
        let mapped = self.spelling.as_ref().filter(|spelling| spelling.mapped.is_some());
        match (&self.transfer_asked, mapped, self.ways()[0]) {
            (Some(by), ..) if self.transfer != TransferMode::Auto => format!("as asked ({by})"),
            (_, Some(spelling), Way::Path) => format!("mapped to {}", spelling.path.display()),
            _ if self.source.length().is_none() => "a pipe".to_owned(),
            (_, _, Way::Fd | Way::Path) => "the daemon takes open files".to_owned(),
            (_, _, Way::Stream) => "it fits one message".to_owned(),
        }
    }

    /// A name for this upload that another run finds again; empty for a pipe.
    pub(super) fn upload_id(&self) -> String {
        let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
        self.source.upload_id(&[
            self.tag.as_deref().unwrap_or_default(),
            self.application.as_deref().unwrap_or_default(),
            &number(self.piece_length),
            &self.id_from.as_ref().map(|text| format!("id {text}")).unwrap_or_default(),
            &self.content_id.to_string(),
        ])
    }
}

/// What was imported.
#[derive(Debug)]
pub(super) struct Imported {
    pub(super) task_id: String,
    pub(super) task: Option<PersistentCacheTask>,
    pub(super) bytes: u64,
    /// The first byte that this run sent.
    pub(super) resumed_at: u64,
    pub(super) transfer: Transfer,
}

/// Imports and prints the id.
pub(super) async fn run(args: &Import, settings: &Settings, json: bool) -> Result<(), Failure> {
    let mut limits = Limits::begin(TITLE, args.timeout)?;
    let started = Instant::now();
    Plan::check(args, settings)?;
    let source = async { Ok(Source::open_when_ready(args.path.clone()).await?) };
    let plan = Plan::new(args, settings, limits.within(false, source).await?)?;
    let connect = async { Ok(settings.connect().await?) };
    let daemon = limits.within(false, connect).await?;
    let resumes = plan.source.length().is_some();
    let plan = Arc::new(plan);
    let work = tokio::spawn(import(plan.clone(), daemon, args.no_progress || json));
    let imported = limits.carry_out(resumes, work).await?;
    let elapsed = started.elapsed();
    if json {
        print_json(&receipt::import_json(&plan, &imported, elapsed), false);
        return Ok(());
    }
    // The content is there, whether anybody reads the receipt or not; without its id it is of no use.
    let _printed = io::stderr().lock().write_all(receipt::import_text(&plan, &imported, elapsed).as_bytes());
    writeln!(io::stdout().lock(), "{}", imported.task_id).map_err(|why| {
        let text = format!("imported as {}, but that cannot be written to stdout: {why}", imported.task_id);
        Failure::new(TITLE, Exit::Failure, text)
    })
}

/// One way of transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Path,
    Fd,
    Stream,
}

async fn import(plan: Arc<Plan>, daemon: Daemon, quiet: bool) -> Result<Imported, Failure> {
    let mut detour = Detour::default();
    for (index, way) in plan.ways().iter().enumerate() {
        if *way == Way::Path && plan.not_by_path().is_some() {
            break;
        }
        match way.attempt(&plan, &daemon, quiet, &detour).await? {
            Tried::Done(imported) => return Ok(imported),
            // Who asks for one way hears why it is another.
            Tried::Unsuitable { why, unusual } => {
                detour.add(why, unusual || (index == 0 && plan.transfer == TransferMode::Fd));
            }
        }
    }
    let mut text = detour.reason().unwrap_or_default();
    if let Some(help) = plan.not_by_path() {
        text = format!("{text}: it needs Damselfly's dfdaemon of this version; {help}, or use such a daemon");
    }
    Err(Failure::new(TITLE, Exit::Failure, text))
}

impl Way {
    async fn attempt(
        self,
        plan: &Plan,
        daemon: &Daemon,
        quiet: bool,
        detour: &Detour,
    ) -> Result<Tried<Imported>, Failure> {
        let (by, mode) = match self {
            Way::Path => return by_path(plan, daemon, quiet, detour).await,
            Way::Fd => (By::Descriptor(detour.warning(PROGRAM, BY_DESCRIPTOR)), "fd"),
            Way::Stream => (By::Chunks(detour.warning(PROGRAM, BY_STREAM)), "stream"),
        };
        let mut ticker = Ticker::new(Progress::new(&plan.source.name, quiet));
        match upload::run(plan, daemon, &by, &mut ticker).await {
            Ok(uploaded) => Ok(Tried::Done(Imported {
                task_id: uploaded.response.task_id,
                task: uploaded.response.task,
                bytes: uploaded.bytes,
                resumed_at: uploaded.resumed_at,
                transfer: Transfer { mode: mode.to_owned(), reason: plan.reason(detour) },
            })),
            Err(upload::UploadError::Unsupported(status)) => {
                let why = format!("this daemon takes no streams ({})", status.message());
                Ok(Tried::unsuitable(why))
            }
            Err(upload::UploadError::NotTaken(why)) => Ok(Tried::not_taken(&why)),
            Err(upload::UploadError::Failed(failure)) => Err(failure),
        }
    }
}

async fn by_path(
    plan: &Plan,
    daemon: &Daemon,
    quiet: bool,
    detour: &Detour,
) -> Result<Tried<Imported>, Failure> {
    let Some(spelling) = &plan.spelling else {
        return Ok(Tried::unsuitable("a pipe has no path"));
    };
    let Some(path) = spelling.path.to_str() else {
        let why = format!(
            "the path {} is not UTF-8 and cannot be named to the daemon; use --transfer fd or stream",
            spelling.path.display()
        );
        return Ok(Tried::unsuitable(why));
    };
    let mut request = Request::new(UploadPersistentCacheTaskRequest {
        content_for_calculating_task_id: plan.id_from.clone(),
        path: path.to_owned(),
        persistent_replica_count: plan.replicas,
        tag: plan.tag.clone(),
        application: plan.application.clone(),
        piece_length: plan.piece_length,
        ttl: prost_types::Duration::try_from(plan.ttl).ok(),
        timeout: prost_types::Duration::try_from(plan.timeout).ok(),
        remote_ip: None,
    });
    handing::name_seen(request.metadata_mut().as_mut(), Seen::of(plan.source.file()).ok());
    request.set_timeout(plan.timeout);
    let mut ticker = Ticker::new(Progress::waiting(&format!("Importing {}...", plan.source.name), quiet));
    let mut client = DfdaemonDownloadClient::new(daemon.channel.clone());
    detour.warning(PROGRAM, BY_PATH).iter().for_each(|text| ticker.note(text));
    let answer = ticker.beside(client.upload_persistent_cache_task(request)).await;
    drop(ticker);
    let task = match answer {
        Ok(task) => task.into_inner(),
        Err(status) if plan.transfer == TransferMode::Auto && Reason::of(&status) == Some(Reason::Path) => {
            let why = format!("the daemon does not open this file itself ({})", status.message());
            return Ok(Tried::unsuitable(why));
        }
        Err(status) => return Err(refused(&status)),
    };
    Ok(Tried::Done(Imported {
        task_id: task.id.clone(),
        bytes: plan.source.length().unwrap_or(task.content_length),
        task: Some(task),
        resumed_at: 0,
        transfer: Transfer { mode: "path".to_owned(), reason: plan.reason(detour) },
    }))
}

/// A refusal by the daemon, with what helps.
pub(super) fn refused(status: &Status) -> Failure {
    let mut failure = Failure::of_call(TITLE, status);
    let help = match status.code() {
        _ if Reason::of(status) == Some(Reason::NoSpace) => {
            "; free space, or remove what is not needed with dfcache rm"
        }
        Code::PermissionDenied if !status.message().contains("--transfer ") => {
            "; with --transfer fd the daemon need not open the file itself"
        }
        Code::FailedPrecondition if status.message().contains("redis") => {
            "; Dragonfly's scheduler keeps imported content only when it has a Redis"
        }
        _ => "",
    };
    failure.message.push_str(help);
    failure
}
