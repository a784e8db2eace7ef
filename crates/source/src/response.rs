//! An origin's answer, and its body as it arrives.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use damselfly_core::download::Validator;
use damselfly_core::redact;
use tokio::time;
use url::Url;

use crate::answer::Body;
use crate::error::causes;
use crate::headers::{self, ContentRange};
use crate::{ErrorKind, SourceError};

/// An answer with content. Dropping it ends the request.
pub struct Response {
    /// The final answer's status.
    pub status: u16,
    /// Which bytes the body holds; `None` when it holds the whole content from byte 0.
    pub content_range: Option<ContentRange>,
    /// Bytes of the whole content; `None` when the origin does not say.
    pub content_length: Option<u64>,
    /// Whether the origin serves ranges: it did, or offered to where none was asked for.
    pub ranges: bool,
    /// The version of the content.
    pub validator: Validator,
    /// The response headers as users get to see them: cookies and credentials left out, and as if the whole content had
    /// been asked for.
    pub headers: BTreeMap<String, String>,
    body: Option<reqwest::Response>,
    /// Redacted, for error texts.
    url: String,
    promised: Option<u64>,
    received: u64,
    stall_timeout: Duration,
}

impl Response {
    pub(crate) fn new(url: Url, response: reqwest::Response, body: Body, stall_timeout: Duration) -> Self {
        let mut headers = headers::public(response.headers());
        if body.range.is_some() {
            headers.remove("content-range");
            headers.remove("content-length");
            if let Some(total) = body.content_length {
                headers.insert("content-length".to_owned(), total.to_string());
            }
        }
        Self {
            status: response.status().as_u16(),
            content_range: body.range,
            content_length: body.content_length,
            ranges: body.ranges,
            validator: headers::validator(response.headers()),
            headers,
            body: Some(response),
            url: redact::url(url.as_str()),
            promised: body.promised,
            received: 0,
            stall_timeout,
        }
    }

    /// Empty content.
    pub(crate) fn empty(status: u16, validator: Validator, mut headers: BTreeMap<String, String>) -> Self {
        headers.remove("content-range");
        headers.insert("content-length".to_owned(), "0".to_owned());
        Self {
            status,
            content_range: None,
            content_length: Some(0),
            ranges: false,
            validator,
            headers,
            body: None,
            url: String::new(),
            promised: Some(0),
            received: 0,
            stall_timeout: Duration::ZERO,
        }
    }

    /// The next bytes as they came from the network, or `None` at the end of the body.
    ///
    /// Cancel-safe: a future dropped before it is ready has taken nothing. After an error there is no more.
    ///
    /// # Errors
    /// [`ErrorKind::Retry`] when the connection broke, nothing came within the stall deadline, or the body is shorter
    /// than its head promised; [`ErrorKind::Unusable`] when it is longer.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            let Some(body) = &mut self.body else { return Ok(None) };
            let next = match time::timeout(self.stall_timeout, body.chunk()).await {
                Ok(Ok(next)) => next,
                Ok(Err(error)) => {
                    let why = causes(&error);
                    return Err(self.broken(format!("the connection broke ({why})")));
                }
                Err(_) => {
                    let limit = self.stall_timeout;
                    return Err(self.broken(format!("nothing came for {limit:?}")));
                }
            };
            let Some(bytes) = next else {
                if self.promised.is_some_and(|promised| self.received < promised) {
                    return Err(self.broken("the body ended early".to_owned()));
                }
                self.body = None;
                return Ok(None);
            };
            if bytes.is_empty() {
                continue;
            }
            self.received += bytes.len() as u64;
            if let Some(promised) = self.promised.filter(|promised| self.received > *promised) {
                self.body = None;
                let message =
                    format!("cannot read {}: it sent more than the {promised} bytes it announced", self.url);
                return Err(self.with_head(SourceError::unusable(message)));
            }
            return Ok(Some(bytes));
        }
    }

    /// Bytes of the body given out so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    fn broken(&mut self, why: String) -> SourceError {
        self.body = None;
        let (url, received) = (&self.url, self.received);
        let of = self.promised.map(|promised| format!(" of {promised}")).unwrap_or_default();
        let message = format!("cannot read {url}: {why} after {received}{of} bytes");
        self.with_head(SourceError::new(ErrorKind::Retry { after: None }, message))
    }

    fn with_head(&self, error: SourceError) -> SourceError {
        error.answered(self.status, self.headers.clone())
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("url", &self.url)
            .field("status", &self.status)
            .field("content_range", &self.content_range)
            .field("content_length", &self.content_length)
            .field("ranges", &self.ranges)
            .field("validator", &self.validator)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}
