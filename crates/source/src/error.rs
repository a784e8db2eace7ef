//! Why an origin gave no content.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use damselfly_core::Class;
use damselfly_core::download::{Failure, FailureKind, Validator};
use thiserror::Error;

/// What a failure means for the download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// 401 or 403: the origin does not let these headers in.
    Unauthorized,
    /// Another 4xx: the origin says no to everybody.
    Refused,
    /// A later attempt may succeed: 429, 5xx, a broken connection, a body that ended early, a deadline.
    Retry {
        /// The origin's `Retry-After`.
        after: Option<Duration>,
    },
    /// The content is another version than the expected one. This is the new one.
    Changed(Validator),
    /// The request cannot be sent as it is, or the answer makes no sense: repeating it would not help.
    Unusable,
}

/// A failed request. The text names the redacted URL, the reason and, where there is one, a remedy.
///
/// It has no `source()`: the causes are flattened into the text, because those of the HTTP client may spell out URLs.
#[derive(Clone, Error, PartialEq, Eq)]
#[error("{}", .0.message)]
pub struct SourceError(Box<Detail>);

#[derive(Clone, PartialEq, Eq)]
struct Detail {
    kind: ErrorKind,
    status: Option<u16>,
    headers: BTreeMap<String, String>,
    message: String,
}

impl SourceError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Detail { kind, status: None, headers: BTreeMap::new(), message: message.into() }))
    }

    pub(crate) fn retry(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Retry { after: None }, message)
    }

    pub(crate) fn unusable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unusable, message)
    }

    pub(crate) fn answered(mut self, status: u16, headers: BTreeMap<String, String>) -> Self {
        self.0.status = Some(status);
        self.0.headers = headers;
        self
    }

    /// What the failure means.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The origin's status, where it answered.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// The origin's response headers, cookies and credentials left out; empty where it did not answer.
    #[must_use]
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.0.headers
    }

    /// How long the origin asked to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self.0.kind {
            ErrorKind::Retry { after } => after,
            _ => None,
        }
    }

    /// What the failure means to the task engine.
    #[must_use]
    pub fn class(&self) -> Class {
        match self.0.kind {
            ErrorKind::Retry { .. } | ErrorKind::Changed(_) => Class::Retry,
            ErrorKind::Unauthorized | ErrorKind::Refused | ErrorKind::Unusable => Class::Fatal,
        }
    }

    /// The failure as the Download machine takes it.
    #[must_use]
    pub fn into_failure(self) -> Failure {
        let Detail { kind, status, headers, message } = *self.0;
        let kind = match kind {
            ErrorKind::Unauthorized => FailureKind::Unauthorized,
            ErrorKind::Refused | ErrorKind::Unusable => FailureKind::Refused,
            ErrorKind::Retry { after } => FailureKind::Retry { after },
            ErrorKind::Changed(validator) => FailureKind::Changed(validator),
        };
        Failure { kind, message, status, headers }
    }
}

impl fmt::Debug for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceError")
            .field("kind", &self.0.kind)
            .field("status", &self.0.status)
            .field("headers", &self.0.headers)
            .field("message", &self.0.message)
            .finish()
    }
}

/// The causes below `error`, outermost first, without the client's own "error sending request" line.
pub(crate) fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Wrappers often repeat what they wrap.
        if !texts.last().is_some_and(|last| last.contains(&text)) {
            texts.push(text);
        }
        next = cause.source();
    }
    if texts.is_empty() { "no further cause given".to_owned() } else { texts.join(": ") }
}
