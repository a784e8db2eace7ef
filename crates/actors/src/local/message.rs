//! A stream's items as messages of dfdaemon.v2.

use damselfly_api::common::v2 as common;
use damselfly_api::dfdaemon::v2 as dfdaemon;
use damselfly_api::dfdaemon::v2::download_task_response::Response;

use crate::stream::{Item, Started};

/// Turns one client's items into messages.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    host: String,
    task: String,
    peer: String,
}

impl Teller {
    /// For one client of `task` on this `host`.
    #[must_use]
    pub(crate) fn new(host: String, task: String) -> Self {
        Self { host, task, peer: String::new() }
    }

    /// The item's message; content goes beside it. `None` for what Dragonfly's clients do not know.
    pub(crate) fn message(&mut self, item: &Item) -> Option<dfdaemon::DownloadTaskResponse> {
        let response = match item {
            Item::Started(started) => {
                self.peer = started.peer_id.to_string();
                Response::DownloadTaskStartedResponse(started_message(started))
            }
            Item::Piece { piece, .. } => {
                Response::DownloadPieceFinishedResponse(dfdaemon::DownloadPieceFinishedResponse {
                    piece: Some(piece.clone()),
                })
            }
            Item::Chunk { .. } | Item::Finished(_) => return None,
        };
        Some(dfdaemon::DownloadTaskResponse {
            host_id: self.host.clone(),
            task_id: self.task.clone(),
            peer_id: self.peer.clone(),
            response: Some(response),
        })
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
