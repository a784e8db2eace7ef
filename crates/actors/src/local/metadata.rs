//! What our own programs say in a call's metadata (`docs/wire.md`, "Local plane").

use std::fs::File;
use std::sync::Arc;

use damselfly_transport::local::{Caller, Direction, Seen, Token};
use http::HeaderMap;
use tonic::Status;

use crate::engine::Engine;

/// The token of a descriptor, in hexadecimal digits.
const DESCRIPTOR: &str = "x-damselfly-descriptor";
/// Which file or directory the caller means: `<st_dev>:<st_ino>`, decimal.
const SEEN: &str = "x-damselfly-seen";

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
        let read = |name: &'static str| metadata.get(name).map(|value| value.to_str().unwrap_or_default());
        let wrong = |name: &str| Status::invalid_argument(format!("the metadata {name} cannot be read"));
        let token = read(DESCRIPTOR).map(|text| token(text).ok_or_else(|| wrong(DESCRIPTOR))).transpose()?;
        let seen = read(SEEN).map(|text| seen(text).ok_or_else(|| wrong(SEEN))).transpose()?;
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

fn token(text: &str) -> Option<Token> {
    let mut token = Token::default();
    if text.len() != 2 * token.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in token.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(token)
}

fn seen(text: &str) -> Option<Seen> {
    let (device, inode) = text.split_once(':')?;
    Some(Seen { device: device.parse().ok()?, inode: inode.parse().ok()? })
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
        let asking = of(SEEN, "65024:7").unwrap();
        assert_eq!((asking.seen, asking.token), (Some(Seen { device: 65024, inode: 7 }), None));
        let asking = of(DESCRIPTOR, "00ff00112233445566778899aabbccdd").unwrap();
        assert_eq!(asking.token.unwrap()[..3], [0, 255, 0]);
        for (name, value) in [
            (SEEN, "7"),
            (SEEN, "-1:7"),
            (DESCRIPTOR, "00ff"),
            (DESCRIPTOR, "+1ff00112233445566778899aabbccdd"),
        ] {
            assert_eq!(of(name, value).unwrap_err().code(), tonic::Code::InvalidArgument, "{value}");
        }
    }
}
