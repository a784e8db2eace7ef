//! What an answer's status and headers mean for the request that was sent. No I/O.

use std::time::SystemTime;

use damselfly_core::download::Validator;
use reqwest::StatusCode;
use reqwest::header::{self, HeaderMap};

use crate::headers::{self, ContentRange, RangeHeader};
use crate::{ErrorKind, Request};

/// What the request asked for, as far as it decides what the answer means.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked<'a> {
    pub(crate) range: Option<(u64, Option<u64>)>,
    pub(crate) expect: Option<&'a Validator>,
    pub(crate) expect_length: Option<u64>,
}

impl<'a> From<&Request<'a>> for Asked<'a> {
    fn from(request: &Request<'a>) -> Self {
        Self { range: request.range, expect: request.expect, expect_length: request.expect_length }
    }
}

/// An answer that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The body holds content.
    Body(Body),
    /// The content is empty; the body, if any, is not content.
    Empty,
    /// The origin refuses the very first range without saying how long the content is. Some do that for empty content:
    /// only a request without range can tell.
    AskWhole,
}

/// A body that holds content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    /// Which bytes, where it is not the whole content.
    pub(crate) range: Option<ContentRange>,
    /// Bytes of the whole content, where the origin says so.
    pub(crate) content_length: Option<u64>,
    /// Bytes this body must have, where the origin says so.
    pub(crate) promised: Option<u64>,
    /// Whether the origin serves ranges.
    pub(crate) ranges: bool,
}

/// An answer that cannot be used: what it means and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Objection {
    pub(crate) kind: ErrorKind,
    pub(crate) why: String,
}

fn unusable(why: impl Into<String>) -> Objection {
    Objection { kind: ErrorKind::Unusable, why: why.into() }
}

/// Interprets an answer that is no redirect.
pub(crate) fn judge(
    asked: Asked<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    now: SystemTime,
) -> Result<Verdict, Objection> {
    let verdict = match status.as_u16() {
        200 | 203 => Verdict::Body(whole(asked, headers)),
        204 | 205 => Verdict::Empty,
        206 => Verdict::Body(part(asked, headers)?),
        416 => unsatisfied(asked, headers)?,
        _ => return Err(failure(status, headers, now)),
    };
    let content_length = match &verdict {
        Verdict::Body(body) => body.content_length,
        Verdict::Empty => Some(0),
        Verdict::AskWhole => None,
    };
    match change(asked, headers, content_length) {
        Some(why) => Err(Objection { kind: ErrorKind::Changed(headers::validator(headers)), why }),
        None => Ok(verdict),
    }
}

/// 200: the whole content, whatever was asked for.
fn whole(asked: Asked<'_>, headers: &HeaderMap) -> Body {
    let length = headers::content_length(headers);
    let offered = headers::text(headers, header::ACCEPT_RANGES)
        .is_some_and(|units| units.split(',').any(|unit| unit.trim().eq_ignore_ascii_case("bytes")));
    Body {
        range: None,
        content_length: length,
        promised: length,
        // Whatever `Accept-Ranges` says: a range was asked for and not served.
        ranges: asked.range.is_none() && offered,
    }
}

/// 206: must be a part of what was asked for, from its first byte on.
fn part(asked: Asked<'_>, headers: &HeaderMap) -> Result<Body, Objection> {
    let Some((first, last)) = asked.range else {
        return Err(unusable("it sent a part of the content (206) although the whole was asked for"));
    };
    let Some(value) = headers::text(headers, header::CONTENT_RANGE) else {
        return Err(unusable("it sent a part of the content (206) without saying which (Content-Range)"));
    };
    let Some(RangeHeader::Span(range)) = headers::parse_content_range(value) else {
        return Err(unusable(format!("its Content-Range {value:?} makes no sense")));
    };
    if range.first != first || last.is_some_and(|last| range.last > last) {
        let last = last.map(|last| last.to_string()).unwrap_or_default();
        return Err(unusable(format!("asked for bytes {first}-{last}, it sent {value:?}")));
    }
    let promised = range.last - range.first + 1;
    if let Some(length) = headers::content_length(headers).filter(|length| *length != promised) {
        return Err(unusable(format!("its Content-Range {value:?} contradicts its Content-Length {length}")));
    }
    Ok(Body { range: Some(range), content_length: range.total, promised: Some(promised), ranges: true })
}

/// 416: empty content, or a first byte past the end.
fn unsatisfied(asked: Asked<'_>, headers: &HeaderMap) -> Result<Verdict, Objection> {
    let Some((first, _)) = asked.range else {
        return Err(unusable("it objects to a range (416) although none was asked for"));
    };
    let total = headers::text(headers, header::CONTENT_RANGE).and_then(headers::parse_content_range);
    match total {
        Some(RangeHeader::Unsatisfied(0)) if first == 0 => Ok(Verdict::Empty),
        Some(RangeHeader::Unsatisfied(total)) => {
            if let Some(why) = change(asked, headers, Some(total)) {
                return Err(Objection { kind: ErrorKind::Changed(headers::validator(headers)), why });
            }
            let why = if first < total {
                format!("it refuses byte {first} (416) although it says the content has {total} bytes")
            } else {
                format!("the range starts at byte {first}, but the content has {total} bytes")
            };
            Err(Objection { kind: ErrorKind::Refused, why })
        }
        _ if first == 0 => Ok(Verdict::AskWhole),
        _ => {
            let kind = match change(asked, headers, None) {
                Some(_) => ErrorKind::Changed(headers::validator(headers)),
                None => ErrorKind::Refused,
            };
            let why = format!("it has no byte {first} (416): the content ends before it");
            Err(Objection { kind, why })
        }
    }
}

/// Why the content is not the expected version, if so. Only what both sides know is compared.
fn change(asked: Asked<'_>, headers: &HeaderMap, content_length: Option<u64>) -> Option<String> {
    fn differ<T: PartialEq>(before: Option<T>, after: Option<T>) -> Option<(T, T)> {
        before.zip(after).filter(|(before, after)| before != after)
    }
    let now = headers::validator(headers);
    let expect = asked.expect;
    if let Some((before, after)) = differ(expect.and_then(|old| old.etag.as_ref()), now.etag.as_ref()) {
        return Some(format!("the content changed: its ETag was {before}, now it is {after}"));
    }
    let before = expect.and_then(|old| old.last_modified.as_ref());
    if let Some((before, after)) = differ(before, now.last_modified.as_ref()) {
        return Some(format!("the content changed: Last-Modified was {before}, now it is {after}"));
    }
    let (before, after) = differ(asked.expect_length, content_length)?;
    Some(format!("the content changed: it had {before} bytes, now it has {after}"))
}

/// Any other status.
fn failure(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Objection {
    let kind = match status.as_u16() {
        401 | 403 => ErrorKind::Unauthorized,
        408 | 425 | 429 | 500..=599 => ErrorKind::Retry { after: headers::retry_after(headers, now) },
        400..=499 => ErrorKind::Refused,
        _ => ErrorKind::Unusable,
    };
    let remedy = match status.as_u16() {
        401 | 403 => "; check the credentials in the request headers or the URL's signature and its expiry",
        404 | 410 => "; check the URL",
        407 => "; check the credentials of the proxy in HTTP_PROXY or HTTPS_PROXY",
        429 => "; it limits the rate of requests",
        201..=399 => ", which is not content",
        _ => "",
    };
    Objection { kind, why: format!("it answered {status}{remedy}") }
}
