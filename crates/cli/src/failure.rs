//! Why a program failed: one value for the report, the JSON object and the exit code.

use std::collections::BTreeMap;
use std::error::Error as _;

use damselfly_transport::local::{PoolError, is_broken_connection};
use serde::Deserialize;
use thiserror::Error;
use tonic::{Code, Status};

use crate::exit::Exit;
use crate::report::Report;

/// A failure that programs act on. Daemons tell these by their code and text only, Dragonfly's as well as ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The content does not have the digest that was asked for.
    Digest,
    /// No room in the store or at the output.
    NoSpace,
    /// The daemon may not write to the output itself, or cannot see it: the content can still come over the socket.
    Path,
    /// The deadline passed.
    Timeout,
}

impl Reason {
    /// The reason of a failed call, where it is one of these.
    #[must_use]
    pub fn of(status: &Status) -> Option<Self> {
        let text = status.message().to_ascii_lowercase();
        let says = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
        match status.code() {
            Code::DeadlineExceeded => Some(Reason::Timeout),
            // What tonic's own deadline becomes, here or at the daemon.
            Code::Cancelled if says(&["timeout expired"]) => Some(Reason::Timeout),
            // The daemon names the option that helps.
            Code::PermissionDenied if says(&["--transfer-from-dfdaemon"]) => Some(Reason::Path),
            _ if says(&["digest mismatch"]) => Some(Reason::Digest),
            _ if says(&["no space left", "disk is full", "quota exceeded"]) => Some(Reason::NoSpace),
            _ => None,
        }
    }
}

/// The JSON that stands in `grpc-status-details-bin` when the origin failed (`docs/wire.md`, "Error detail payload").
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Backend {
    /// The origin's status line, or what went wrong on the way to it.
    pub message: String,
    /// The origin's response headers.
    #[serde(default)]
    pub header: BTreeMap<String, String>,
    /// The origin's status, where it gave one.
    #[serde(default)]
    pub status_code: Option<i32>,
}

/// Why a program failed.
#[derive(Clone, Debug, Error)]
#[error("{message}")]
pub struct Failure {
    /// The report's first line: `Downloading Failed!`.
    pub title: &'static str,
    /// How the program ends.
    pub exit: Exit,
    /// What failed, why, and what to do.
    pub message: String,
    /// The daemon's code, where the daemon refused.
    pub code: Option<Code>,
    /// What else the daemon said.
    pub details: Option<String>,
    /// What the origin said.
    pub origin: Option<Box<Backend>>,
    /// What programs get instead of the fields above, where there is more to tell.
    pub json: Option<Box<serde_json::Value>>,
}

impl Failure {
    /// A failure that this program noticed itself.
    pub fn new(title: &'static str, exit: Exit, message: impl ToString) -> Self {
        let message = message.to_string();
        Self { title, exit, message, code: None, details: None, origin: None, json: None }
    }

    /// The same under another first line, unless that says more: what makes no sense, and that there is no daemon.
    #[must_use]
    pub fn titled(mut self, title: &'static str) -> Self {
        if self.title == "Downloading Failed!" {
            self.title = title;
        }
        self
    }

    /// A failed call.
    #[must_use]
    pub fn of_call(title: &'static str, status: &Status) -> Self {
        let details = status.details();
        let origin: Option<Box<Backend>> = serde_json::from_slice(details).ok();
        let exit = match Reason::of(status) {
            Some(Reason::Digest) => Exit::Digest,
            Some(Reason::NoSpace) => Exit::NoSpace,
            Some(Reason::Timeout) => Exit::Timeout,
            _ if origin.is_some() => Exit::Origin,
            _ if is_broken_connection(status) => Exit::NoDaemon,
            _ => Exit::Failure,
        };
        let message = match &origin {
            Some(origin) => origin.message.clone(),
            None if exit == Exit::NoDaemon => {
                format!(
                    "the connection to the daemon broke: {}; check that dfdaemon runs, then run the command again",
                    root_cause(status)
                )
            }
            None => status.message().to_owned(),
        };
        let details = (origin.is_none() && !details.is_empty())
            .then(|| String::from_utf8_lossy(details).escape_debug().to_string());
        Self { title, exit, message, code: Some(status.code()), details, origin, json: None }
    }

    /// The report for people.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut lines = Vec::new();
        match (&self.origin, self.code) {
            (Some(origin), _) => {
                lines.extend(origin.status_code.map(|status| ("Bad Status Code", status.to_string())));
            }
            (None, Some(code)) => lines.push(("Bad Code", code.description().to_owned())),
            (None, None) => {}
        }
        lines.push(("Message", self.message.clone()));
        if let Some(details) = &self.details {
            lines.push(("Details", details.clone()));
        }
        let headers = self.origin.iter().flat_map(|origin| origin.header.clone()).collect();
        Report { title: self.title, lines, headers }
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        if let Some(json) = &self.json {
            return serde_json::Value::clone(json);
        }
        serde_json::json!({
            "ok": false,
            "exit_code": self.exit.code(),
            "error": self.title.trim_end_matches('!'),
            "message": self.message,
            "code": self.code.map(|code| format!("{code:?}")),
            "details": self.details,
            "origin": self.origin.as_ref().map(|origin| serde_json::json!({
                "status": origin.status_code,
                "headers": origin.header,
            })),
        })
    }
}

/// The innermost error, or the pool's with the socket: tonic's own text says no more than "transport error".
pub(crate) fn root_cause(status: &Status) -> String {
    let mut cause = status.source();
    while let Some(inner) = cause.filter(|cause| !cause.is::<PoolError>()).and_then(std::error::Error::source)
    {
        cause = Some(inner);
    }
    cause.map_or_else(|| status.message().to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origins_words_win() {
        let details = br#"{"message":"404 Not Found","header":{"server":"x"},"status_code":404}"#;
        let status = Status::with_details(Code::Internal, "backend error: 404", details.to_vec().into());
        let failure = Failure::of_call("Downloading Failed!", &status);
        assert_eq!(failure.exit, Exit::Origin);
        let text = failure.report().render(false);
        assert!(
            text.contains("Bad Status Code: 404\nMessage: 404 Not Found\nHeader:\n  [server]: x\n"),
            "{text}"
        );
        assert_eq!(failure.json()["origin"]["status"], 404);
        assert_eq!(failure.json()["exit_code"], 4);
    }

    #[test]
    fn an_origin_without_status() {
        let details = br#"{"message":"connection refused","header":{},"status_code":null}"#;
        let status = Status::with_details(Code::Internal, "backend error", details.to_vec().into());
        let text = Failure::of_call("Downloading Failed!", &status).report().render(false);
        assert!(!text.contains("Bad"), "{text}");
        assert!(text.contains("Message: connection refused\n"), "{text}");
    }

    #[test]
    fn a_plain_status() {
        let status = Status::with_details(Code::NotFound, "no such task", b"\x00why".to_vec().into());
        let failure = Failure::of_call("Stating Failed!", &status);
        assert_eq!(failure.exit, Exit::Failure);
        let text = failure.report().render(false);
        assert!(text.contains("Message: no such task\nDetails: \\0why\n"), "{text}");
        assert!(text.contains("Bad Code: "), "{text}");
        assert_eq!(failure.json()["code"], "NotFound");
    }

    #[test]
    fn reasons_are_told_by_what_daemons_say() {
        use damselfly_storage::StoreError;
        use damselfly_transport::local::{ActError, PathError};

        let dragonfly = Status::internal("digest mismatch expected: sha256:a, actual: sha256:b");
        assert_eq!(Reason::of(&dragonfly), Some(Reason::Digest));
        let denied = |why: PathError| Reason::of(&Status::permission_denied(why.to_string()));
        assert_eq!(denied(PathError::Foreign("/f".into())), Some(Reason::Path));
        assert_eq!(denied(PathError::Unsupported), Some(Reason::Path));
        assert_eq!(denied(PathError::Act(ActError::NotPermitted { uid: 1, own: 2 })), Some(Reason::Path));
        assert_eq!(Reason::of(&Status::permission_denied("download rejected by blocklist policy")), None);
        let source = std::io::Error::from_raw_os_error(28);
        let full = StoreError::DiskFull { action: "write", path: "/s".into(), source };
        assert_eq!(Reason::of(&Status::resource_exhausted(full.to_string())), Some(Reason::NoSpace));
        assert_eq!(Reason::of(&Status::cancelled("Timeout expired")), Some(Reason::Timeout));
        assert_eq!(Reason::of(&Status::cancelled("task cancelled by a user")), None);
    }
}
