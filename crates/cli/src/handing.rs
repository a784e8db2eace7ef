//! What only our own daemon takes: files that this process has open, and word of which file a path means
//! (`docs/wire.md`, "Local plane").

use std::fs::File;
use std::path::Path;

use damselfly_api::damselfly::v1::local_client::LocalClient;
use damselfly_api::damselfly::v1::{Direction as WireDirection, OpenDescriptorRequest};
use damselfly_transport::local::{self, DESCRIPTOR_KEY, DescriptorError, Direction, SEEN_KEY, Seen, Token};
use http::HeaderMap;
use rustix::fs::{Mode, OFlags};
use thiserror::Error;
use tonic::{Code, Status};

use crate::client::call;
use crate::endpoint::{At, Daemon};
use crate::failure::root_cause;

/// Why a file was not handed over. Content can go another way.
#[derive(Debug, Error)]
pub(crate) enum NotTaken {
    #[error("this daemon takes no open files ({0})")]
    Unknown(String),
    #[error("the daemon takes no open files at the moment ({0})")]
    NotNow(String),
    #[error(transparent)]
    Refused(#[from] DescriptorError),
}

/// Hands `file` over for one call, which names the token ([`name_token`]).
pub(crate) async fn hand_over(daemon: &Daemon, file: &File, direction: Direction) -> Result<Token, NotTaken> {
    let At::Socket(socket) = &daemon.at else {
        return Err(NotTaken::Unknown("it is this process".to_owned()));
    };
    let wire = match direction {
        Direction::FromClient => WireDirection::FromClient,
        Direction::ToClient => WireDirection::ToClient,
    };
    let request = call(OpenDescriptorRequest { direction: wire.into() });
    let answer = LocalClient::new(daemon.channel.clone()).open_descriptor(request).await;
    let token = answer.map_err(|status| not_opened(&status))?.into_inner().token;
    let token = Token(token.try_into().map_err(|token: Vec<u8>| {
        NotTaken::Unknown(format!("its token has {} bytes instead of {}", token.len(), size_of::<Token>()))
    })?);
    local::hand_over(socket, &token, file).await?;
    Ok(token)
}

fn not_opened(status: &Status) -> NotTaken {
    match status.code() {
        Code::Unimplemented => NotTaken::Unknown(status.message().to_owned()),
        _ => NotTaken::NotNow(root_cause(status)),
    }
}

/// Says in a call's metadata that it is about the file that was handed over with `token`.
pub(crate) fn name_token(metadata: &mut HeaderMap, token: &Token) {
    insert(metadata, DESCRIPTOR_KEY, &token.to_string());
}

/// Says in a call's metadata which file its path must lead to, or in which directory an output's must lie. A daemon of
/// Dragonfly's does not hear it.
pub(crate) fn name_seen(metadata: &mut HeaderMap, seen: Option<Seen>) {
    if let Some(seen) = seen {
        insert(metadata, SEEN_KEY, &seen.to_string());
    }
}

/// The directory that the absolute `path` lies in, as it is here. Who may not look at it is told by the daemon, in its
/// own words.
pub(crate) fn directory_of(path: &Path) -> Option<Seen> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path.parent()?, flags, Mode::empty()).ok()?;
    Seen::of(directory).ok()
}

fn insert(metadata: &mut HeaderMap, key: &'static str, value: &str) {
    // Digits and colons are always a value.
    if let Ok(value) = value.parse() {
        metadata.insert(key, value);
    }
}
