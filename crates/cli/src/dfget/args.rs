//! dfget's command line: names, environment and defaults are Dragonfly's, what it does not have stands last.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args as ClapArgs, Parser};
use url::Url;

use crate::logging::Level;
use crate::{units, version};

/// Whether a daemon does the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum DaemonUse {
    /// Where one answers; else this process downloads itself.
    #[default]
    Auto,
    /// Without one the download fails.
    Require,
    /// This process downloads itself, whether one runs or not.
    Never,
}

/// Downloads a file through the swarm.
#[derive(Clone, Debug, Parser)]
#[command(name = "dfget", version = version::long(), max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no daemon (with -e or --daemon require), 4 origin error, 5 digest mismatch, \
    6 no space, 7 timeout, 130 interrupted."
)]
pub struct Args {
    /// What to download (http or https)
    pub url: Url,

    /// Where to write it; - is stdout
    #[arg(short = 'O', long, value_name = "PATH")]
    pub output: PathBuf,

    /// Take the content through the daemon's socket and write it here, instead of letting the daemon write it
    #[arg(long, env = "DFGET_TRANSFER_FROM_DFDAEMON", value_parser = BoolishValueParser::new())]
    pub transfer_from_dfdaemon: bool,

    /// Replace an existing output
    #[arg(long, env = "DFGET_OVERWRITE", value_parser = BoolishValueParser::new())]
    pub overwrite: bool,

    /// Fail unless the output can be a hard link to the daemon's copy
    #[arg(long, env = "DFGET_FORCE_HARD_LINK", value_parser = BoolishValueParser::new())]
    pub force_hard_link: bool,

    /// Derive the task's id from this text instead of the URL
    #[arg(long, env = "DFGET_CONTENT_FOR_CALCULATING_TASK_ID", value_name = "TEXT")]
    pub content_for_calculating_task_id: Option<String>,

    /// Give up after this long
    #[arg(long, env = "DFGET_TIMEOUT", default_value = "2h", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    /// What the content must be: crc32, md5, sha1, sha256, sha512 or blake3, a colon, and the value
    #[arg(long, value_name = "ALGORITHM:VALUE")]
    pub digest: Option<String>,

    /// 0 is the most urgent
    #[arg(short, long, env = "DFGET_PRIORITY", default_value_t = 6, value_name = "0..6", value_parser = clap::value_parser!(i32).range(0..=6))]
    pub priority: i32,

    /// Bytes per piece, at least 4MiB; part of the task's id
    #[arg(long, env = "DFGET_PIECE_LENGTH", value_name = "SIZE", value_parser = units::parse_size)]
    pub piece_length: Option<ByteSize>,

    /// Part of the task's id
    #[arg(
        long,
        env = "DFGET_APPLICATION",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    pub application: String,

    /// Part of the task's id
    #[arg(long, env = "DFGET_TAG", default_value = "", hide_default_value = true, value_name = "NAME")]
    pub tag: String,

    /// A request header for the origin (repeatable); 'Range: bytes=0-99' downloads part of the content
    #[arg(short = 'H', long, value_name = "KEY: VALUE")]
    pub header: Vec<String>,

    /// A query parameter that is not part of the task's id (repeatable) [default: those of signed URLs]
    #[arg(long, value_name = "NAME")]
    pub filtered_query_param: Option<Vec<String>>,

    /// Only peers may deliver the content
    #[arg(long, env = "DFGET_DISABLE_BACK_TO_SOURCE", value_parser = BoolishValueParser::new())]
    pub disable_back_to_source: bool,

    /// Show no progress
    #[arg(long, env = "DFGET_NO_PROGRESS", value_parser = BoolishValueParser::new())]
    pub no_progress: bool,

    /// Print one JSON object for programs, on stdout (with -O -, on stderr)
    #[arg(long)]
    pub json: bool,

    /// The daemon's socket [default: the user's, else /var/run/dragonfly/dfdaemon.sock]
    #[arg(short, long, value_name = "SOCKET")]
    pub endpoint: Option<PathBuf>,

    /// auto: without a daemon dfget downloads itself; require: it fails; never: it does not look for one. A daemon
    /// named with -e is required
    #[arg(
        long,
        env = "DFGET_DAEMON",
        default_value = "auto",
        hide_possible_values = true,
        value_name = "auto|require|never"
    )]
    pub daemon: DaemonUse,

    /// Without a daemon: a scheduler whose swarm to join (repeatable, or separated by commas)
    #[arg(long, env = "DFGET_JOIN", value_name = "HOST[:8002]")]
    pub join: Vec<String>,

    /// What to log with --console
    #[arg(short, long, env = "DFGET_LOG_LEVEL", default_value = "info")]
    pub log_level: Level,

    /// Log to stdout (with -O - or --json, to stderr)
    #[arg(long, env = "DFGET_CONSOLE", value_parser = BoolishValueParser::new())]
    pub console: bool,

    /// Flags of Dragonfly's that are known and refused.
    #[command(flatten)]
    pub unbuilt: Unbuilt,
}

/// Dragonfly's flags for sources and ways of downloading that do not exist here. They are known, so that the text can
/// say so. Their environment variables are not read: with an http URL they mean nothing to Dragonfly's dfget either.
#[derive(Clone, Debug, Default, ClapArgs)]
#[expect(missing_docs, reason = "the names are Dragonfly's, and nothing else is known of the values")]
pub struct Unbuilt {
    #[arg(short, long, hide = true)]
    pub recursive: bool,
    #[arg(short = 'I', long, hide = true)]
    pub include_files: Vec<String>,
    // The next two bound recursive downloads and have defaults: without -r they mean nothing.
    #[arg(long, env = "DFGET_MAX_FILES", hide = true)]
    pub max_files: Option<u64>,
    #[arg(long, env = "DFGET_MAX_CONCURRENT_REQUESTS", hide = true)]
    pub max_concurrent_requests: Option<u64>,
    #[arg(long, hide = true)]
    pub storage_region: Option<String>,
    #[arg(long, hide = true)]
    pub storage_endpoint: Option<String>,
    #[arg(long, hide = true)]
    pub storage_access_key_id: Option<String>,
    #[arg(long, hide = true)]
    pub storage_access_key_secret: Option<String>,
    #[arg(long, hide = true)]
    pub storage_security_token: Option<String>,
    #[arg(long, hide = true, action = ArgAction::Set)]
    pub storage_insecure_skip_verify: Option<bool>,
    #[arg(long, hide = true)]
    pub storage_session_token: Option<String>,
    #[arg(long, hide = true)]
    pub storage_credential_path: Option<String>,
    #[arg(long, hide = true)]
    pub storage_predefined_acl: Option<String>,
    #[arg(long, hide = true)]
    pub hdfs_delegation_token: Option<String>,
    #[arg(long, hide = true)]
    pub hf_revision: Option<String>,
    #[arg(long, hide = true)]
    pub hf_token: Option<String>,
    #[arg(long, hide = true)]
    pub hf_base_url: Option<String>,
    #[arg(long, hide = true)]
    pub ms_revision: Option<String>,
    #[arg(long, hide = true)]
    pub ms_token: Option<String>,
    #[arg(long, hide = true)]
    pub ms_base_url: Option<String>,
    #[arg(long, hide = true)]
    pub csg_revision: Option<String>,
    #[arg(long, hide = true)]
    pub csg_token: Option<String>,
    #[arg(long, hide = true)]
    pub csg_base_url: Option<String>,
}

impl Unbuilt {
    /// The first of these flags that was given, and what it belongs to.
    #[must_use]
    pub fn given(&self) -> Option<(&'static str, &'static str)> {
        const RECURSIVE: &str = "recursive downloads";
        const STORAGE: &str = "object stores";
        const HUB: &str = "model hubs";
        let flags = [
            (self.recursive, "--recursive", RECURSIVE),
            (!self.include_files.is_empty(), "--include-files", RECURSIVE),
            (self.storage_region.is_some(), "--storage-region", STORAGE),
            (self.storage_endpoint.is_some(), "--storage-endpoint", STORAGE),
            (self.storage_access_key_id.is_some(), "--storage-access-key-id", STORAGE),
            (self.storage_access_key_secret.is_some(), "--storage-access-key-secret", STORAGE),
            (self.storage_security_token.is_some(), "--storage-security-token", STORAGE),
            (self.storage_insecure_skip_verify.is_some(), "--storage-insecure-skip-verify", STORAGE),
            (self.storage_session_token.is_some(), "--storage-session-token", STORAGE),
            (self.storage_credential_path.is_some(), "--storage-credential-path", STORAGE),
            (self.storage_predefined_acl.is_some(), "--storage-predefined-acl", STORAGE),
            (self.hdfs_delegation_token.is_some(), "--hdfs-delegation-token", "HDFS"),
            (self.hf_revision.is_some(), "--hf-revision", HUB),
            (self.hf_token.is_some(), "--hf-token", HUB),
            (self.hf_base_url.is_some(), "--hf-base-url", HUB),
            (self.ms_revision.is_some(), "--ms-revision", HUB),
            (self.ms_token.is_some(), "--ms-token", HUB),
            (self.ms_base_url.is_some(), "--ms-base-url", HUB),
            (self.csg_revision.is_some(), "--csg-revision", HUB),
            (self.csg_token.is_some(), "--csg-token", HUB),
            (self.csg_base_url.is_some(), "--csg-base-url", HUB),
        ];
        flags.into_iter().find(|(given, ..)| *given).map(|(_, flag, what)| (flag, what))
    }
}
