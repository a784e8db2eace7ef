//! What can go wrong between a daemon and its schedulers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use damselfly_core::Class;
use thiserror::Error;
use tonic::Code;

/// Why a dialogue with a scheduler failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The scheduler answered with an error, or the connection to it broke.
    #[error("{operation} at scheduler {scheduler} failed: {code:?}: {message}")]
    Status {
        /// What was asked.
        operation: &'static str,
        /// Whom.
        scheduler: SocketAddr,
        /// The gRPC code.
        code: Code,
        /// The scheduler's words, or the transport's.
        message: String,
    },
    /// The scheduler did not answer in time.
    #[error("{operation} at scheduler {scheduler} was not answered within {} s", after.as_secs())]
    Deadline {
        /// What was asked.
        operation: &'static str,
        /// Whom.
        scheduler: SocketAddr,
        /// The deadline.
        after: Duration,
    },
    /// The scheduler is there and says that it is not serving.
    #[error("scheduler {scheduler} is not serving")]
    NotServing {
        /// Which.
        scheduler: SocketAddr,
    },
    /// The scheduler answered out of turn.
    #[error("scheduler {scheduler} broke the protocol: {what}")]
    Protocol {
        /// Which.
        scheduler: SocketAddr,
        /// What it did.
        what: String,
    },
    /// The scheduler closed the stream, and with it the dialogue.
    #[error("scheduler {scheduler} closed the stream")]
    Closed {
        /// Which.
        scheduler: SocketAddr,
    },
    /// A file for TLS cannot be used.
    #[error("cannot read {}: {why}; check scheduler.caCert, scheduler.cert and scheduler.key", file.display())]
    TlsFile {
        /// The file.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// TLS cannot be set up for this scheduler.
    #[error("cannot set up the connection to {target}: {why}")]
    Endpoint {
        /// Whom.
        target: String,
        /// Why.
        why: String,
    },
}

impl ClientError {
    pub(crate) fn status(operation: &'static str, scheduler: SocketAddr, status: &tonic::Status) -> Self {
        Self::Status { operation, scheduler, code: status.code(), message: words(status) }
    }

    /// Whether the scheduler itself may be gone or may have forgotten this host, rather than just say no.
    pub(crate) fn doubts_scheduler(&self) -> bool {
        match self {
            Self::Status { code, .. } => matches!(
                code,
                Code::Unavailable | Code::DeadlineExceeded | Code::NotFound | Code::Unknown | Code::Cancelled
            ),
            Self::Deadline { .. } | Self::NotServing { .. } => true,
            _ => false,
        }
    }

    /// The gRPC code, where the scheduler gave one.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// What the failure means for a task.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Status { code, .. } => match code {
                Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::Unimplemented
                | Code::AlreadyExists
                | Code::OutOfRange => Class::OtherSource,
                _ => Class::Retry,
            },
            Self::Deadline { .. } | Self::NotServing { .. } | Self::Closed { .. } => Class::Retry,
            Self::Protocol { .. } | Self::TlsFile { .. } | Self::Endpoint { .. } => Class::OtherSource,
        }
    }
}

/// A status's message; a transport error's own says little more than "transport error", its cause does.
fn words(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = if text.is_empty() { more } else { format!("{text}: {more}") };
        }
        cause = error.source();
    }
    text
}
