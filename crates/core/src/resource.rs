//! Which resource a URL names, whoever asks for it: what tells one origin's content from another's where the task id
//! does not.

use url::Url;

use crate::task_id::normalised_url;

/// Where the URL points: scheme, host, port and path. Credentials, query and fragment do not count; a default port is
/// the same as none.
#[must_use]
pub fn place(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

/// [`place`] of a URL that is still to be parsed; `None` for what is none.
#[must_use]
pub fn place_of(url: &str) -> Option<String> {
    Url::parse(url).ok().map(|url| place(&url))
}

/// The whole name: the place, and the query as it enters task ids, without the parameters in `filtered`. `None` for what
/// is no URL.
#[must_use]
pub fn resource(url: &str, filtered: &[String]) -> Option<String> {
    let url = Url::parse(&normalised_url(url, filtered).ok()?).ok()?;
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    Some(place(&url) + &query)
}

/// Whether the URL carries a user name or a password.
#[must_use]
pub fn has_credentials(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_filtered_parameters_do_not_name_a_resource() {
        let filtered = ["sig".to_owned()];
        let name = resource("https://me:secret@Origin/a/b?id=1&sig=x#part", &filtered);
        assert_eq!(name.as_deref(), Some("https://origin:443/a/b?id=1"));
        for same in ["https://origin:443/a/b?id=1", "https://you@origin/a/b?sig=y&id=1"] {
            assert_eq!(resource(same, &filtered), name, "{same}");
        }
        for other in [
            "http://origin/a/b?id=1",
            "https://origin.evil/a/b?id=1",
            "https://origin:8443/a/b?id=1",
            "https://origin/a/c?id=1",
            "https://origin/a/b?id=2",
            "https://origin/a/b",
        ] {
            assert_ne!(resource(other, &filtered), name, "{other}");
        }
        assert_eq!(resource("no URL", &filtered), None);
    }

    #[test]
    fn a_user_name_alone_is_a_credential() {
        for (url, expected) in [("http://u@o/", true), ("http://:p@o/", true), ("http://o/u:p@", false)] {
            assert_eq!(has_credentials(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
