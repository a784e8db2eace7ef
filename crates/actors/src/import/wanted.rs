//! What is to be imported, checked.

use std::time::Duration;

use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_core::geometry::named_piece_length;
use damselfly_core::task_id::{ContentId, StandardInput, standard};
use damselfly_core::{Kind, PERSISTENT_CACHE_TTL as TTL, TaskId};
use damselfly_storage::{ImportId, NewImport, NewTask, UploadName};
use tonic::Status;

use crate::request::invalid;
use crate::task::wire;

/// The longest name of an upload, in bytes: it is kept beside the content.
const MOST_OF_A_NAME: usize = 256;

/// What is to be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) replicas: u64,
    pub(crate) tag: Option<String>,
    pub(crate) application: Option<String>,
    pub(crate) ttl: Duration,
    pub(crate) content_length: Option<u64>,
    pub(crate) piece_length: Option<u64>,
    /// What the id is made of instead of the content.
    pub(crate) given: Option<String>,
    pub(crate) content_id: ContentId,
    pub(crate) ack: u32,
    pub(crate) owner: Option<u32>,
    /// What its client calls it, to go on with it when the stream breaks.
    pub(crate) upload: Option<String>,
    /// The first byte that comes.
    pub(crate) offset: u64,
}

impl Wanted {
    /// Reads a request of Dragonfly's. The length comes from the file.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for what makes no sense.
    pub(crate) fn of_upload(
        request: dfdaemon::UploadPersistentCacheTaskRequest,
        owner: Option<u32>,
    ) -> Result<Self, Status> {
        Self {
            replicas: request.persistent_replica_count,
            tag: request.tag,
            application: request.application,
            ttl: wire::duration_from(request.ttl).unwrap_or_default(),
            content_length: None,
            piece_length: request.piece_length,
            given: request.content_for_calculating_task_id,
            content_id: ContentId::default(),
            ack: 1,
            owner,
            upload: None,
            offset: 0,
        }
        .checked()
    }

    /// Reads the beginning of a stream.
    ///
    /// # Errors
    /// As [`Self::of_upload`].
    pub(crate) fn of_stream(
        started: dfdaemon::WritePersistentCacheTaskStarted,
        owner: Option<u32>,
    ) -> Result<Self, Status> {
        let content_id = match started.content_id.as_str() {
            "" | "sha256" => ContentId::Sha256,
            "blake3" => ContentId::Blake3,
            other => return Err(invalid(format!("content_id {other:?} is neither sha256 nor blake3"))),
        };
        Self {
            replicas: started.persistent_replica_count,
            tag: started.tag,
            application: started.application,
            ttl: wire::duration_from(started.ttl).unwrap_or_default(),
            content_length: started.content_length,
            piece_length: started.piece_length,
            given: started.content_for_calculating_task_id,
            content_id,
            ack: started.ack,
            owner,
            upload: Some(started.upload_id).filter(|upload| !upload.is_empty()),
            offset: started.offset,
        }
        .checked()
    }

    fn checked(mut self) -> Result<Self, Status> {
        if self.replicas == 0 {
            return Err(invalid("persistent_replica_count is 0: at least this host keeps a replica"));
        }
        if u64::from(self.ack) > self.replicas {
            return Err(invalid(format!(
                "ack is {} and persistent_replica_count {}: no more replicas come about than are kept",
                self.ack, self.replicas
            )));
        }
        if !TTL.contains(&self.ttl) {
            return Err(invalid(format!(
                "ttl is {} s or missing: say how long the content is to be kept, from {} to {} s",
                self.ttl.as_secs(),
                TTL.start().as_secs(),
                TTL.end().as_secs()
            )));
        }
        if let Some(piece_length) = self.piece_length {
            named_piece_length(piece_length).map_err(|why| invalid(format!("piece_length: {why}")))?;
        }
        if self.upload.as_ref().is_some_and(|upload| upload.len() > MOST_OF_A_NAME) {
            return Err(invalid(format!("upload_id is longer than {MOST_OF_A_NAME} bytes")));
        }
        self.given = self.given.filter(|given| !given.is_empty());
        Ok(self)
    }

    /// What an upload is kept under. One of a uid that means nothing here cannot be told from others, and of a pipe
    /// nobody can send the rest.
    pub(super) fn name(&self) -> Option<UploadName> {
        self.content_length?;
        Some(UploadName { uid: self.owner?, name: self.upload.clone()? })
    }

    /// What the store is to take in.
    pub(super) fn to_storage(&self, given: Option<&TaskId>) -> NewImport {
        NewImport {
            id: match given {
                Some(id) => ImportId::Given(id.clone()),
                None => ImportId::Content(self.content_id),
            },
            content_length: self.content_length,
            piece_length: self.piece_length,
            new: NewTask {
                tag: self.tag.clone(),
                application: self.application.clone(),
                owner_uid: self.owner,
                ttl: Some(self.ttl),
                persistent: true,
                replica_target: self.replicas,
                ..NewTask::default()
            },
            upload: self.name(),
        }
    }

    /// The id that the user chose.
    pub(super) fn given_id(&self) -> Result<Option<TaskId>, Status> {
        let Some(content) = self.given.as_deref() else { return Ok(None) };
        let input = StandardInput {
            url: "",
            tag: None,
            application: None,
            revision: None,
            piece_length: None,
            filtered_query_params: &[],
            content: Some(content),
            blob_digest: false,
            kind: Kind::PersistentCache,
        };
        standard(&input).map(Some).map_err(invalid)
    }
}
