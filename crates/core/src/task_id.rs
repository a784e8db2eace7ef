//! How ids come about (`docs/wire.md`, "Identifiers").
//!
//! Every function here is what all peers of a cluster must agree on byte for byte: two hosts that derive different ids
//! for one download share nothing, and nobody gets an error.

use std::fmt::Write as _;
use std::net::IpAddr;

use sha2::{Digest as _, Sha256};
use url::Url;

use crate::digest::{Computed, hex};
use crate::{Algorithm, HostId, IdError, Kind, PeerId, TaskId, redact};

/// Query parameters that sign a URL without naming other content. Command line clients leave them out of the id unless
/// told otherwise; a gRPC caller's empty list stays empty.
pub const DEFAULT_FILTERED_QUERY_PARAMS: [&str; 30] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
    "X-Amz-User-Agent",
    "X-Goog-Algorithm",
    "X-Goog-Credential",
    "X-Goog-Date",
    "X-Goog-Expires",
    "X-Goog-SignedHeaders",
    "X-Goog-Signature",
    "OSSAccessKeyId",
    "Expires",
    "Signature",
    "SecurityToken",
    "AccessKeyId",
    "X-Obs-Date",
    "X-Obs-Security-Token",
    "q-sign-algorithm",
    "q-ak",
    "q-sign-time",
    "q-key-time",
    "q-header-list",
    "q-url-param-list",
    "q-signature",
    "x-cos-security-token",
    "ns",
];

/// What the id of a task with an origin depends on.
#[derive(Clone, Copy, Debug)]
pub struct StandardInput<'a> {
    /// The URL as the user gave it.
    pub url: &'a str,
    /// The user's tag. The empty tag is no tag.
    pub tag: Option<&'a str>,
    /// The user's application. The empty application is none.
    pub application: Option<&'a str>,
    /// The revision of a model hub's repository.
    pub revision: Option<&'a str>,
    /// The piece length, only where the user named one.
    pub piece_length: Option<u64>,
    /// Query parameters that do not count, matched exactly.
    pub filtered_query_params: &'a [String],
    /// `content_for_calculating_task_id`: takes the place of everything above.
    pub content: Option<&'a str>,
    /// Whether the URL of an OCI blob gives the blob's own digest as id.
    pub blob_digest: bool,
    /// The kind of task.
    pub kind: Kind,
}

/// The id of a task with an origin.
///
/// # Errors
/// - [`IdError::Url`] when the URL is needed and cannot be parsed.
/// - [`IdError::BlobDigest`] when the URL is an OCI blob's but its digest is none.
/// - [`IdError::NeedsContent`] for a persistent cache task without `content`: its id comes from its bytes
///   ([`PersistentCacheHasher`]).
pub fn standard(input: &StandardInput<'_>) -> Result<TaskId, IdError> {
    if let Some(content) = input.content {
        return TaskId::parse(&hex(&Sha256::digest(content.as_bytes())));
    }
    let word = match input.kind {
        Kind::Standard => "STANDARD",
        Kind::Cache => "CACHE",
        Kind::PersistentCache => return Err(IdError::NeedsContent),
    };
    if input.blob_digest
        && let Some(digest) = blob_digest(input.url)
    {
        return blob_id(digest);
    }
    let url = normalised_url(input.url, input.filtered_query_params)?;
    let mut hasher = Sha256::new();
    hasher.update(url);
    for part in [input.tag, input.application, input.revision].into_iter().flatten() {
        hasher.update(part);
    }
    if let Some(length) = input.piece_length {
        hasher.update(length.to_string());
    }
    hasher.update(word);
    TaskId::parse(&hex(&hasher.finalize()))
}

/// `url` as it enters the id: parsed, without the parameters named in `filtered`, the rest of the query re-encoded.
///
/// The query is re-encoded even when nothing was filtered (`%20` becomes `+`), and a bare host loses its slash.
///
/// # Errors
/// [`IdError::Url`] when it cannot be parsed.
pub fn normalised_url(url: &str, filtered: &[String]) -> Result<String, IdError> {
    let mut parsed =
        Url::parse(url).map_err(|error| IdError::Url { url: redact::url(url), why: error.to_string() })?;
    let kept: Vec<(String, String)> = parsed
        .query_pairs()
        .filter(|(key, _)| !filtered.iter().any(|name| name == key))
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect();
    if kept.is_empty() {
        parsed.set_query(None);
    } else {
        parsed.query_pairs_mut().clear().extend_pairs(kept);
    }
    let bare_host = parsed.path() == "/";
    let text = String::from(parsed);
    Ok(if bare_host { text.trim_end_matches('/').to_owned() } else { text })
}

/// The last part of an OCI blob's URL: `^(.*)://(.*)/v2/(.*)/blobs/([^?]+)(?:\?.*)?$`, group 4.
fn blob_digest(url: &str) -> Option<&str> {
    url.rmatch_indices("/blobs/").find_map(|(at, marker)| {
        let (_, host_and_path) = url[..at].split_once("://")?;
        let digest = url[at + marker.len()..].split('?').next()?;
        (host_and_path.contains("/v2/") && !digest.is_empty()).then_some(digest)
    })
}

fn blob_id(digest: &str) -> Result<TaskId, IdError> {
    let refused = || IdError::BlobDigest(digest.chars().take(200).collect());
    let (algorithm, encoded) = digest.split_once(':').ok_or_else(refused)?;
    let digits = match algorithm {
        "sha256" => 64,
        "sha512" => 128,
        "crc32" => 10,
        _ => return Err(refused()),
    };
    if encoded.len() != digits {
        return Err(refused());
    }
    TaskId::parse(encoded).map_err(|_| refused())
}

/// The hash behind a persistent cache task's id. Both hash the same fields; all importers of a cluster that want equal
/// content to meet must use the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContentId {
    /// Dragonfly's.
    #[default]
    Sha256,
    /// Several times faster.
    Blake3,
}

/// Computes a persistent cache task's id while its content passes.
#[derive(Clone, Debug)]
pub struct PersistentCacheHasher(Inner);

#[derive(Clone, Debug)]
enum Inner {
    Sha256(Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl PersistentCacheHasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new(content_id: ContentId) -> Self {
        Self(match content_id {
            ContentId::Sha256 => Inner::Sha256(Sha256::new()),
            ContentId::Blake3 => Inner::Blake3(Box::default()),
        })
    }

    /// Takes the next bytes of content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Inner::Sha256(hasher) => hasher.update(bytes),
            Inner::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// The digest of the content taken, so that whoever wants that one, too, need not read the content again.
    #[must_use]
    pub fn content_digest(&self) -> Computed {
        match &self.0 {
            Inner::Sha256(hasher) => Computed::Hex(Algorithm::Sha256, hex(&hasher.clone().finalize())),
            Inner::Blake3(hasher) => Computed::Hex(Algorithm::Blake3, hasher.finalize().to_hex().to_string()),
        }
    }

    /// The id of the content taken. `piece_length` only where the user named one.
    ///
    /// # Errors
    /// None in practice: the hash is always 64 hex digits.
    pub fn finish(
        mut self,
        tag: Option<&str>,
        application: Option<&str>,
        piece_length: Option<u64>,
    ) -> Result<TaskId, IdError> {
        for part in [tag, application].into_iter().flatten() {
            self.update(part.as_bytes());
        }
        if let Some(length) = piece_length {
            self.update(length.to_string().as_bytes());
        }
        self.update(b"PERSISTENT_CACHE");
        match self.0 {
            Inner::Sha256(hasher) => TaskId::parse(&hex(&hasher.finalize())),
            Inner::Blake3(hasher) => TaskId::parse(&hasher.finalize().to_hex()),
        }
    }
}

/// What follows the name in a seed's ids.
fn seed_suffix(seed: bool) -> &'static str {
    if seed { "-seed" } else { "" }
}

impl HostId {
    /// A host's own id.
    #[must_use]
    pub fn new(ip: IpAddr, hostname: &str, seed: bool) -> Self {
        Self::from(format!("{}-{hostname}{}", ip.to_canonical(), seed_suffix(seed)))
    }
}

impl PeerId {
    /// A new peer's id. `random` are 128 random bits, of which six give way to the marks of a version 4 UUID.
    #[must_use]
    pub fn new(ip: IpAddr, hostname: &str, random: u128, seed: bool) -> Self {
        let bits = random & !(0xf << 76) & !(0b11 << 62) | 0x4 << 76 | 0b10 << 62;
        let digits = format!("{bits:032x}");
        let mut text = format!("{}-{hostname}", ip.to_canonical());
        for range in [0..8, 8..12, 12..16, 16..20, 20..32] {
            let _ = write!(text, "-{}", &digits[range]);
        }
        text.push_str(seed_suffix(seed));
        Self::from(text)
    }

    /// The peer under which a host holds a task that nobody is downloading there.
    #[must_use]
    pub fn held(host: &HostId, task: &TaskId) -> Self {
        let id = task.as_str();
        Self::from(format!("{host}-{}-held", &id[..id.len().min(8)]))
    }
}
