//! What is asked of an origin.

use std::fmt;

use damselfly_core::download::Validator;
use damselfly_core::redact;
use url::Url;

use crate::options::HeaderNames;

/// One GET.
///
/// `Debug` shows the URL without credentials and query values, and of the headers only the names.
#[derive(Clone)]
pub struct Request<'a> {
    /// `http` or `https`. User and password become `Authorization` unless the headers bring one.
    pub url: Url,
    /// The user's headers. Those that would change what the answer means (`Range`, `If-None-Match`, …) or that belong
    /// to the connection are left out.
    pub headers: Vec<(String, String)>,
    /// First byte and, unless the rest of the content is meant, last byte. `None` asks for the whole content.
    pub range: Option<(u64, Option<u64>)>,
    /// The version the content must have, where one is known.
    pub expect: Option<&'a Validator>,
    /// The length in bytes the whole content must have, where it is known.
    pub expect_length: Option<u64>,
}

impl Request<'_> {
    /// The whole content at `url`, without headers, whatever its version.
    #[must_use]
    pub fn new(url: Url) -> Self {
        Self { url, headers: Vec::new(), range: None, expect: None, expect_length: None }
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("url", &redact::url(self.url.as_str()))
            .field("headers", &HeaderNames(&self.headers))
            .field("range", &self.range)
            .field("expect", &self.expect)
            .field("expect_length", &self.expect_length)
            .finish()
    }
}
