//! From the command line to what will be asked of the daemon.

use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_core::geometry::named_piece_length;
use damselfly_core::task_id::DEFAULT_FILTERED_QUERY_PARAMS;
use damselfly_core::{Digest, RangeSpec, TaskId, redact};
use damselfly_scheduler_client::{Target, TargetError};
use thiserror::Error;

use super::args::{Args, DaemonUse};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{InvalidOutput, Output};

/// Where a scheduler listens unless something else is named.
const SCHEDULER_PORT: u16 = crate::dfscheduler::args::PORT;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to ask of the daemon; output fields are filled in per way of transfer.
    pub download: common::Download,
    /// Where the content goes.
    pub output: Output,
    /// The part of the content that is wanted.
    pub range: RangeSpec,
    /// What the content must be.
    pub digest: Option<Digest>,
    /// Take the content through a daemon's socket, as asked.
    pub through_socket: bool,
    /// When to give up, from the start.
    pub timeout: Duration,
    /// The URL's path, decoded: the download's name for people.
    pub name: String,
    /// The URL without secrets.
    pub url: String,
    /// The task's id, as every daemon derives it.
    pub task: TaskId,
    /// The schedulers whose swarm a download without a daemon joins.
    pub join: Vec<Target>,
}

/// Arguments that parse and make no sense.
#[derive(Debug, Error)]
pub enum Invalid {
    /// A flag of Dragonfly's that nothing stands behind.
    #[error(
        "{flag} is not available: Damselfly downloads single files over http and https, {what} are not built"
    )]
    Unbuilt {
        /// The flag.
        flag: &'static str,
        /// What it belongs to.
        what: &'static str,
    },
    /// No http.
    #[error(
        "cannot download from {scheme}: only http and https are built; give an http(s) URL of the file, a presigned one for instance"
    )]
    Scheme {
        /// The URL's scheme.
        scheme: String,
    },
    /// Dragonfly reads a trailing slash as a directory.
    #[error(
        "the URL path {path} ends in / and so names a directory: recursive downloads are not built; name a file"
    )]
    Directory {
        /// The URL's path.
        path: String,
    },
    /// Nothing can be written there.
    #[error(transparent)]
    Output(#[from] InvalidOutput),
    /// Schedulers take no such pieces.
    #[error(transparent)]
    PieceLength(#[from] damselfly_core::GeometryError),
    /// Not a digest.
    #[error(transparent)]
    Digest(#[from] damselfly_core::DigestError),
    /// Not a range.
    #[error(transparent)]
    Range(#[from] damselfly_core::RangeError),
    /// No task follows from the URL.
    #[error(transparent)]
    Id(#[from] damselfly_core::IdError),
    /// Not a scheduler.
    #[error("--join: expected {0}")]
    Join(#[from] TargetError),
    /// Two wishes that cannot both come true.
    #[error("{0}")]
    Conflict(&'static str),
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Failure::new("Validating Failed!", Exit::Failure, invalid)
    }
}

impl Plan {
    /// Checks what the parser could not.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn new(args: &Args) -> Result<Self, Invalid> {
        if let Some((flag, what)) = args.unbuilt.given() {
            return Err(Invalid::Unbuilt { flag, what });
        }
        if !matches!(args.url.scheme(), "http" | "https") {
            return Err(Invalid::Scheme { scheme: args.url.scheme().to_owned() });
        }
        if args.url.path().ends_with('/') {
            return Err(Invalid::Directory { path: args.url.path().to_owned() });
        }
        args.piece_length.map(|length| named_piece_length(length.as_u64())).transpose()?;
        let digest = args.digest.as_deref().map(str::parse::<Digest>).transpose()?;
        let headers = headers(&args.header);
        let range = headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case("range"))
            .map_or(Ok(RangeSpec::Whole), |(_, value)| RangeSpec::parse_header(value))?;
        let output = Output::find(&args.output, args.overwrite)?;
        if range != RangeSpec::Whole && digest.is_some() {
            return Err(Invalid::Conflict(
                "--digest covers the whole content and cannot be checked on a range; leave one of them out",
            ));
        }
        if args.force_hard_link
            && (range != RangeSpec::Whole || args.transfer_from_dfdaemon || output == Output::Stdout)
        {
            return Err(Invalid::Conflict(
                "--force-hard-link is for whole files that the daemon writes: it goes with no Range header, no \
                 --transfer-from-dfdaemon and no -O -",
            ));
        }
        if args.daemon == DaemonUse::Never && args.endpoint.is_some() {
            return Err(Invalid::Conflict(
                "-e names a daemon and --daemon never wants none; leave one of them out",
            ));
        }
        let path = args.url.path();
        let download = download(args, headers);
        Ok(Self {
            task: damselfly_actors::request::task_id(&download)?,
            join: Target::parse_list(&args.join, SCHEDULER_PORT)?,
            download,
            output,
            range,
            digest,
            through_socket: args.transfer_from_dfdaemon,
            timeout: args.timeout,
            name: percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned(),
            url: redact::url(args.url.as_str()),
        })
    }
}

/// Splits each at its first colon; what has none is dropped, as Dragonfly's dfget does. The last of equal keys counts.
fn headers(given: &[String]) -> Vec<(String, String)> {
    given
        .iter()
        .filter_map(|header| header.split_once(':'))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

fn download(args: &Args, headers: Vec<(String, String)>) -> common::Download {
    let filtered = match &args.filtered_query_param {
        Some(names) => names.clone(),
        None => DEFAULT_FILTERED_QUERY_PARAMS.map(str::to_owned).to_vec(),
    };
    common::Download {
        url: args.url.to_string(),
        digest: args.digest.clone(),
        r#type: common::TaskType::Standard.into(),
        // Present even when empty, as Dragonfly's dfget sends them.
        tag: Some(args.tag.clone()),
        application: Some(args.application.clone()),
        priority: args.priority,
        filtered_query_params: filtered,
        request_header: headers.into_iter().collect(),
        piece_length: args.piece_length.map(|length| length.as_u64()),
        timeout: prost_types::Duration::try_from(args.timeout).ok(),
        disable_back_to_source: args.disable_back_to_source,
        force_hard_link: args.force_hard_link,
        content_for_calculating_task_id: args.content_for_calculating_task_id.clone(),
        overwrite: args.overwrite,
        ..common::Download::default()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn plan(arguments: &[&str]) -> Result<Plan, Invalid> {
        Plan::new(&Args::try_parse_from([&["dfget"], arguments].concat()).unwrap())
    }

    fn refusal(arguments: &[&str]) -> String {
        plan(arguments).unwrap_err().to_string()
    }

    #[test]
    fn the_request_is_what_dragonflys_dfget_sends() {
        let plan =
            plan(&["http://h/a%20b?x=1", "-O", "/tmp/absent-output", "-H", "A: b: c", "-H", "nonsense"])
                .unwrap();
        let sent = plan.download;
        assert_eq!(sent.url, "http://h/a%20b?x=1");
        assert_eq!((sent.tag.as_deref(), sent.application.as_deref()), (Some(""), Some("")));
        assert_eq!((sent.priority, sent.piece_length), (6, None));
        assert_eq!(
            sent.request_header.into_iter().collect::<Vec<_>>(),
            [("A".to_owned(), "b: c".to_owned())]
        );
        assert_eq!(sent.filtered_query_params.len(), 30);
        assert_eq!(sent.timeout.map(|timeout| timeout.seconds), Some(7200));
        assert_eq!((plan.name.as_str(), plan.url.as_str()), ("/a b", "http://h/a%20b?x=REDACTED"));
        assert!(!plan.through_socket);
    }

    #[test]
    fn filtered_parameters_replace_the_defaults() {
        let plan = plan(&["http://h/f", "-O", "-", "--filtered-query-param", "token"]).unwrap();
        assert_eq!(plan.download.filtered_query_params, ["token"]);
        assert_eq!(plan.output, Output::Stdout);
    }

    #[test]
    fn a_range_is_of_a_whole_task() {
        let range = ["http://h/f", "-O", "/tmp/absent-output", "-H", "range: bytes=5-"];
        let ranged = plan(&range).unwrap();
        assert_eq!(ranged.range, RangeSpec::From(5));
        assert_eq!(ranged.task, plan(&["http://h/f", "-O", "-"]).unwrap().task);
        assert!(refusal(&[&range[..], &["--digest", "crc32:1"]].concat()).contains("whole content"));
        assert!(refusal(&[&range[..], &["--force-hard-link"]].concat()).contains("--force-hard-link"));
        assert!(refusal(&["http://h/f", "-O", "-", "-H", "Range: x"]).contains("malformed range"));
    }

    #[test]
    fn a_swarm_is_joined_by_name() {
        let plan = plan(&["http://h/f", "-O", "-", "--join", "a,b:1", "--join", "c"]).unwrap();
        assert_eq!(
            plan.join.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["a:8002", "b:1", "c:8002"]
        );
        assert!(refusal(&["http://h/f", "-O", "-", "--join", "a:b:c"]).starts_with("--join: expected"));
        let both = ["http://h/f", "-O", "-", "--daemon", "never", "-e", "/d.sock"];
        assert!(refusal(&both).contains("--daemon never"));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let url = ["http://h/f", "-O", "-"];
        assert!(refusal(&[&url[..], &["-r"]].concat()).starts_with("--recursive is not available"));
        assert!(refusal(&[&url[..], &["--hf-token", "t"]].concat()).contains("model hubs are not built"));
        assert!(refusal(&["s3://bucket/key", "-O", "-"]).starts_with("cannot download from s3"));
        assert!(refusal(&["http://h/dir/", "-O", "-"]).contains("/dir/ ends in /"));
    }

    #[test]
    fn outputs_that_cannot_be() {
        let home = tempfile::tempdir().unwrap();
        let there = home.path().join("there");
        std::fs::write(&there, "x").unwrap();
        let there = there.to_str().unwrap();
        assert!(refusal(&["http://h/f", "-O", there]).contains("is already exist"));
        assert!(
            matches!(plan(&["http://h/f", "-O", there, "--overwrite"]).unwrap().output, Output::File(file) if file.existed)
        );
        assert!(
            refusal(&["http://h/f", "-O", "/nowhere/at/all"]).contains("directory /nowhere/at of the output")
        );
        assert!(
            refusal(&["http://h/f", "-O", home.path().to_str().unwrap(), "--overwrite"])
                .contains("a directory")
        );
        assert!(refusal(&["http://h/f", "-O", "/dev/null", "--overwrite"]).contains("a device"));
        assert!(refusal(&["http://h/f", "-O", "-", "--piece-length", "4MB"]).contains("4000000 bytes"));
        assert!(refusal(&["http://h/f", "-O", "-", "--digest", "sha256:zz"]).contains("64 hex digits"));
    }
}
