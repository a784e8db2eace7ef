//! `dfcache.yaml`: what a user or an administrator wants of every dfcache.
//!
//! A key may be spelt with underscores (`socket_path`). A key that nothing reads is a warning; a value that cannot be
//! used is refused with key, value, expectation and place, all of them at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use damselfly_actors::config::tree::{self, Node, Value};
use damselfly_actors::config::{ConfigError, Place, Warning, WrongValue, client_configs};
use damselfly_core::PathMapping;

use super::args::{ContentId, TransferMode};
use crate::units;

const NAME: &str = "dfcache.yaml";
/// Bytes of content under way between the file and the socket.
const BUFFER: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;
const CONNECTIONS: std::ops::RangeInclusive<usize> = 1..=1000;

/// A value and where the file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

/// What a file says; `None` is what it leaves open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// `client.transfer`.
    pub transfer: Option<Found<TransferMode>>,
    /// `client.contentId`.
    pub content_id: Option<Found<ContentId>>,
    /// `client.streaming.bufferSize`, bytes.
    pub buffer_size: Option<Found<u64>>,
    /// `client.streaming.idleTimeout`, longer than nothing.
    pub idle_timeout: Option<Found<Duration>>,
    /// `client.streaming.maxConnections`.
    pub max_connections: Option<Found<usize>>,
    /// `client.uds.socketPath`.
    pub socket_path: Option<Found<PathBuf>>,
    /// `client.pathMapping`.
    pub path_mapping: Option<Found<PathMapping>>,
}

impl File {
    /// Reads the file that is to be read: `named`, else the user's, else the system's, else none.
    ///
    /// # Errors
    /// When it cannot be read, is no YAML, or has values that cannot be used.
    pub fn load(
        named: Option<&Path>,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        if let Some(named) = named {
            let source = std::fs::read_to_string(named)
                .map_err(|source| ConfigError::Read { file: named.to_owned(), source })?;
            return Self::parse(named, &source);
        }
        let mut warnings = Vec::new();
        for file in candidates(env) {
            match std::fs::read_to_string(&file) {
                Ok(source) => {
                    let (found, more) = Self::parse(&file, &source)?;
                    warnings.extend(more);
                    return Ok((found, warnings));
                }
                Err(why) if matches!(why.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                // The directory is another user's, whose HOME was inherited.
                Err(why) if is_denied(&why) && std::fs::metadata(&file).is_err_and(|why| is_denied(&why)) => {
                    let message = format!("passed over, for its directory may not be entered ({why})");
                    warnings.push(Warning { key: file.display().to_string(), message, place: None });
                }
                Err(source) => return Err(ConfigError::Read { file, source }),
            }
        }
        Ok((Self::default(), warnings))
    }

    /// Reads `source`, the text of `file`.
    ///
    /// # Errors
    /// When it is no YAML, or has values that cannot be used.
    pub fn parse(file: &Path, source: &str) -> Result<(Self, Vec<Warning>), ConfigError> {
        let root = tree::parse(file, source)?;
        let mut reader = Reader { file, keys: BTreeMap::new(), wrong: Vec::new() };
        reader.spread("", root);
        let transfer = reader.take("client.transfer", "auto, fd, path or stream", |text| choice(&text));
        let content_id = reader.take("client.contentId", "sha256 or blake3", |text| choice(&text));
        let size = "a size from 1MiB to 1GiB, such as 4MiB";
        let buffer_size = reader.take("client.streaming.bufferSize", size, |text| {
            units::parse_size(&text).ok().map(|size| size.as_u64()).filter(|size| BUFFER.contains(size))
        });
        let duration = "a duration longer than nothing, such as 300s";
        let idle_timeout = reader.take("client.streaming.idleTimeout", duration, |text| {
            humantime::parse_duration(&text).ok().filter(|duration| !duration.is_zero())
        });
        let count = "a number from 1 to 1000";
        let max_connections = reader.take("client.streaming.maxConnections", count, |text| {
            text.parse().ok().filter(|count| CONNECTIONS.contains(count))
        });
        let absolute = "an absolute path";
        let socket_path = reader.take("client.uds.socketPath", absolute, |text| {
            Some(PathBuf::from(text)).filter(|path| path.is_absolute())
        });
        let pairs = "CONTAINER:HOST[,CONTAINER:HOST...], absolute paths";
        let path_mapping = reader.take("client.pathMapping", pairs, |text| text.parse().ok());
        if !reader.wrong.is_empty() {
            return Err(ConfigError::Values(reader.wrong));
        }
        let unknown = |(key, (_, place)): (String, (Value, Place))| Warning {
            key,
            message: "unknown key; it has no effect".to_owned(),
            place: Some(place),
        };
        let warnings = reader.keys.into_iter().map(unknown).collect();
        let file = Self {
            transfer,
            content_id,
            buffer_size,
            idle_timeout,
            max_connections,
            socket_path,
            path_mapping,
        };
        Ok((file, warnings))
    }
}

fn is_denied(why: &io::Error) -> bool {
    why.kind() == io::ErrorKind::PermissionDenied
}

/// The user's file, then the system's, which is the one beside the system's dfdaemon.yaml.
fn candidates(env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    client_configs(env).into_iter().map(|directory| directory.join(NAME)).collect()
}

fn choice<T: clap::ValueEnum>(text: &str) -> Option<T> {
    T::from_str(text, false).ok()
}

/// The keys of a file that nobody has asked for yet, by their path, and what is wrong with the others.
struct Reader<'a> {
    file: &'a Path,
    keys: BTreeMap<String, (Value, Place)>,
    wrong: Vec<WrongValue>,
}

impl Reader<'_> {
    /// Notes every key beneath `path`.
    fn spread(&mut self, path: &str, node: Node) {
        let place = Place { file: self.file.to_owned(), mark: node.at };
        match node.value {
            Value::Map(entries) => {
                for entry in entries {
                    let key = camel(&entry.key);
                    let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                    self.spread(&path, entry.node);
                }
            }
            Value::Null => {}
            value if path.is_empty() => {
                self.refuse("the document", &value, "a section of keys and values", place);
            }
            value if SECTIONS.contains(&path) => {
                self.refuse(path, &value, "a section of keys and values", place);
            }
            value => {
                self.keys.insert(path.to_owned(), (value, place));
            }
        }
    }

    fn take<T>(&mut self, key: &str, expected: &str, read: impl Fn(String) -> Option<T>) -> Option<Found<T>> {
        let (found, place) = self.keys.remove(key)?;
        let value = match &found {
            Value::Scalar(text) => read(text.clone()),
            _ => None,
        };
        if value.is_none() {
            self.refuse(key, &found, expected, place.clone());
        }
        value.map(|value| Found { value, place })
    }

    fn refuse(&mut self, key: &str, value: &Value, expected: &str, place: Place) {
        let (key, expected) = (key.to_owned(), expected.to_owned());
        self.wrong.push(WrongValue { key, value: value.quoted(), expected, place, snippet: None });
    }
}

/// What must be a section where it stands in the file.
const SECTIONS: [&str; 3] = ["client", "client.streaming", "client.uds"];

/// `socket_path` as `socketPath`.
fn camel(key: &str) -> String {
    let mut parts = key.split('_');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut letters = part.chars();
        text.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        text.push_str(letters.as_str());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(source: &str) -> Result<(File, Vec<Warning>), ConfigError> {
        File::parse(Path::new("/c/dfcache.yaml"), source)
    }

    #[test]
    fn every_key_has_its_place() {
        let (file, warnings) = parse(
            "client:\n  transfer: stream\n  contentId: blake3\n  pathMapping: /data:/mnt\n  streaming:\n    bufferSize: 8MiB\n    idleTimeout: 10s\n    maxConnections: 8\n  uds:\n    \
             socketPath: /d.sock\n",
        )
        .unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let transfer = file.transfer.unwrap();
        assert_eq!((transfer.value, transfer.place.mark.line), (TransferMode::Stream, 2));
        assert_eq!(transfer.place.to_string(), "/c/dfcache.yaml:2:13");
        assert_eq!(file.content_id.unwrap().value, ContentId::Blake3);
        assert_eq!(file.buffer_size.unwrap().value, 8 << 20);
        assert_eq!(file.idle_timeout.unwrap().value, Duration::from_secs(10));
        assert_eq!(file.max_connections.unwrap().value, 8);
        assert_eq!(file.socket_path.unwrap().value, Path::new("/d.sock"));
        assert_eq!(file.path_mapping.unwrap().value, "/data:/mnt".parse().unwrap());
    }

    #[test]
    fn underscores_will_do_and_unknown_keys_are_named() {
        let (file, warnings) =
            parse("client:\n  content_id: blake3\n  uds: {socket_path: /d}\n  colour: red\nother: [1]\n")
                .unwrap();
        assert!(file.content_id.is_some() && file.socket_path.is_some(), "{file:?}");
        let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        assert_eq!(
            warnings,
            [
                "/c/dfcache.yaml:4:11: client.colour: unknown key; it has no effect",
                "/c/dfcache.yaml:5:8: other: unknown key; it has no effect"
            ]
        );
    }

    #[test]
    fn wrong_values_are_named_all_at_once() {
        let wrong = parse(
            "client:\n  transfer: pigeon\n  streaming:\n    bufferSize: 4k\n    idleTimeout: 5\n    maxConnections: 1001\n  uds: d.sock\n",
        );
        let text = wrong.unwrap_err().to_string();
        let expected =
            "/c/dfcache.yaml:2:13: client.transfer is \"pigeon\": expected auto, fd, path or stream";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("client.streaming.bufferSize is \"4k\""), "{text}");
        assert!(text.contains("client.streaming.idleTimeout is \"5\""), "{text}");
        assert!(text.contains("client.uds is \"d.sock\": expected a section"), "{text}");
        let expected = "client.streaming.maxConnections is \"1001\": expected a number from 1 to 1000";
        assert!(text.contains(expected), "{text}");
        assert_eq!(text.lines().count(), 5, "{text}");
        for wrong in ["0", "-1", "1.5", "many", "[1]", "18446744073709551616"] {
            let wrong = format!("client: {{streaming: {{max_connections: {wrong}}}}}");
            assert!(parse(&wrong).is_err(), "{wrong}");
        }
        assert!(parse("client: [").unwrap_err().to_string().contains("malformed YAML"));
        assert!(parse("").unwrap().0 == File::default());
    }

    #[test]
    fn the_users_file_comes_first() {
        let env = |name: &str| (name == "HOME").then(|| OsString::from("/home/u"));
        let all =
            ["/home/u/.config/dragonfly/dfcache.yaml", "/etc/dragonfly/dfcache.yaml"].map(PathBuf::from);
        assert_eq!(candidates(env), all);
        let env = |name: &str| (name == "XDG_CONFIG_HOME").then(|| OsString::from("/x"));
        assert_eq!(candidates(env)[0], Path::new("/x/dragonfly/dfcache.yaml"));
        assert_eq!(candidates(|_| None), [PathBuf::from("/etc/dragonfly/dfcache.yaml")]);
    }
}
