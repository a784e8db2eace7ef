//! Keeping secrets out of logs, errors and metadata.

use url::Url;

/// What stands in a secret's place.
pub const REDACTED: &str = "REDACTED";

/// `url` without its password and with every query value hidden: presigned URLs carry their signature there.
///
/// A string that is no URL loses everything behind a `?` or `@`-bearing authority just the same.
#[must_use]
pub fn url(url: &str) -> String {
    // `user:password@host/path` parses too, as a URL of the scheme "user".
    let Some(mut parsed) = Url::parse(url).ok().filter(|parsed| !parsed.cannot_be_a_base()) else {
        let head = url.split(['?', '#']).next().unwrap_or_default();
        return match head.rsplit_once('@') {
            Some((_, rest)) => format!("{REDACTED}@{rest}"),
            None => head.to_owned(),
        };
    };
    if parsed.password().is_some() && parsed.set_password(Some(REDACTED)).is_err() {
        return REDACTED.to_owned();
    }
    if !parsed.username().is_empty() && parsed.set_username(REDACTED).is_err() {
        return REDACTED.to_owned();
    }
    if let Some(query) = parsed.query() {
        let hidden: Vec<String> = query
            .split('&')
            .map(|pair| match pair.split_once('=') {
                Some((key, _)) => format!("{key}={REDACTED}"),
                None => REDACTED.to_owned(),
            })
            .collect();
        parsed.set_query(Some(&hidden.join("&")));
    }
    parsed.set_fragment(None);
    parsed.into()
}
