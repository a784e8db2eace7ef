//! Identifiers (`docs/wire.md`, "Identifiers").

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::mix;

/// The kinds of task. One content string gives the same id in several kinds, so every key names the kind too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A task whose content comes from an origin and lives on disk.
    Standard,
    /// A task whose content was imported and is kept in replicas on disk.
    PersistentCache,
    /// A task whose content comes from an origin and lives in memory.
    Cache,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::Standard, Kind::PersistentCache, Kind::Cache];

    /// The kind's name in directories, logs and command output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Standard => "task",
            Kind::PersistentCache => "persistent-cache-task",
            Kind::Cache => "cache-task",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why an id was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IdError {
    /// Ids name files, so they are lower-case hex and nothing else.
    #[error("malformed task id {0:?}: expected 5 to 128 lower-case hex digits")]
    Malformed(String),
    /// The URL cannot be parsed.
    #[error("malformed URL {url:?}: {why}")]
    Url {
        /// The URL as given, credentials and signatures redacted.
        url: String,
        /// The parser's words.
        why: String,
    },
    /// The URL of an OCI blob does not end in a digest.
    #[error("malformed blob digest {0:?}: expected sha256:<64 hex>, sha512:<128 hex> or crc32:<10 digits>")]
    BlobDigest(String),
    /// A persistent cache task's id comes from its bytes.
    #[error(
        "a persistent cache task's id comes from its content, not from a URL: hash the content or name the id"
    )]
    NeedsContent,
}

/// A task's id: lower-case hex, 64 digits unless derived from a longer blob digest.
///
/// Checked when made, so it is safe to use as a file name. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// Digits of an id that may cross Vortex.
    pub const WIRE_LENGTH: usize = 64;

    /// Checks an id that came from outside.
    ///
    /// # Errors
    /// When it is not 5 to 128 lower-case hex digits.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !hex || !(5..=128).contains(&text.len()) {
            return Err(IdError::Malformed(text.chars().take(200).collect()));
        }
        Ok(Self(text.into()))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Kind and id: the key of every map, path and registry of tasks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey {
    /// The kind.
    pub kind: Kind,
    /// The id.
    pub id: TaskId,
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.id)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// The id as it stands on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $type {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $type {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A host's id, `<ip>-<hostname>` (seeds add `-seed`). Names from other hosts are taken as they come.
    HostId
}
name! {
    /// One download's or upload's id as a peer of its task, `<ip>-<hostname>-<uuid>` (seeds add `-seed`).
    PeerId
}

impl PeerId {
    /// A number that is the same on every host and, in all likelihood, another for every peer. Peers of different versions
    /// must agree on it: it decides who of them takes which piece first.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.as_str().bytes().fold(0, |number, byte| mix(number ^ u64::from(byte)))
    }
}
