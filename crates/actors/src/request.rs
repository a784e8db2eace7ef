//! From a `common.v2.Download` to a wish: what a caller asked for, checked and resolved.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2::Download;
use damselfly_core::geometry::named_piece_length;
use damselfly_core::task_id::{StandardInput, standard};
use damselfly_core::{ByteRange, Digest, Geometry, IdError, Kind, RangeSpec, TaskId, TaskKey, redact};
use damselfly_storage::NewTask;
use damselfly_transport::local::{Direction, PathAccess};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::codegen::BoxStream;
use url::Url;

use crate::engine::Engine;
use crate::local::Asking;
use crate::local::message::{Message, Teller};
use crate::metrics::TaskLabels;
use crate::output::{DescriptorOutput, Output, PathOutput, refused};
use crate::stream::{Item, StreamArgs, Telling};
use crate::task::request::OriginRequest;
use crate::task::wire;
use crate::tasks::{TasksMsg, Wish};

mod persistent_cache;

pub(crate) use persistent_cache::{Export, at_scheduler, prepare_export, unknown};

/// Items on their way to a client: with content by reference, each at most one piece.
const QUEUE: usize = 8;
/// The longest a client may wait when it names no timeout, as in Dragonfly's tools.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60);

/// A download that makes sense.
#[derive(Debug)]
pub struct Prepared {
    /// The task.
    pub key: TaskKey,
    new: NewTask,
    /// How the content is cut, where the scheduler said so.
    geometry: Option<Geometry>,
    owner: Option<u32>,
    wish: Wish,
    digest: Option<Digest>,
    labels: TaskLabels,
}

pub(crate) fn invalid(why: impl std::fmt::Display) -> Status {
    Status::invalid_argument(why.to_string())
}

/// The task that a caller names.
///
/// # Errors
/// INVALID_ARGUMENT for what is no id.
pub(crate) fn key(kind: Kind, id: &str) -> Result<TaskKey, Status> {
    Ok(TaskKey { kind, id: TaskId::parse(id).map_err(invalid)? })
}

/// A digest that a caller gave; an empty one is none.
///
/// # Errors
/// INVALID_ARGUMENT for what is no digest.
pub(crate) fn digest(text: Option<&str>) -> Result<Option<Digest>, Status> {
    text.filter(|text| !text.is_empty()).map(|text| text.parse::<Digest>().map_err(invalid)).transpose()
}

/// How long a caller is willing to wait; zero says nothing.
pub(crate) fn timeout(timeout: Option<prost_types::Duration>) -> Option<Duration> {
    wire::duration_from(timeout).filter(|timeout| !timeout.is_zero())
}

fn url_of(download: &Download) -> Result<Url, Status> {
    let shown = || redact::url(&download.url);
    let url =
        Url::parse(&download.url).map_err(|why| invalid(format!("malformed URL {:?}: {why}", shown())))?;
    if !matches!(url.scheme(), "http" | "https") {
        let scheme = url.scheme();
        return Err(invalid(format!(
            "cannot fetch {:?}: scheme {scheme:?} is not supported; use http or https",
            shown()
        )));
    }
    Ok(url)
}

/// The range asked for, and the headers without it.
fn range_and_headers(download: &Download) -> Result<(RangeSpec, Vec<(String, String)>), Status> {
    let (ranges, headers): (Vec<_>, Vec<_>) = download
        .request_header
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .partition(|(name, _)| name.eq_ignore_ascii_case("range"));
    let range = match (&download.range, ranges.first()) {
        (Some(range), _) => RangeSpec::Span(ByteRange { start: range.start, length: range.length }),
        (None, Some((_, value))) => {
            RangeSpec::parse_header(value).map_err(|why| Status::failed_precondition(why.to_string()))?
        }
        (None, None) => RangeSpec::Whole,
    };
    Ok((range, headers))
}

/// The id that a download's task has on every host.
///
/// # Errors
/// When the URL, or a blob's digest in it, is none.
pub fn task_id(download: &Download) -> Result<TaskId, IdError> {
    standard(&StandardInput {
        url: &download.url,
        tag: download.tag.as_deref(),
        application: download.application.as_deref(),
        revision: None,
        piece_length: download.piece_length,
        filtered_query_params: &download.filtered_query_params,
        content: download.content_for_calculating_task_id.as_deref(),
        blob_digest: download.enable_task_id_based_blob_digest,
        kind: Kind::Standard,
    })
}

/// Checks a download and resolves its task. `owner` becomes one of the task's users once content is granted.
///
/// # Errors
/// INVALID_ARGUMENT, FAILED_PRECONDITION for a range, PERMISSION_DENIED when the block list says so.
pub fn prepare(engine: &Engine, download: Download, owner: Option<u32>) -> Result<Prepared, Status> {
    let url = url_of(&download)?;
    let (range, headers) = range_and_headers(&download)?;
    let digest = digest(download.digest.as_deref())?;
    if let Err(why) = download.piece_length.map(named_piece_length).transpose() {
        return Err(invalid(format!("piece_length: {why}; leave it out to have it derived")));
    }
    let id = task_id(&download).map_err(invalid)?;
    let labels = engine.metrics.labels(
        Kind::Standard,
        download.tag.as_deref().unwrap_or_default(),
        download.application.as_deref().unwrap_or_default(),
        download.priority,
    );
    engine.check_blocked(&download)?;
    let timeout = timeout(download.timeout);
    let request = OriginRequest { url, headers, piece_length: download.piece_length };
    let new = NewTask {
        url_redacted: redact::url(&download.url),
        tag: download.tag.clone(),
        application: download.application.clone(),
        ..NewTask::default()
    };
    let wish = Wish {
        range,
        may_use_origin: !download.disable_back_to_source,
        deadline: Some(engine.clock.now() + timeout.unwrap_or(DEFAULT_TIMEOUT)),
        request: Some(Arc::new(request)),
        download: Arc::new(Download { output_path: None, ..download }),
    };
    Ok(Prepared {
        key: TaskKey { kind: Kind::Standard, id },
        new,
        geometry: None,
        owner,
        wish,
        digest,
        labels,
    })
}

/// Starts the client's stream beneath the registry.
#[must_use]
pub fn start(
    engine: &Arc<Engine>,
    prepared: Prepared,
    telling: Telling,
    output: Option<Output>,
) -> mpsc::Receiver<Result<Item, Status>> {
    let (out, items) = mpsc::channel(QUEUE);
    let Prepared { key, new, geometry, owner, wish, digest, labels } = prepared;
    let seat = engine.board.sit(format!("daemon/tasks/stream {}", key.id));
    let args = StreamArgs {
        engine: Arc::clone(engine),
        key,
        new,
        geometry,
        owner,
        wish,
        telling,
        output,
        digest,
        out,
        labels,
        seat,
    };
    engine.tasks.cast(TasksMsg::Stream(Box::new(args)));
    items
}

/// Opens a download's output with its caller's rights, or takes the file that it handed over.
///
/// # Errors
/// When the caller may not write there, or something is in the way.
pub(crate) async fn output(
    engine: &Engine,
    asking: &Asking,
    path: Option<&str>,
    way: Way,
) -> Result<Option<Output>, Status> {
    match (asking.descriptor(engine, Direction::ToClient)?, path) {
        (None, None) => Ok(None),
        (None, Some(path)) => open_output(engine, asking, path, way).await.map(Some),
        (Some(file), None) => {
            Ok(Some(Output::Descriptor(DescriptorOutput::new(file, Arc::clone(&asking.caller)))))
        }
        (Some(_), Some(_)) => Err(invalid("an output is a path or a descriptor, not both")),
    }
}

/// How an output may come about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) overwrite: bool,
    pub(crate) force_hard_link: bool,
}

async fn open_output(engine: &Engine, asking: &Asking, path: &str, way: Way) -> Result<Output, Status> {
    let caller = &asking.caller;
    let access = access(engine, asking);
    let target = access.open_output(Path::new(path)).await.map_err(|why| refused(&why))?;
    if !way.overwrite && target.is_taken().await.map_err(|why| refused(&why))? {
        return Err(Status::already_exists(format!(
            "output path {path} is already exists; remove it or overwrite it"
        )));
    }
    Ok(Output::Path(PathOutput {
        target,
        same_uid: caller.native && caller.uid == rustix::process::geteuid().as_raw(),
        overwrite: way.overwrite,
        force_hard_link: way.force_hard_link,
    }))
}

/// What a caller may name, beneath the configured roots where it lives elsewhere.
pub(crate) fn access(engine: &Engine, asking: &Asking) -> PathAccess {
    let roots = engine.config.download.path_roots.clone().into();
    PathAccess::new(Arc::clone(&asking.caller), roots).only(asking.seen)
}

/// Refuses what nobody may ask for over the network.
///
/// # Errors
/// PERMISSION_DENIED for an output; UNIMPLEMENTED for content in messages, which travels over Vortex between hosts.
pub(crate) fn check_remote(output: Option<&str>, need_piece_content: bool) -> Result<(), Status> {
    if output.is_some() {
        return Err(Status::permission_denied("output_path is for this host's own callers: leave it out"));
    }
    if need_piece_content {
        return Err(Status::unimplemented(
            "pieces travel between hosts over Vortex: leave out need_piece_content",
        ));
    }
    Ok(())
}

/// The story of a download asked for over the network: a scheduler triggers a seed or a replica, or another program
/// watches one.
///
/// # Errors
/// What the download fails with before anything is told.
pub(crate) async fn remote<M: Message>(
    engine: &Arc<Engine>,
    prepared: Prepared,
) -> Result<BoxStream<M>, Status> {
    let task = prepared.key.id.to_string();
    let mut items = start(engine, prepared, Telling::Pieces { content: false }, None);
    // A refusal before anything was told is the call's status, not the stream's.
    let first = items
        .recv()
        .await
        .ok_or_else(|| Status::internal("the download's stream crashed; see the daemon's log"))??;
    let host = engine.identity.host_id.to_string();
    let mut teller = Teller::<M>::new(host, task);
    let head = teller.message(&first);
    let tail =
        ReceiverStream::new(items).filter_map(move |item| item.map(|item| teller.message(&item)).transpose());
    Ok(Box::pin(tokio_stream::iter(head.map(Ok)).chain(tail)))
}

#[cfg(test)]
mod tests;
