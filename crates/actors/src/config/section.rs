//! Reading a section of the file key by key.
//!
//! A reader never fails: a wrong value is noted and the default stands in for it, so that one start names everything
//! that is wrong. Whatever key nobody asked for is unknown.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;

use super::error::{Place, Warning, WrongValue};
use super::tree::{Entry, Mark, Node, Value};

const HIDDEN: &str = "<hidden>";
/// A line with one of these words is not quoted.
const SECRETS: [&str; 7] = ["password", "username", "header", "authorization", "token", "secret", "cookie"];

/// What reading a file found besides values.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    file: &'a Path,
    source: &'a str,
    warnings: RefCell<Vec<Warning>>,
    wrong: RefCell<Vec<WrongValue>>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(file: &'a Path, source: &'a str) -> Self {
        Self { file, source, warnings: RefCell::default(), wrong: RefCell::default() }
    }

    pub(super) fn into_parts(self) -> (Vec<Warning>, Vec<WrongValue>) {
        (self.warnings.into_inner(), self.wrong.into_inner())
    }

    fn place(&self, mark: Mark) -> Place {
        Place { file: self.file.to_owned(), mark }
    }

    /// The line of `mark` with the value underlined.
    fn snippet(&self, mark: Mark, width: usize) -> Option<String> {
        let index = usize::try_from(mark.line.checked_sub(1)?).ok()?;
        let line = self.source.lines().nth(index)?;
        let before = usize::try_from(mark.column.checked_sub(1)?).ok()?;
        let lower = line.to_ascii_lowercase();
        if line.chars().count() > 160 || before > 160 || SECRETS.iter().any(|word| lower.contains(word)) {
            return None;
        }
        let number = mark.line.to_string();
        let gutter = " ".repeat(number.len());
        let pad: String = line.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let width = width.clamp(1, line.chars().count().saturating_sub(before).max(1));
        Some(format!("{gutter} |\n{number} | {line}\n{gutter} | {pad}{}", "^".repeat(width)))
    }
}

/// One mapping of the file, or the empty one where the file has none.
#[derive(Debug)]
pub(super) struct Section<'a> {
    path: String,
    entries: &'a [Entry],
    known: RefCell<Vec<&'static str>>,
    findings: &'a Findings<'a>,
}

impl<'a> Section<'a> {
    pub(super) fn root(node: &'a Node, findings: &'a Findings<'a>) -> Self {
        Self::of(String::new(), Some(node), findings)
    }

    fn of(path: String, node: Option<&'a Node>, findings: &'a Findings<'a>) -> Self {
        let mut section = Self { path, entries: &[], known: RefCell::default(), findings };
        match node.map(|node| (&node.value, node)) {
            Some((Value::Map(entries), _)) => section.entries = entries,
            Some((Value::Null, _)) | None => {}
            Some((_, node)) => {
                let name =
                    if section.path.is_empty() { "the document".to_owned() } else { section.path.clone() };
                section.wrong_at(&name, node, "a section of keys and values");
            }
        }
        section
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The entry of a known key. Values that are null count as absent.
    fn entry(&self, key: &'static str) -> Option<&'a Entry> {
        self.known.borrow_mut().push(key);
        self.entries.iter().find(|entry| entry.key == key)
    }

    fn node(&self, key: &'static str) -> Option<&'a Node> {
        self.entry(key).map(|entry| &entry.node).filter(|node| !matches!(node.value, Value::Null))
    }

    /// Whether the key stands in the file, even without a value.
    pub(super) fn names(&self, key: &'static str) -> bool {
        self.entry(key).is_some()
    }

    /// Whether the key has a value.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.node(key).is_some()
    }

    /// `canonical`, or `alias` where only that stands in the file.
    pub(super) fn alias(&self, canonical: &'static str, alias: &'static str) -> &'static str {
        let chosen = if !self.names(canonical) && self.names(alias) { alias } else { canonical };
        self.known.borrow_mut().extend([canonical, alias]);
        chosen
    }

    /// The section under `key`; empty when absent.
    pub(super) fn section(&self, key: &'static str) -> Section<'a> {
        Section::of(self.key(key), self.node(key), self.findings)
    }

    /// The sections of a list of mappings.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'a>> {
        let Some(node) = self.node(key) else { return Vec::new() };
        let Value::List(items) = &node.value else {
            self.wrong_at(&self.key(key), node, "a list of sections");
            return Vec::new();
        };
        (0..)
            .zip(items)
            .map(|(index, item): (u32, _)| {
                Section::of(format!("{}[{index}]", self.key(key)), Some(item), self.findings)
            })
            .collect()
    }

    fn wrong_at(&self, key: &str, node: &Node, expected: &str) {
        let width = match &node.value {
            Value::Scalar(text) => text.chars().count(),
            Value::Null | Value::List(_) | Value::Map(_) => 1,
        };
        self.findings.wrong.borrow_mut().push(WrongValue {
            key: key.to_owned(),
            value: node.value.quoted(),
            expected: expected.to_owned(),
            place: self.findings.place(node.at),
            snippet: self.findings.snippet(node.at, width),
        });
    }

    /// Refuses the key's value; `expected` says what would do and why this does not.
    pub(super) fn refuse(&self, key: &'static str, expected: &str) {
        if let Some(node) = self.node(key) {
            self.wrong_at(&self.key(key), node, expected);
        }
    }

    /// Warns that a key, if present, does nothing yet.
    pub(super) fn not_built(&self, key: &'static str) {
        self.warn(key, "known, but not built yet: the key has no effect");
    }

    /// Warns of a key, if present.
    pub(super) fn warn(&self, key: &'static str, message: &str) {
        if let Some(entry) = self.entry(key) {
            self.findings.warnings.borrow_mut().push(Warning {
                key: self.key(key),
                message: message.to_owned(),
                place: Some(self.findings.place(entry.at)),
            });
        }
    }

    /// A value that `read` takes from its spelling.
    pub(super) fn parsed<T>(
        &self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let node = self.node(key)?;
        let value = match &node.value {
            Value::Scalar(text) => read(text),
            _ => None,
        };
        if value.is_none() {
            self.wrong_at(&self.key(key), node, expected);
        }
        value
    }

    /// A non-empty string.
    pub(super) fn string(&self, key: &'static str) -> Option<String> {
        self.parsed(key, "a non-empty string", |text| (!text.is_empty()).then(|| text.to_owned()))
    }

    /// A string that no message shows.
    pub(super) fn secret(&self, key: &'static str, length: RangeInclusive<usize>) -> Option<String> {
        let node = self.node(key)?;
        match &node.value {
            Value::Scalar(text) if length.contains(&text.chars().count()) => Some(text.clone()),
            _ => {
                let expected = format!("{} to {} characters", length.start(), length.end());
                self.hidden(&self.key(key), node.at, &expected);
                None
            }
        }
    }

    fn hidden(&self, key: &str, at: Mark, expected: &str) {
        self.findings.wrong.borrow_mut().push(WrongValue {
            key: key.to_owned(),
            value: HIDDEN.to_owned(),
            expected: expected.to_owned(),
            place: self.findings.place(at),
            snippet: None,
        });
    }

    /// A non-empty path.
    pub(super) fn path(&self, key: &'static str) -> Option<PathBuf> {
        self.parsed(key, "a path", |text| (!text.is_empty()).then(|| PathBuf::from(text)))
    }

    /// An absolute path.
    pub(super) fn absolute_path(&self, key: &'static str) -> Option<PathBuf> {
        self.parsed(key, "an absolute path", |text| Path::new(text).is_absolute().then(|| text.into()))
    }

    /// A boolean; YAML 1.1's other spellings are refused, because readers disagree about them.
    pub(super) fn boolean(&self, key: &'static str, default: bool) -> bool {
        self.parsed(key, "true or false", |text| match text {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            _ => None,
        })
        .unwrap_or(default)
    }

    /// A whole number within `range`.
    pub(super) fn number<T>(&self, key: &'static str, default: T, range: RangeInclusive<T>) -> T
    where
        T: FromStr + PartialOrd + Display,
    {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.parsed(key, &expected, |text| text.parse().ok().filter(|number| range.contains(number)))
            .unwrap_or(default)
    }

    /// A duration, units spelt as humantime does.
    pub(super) fn duration(&self, key: &'static str, default: Duration) -> Duration {
        self.parsed(key, "a duration such as 500ms, 30s, 5m or 1h 30m", |text| {
            humantime::parse_duration(text).ok()
        })
        .unwrap_or(default)
    }

    /// A duration that is not zero.
    pub(super) fn period(&self, key: &'static str, default: Duration) -> Duration {
        self.parsed(key, "a duration above zero such as 500ms, 30s, 5m or 1h 30m", |text| {
            humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero())
        })
        .unwrap_or(default)
    }

    /// A number of bytes: `50GB` is 50·10⁹, `64MiB` is 64·2²⁰.
    pub(super) fn size(&self, key: &'static str, default: u64) -> u64 {
        self.parsed(key, "a size such as 524288, 64MiB or 50GB", |text| {
            ByteSize::from_str(text.trim()).ok().map(|size| size.0)
        })
        .unwrap_or(default)
    }

    /// A size that is not zero.
    pub(super) fn positive_size(&self, key: &'static str, default: u64) -> u64 {
        self.parsed(key, "a size above zero such as 524288, 64MiB or 50GB", |text| {
            ByteSize::from_str(text.trim()).ok().map(|size| size.0).filter(|&size| size > 0)
        })
        .unwrap_or(default)
    }

    /// An IP address.
    pub(super) fn ip(&self, key: &'static str) -> Option<IpAddr> {
        self.parsed(key, "an IP address such as 10.0.0.5 or fd00::5", |text| text.parse().ok())
            .map(|ip: IpAddr| ip.to_canonical())
    }

    /// A list of absolute paths.
    pub(super) fn absolute_paths(&self, key: &'static str) -> Vec<PathBuf> {
        let Some(node) = self.node(key) else { return Vec::new() };
        let Value::List(items) = &node.value else {
            self.wrong_at(&self.key(key), node, "a list of absolute paths");
            return Vec::new();
        };
        items
            .iter()
            .filter_map(|item| match &item.value {
                Value::Scalar(text) if Path::new(text).is_absolute() => Some(PathBuf::from(text)),
                _ => {
                    self.wrong_at(&self.key(key), item, "an absolute path");
                    None
                }
            })
            .collect()
    }

    /// A list of strings.
    pub(super) fn strings(&self, key: &'static str) -> Vec<String> {
        let Some(node) = self.node(key) else { return Vec::new() };
        let texts = match &node.value {
            Value::List(items) => items
                .iter()
                .map(|item| match &item.value {
                    Value::Scalar(text) => Some(text.clone()),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>(),
            _ => None,
        };
        texts.unwrap_or_else(|| {
            self.wrong_at(&self.key(key), node, "a list of strings");
            Vec::new()
        })
    }

    /// Names and values, whose values no message shows.
    pub(super) fn secret_map(&self, key: &'static str) -> BTreeMap<String, String> {
        let Some(node) = self.node(key) else { return BTreeMap::new() };
        let Value::Map(entries) = &node.value else {
            self.hidden(&self.key(key), node.at, "names and values");
            return BTreeMap::new();
        };
        entries
            .iter()
            .filter_map(|entry| match &entry.node.value {
                Value::Scalar(text) => Some((entry.key.clone(), text.clone())),
                _ => {
                    self.hidden(&format!("{}.{}", self.key(key), entry.key), entry.node.at, "a string");
                    None
                }
            })
            .collect()
    }

    /// Warns of every key that nobody asked for.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        for entry in self.entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let key: String = entry.key.chars().take(80).collect();
            let near = known
                .iter()
                .map(|name| (distance(&entry.key, name), *name))
                .filter(|&(distance, _)| distance <= 2)
                .min();
            let message = match near {
                Some((_, name)) => format!("unknown key, ignored; did you mean {name}?"),
                None => "unknown key, ignored".to_owned(),
            };
            self.findings.warnings.borrow_mut().push(Warning {
                key: self.key(&key),
                message,
                place: Some(self.findings.place(entry.at)),
            });
        }
    }
}

/// Edits that turn one word into the other (Levenshtein); words longer than any key are far from all of them.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(65).collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
