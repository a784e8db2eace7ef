//! What a task asks the origin for.

use std::fmt;

use damselfly_core::download::HeadersId;
use damselfly_core::{redact, resource};
use url::Url;

/// One client's way to the origin: the URL and its own headers.
#[derive(Clone, PartialEq, Eq)]
pub struct OriginRequest {
    /// The URL, secrets included.
    pub url: Url,
    /// Request headers without `Range`, which is the engine's.
    pub headers: Vec<(String, String)>,
    /// The piece length the user asked for, in bytes; `None` derives it.
    pub piece_length: Option<u64>,
}

impl OriginRequest {
    /// Equal for requests that show the origin the same: headers, whatever their order or the case of their names, and the
    /// user and password in the URL.
    #[must_use]
    pub fn headers_id(&self) -> HeadersId {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut sorted: Vec<_> = self.headers.iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect();
        sorted.sort();
        let mut hasher = DefaultHasher::new();
        sorted.hash(&mut hasher);
        if resource::has_credentials(&self.url) {
            (self.url.username(), self.url.password()).hash(&mut hasher);
        }
        HeadersId(hasher.finish())
    }

    /// Whether the request carries headers of its own or credentials in its URL, so that what it fetches is not for
    /// everybody.
    #[must_use]
    pub fn is_private(&self) -> bool {
        !self.headers.is_empty() || resource::has_credentials(&self.url)
    }
}

impl fmt::Debug for OriginRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("OriginRequest")
            .field("url", &redact::url(self.url.as_str()))
            .field("headers", &names)
            .field("piece_length", &self.piece_length)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> OriginRequest {
        OriginRequest {
            url: Url::parse("http://user:secret@origin/x?sig=secret").unwrap(),
            headers: headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            piece_length: None,
        }
    }

    #[test]
    fn header_order_and_case_do_not_matter_but_values_do() {
        let a = request(&[("Authorization", "x"), ("A", "b")]);
        assert_eq!(a.headers_id(), request(&[("a", "b"), ("authorization", "x")]).headers_id());
        assert_ne!(a.headers_id(), request(&[("a", "b"), ("authorization", "y")]).headers_id());
    }

    #[test]
    fn credentials_in_the_url_are_private_and_tell_requests_apart() {
        let at =
            |url| OriginRequest { url: Url::parse(url).unwrap(), headers: Vec::new(), piece_length: None };
        let (anybody, me) = (at("http://origin/x"), at("http://me:secret@origin/x"));
        assert!(!anybody.is_private() && me.is_private());
        let all = [anybody, me, at("http://me:other@origin/x"), at("http://you:secret@origin/x")];
        let ids: std::collections::HashSet<_> = all.iter().map(OriginRequest::headers_id).collect();
        assert_eq!(ids.len(), all.len());
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", request(&[("Authorization", "secret")])).contains("secret"));
    }
}
