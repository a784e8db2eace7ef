//! What our own programs say in a call's metadata (`docs/wire.md`, "Local plane").

use std::fs::File;
use std::str::FromStr;
use std::sync::Arc;

use damselfly_transport::local::{Caller, DESCRIPTOR_KEY, Direction, MetadataError, SEEN_KEY, Seen, Token};
use http::HeaderMap;
use tonic::Status;

use crate::engine::Engine;

/// A caller, and how it wants the files of its call reached.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    /// Who asks.
    pub(crate) caller: Arc<Caller>,
    token: Option<Token>,
    /// What the caller takes the path for, which it names.
    pub(crate) seen: Option<Seen>,
}

impl Asking {
    /// Reads a call's metadata.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for what cannot be read.
    pub(super) fn new(caller: Arc<Caller>, metadata: &HeaderMap) -> Result<Self, Status> {
        let (token, seen) = (read(metadata, DESCRIPTOR_KEY)?, read(metadata, SEEN_KEY)?);
        Ok(Self { caller, token, seen })
    }

    /// A caller that named a path, if any, and nothing else.
    #[cfg(test)]
    pub(crate) fn plain(caller: Arc<Caller>) -> Self {
        Self { caller, token: None, seen: None }
    }

    /// The file that the caller handed over for this call.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when it named one that did not come.
    pub(crate) fn descriptor(&self, engine: &Engine, direction: Direction) -> Result<Option<File>, Status> {
        let Some(token) = &self.token else { return Ok(None) };
        engine.descriptors.take(&self.caller, token, direction).map(Some)
    }
}

fn read<T: FromStr<Err = MetadataError>>(metadata: &HeaderMap, key: &str) -> Result<Option<T>, Status> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    let read = value.to_str().unwrap_or_default().parse();
    read.map(Some)
        .map_err(|why| Status::invalid_argument(format!("the metadata {key} cannot be read: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_or_refused() {
        let of = |name: &'static str, value: &'static str| {
            let metadata = HeaderMap::from_iter([(
                http::HeaderName::from_static(name),
                http::HeaderValue::from_static(value),
            )]);
            Asking::new(Arc::new(Caller::this_process()), &metadata)
        };
        let asking = of(SEEN_KEY, "65024:7").unwrap();
        assert_eq!((asking.seen, asking.token), (Some(Seen { device: 65024, inode: 7 }), None));
        let asking = of(DESCRIPTOR_KEY, "00ff00112233445566778899aabbccdd").unwrap();
        assert_eq!(asking.token.unwrap().0[..3], [0, 255, 0]);
        for (key, value) in [(SEEN_KEY, "7"), (DESCRIPTOR_KEY, "00ff")] {
            let refused = of(key, value).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(
                refused.message().starts_with(&format!("the metadata {key} cannot be read: ")),
                "{refused}"
            );
        }
    }
}
