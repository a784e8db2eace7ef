//! What is known of a task besides its bytes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use damselfly_core::download::Validator;
use damselfly_core::task_id::ContentId;
use damselfly_core::{Geometry, TaskId};

/// What a task is made with.
#[derive(Clone, Debug, Default)]
pub struct NewTask {
    /// The URL it comes from, for people to read; redacted once more before it is stored. Empty: it has none.
    pub url_redacted: String,
    /// The tag it was asked for with.
    pub tag: Option<String>,
    /// The application it was asked for by.
    pub application: Option<String>,
    /// The uid on whose behalf it is made; it may delete the task.
    pub owner_uid: Option<u32>,
    /// Whether its content was fetched with request headers that others must prove anew.
    pub private: bool,
    /// How long it may stay: for standard tasks after the last use, for others from now. `None`: the store's default.
    pub ttl: Option<Duration>,
    /// Whether disk pressure may not evict it. Its TTL still ends it.
    pub persistent: bool,
    /// How many replicas the cluster keeps of it, this one included; 0 for what is not replicated.
    pub replica_target: u64,
    /// The whole content's digest as `algorithm:value`, when known.
    pub digest: Option<String>,
    /// The generation that others know it by, where somebody else has named it already.
    pub generation: Option<u64>,
}

/// Where the id of an import comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportId {
    /// It is given.
    Given(TaskId),
    /// It follows from the content.
    Content(ContentId),
}

/// What an import is called by who sends it, to go on with it later.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadName {
    /// Who sends it. Nobody else finds it under the name.
    pub uid: u32,
    /// The name.
    pub name: String,
}

/// What the origin or the scheduler said of the content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// How the content is cut; `None` while its length is unknown.
    pub geometry: Option<Geometry>,
    /// The version of the content.
    pub validator: Validator,
    /// The origin's response headers, as clients get to see them.
    pub headers: BTreeMap<String, String>,
    /// Whether the content was fetched with request headers that others must prove anew.
    pub private: bool,
}

/// A snapshot of a task's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The version of the content, counted from 1 and on from a deleted predecessor.
    pub generation: u64,
    /// How the content is cut, once known.
    pub geometry: Option<Geometry>,
    /// The version of the content.
    pub validator: Validator,
    /// The origin's response headers.
    pub headers: BTreeMap<String, String>,
    /// Whether others must prove their right to it at the origin.
    pub private: bool,
    /// The uids that fetched or imported it, ascending.
    pub owners: Vec<u32>,
    /// The tag.
    pub tag: Option<String>,
    /// The application.
    pub application: Option<String>,
    /// The URL without its secrets; empty when there is none.
    pub url_redacted: String,
    /// The whole content's digest as `algorithm:value`, when known.
    pub digest: Option<String>,
    /// Whether its user paused it.
    pub paused: bool,
    /// Whether disk pressure may not evict it.
    pub persistent: bool,
    /// How many replicas the cluster keeps of it; 0 for what is not replicated.
    pub replica_target: u64,
    /// When it was made.
    pub created_at: SystemTime,
    /// When its metadata last changed.
    pub updated_at: SystemTime,
    /// When it was last marked finished; `None` before, and again after its content changed.
    pub finished_at: Option<SystemTime>,
    /// The time to live it was given.
    pub ttl: Duration,
    /// How much of that is left.
    pub ttl_left: Duration,
    /// Bytes of published pieces.
    pub held_bytes: u64,
}
