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
    /// What a message may say.
    type Response;

    /// The message.
    fn new(names: &Names, response: Self::Response) -> Self;

    /// The download begins.
    fn started(started: &Started) -> Self::Response;

    /// A piece is there; content goes beside it.
    fn finished(piece: dfdaemon::DownloadPieceFinishedResponse) -> Self::Response;
}

impl Message for dfdaemon::DownloadTaskResponse {
    type Response = Response;

    fn new(names: &Names, response: Response) -> Self {
        let Names { host, task, peer } = names.clone();
        Self { host_id: host, task_id: task, peer_id: peer, response: Some(response) }
    }

    fn started(started: &Started) -> Response {
        Response::DownloadTaskStartedResponse(started_message(started))
    }

    fn finished(piece: dfdaemon::DownloadPieceFinishedResponse) -> Response {
        Response::DownloadPieceFinishedResponse(piece)
    }
}

impl Message for dfdaemon::DownloadPersistentCacheTaskResponse {
    type Response = CacheResponse;

    fn new(names: &Names, response: CacheResponse) -> Self {
        let Names { host, task, peer } = names.clone();
        Self { host_id: host, task_id: task, peer_id: peer, response: Some(response) }
    }

    fn started(started: &Started) -> CacheResponse {
        let content_length = started.geometry.content_length();
        let started = dfdaemon::DownloadPersistentCacheTaskStartedResponse { content_length };
        CacheResponse::DownloadPersistentCacheTaskStartedResponse(started)
    }

    fn finished(piece: dfdaemon::DownloadPieceFinishedResponse) -> CacheResponse {
        CacheResponse::DownloadPieceFinishedResponse(piece)
    }
}

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
        let response = match item {
            Item::Started(started) => {
                self.names.peer = started.peer_id.to_string();
                M::started(started)
            }
            Item::Piece { piece, .. } => {
                M::finished(dfdaemon::DownloadPieceFinishedResponse { piece: Some(piece.clone()) })
            }
            Item::Chunk { .. } | Item::Finished(_) => return None,
        };
        Some(M::new(&self.names, response))
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
