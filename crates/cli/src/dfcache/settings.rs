//! The options that dfcache.yaml has too, put together: a flag counts before its environment variable, that before the
//! file, the file before the default.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory as _};
use damselfly_actors::config::Place;
use damselfly_core::PathMapping;
use damselfly_transport::local::PoolOptions;
use thiserror::Error;

use super::args::{Args, ContentId, Matches, TransferMode};
use super::config::{File, Found};
use crate::endpoint::{ConnectError, Daemon, candidates, connect_within};
use crate::{table, units};

const BUFFER_SIZE: u64 = 4 << 20;
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line; the flag as it was spelt there, dashes included.
    Flag(String),
    /// This environment variable.
    Environment(String),
    /// There in dfcache.yaml.
    File(Place),
    /// Nobody said anything.
    Default,
}

impl Origin {
    /// Whether it was said for this run: what a file says for every run gives way to what this one needs.
    #[must_use]
    pub fn is_of_this_run(&self) -> bool {
        matches!(self, Origin::Flag(_) | Origin::Environment(_))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(flag) => f.write_str(flag),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::File(place) => write!(f, "{place}"),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// A value and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it comes from.
    pub origin: Origin,
}

/// What a command that moves content goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which way the bytes take.
    pub transfer: Setting<TransferMode>,
    /// The hash of ids.
    pub content_id: Setting<ContentId>,
    /// The daemon's socket; `None` where the usual ones are tried.
    pub endpoint: Setting<Option<PathBuf>>,
    /// Bytes of content under way between the file and the socket.
    pub buffer_size: Setting<u64>,
    /// How long a stream may move nothing.
    pub idle_timeout: Setting<Duration>,
    /// Connections to the daemon at a time.
    pub max_connections: Setting<usize>,
    /// What the daemon's host calls directories.
    pub path_mapping: Setting<PathMapping>,
}

/// Two wishes that cannot both come true.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{one} and {other} contradict each other; leave one of them out")]
pub struct ConflictError {
    /// The one, as it was given.
    pub one: String,
    /// The other.
    pub other: String,
}

impl ConflictError {
    /// `one` and `other` cannot both be.
    pub fn new(one: impl ToString, other: impl ToString) -> Self {
        Self { one: one.to_string(), other: other.to_string() }
    }
}

impl Settings {
    /// Puts together what `matches` and `file` say.
    ///
    /// # Errors
    /// When the command line, or the environment, wants two ways of transfer at once.
    pub fn new(matches: &Matches, file: &File) -> Result<Self, ConflictError> {
        let given = Given::of(matches);
        let transfer = pick(transfer(&given)?, file.transfer.clone(), TransferMode::Auto);
        let path_mapping = pick(given.get("path_mapping"), file.path_mapping.clone(), PathMapping::default());
        if matches!(transfer.value, TransferMode::Stream | TransferMode::Fd)
            && !path_mapping.value.is_empty()
            && [&transfer.origin, &path_mapping.origin].into_iter().all(Origin::is_of_this_run)
        {
            let way = match &transfer.origin {
                Origin::Flag(flag) if flag != "--transfer" => flag.clone(),
                origin => format!("{origin} {}", transfer.value),
            };
            return Err(ConflictError::new(way, &path_mapping.origin));
        }
        Ok(Self {
            transfer,
            path_mapping,
            content_id: pick(given.get("content_id"), file.content_id.clone(), ContentId::Sha256),
            endpoint: pick(
                given.get("endpoint").map(|found: Setting<PathBuf>| found.map(Some)),
                file.socket_path.clone().map(|found| Found { value: Some(found.value), place: found.place }),
                None,
            ),
            buffer_size: pick(None, file.buffer_size.clone(), BUFFER_SIZE),
            idle_timeout: pick(None, file.idle_timeout.clone(), IDLE_TIMEOUT),
            max_connections: pick(None, file.max_connections.clone(), PoolOptions::default().max_connections),
        })
    }

    /// Connects to the daemon.
    ///
    /// # Errors
    /// [`ConnectError`] naming every socket that was tried.
    pub async fn connect(&self) -> Result<Daemon, ConnectError> {
        let options = PoolOptions { max_connections: self.max_connections.value, ..PoolOptions::default() };
        connect_within(self.endpoint.value.as_deref(), options).await
    }
}

impl<T> Setting<T> {
    fn map<U>(self, with: impl FnOnce(T) -> U) -> Setting<U> {
        Setting { value: with(self.value), origin: self.origin }
    }
}

fn pick<T>(given: Option<Setting<T>>, file: Option<Found<T>>, default: T) -> Setting<T> {
    match (given, file) {
        (Some(given), _) => given,
        (None, Some(found)) => Setting { value: found.value, origin: Origin::File(found.place) },
        (None, None) => Setting { value: default, origin: Origin::Default },
    }
}

/// What the parser found for one subcommand, with the names of its environment variables.
struct Given<'a> {
    matches: Option<&'a ArgMatches>,
    command: clap::Command,
}

impl<'a> Given<'a> {
    fn of(matches: &'a Matches) -> Self {
        let root = Args::command();
        match matches.0.subcommand() {
            Some((name, matches)) => {
                let command = root.find_subcommand(name).cloned().unwrap_or(root);
                Self { matches: Some(matches), command }
            }
            None => Self { matches: None, command: root },
        }
    }

    /// Where the option called `id` has its value from; `None` where the command has no such option.
    fn origin(&self, id: &str) -> Option<Origin> {
        let argument = self.command.get_arguments().find(|argument| argument.get_id() == id)?;
        Some(match self.matches?.value_source(id)? {
            ValueSource::CommandLine => Origin::Flag(flag(argument)),
            ValueSource::EnvVariable => {
                Origin::Environment(argument.get_env()?.to_string_lossy().into_owned())
            }
            _ => Origin::Default,
        })
    }

    /// The value of an option that was given.
    fn get<T: Clone + Send + Sync + 'static>(&self, id: &str) -> Option<Setting<T>> {
        let origin = self.origin(id).filter(|origin| *origin != Origin::Default)?;
        let value = self.matches?.try_get_one::<T>(id).ok()??.clone();
        Some(Setting { value, origin })
    }

    /// The value as it was spelt, or as the default is.
    fn spelling(&self, id: &str) -> String {
        let raw = self.matches.and_then(|matches| matches.try_get_raw(id).ok()?);
        let values: Vec<_> =
            raw.into_iter().flatten().map(|value| value.to_string_lossy().into_owned()).collect();
        if values.is_empty() { "-".to_owned() } else { values.join(",") }
    }
}

fn flag(argument: &Arg) -> String {
    format!("--{}", argument.get_long().unwrap_or_else(|| argument.get_id().as_str()))
}

/// The way that was asked for. Flags overrule the environment; what overrules must agree with itself.
fn transfer(given: &Given<'_>) -> Result<Option<Setting<TransferMode>>, ConflictError> {
    let asked = given.get::<TransferMode>("transfer");
    let streams = ["stream_mode", "transfer_from_dfdaemon"].into_iter().filter_map(|id| {
        given.get::<bool>(id).filter(|wanted| wanted.value).map(|wanted| wanted.map(|_| TransferMode::Stream))
    });
    let is_flag = |setting: &Setting<TransferMode>| matches!(setting.origin, Origin::Flag(_));
    let all: Vec<_> = asked.into_iter().chain(streams).collect();
    let flags_only = all.iter().any(is_flag);
    let mut chosen: Option<Setting<TransferMode>> = None;
    for setting in all.into_iter().filter(|setting| !flags_only || is_flag(setting)) {
        chosen = Some(match chosen {
            Some(first)
                if matches!(first.value, TransferMode::Path | TransferMode::Fd)
                    && setting.value == TransferMode::Stream =>
            {
                return Err(ConflictError::new(format!("{} {}", first.origin, first.value), &setting.origin));
            }
            Some(first) if first.value == TransferMode::Stream => first,
            _ => setting,
        });
    }
    Ok(chosen)
}

/// One line of `dfcache config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The command it is for; empty where it is for all.
    pub command: &'static str,
    /// The option.
    pub option: String,
    /// Its value.
    pub value: String,
    /// Where the value is from.
    pub origin: String,
}

/// Every option of import and export under this environment and `file`.
///
/// # Errors
/// What the parser says of an environment variable, or that two of them contradict each other.
pub fn lines(file: &File) -> Result<Vec<Line>, String> {
    let import = ["dfcache", "import", "-"].as_slice();
    let export = ["dfcache", "export", "ID", "-O", "-"].as_slice();
    let mut lines = Vec::new();
    let mut common = Vec::new();
    for (command, line) in [("import", import), ("export", export)] {
        let args = Args::parse_from_os(line).map_err(|why| why.to_string())?;
        let settings = Settings::new(&args.matches, file).map_err(|why| why.to_string())?;
        let given = Given::of(&args.matches);
        for argument in given.command.get_arguments() {
            let id = argument.get_id().as_str();
            if argument.get_long().is_none()
                || matches!(id, "help" | "version" | "output" | "config" | "json")
            {
                continue;
            }
            let (value, origin) = match id {
                "transfer" => (settings.transfer.value.to_string(), settings.transfer.origin.clone()),
                "path_mapping" => {
                    (settings.path_mapping.value.to_string(), settings.path_mapping.origin.clone())
                }
                "content_id" => (settings.content_id.value.to_string(), settings.content_id.origin.clone()),
                "endpoint" => {
                    let sockets = candidates(settings.endpoint.value.as_deref());
                    let sockets: Vec<_> = sockets.iter().map(|path| path.display().to_string()).collect();
                    let value = sockets.join(", ");
                    (value, settings.endpoint.origin.clone())
                }
                id => (given.spelling(id), given.origin(id).unwrap_or(Origin::Default)),
            };
            lines.push(Line { command, option: flag(argument), value, origin: origin.to_string() });
        }
        let Settings { buffer_size, idle_timeout, max_connections, .. } = settings;
        common = vec![
            ("client.streaming.bufferSize", units::bytes(buffer_size.value), buffer_size.origin),
            (
                "client.streaming.idleTimeout",
                humantime::format_duration(idle_timeout.value).to_string(),
                idle_timeout.origin,
            ),
            ("client.streaming.maxConnections", max_connections.value.to_string(), max_connections.origin),
        ];
    }
    let common = common.into_iter().map(|(option, value, origin)| Line {
        command: "",
        option: option.to_owned(),
        value,
        origin: origin.to_string(),
    });
    lines.extend(common);
    Ok(lines)
}

/// The lines for people.
#[must_use]
pub fn render(lines: &[Line]) -> String {
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            let value = if line.value.is_empty() { "\"\"".to_owned() } else { line.value.clone() };
            vec![line.command.to_owned(), line.option.clone(), value, line.origin.clone()]
        })
        .collect();
    table::render(&["COMMAND", "OPTION", "VALUE", "FROM"], &rows)
}
