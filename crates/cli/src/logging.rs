//! Where log lines go: a rotated file or stdout for daemons, nothing or the console for clients.

pub mod rotate;

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::Mutex;

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use self::rotate::RotatingFile;

/// What `-l` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum Level {
    /// Everything.
    Trace,
    /// What a developer of Damselfly wants to see.
    Debug,
    /// What an operator wants to see.
    #[default]
    Info,
    /// What is odd.
    Warn,
    /// What failed.
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

/// Where log lines go.
#[derive(Debug)]
pub enum Sink {
    /// Nowhere.
    Nothing,
    /// To stdout.
    Stdout,
    /// To stderr, because stdout carries content.
    Stderr,
    /// To a file that is rotated.
    File(RotatingFile),
}

/// Logging could not begin.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file or its directory cannot be made.
    #[error("cannot write logs to {path}: {why}; name another directory with --log-dir, or use --console")]
    File {
        /// The file.
        path: String,
        /// Why.
        why: io::Error,
    },
    /// RUST_LOG is malformed.
    #[error("malformed RUST_LOG: {0}; expected directives such as info,damselfly_actors=debug")]
    Filter(String),
    /// Somebody else in this process logs already.
    #[error("cannot begin to log: {0}")]
    Taken(String),
}

/// Opens `<directory>/<program>.log`.
///
/// # Errors
/// [`LogError::File`].
pub fn file(directory: &Path, program: &str, max_files: usize, max_size: u64) -> Result<Sink, LogError> {
    let path = directory.join(format!("{program}.log"));
    RotatingFile::open(&path, max_files, max_size)
        .map(Sink::File)
        .map_err(|why| LogError::File { path: path.display().to_string(), why })
}

/// Installs the process's subscriber. `RUST_LOG` overrides `level`.
///
/// # Errors
/// When `RUST_LOG` is malformed or a subscriber is installed already.
pub fn init(sink: Sink, level: Level) -> Result<(), LogError> {
    let (writer, colours) = match sink {
        Sink::Nothing => return Ok(()),
        Sink::Stdout => (BoxMakeWriter::new(io::stdout), io::stdout().is_terminal()),
        Sink::Stderr => (BoxMakeWriter::new(io::stderr), io::stderr().is_terminal()),
        Sink::File(file) => (BoxMakeWriter::new(Mutex::new(file)), false),
    };
    tracing_subscriber::fmt()
        .compact()
        .with_env_filter(filter(std::env::var("RUST_LOG").ok().as_deref(), level)?)
        .with_ansi(colours)
        .with_file(true)
        .with_line_number(true)
        .with_writer(writer)
        .try_init()
        .map_err(|why| LogError::Taken(why.to_string()))
}

fn filter(rust_log: Option<&str>, level: Level) -> Result<EnvFilter, LogError> {
    let directives = match rust_log.filter(|text| !text.is_empty()) {
        Some(text) => text.to_owned(),
        // The transport libraries say at debug and trace what each frame looks like.
        None => format!("{},h2=warn,hyper=warn,hyper_util=warn,tower=warn", level.name()),
    };
    EnvFilter::try_new(directives).map_err(|why| LogError::Filter(why.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_log_overrides_the_level() {
        assert_eq!(filter(Some("warn"), Level::Trace).unwrap().to_string(), "warn");
        assert!(filter(None, Level::Debug).unwrap().to_string().contains("debug"));
        assert!(matches!(filter(Some("a=b=c"), Level::Info), Err(LogError::Filter(_))));
    }

    #[test]
    fn an_unwritable_directory_is_named() {
        let error = file(Path::new("/proc/nowhere"), "dfdaemon", 1, 1).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere/dfdaemon.log"), "{error}");
    }
}
