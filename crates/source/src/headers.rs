//! Reading and cleaning HTTP headers.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use damselfly_core::download::Validator;
use damselfly_core::redact;
use reqwest::header::{self, HeaderMap, HeaderName};

/// A `Content-Range`: which bytes of the content a body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The first byte.
    pub first: u64,
    /// The last byte, at least `first`.
    pub last: u64,
    /// Bytes of the whole content, where the origin knows.
    pub total: Option<u64>,
}

/// What stands in a `Content-Range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RangeHeader {
    /// `bytes A-B/N` or `bytes A-B/*`.
    Span(ContentRange),
    /// `bytes */N`, the form of 416.
    Unsatisfied(u64),
}

/// Reads a `Content-Range`. `None` for what contradicts itself.
pub(crate) fn parse_content_range(value: &str) -> Option<RangeHeader> {
    let (unit, rest) = value.trim().split_once(' ')?;
    let (span, total) = rest.trim().split_once('/')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    if span == "*" {
        return number(total).map(RangeHeader::Unsatisfied);
    }
    let (first, last) = span.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = if total == "*" { None } else { Some(number(total)?) };
    let holds = first <= last && last < u64::MAX && total.is_none_or(|total| last < total);
    holds.then_some(RangeHeader::Span(ContentRange { first, last, total }))
}

/// Digits only: `u64::from_str` would take a sign.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// The text of a header that occurs once.
pub(crate) fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// `Content-Length`, unless the body's framing overrules it.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    number(text(headers, header::CONTENT_LENGTH)?.trim())
}

/// The version an answer speaks of.
pub(crate) fn validator(headers: &HeaderMap) -> Validator {
    let read = |name| text(headers, name).map(str::to_owned);
    Validator { etag: read(header::ETAG), last_modified: read(header::LAST_MODIFIED) }
}

/// Reads a `Retry-After`: seconds, or a date. A date in the past means now.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = text(headers, header::RETRY_AFTER)?.trim();
    if let Some(seconds) = number(value) {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Response headers that nobody but this host may see.
const SECRET_ANSWERS: [&str; 7] = [
    "authentication-info",
    "authorization",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "set-cookie",
    "set-cookie2",
];

/// Response headers that speak of the connection, not of the content.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// Response headers whose value is a URL, which may be signed.
const URLS: [&str; 3] = ["content-location", "location", "refresh"];

/// The response headers as users get to see them: names lower-case, several values joined by a comma.
pub(crate) fn public(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut public: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let name = name.as_str();
        if SECRET_ANSWERS.contains(&name) || HOP_BY_HOP.contains(&name) {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        let value = if URLS.contains(&name) { redact::url(&value) } else { value.into_owned() };
        public
            .entry(name.to_owned())
            .and_modify(|values| {
                values.push_str(", ");
                values.push_str(&value);
            })
            .or_insert(value);
    }
    public
}

/// Request headers that are not the user's to set: they change what the answer means or belong to the connection.
const RESERVED: [&str; 14] = [
    "connection",
    "content-length",
    "expect",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "keep-alive",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Whether a request header is left out.
pub(crate) fn is_reserved(name: &HeaderName) -> bool {
    RESERVED.contains(&name.as_str())
}

/// Parts of the names under which credentials travel (`PRIVATE-TOKEN`, `X-Amz-Security-Token`, `X-Api-Key`, …).
const SECRET_PARTS: [&str; 9] =
    ["auth", "cookie", "credential", "key", "passw", "secret", "session", "signature", "token"];

/// Whether a header of this name, lower or upper case, may carry a credential.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_PARTS.iter().any(|part| name.contains(part))
}

/// Whether a request header stays with the origin it was meant for when a redirect leads elsewhere.
pub(crate) fn is_bound_to_origin(name: &HeaderName) -> bool {
    *name == header::HOST || is_secret_name(name.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_content_range_that_is_written_is_read(
            first in 0..u64::MAX - 1,
            more in any::<u64>(),
            rest in proptest::option::of(any::<u64>()),
        ) {
            let last = first.saturating_add(more).min(u64::MAX - 1);
            let total = rest.map(|rest| (last + 1).saturating_add(rest));
            let text = format!("bytes {first}-{last}/{}", total.map_or("*".to_owned(), |total| total.to_string()));
            prop_assert_eq!(
                parse_content_range(&text),
                Some(RangeHeader::Span(ContentRange { first, last, total }))
            );
        }

        #[test]
        fn no_content_range_panics_or_contradicts_itself(text in "(bytes )?[0-9*+]{0,21}-?[0-9]{0,21}/?[0-9*]{0,21}|.*") {
            if let Some(RangeHeader::Span(range)) = parse_content_range(&text) {
                prop_assert!(range.first <= range.last);
                prop_assert!(range.total.is_none_or(|total| range.last < total));
            }
        }
    }

    #[test]
    fn framing_overrules_the_content_length() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, "12".parse().unwrap());
        assert_eq!(content_length(&headers), Some(12));
        headers.insert(header::TRANSFER_ENCODING, "chunked".parse().unwrap());
        assert_eq!(content_length(&headers), None);
        headers.clear();
        headers.insert(header::CONTENT_LENGTH, "+12".parse().unwrap());
        assert_eq!(content_length(&headers), None);
    }
}
