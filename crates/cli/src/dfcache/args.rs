//! dfcache's command line: names, environment and defaults are Dragonfly's, what it does not have stands last.
//!
//! Options that dfcache.yaml has too have no default here: [`super::settings`] puts them together.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::BoolishValueParser;
use clap::{ArgMatches, Args as ClapArgs, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use damselfly_core::PathMapping;

use crate::logging::Level;
use crate::{units, version};

/// Keeps files in the swarm's cache: imports them, exports them on any host, shows and removes them.
#[derive(Clone, Debug, Parser)]
#[command(name = "dfcache", version = version::long(), max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no daemon, 5 digest mismatch, 6 no space, 7 timeout, \
    130 interrupted."
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Read this dfcache.yaml [default: the user's, else /etc/dragonfly/dfcache.yaml, where there is one]
    #[arg(long, global = true, env = "DFCACHE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print one JSON object for programs, on stdout (export -O -: on stderr)
    #[arg(long, global = true)]
    pub json: bool,

    /// What the parser found, to tell flags from environment variables.
    #[clap(skip)]
    pub matches: Matches,
}

/// What the parser found.
#[derive(Clone, Debug, Default)]
pub struct Matches(pub ArgMatches);

/// What dfcache does.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Import a file or a stream, print its id
    Import(Import),
    /// Write imported content to a file or to stdout
    Export(Export),
    /// Show what the cluster knows of imported content, and how many copies there are
    Stat(Stat),
    /// The imported content on this host, or of the cluster
    Ls(Ls),
    /// Remove imported content and all its copies
    Rm(Rm),
    /// Print every option's value and where it comes from
    Config,
}

/// Which way the bytes take between this process and the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum TransferMode {
    /// Whichever works.
    #[default]
    Auto,
    /// The daemon opens the file and reads or writes it.
    Path,
    /// The daemon reads or writes the file that this process opened.
    Fd,
    /// Over the daemon's socket.
    Stream,
}

impl fmt::Display for TransferMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TransferMode::Auto => "auto",
            TransferMode::Path => "path",
            TransferMode::Fd => "fd",
            TransferMode::Stream => "stream",
        })
    }
}

/// The hash that ids of content are derived with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum ContentId {
    /// SHA-256, as Dragonfly's.
    #[default]
    Sha256,
    /// BLAKE3, which is faster.
    Blake3,
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ContentId::Sha256 => "sha256",
            ContentId::Blake3 => "blake3",
        })
    }
}

/// How many copies an import waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// So many, this host's included; at least 1.
    Count(u32),
    /// As many as the cluster is to keep.
    All,
}

impl FromStr for Ack {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(count) if count > 0 => Ok(Ack::Count(count)),
            _ if text == "all" => Ok(Ack::All),
            _ => Err("expected a number of copies from 1, or all".to_owned()),
        }
    }
}

/// What to import, and under which terms.
#[derive(Clone, Debug, ClapArgs)]
pub struct Import {
    /// The file; - is stdin
    pub path: PathBuf,

    /// Derive the id from this text instead of the content
    #[arg(long, env = "DFCACHE_IMPORT_CONTENT_FOR_CALCULATING_TASK_ID", value_name = "TEXT")]
    pub content_for_calculating_task_id: Option<String>,

    /// Copies that the cluster keeps
    #[arg(long, env = "DFCACHE_IMPORT_PERSISTENT_REPLICA_COUNT", default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub persistent_replica_count: u64,

    /// Bytes per piece, at least 4MiB; derived from the length unless given
    #[arg(long, env = "DFCACHE_IMPORT_PIECE_LENGTH", value_name = "SIZE", value_parser = units::parse_size)]
    pub piece_length: Option<ByteSize>,

    /// Part of the id
    #[arg(long, env = "DFCACHE_IMPORT_APPLICATION", value_name = "NAME")]
    pub application: Option<String>,

    /// Part of the id
    #[arg(long, env = "DFCACHE_IMPORT_TAG", value_name = "NAME")]
    pub tag: Option<String>,

    /// How long the cluster keeps it, 5m to 7d
    #[arg(long, env = "DFCACHE_IMPORT_TTL", default_value = "1h", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub ttl: Duration,

    /// Give up after this long
    #[arg(long, env = "DFCACHE_IMPORT_TIMEOUT", default_value = "30m", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    /// fd: the daemon reads the file that dfcache opened; path: the daemon opens it; stream: over its socket; auto:
    /// whichever works, in this order but path last [default: auto]
    #[arg(
        long,
        env = "DFCACHE_IMPORT_TRANSFER",
        hide_possible_values = true,
        value_name = "auto|path|stream|fd"
    )]
    pub transfer: Option<TransferMode>,

    /// What the daemon's host calls directories of this container; with it auto tries path first
    #[arg(long, env = "DFCACHE_IMPORT_PATH_MAPPING", value_name = "CONTAINER:HOST[,...]")]
    pub path_mapping: Option<PathMapping>,

    /// The same as --transfer stream
    #[arg(long, env = "DFCACHE_IMPORT_STREAM_MODE", value_parser = BoolishValueParser::new())]
    pub stream_mode: bool,

    /// The hash that the id is derived with [default: sha256]
    #[arg(
        long,
        env = "DFCACHE_IMPORT_CONTENT_ID",
        hide_possible_values = true,
        value_name = "sha256|blake3"
    )]
    pub content_id: Option<ContentId>,

    /// Copies on disk to wait for, this host's included
    #[arg(long, env = "DFCACHE_IMPORT_ACK", default_value = "1", value_name = "N|all")]
    pub ack: Ack,

    /// Show no progress
    #[arg(long, env = "DFCACHE_IMPORT_NO_PROGRESS", value_parser = BoolishValueParser::new())]
    pub no_progress: bool,

    /// The daemon's socket [default: the user's, else /var/run/dragonfly/dfdaemon.sock]
    #[arg(short, long, env = "DFCACHE_IMPORT_DFDAEMON_ENDPOINT", value_name = "SOCKET")]
    pub endpoint: Option<PathBuf>,

    /// What to log with --console
    #[arg(short, long, env = "DFCACHE_IMPORT_LOG_LEVEL", default_value = "info")]
    pub log_level: Level,

    /// Log to stderr
    #[arg(long, env = "DFCACHE_IMPORT_CONSOLE", value_parser = BoolishValueParser::new())]
    pub console: bool,
}

/// What to export, and where to.
#[derive(Clone, Debug, ClapArgs)]
pub struct Export {
    /// The id that import printed
    pub id: String,

    /// Where to write it; - is stdout
    #[arg(short = 'O', long, value_name = "PATH")]
    pub output: PathBuf,

    /// The same as --transfer stream
    #[arg(long, env = "DFCACHE_EXPORT_TRANSFER_FROM_DFDAEMON", value_parser = BoolishValueParser::new())]
    pub transfer_from_dfdaemon: bool,

    /// Replace an existing output
    #[arg(long, env = "DFCACHE_EXPORT_OVERWRITE", value_parser = BoolishValueParser::new())]
    pub overwrite: bool,

    /// Fail unless the output can be a hard link to the daemon's copy
    #[arg(long, env = "DFCACHE_EXPORT_FORCE_HARD_LINK", value_parser = BoolishValueParser::new())]
    pub force_hard_link: bool,

    /// For whom it is exported, in the daemon's books
    #[arg(
        long,
        env = "DFCACHE_EXPORT_APPLICATION",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    pub application: String,

    /// What it is exported for, in the daemon's books
    #[arg(
        long,
        env = "DFCACHE_EXPORT_TAG",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    pub tag: String,

    /// Give up after this long
    #[arg(long, env = "DFCACHE_EXPORT_TIMEOUT", default_value = "2h", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    /// What the content must be: crc32, md5, sha1, sha256, sha512 or blake3, a colon, and the value
    #[arg(long, value_name = "ALGORITHM:VALUE")]
    pub digest: Option<String>,

    /// path: the daemon opens the output; fd: it writes to what dfcache opened; stream: over its socket; auto: the
    /// first of these that works [default: auto]
    #[arg(
        long,
        env = "DFCACHE_EXPORT_TRANSFER",
        hide_possible_values = true,
        value_name = "auto|path|stream|fd"
    )]
    pub transfer: Option<TransferMode>,

    /// What the daemon's host calls directories of this container
    #[arg(long, env = "DFCACHE_EXPORT_PATH_MAPPING", value_name = "CONTAINER:HOST[,...]")]
    pub path_mapping: Option<PathMapping>,

    /// The same as --transfer stream
    #[arg(long, env = "DFCACHE_EXPORT_STREAM_MODE", value_parser = BoolishValueParser::new())]
    pub stream_mode: bool,

    /// Show no progress
    #[arg(long, env = "DFCACHE_EXPORT_NO_PROGRESS", value_parser = BoolishValueParser::new())]
    pub no_progress: bool,

    /// The daemon's socket [default: the user's, else /var/run/dragonfly/dfdaemon.sock]
    #[arg(short, long, env = "DFDAEMON_ENDPOINT", value_name = "SOCKET")]
    pub endpoint: Option<PathBuf>,

    /// What to log with --console
    #[arg(short, long, env = "DFCACHE_EXPORT_LOG_LEVEL", default_value = "info")]
    pub log_level: Level,

    /// Log to stdout (with -O - or --json, to stderr)
    #[arg(long, env = "DFCACHE_EXPORT_CONSOLE", value_parser = BoolishValueParser::new())]
    pub console: bool,
}

/// What to show.
#[derive(Clone, Debug, ClapArgs)]
pub struct Stat {
    /// The id that import printed
    pub id: String,

    /// The daemon's socket [default: the user's, else /var/run/dragonfly/dfdaemon.sock]
    #[arg(short, long, env = "DFCACHE_STAT_DFDAEMON_ENDPOINT", value_name = "SOCKET")]
    pub endpoint: Option<PathBuf>,

    /// What to log with --console
    #[arg(short, long, env = "DFCACHE_STAT_LOG_LEVEL", default_value = "info")]
    pub log_level: Level,

    /// Log to stderr
    #[arg(long, env = "DFCACHE_STAT_CONSOLE", value_parser = BoolishValueParser::new())]
    pub console: bool,
}

/// How to list.
#[derive(Clone, Debug, ClapArgs)]
pub struct Ls {
    /// All of the cluster's, with how many copies there are
    #[arg(long, env = "DFCACHE_LS_CLUSTER", value_parser = BoolishValueParser::new())]
    pub cluster: bool,

    /// The daemon's socket [default: the user's, else /var/run/dragonfly/dfdaemon.sock]
    #[arg(short, long, env = "DFCACHE_LS_DFDAEMON_ENDPOINT", value_name = "SOCKET")]
    pub endpoint: Option<PathBuf>,

    /// What to log with --console
    #[arg(short, long, env = "DFCACHE_LS_LOG_LEVEL", default_value = "info")]
    pub log_level: Level,

    /// Log to stderr
    #[arg(long, env = "DFCACHE_LS_CONSOLE", value_parser = BoolishValueParser::new())]
    pub console: bool,
}

/// What to remove.
#[derive(Clone, Debug, ClapArgs)]
pub struct Rm {
    /// The id that import printed
    pub id: String,

    /// The daemon's socket [default: the user's, else /var/run/dragonfly/dfdaemon.sock]
    #[arg(short, long, env = "DFCACHE_RM_DFDAEMON_ENDPOINT", value_name = "SOCKET")]
    pub endpoint: Option<PathBuf>,

    /// What to log with --console
    #[arg(short, long, env = "DFCACHE_RM_LOG_LEVEL", default_value = "info")]
    pub log_level: Level,

    /// Log to stderr
    #[arg(long, env = "DFCACHE_RM_CONSOLE", value_parser = BoolishValueParser::new())]
    pub console: bool,
}

impl Args {
    /// Reads this process's command line and environment; ends the process when they are wrong.
    #[must_use]
    pub fn read() -> Self {
        Self::parse_from_os(std::env::args_os()).unwrap_or_else(|why| why.exit())
    }

    /// Reads a command line and this process's environment.
    ///
    /// # Errors
    /// What the parser says.
    pub fn parse_from_os<I, T>(line: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(line)?;
        let mut args = Self::from_arg_matches(&matches).map_err(|why| why.format(&mut command))?;
        args.matches = Matches(matches);
        Ok(args)
    }
}

impl Command {
    /// A failure's first line, in Dragonfly's words.
    #[must_use]
    pub fn failure_title(&self) -> &'static str {
        match self {
            Command::Import(_) => "Importing Failed!",
            Command::Export(_) => "Exporting Failed!",
            Command::Stat(_) => "Stating Failed!",
            Command::Ls(_) => "Listing Persistent Cache Tasks Failed!",
            Command::Rm(_) => "Removing Task Failed!",
            Command::Config => "Reading Configuration Failed!",
        }
    }

    /// The id that the command is about.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match self {
            Command::Export(Export { id, .. })
            | Command::Stat(Stat { id, .. })
            | Command::Rm(Rm { id, .. }) => Some(id),
            Command::Import(_) | Command::Ls(_) | Command::Config => None,
        }
    }

    /// Whether logs are wanted, and which.
    #[must_use]
    pub fn console(&self) -> Option<Level> {
        let (console, level) = match self {
            Command::Import(args) => (args.console, args.log_level),
            Command::Export(args) => (args.console, args.log_level),
            Command::Stat(args) => (args.console, args.log_level),
            Command::Ls(args) => (args.console, args.log_level),
            Command::Rm(args) => (args.console, args.log_level),
            Command::Config => (false, Level::Info),
        };
        console.then_some(level)
    }
}
