//! What can be wrong with a configuration, in words that name key, value, expectation and place.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::tree::Mark;

/// A place in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line and column.
    pub mark: Mark,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.mark.line, self.mark.column)
    }
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongValue {
    /// The key's path, `download.pieceTimeout`.
    pub key: String,
    /// The value as spelt; hidden where it may be a secret.
    pub value: String,
    /// What would have been right, or why the value is refused.
    pub expected: String,
    /// Where it stands.
    pub place: Place,
    /// The line, with the value underlined; `None` where it may hold a secret.
    pub snippet: Option<String>,
}

impl fmt::Display for WrongValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} is {}: expected {}", self.place, self.key, self.value, self.expected)?;
        match &self.snippet {
            Some(snippet) => write!(f, "\n{snippet}"),
            None => Ok(()),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}: {source}; name another with --config", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no YAML.
    #[error("{place}: malformed YAML: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// The parser's words.
        message: String,
    },
    /// Values that cannot be used, all of them.
    #[error("{}", lines(.0))]
    Values(Vec<WrongValue>),
    /// A flag or environment variable that cannot be used.
    #[error("{flag} is {value:?}: expected {expected}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What would have been right.
        expected: String,
    },
    /// No place for files can be found.
    #[error(transparent)]
    Directories(#[from] super::DirectoryError),
}

fn lines(values: &[WrongValue]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Something the daemon starts in spite of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The key's path.
    pub key: String,
    /// What of it.
    pub message: String,
    /// Where it stands; `None` where a flag is meant.
    pub place: Option<Place>,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}: {}", self.key, self.message),
            None => write!(f, "{}: {}", self.key, self.message),
        }
    }
}
