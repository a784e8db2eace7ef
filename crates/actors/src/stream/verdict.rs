//! Failures in the words of gRPC (`docs/wire.md`, "Error details").

use std::collections::BTreeMap;

use bytes::Bytes;
use damselfly_core::download::{Failure, FailureKind, LostClient, Validator};
use damselfly_storage::StoreError;
use tonic::{Code, Status};

/// A store's refusal.
pub(crate) fn storage(why: &StoreError) -> Status {
    match why {
        StoreError::NoSpace { .. } | StoreError::DiskFull { .. } => {
            Status::resource_exhausted(why.to_string())
        }
        StoreError::Exists(_) | StoreError::Taken(_) => Status::already_exists(why.to_string()),
        StoreError::WrongLength { .. } => Status::invalid_argument(why.to_string()),
        StoreError::InUse { .. } | StoreError::NoHardLink { .. } => {
            Status::failed_precondition(why.to_string())
        }
        _ => Status::internal(why.to_string()),
    }
}

/// An origin's refusal, with its status and headers as Dragonfly's clients read them: JSON in the status details.
pub(super) fn backend(message: &str, status: Option<u16>, headers: &BTreeMap<String, String>) -> Status {
    let detail = serde_json::json!({ "message": message, "header": headers, "status_code": status });
    Status::with_details(Code::Internal, format!("backend error: {message}"), Bytes::from(detail.to_string()))
}

fn source(failure: &Failure) -> Status {
    match failure.kind {
        FailureKind::Storage => Status::resource_exhausted(failure.message.clone()),
        _ if failure.status.is_some() => backend(&failure.message, failure.status, &failure.headers),
        FailureKind::Unauthorized | FailureKind::Refused => {
            backend(&failure.message, failure.status, &failure.headers)
        }
        _ => Status::unavailable(failure.message.clone()),
    }
}

fn version(validator: &Validator) -> String {
    match (&validator.etag, &validator.last_modified) {
        (Some(etag), _) => format!("ETag {etag}"),
        (None, Some(modified)) => format!("Last-Modified {modified}"),
        (None, None) => "no validator".to_owned(),
    }
}

/// Why a client got nothing, as its call's status.
#[must_use]
pub fn status_of(why: &LostClient) -> Status {
    match why {
        LostClient::Source(failure) => source(failure),
        LostClient::Range(why) => Status::failed_precondition(why.clone()),
        LostClient::Deadline(why) => Status::deadline_exceeded(why.clone()),
        LostClient::Cancelled => Status::cancelled("task cancelled by a user"),
        LostClient::Changed { before, after } => Status::aborted(format!(
            "the origin's content keeps changing: it was {} and is {}; try again when it is stable",
            version(before),
            version(after)
        )),
        LostClient::NoSource(why) => Status::unavailable(why.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origins_refusal_carries_json_with_all_three_keys() {
        let failure = Failure {
            kind: FailureKind::Refused,
            message: "404 Not Found".to_owned(),
            status: Some(404),
            headers: BTreeMap::from([("content-type".to_owned(), "text/html".to_owned())]),
        };
        let status = status_of(&LostClient::Source(failure));
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "backend error: 404 Not Found");
        let detail: serde_json::Value = serde_json::from_slice(status.details()).unwrap();
        assert_eq!(
            detail,
            serde_json::json!({"message": "404 Not Found", "header": {"content-type": "text/html"}, "status_code": 404})
        );
    }
}
