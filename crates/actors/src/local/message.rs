//! A stream's items as messages of dfdaemon.v2.

use std::marker::PhantomData;

use damselfly_api::common::v2 as common;
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_api::dfdaemon::v2::download_persistent_cache_task_response::Response as CacheResponse;
use damselfly_api::dfdaemon::v2::download_task_response::Response;

use crate::stream::{Item, Started};

/// What every message of a download names.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) host: String,
    pub(crate) task: String,
    pub(crate) peer: String,
}

/// A message of a download's story; each kind of task has its own.
pub(crate) trait Message: prost::Message + Default + 'static {
    /// The download begins.
    fn started(names: &Names, started: &Started) -> Self;

    /// A piece is there; content goes beside it.
    fn piece(names: &Names, piece: common::Piece) -> Self;
}

impl Message for dfdaemon::DownloadTaskResponse {
    fn started(names: &Names, started: &Started) -> Self {
        Self::new(names, Response::DownloadTaskStartedResponse(started_message(started)))
    }

    fn piece(names: &Names, piece: common::Piece) -> Self {
        Self::new(names, Response::DownloadPieceFinishedResponse(finished(piece)))
    }
}

impl Message for dfdaemon::DownloadPersistentCacheTaskResponse {
    fn started(names: &Names, started: &Started) -> Self {
        let content_length = started.geometry.content_length();
        let started = dfdaemon::DownloadPersistentCacheTaskStartedResponse { content_length };
        Self::new(names, CacheResponse::DownloadPersistentCacheTaskStartedResponse(started))
    }

    fn piece(names: &Names, piece: common::Piece) -> Self {
        Self::new(names, CacheResponse::DownloadPieceFinishedResponse(finished(piece)))
    }
}

fn finished(piece: common::Piece) -> dfdaemon::DownloadPieceFinishedResponse {
    dfdaemon::DownloadPieceFinishedResponse { piece: Some(piece) }
}

trait New<R> {
    fn new(names: &Names, response: R) -> Self;
}

macro_rules! named {
    ($message:ty, $response:ty) => {
        impl New<$response> for $message {
            fn new(names: &Names, response: $response) -> Self {
                Self {
                    host_id: names.host.clone(),
                    task_id: names.task.clone(),
                    peer_id: names.peer.clone(),
                    response: Some(response),
                }
            }
        }
    };
}

named!(dfdaemon::DownloadTaskResponse, Response);
named!(dfdaemon::DownloadPersistentCacheTaskResponse, CacheResponse);

/// Turns one client's items into messages.
#[derive(Clone, Debug)]
pub(crate) struct Teller<M> {
    names: Names,
    message: PhantomData<fn() -> M>,
}

impl<M: Message> Teller<M> {
    /// For one client of `task` on this `host`.
    #[must_use]
    pub(crate) fn new(host: String, task: String) -> Self {
        Self { names: Names { host, task, peer: String::new() }, message: PhantomData }
    }

    /// What its messages name; the peer from the first item on.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// The item's message; content goes beside it. `None` for what Dragonfly's clients do not know.
    pub(crate) fn message(&mut self, item: &Item) -> Option<M> {
        match item {
            Item::Started(started) => {
                self.names.peer = started.peer_id.to_string();
                Some(M::started(&self.names, started))
            }
            Item::Piece { piece, .. } => Some(M::piece(&self.names, piece.clone())),
            Item::Chunk { .. } | Item::Finished(_) => None,
        }
    }
}

fn started_message(started: &Started) -> dfdaemon::DownloadTaskStartedResponse {
    dfdaemon::DownloadTaskStartedResponse {
        content_length: started.geometry.content_length(),
        range: started
            .partial
            .then_some(common::Range { start: started.range.start, length: started.range.length }),
        response_header: started.headers.clone(),
        pieces: started
            .pieces
            .iter()
            .map(|span| common::Piece {
                number: span.number,
                offset: span.offset,
                length: span.length,
                ..common::Piece::default()
            })
            .collect(),
        is_finished: started.was_complete,
    }
}
