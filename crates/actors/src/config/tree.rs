//! A YAML document as a tree in which every value remembers where it stands and how it was spelt.
//!
//! Typed deserialization forgets both: `0o666`, `yes` and `0666` would be numbers and booleans before a key could say
//! what it expects, and an error found after parsing could no longer be pointed at.

use std::fmt;
use std::path::Path;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use super::error::{ConfigError, Place};

/// Longest value that is quoted, in characters.
const QUOTED: usize = 120;

/// A place in the file, both counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The line.
    pub line: u64,
    /// The column, in characters.
    pub column: u64,
}

impl From<Location> for Mark {
    fn from(location: Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

/// A value and its place.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it stands.
    pub at: Mark,
}

/// What a node is.
#[derive(Clone, Debug, Default)]
pub enum Value {
    /// Nothing, `null` or `~`.
    #[default]
    Null,
    /// The text of a scalar as it was spelt, quotes removed.
    Scalar(String),
    /// A list.
    List(Vec<Node>),
    /// A section of keys and values.
    Map(Vec<Entry>),
}

impl Value {
    /// The value in an error's words: what was spelt, in quotes and cut to [`QUOTED`] characters, or what it is.
    #[must_use]
    pub fn quoted(&self) -> String {
        match self {
            Self::Null => "empty".to_owned(),
            Self::Scalar(text) => format!("{:?}", text.chars().take(QUOTED).collect::<String>()),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a section".to_owned(),
        }
    }
}

/// One key of a map.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where it stands.
    pub at: Mark,
    /// Its value.
    pub node: Node,
}

/// Reads the one document in `source`, the text of `file`. An empty source is a null.
///
/// # Errors
/// [`ConfigError::Syntax`].
pub fn parse(file: &Path, source: &str) -> Result<Node, ConfigError> {
    let mut options = serde_saphyr::Options::default();
    options.with_snippet = false; // the lines around an error may hold passwords
    let root: Spanned<Raw> = serde_saphyr::from_str_with_options(source, options).map_err(|error| {
        let mark = error.location().map(Mark::from).unwrap_or(Mark { line: 1, column: 1 });
        let text = error.to_string();
        ConfigError::Syntax {
            place: Place { file: file.to_owned(), mark },
            message: text.lines().next().unwrap_or_default().chars().take(300).collect(),
        }
    })?;
    Ok(settle(root, source))
}

/// What serde hands over, before the spelling of scalars is restored.
enum Raw {
    Null,
    Text(String),
    /// A number or boolean, spelt canonically.
    Typed(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

fn settle(raw: Spanned<Raw>, source: &str) -> Node {
    let at = raw.referenced.into();
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(text) => Value::Scalar(text),
        Raw::Typed(canonical) => Value::Scalar(spelling(raw.defined, source).unwrap_or(canonical)),
        Raw::List(items) => Value::List(items.into_iter().map(|item| settle(item, source)).collect()),
        Raw::Map(pairs) => Value::Map(
            pairs
                .into_iter()
                .map(|(key, value)| {
                    let at = key.referenced.into();
                    let key = match settle(key, source).value {
                        Value::Scalar(text) => text,
                        _ => String::new(),
                    };
                    Entry { key, at, node: settle(value, source) }
                })
                .collect(),
        ),
    };
    Node { value, at }
}

fn spelling(location: Location, source: &str) -> Option<String> {
    let span = location.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let length = usize::try_from(span.byte_len()?).ok()?;
    let text = source.get(start..start.checked_add(length)?)?.trim();
    let plain = !text.is_empty() && !text.starts_with(['!', '&', '*', '"', '\'']) && !text.contains('\n');
    plain.then(|| text.to_owned())
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Raw::Map(pairs))
    }
}
