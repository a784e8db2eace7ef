//! `dfcache import`: over the socket, or by a path that the daemon reads.

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2::PersistentCacheTask;
use damselfly_api::dfdaemon::v2::UploadPersistentCacheTaskRequest;
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_core::PERSISTENT_CACHE_TTL;
use damselfly_core::geometry::named_piece_length;
use thiserror::Error;
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use super::args::{Ack, ContentId, Import, TransferMode};
use super::settings::{ConflictError, Origin, Settings};
use super::source::{Source, SourceError};
use super::{receipt, upload};
use crate::client::{Limits, print_json};
use crate::endpoint::{self, Daemon};
use crate::exit::Exit;
use crate::failure::{Failure, Reason};
use crate::progress::Progress;
use crate::ticker::Ticker;
use crate::transfer::Transfer;

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
    #[error("{given} lets the daemon read a file, and {source_name} is a pipe; leave it out")]
    Pipe { given: String, source_name: String },
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
        if args.path == Path::new("-") {
            // What a file says for every import gives way to what this one needs.
            return match settings.transfer.origin {
                Origin::File(_) => Ok(()),
                _ => Err(Invalid::Pipe { given: path, source_name: "stdin".to_owned() }),
            };
        }
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

    fn new(args: &Import, settings: &Settings, source: Source) -> Result<Self, Invalid> {
        let asked = settings.transfer.origin != Origin::Default;
        let transfer_asked =
            asked.then(|| format!("{} {}", settings.transfer.origin, settings.transfer.value));
        let mut transfer = settings.transfer.value;
        if source.path().is_none() && transfer == TransferMode::Path {
            if !matches!(settings.transfer.origin, Origin::File(_)) {
                let given = transfer_asked.unwrap_or_default();
                return Err(Invalid::Pipe { given, source_name: source.name });
            }
            transfer = TransferMode::Auto;
        }
        Ok(Self {
            source,
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
            transfer,
            transfer_asked,
            buffer: settings.buffer_size.value,
            idle: settings.idle_timeout.value,
        })
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
    let connect = async { Ok(endpoint::connect(settings.endpoint.value.as_deref()).await?) };
    let daemon = limits.within(false, connect).await?;
    let resumes = plan.source.path().is_some();
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

async fn import(plan: Arc<Plan>, daemon: Daemon, quiet: bool) -> Result<Imported, Failure> {
    let asked = || plan.transfer_asked.as_ref().map_or_else(String::new, |by| format!("as asked ({by})"));
    if plan.transfer == TransferMode::Path {
        return by_path(&plan, &daemon, quiet, asked()).await;
    }
    let reason = match (plan.source.path(), plan.transfer) {
        (None, _) => "a pipe".to_owned(),
        (Some(_), TransferMode::Stream) => asked(),
        (Some(_), _) => "the daemon takes streams".to_owned(),
    };
    let mut ticker = Ticker::new(Progress::new(&plan.source.name, quiet));
    match upload::run(&plan, &daemon, &mut ticker).await {
        Ok(uploaded) => Ok(Imported {
            task_id: uploaded.response.task_id,
            task: uploaded.response.task,
            bytes: uploaded.bytes,
            resumed_at: uploaded.resumed_at,
            transfer: Transfer { mode: "stream".to_owned(), reason },
        }),
        Err(upload::UploadError::Unsupported(status)) => {
            let why = without_streams(&plan, &status)?;
            ticker.note(&format!("dfcache: {why}; it reads the file itself instead (path)"));
            drop(ticker);
            by_path(&plan, &daemon, quiet, why).await
        }
        Err(upload::UploadError::Failed(failure)) => Err(failure),
    }
}

/// Why the daemon reads the file itself, where that will do.
fn without_streams(plan: &Plan, status: &Status) -> Result<String, Failure> {
    let why = format!("this daemon takes no streams ({})", status.message());
    let help = if plan.source.path().is_none() {
        "import a file instead of a pipe"
    } else if plan.content_id != ContentId::Sha256 {
        "leave --content-id out"
    } else if plan.ack > 1 {
        "leave --ack out"
    } else {
        return Ok(why);
    };
    let text = format!("{why}: it needs Damselfly's dfdaemon of this version; {help}, or use such a daemon");
    Err(Failure::new(TITLE, Exit::Failure, text))
}

async fn by_path(plan: &Plan, daemon: &Daemon, quiet: bool, reason: String) -> Result<Imported, Failure> {
    let wrong = |text: String| Failure::new(TITLE, Exit::Failure, text);
    let path = plan.source.path().and_then(Path::to_str).ok_or_else(|| {
        wrong(format!(
            "the path {} is not UTF-8 and cannot be named to the daemon; use --transfer stream",
            plan.source.name
        ))
    })?;
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
    request.set_timeout(plan.timeout);
    let mut ticker = Ticker::new(Progress::waiting(&format!("Importing {}...", plan.source.name), quiet));
    let mut client = DfdaemonDownloadClient::new(daemon.channel.clone());
    let answer = ticker.beside(client.upload_persistent_cache_task(request)).await;
    drop(ticker);
    let task = answer.map_err(|status| refused(&status))?.into_inner();
    Ok(Imported {
        task_id: task.id.clone(),
        bytes: plan.source.length().unwrap_or(task.content_length),
        task: Some(task),
        resumed_at: 0,
        transfer: Transfer { mode: "path".to_owned(), reason },
    })
}

/// A refusal by the daemon, with what helps.
pub(super) fn refused(status: &Status) -> Failure {
    let mut failure = Failure::of_call(TITLE, status);
    let help = match status.code() {
        _ if Reason::of(status) == Some(Reason::NoSpace) => {
            "; free space, or remove what is not needed with dfcache rm"
        }
        Code::PermissionDenied => "; with --transfer stream the daemon need not read the file itself",
        Code::FailedPrecondition if status.message().contains("redis") => {
            "; Dragonfly's scheduler keeps imported content only when it has a Redis"
        }
        _ => "",
    };
    failure.message.push_str(help);
    failure
}
