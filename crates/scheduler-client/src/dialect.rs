//! The dialogue of a persistent cache task's peer, in the words of a standard task's.
//!
//! AnnouncePersistentCachePeer is the same conversation as AnnouncePeer with messages of its own, and without an origin.
//! The daemon speaks the standard one throughout; here it is translated.

use damselfly_api::common::v2::{Peer, PersistentCachePeer};
use damselfly_api::scheduler::v2::announce_peer_request::Request;
use damselfly_api::scheduler::v2::announce_peer_response::Response;
use damselfly_api::scheduler::v2::announce_persistent_cache_peer_request::Request as CacheRequest;
use damselfly_api::scheduler::v2::announce_persistent_cache_peer_response::Response as CacheResponse;
use damselfly_api::scheduler::v2::{
    AnnouncePeerRequest, AnnouncePeerResponse, AnnouncePersistentCachePeerRequest,
    AnnouncePersistentCachePeerResponse, DownloadPersistentCachePeerFailedRequest,
    DownloadPersistentCachePeerFinishedRequest, DownloadPersistentCachePeerStartedRequest, EmptyTaskResponse,
    NormalTaskResponse, RegisterPeerRequest, RegisterPersistentCachePeerRequest,
    ReschedulePersistentCachePeerRequest,
};

/// A message to the scheduler; `None` for what only tasks with an origin speak of. `persistent` says whether the copy
/// becomes a replica.
pub(crate) fn request(
    message: AnnouncePeerRequest,
    persistent: bool,
) -> Option<AnnouncePersistentCachePeerRequest> {
    let request = match message.request? {
        Request::RegisterPeerRequest(register) => {
            CacheRequest::RegisterPersistentCachePeerRequest(registration(register, persistent))
        }
        Request::DownloadPeerStartedRequest(_) => CacheRequest::DownloadPersistentCachePeerStartedRequest(
            DownloadPersistentCachePeerStartedRequest {},
        ),
        Request::ReschedulePeerRequest(reschedule) => {
            let parents = reschedule.candidate_parents.into_iter();
            CacheRequest::ReschedulePersistentCachePeerRequest(ReschedulePersistentCachePeerRequest {
                candidate_parents: parents
                    .map(|peer| PersistentCachePeer { id: peer.id, ..PersistentCachePeer::default() })
                    .collect(),
                description: reschedule.description,
            })
        }
        Request::DownloadPeerFinishedRequest(_) => CacheRequest::DownloadPersistentCachePeerFinishedRequest(
            DownloadPersistentCachePeerFinishedRequest {},
        ),
        Request::DownloadPeerFailedRequest(failed) => {
            CacheRequest::DownloadPersistentCachePeerFailedRequest(DownloadPersistentCachePeerFailedRequest {
                description: failed.description,
            })
        }
        Request::DownloadPieceFinishedRequest(piece) => CacheRequest::DownloadPieceFinishedRequest(piece),
        Request::DownloadPieceFailedRequest(piece) => CacheRequest::DownloadPieceFailedRequest(piece),
        Request::DownloadPeerBackToSourceStartedRequest(_)
        | Request::DownloadPeerBackToSourceFinishedRequest(_)
        | Request::DownloadPeerBackToSourceFailedRequest(_)
        | Request::DownloadPieceBackToSourceFinishedRequest(_)
        | Request::DownloadPieceBackToSourceFailedRequest(_) => return None,
    };
    Some(AnnouncePersistentCachePeerRequest {
        host_id: message.host_id,
        task_id: message.task_id,
        peer_id: message.peer_id,
        request: Some(request),
    })
}

fn registration(register: RegisterPeerRequest, persistent: bool) -> RegisterPersistentCachePeerRequest {
    let download = register.download.unwrap_or_default();
    RegisterPersistentCachePeerRequest {
        persistent,
        tag: download.tag,
        application: download.application,
        piece_length: download.actual_piece_length.unwrap_or_default(),
        output_path: download.output_path,
        concurrent_piece_count: download.concurrent_piece_count,
        piece_count: download.actual_piece_count.unwrap_or_default(),
        restate: register.restate,
    }
}

/// A message of the scheduler's.
pub(crate) fn response(message: AnnouncePersistentCachePeerResponse) -> AnnouncePeerResponse {
    let response = message.response.map(|response| match response {
        CacheResponse::EmptyPersistentCacheTaskResponse(_) => {
            Response::EmptyTaskResponse(EmptyTaskResponse::default())
        }
        CacheResponse::NormalPersistentCacheTaskResponse(normal) => {
            Response::NormalTaskResponse(NormalTaskResponse {
                candidate_parents: normal.candidate_cache_parents.into_iter().map(parent).collect(),
            })
        }
    });
    AnnouncePeerResponse { response, facts: message.facts }
}

fn parent(peer: PersistentCachePeer) -> Peer {
    Peer {
        id: peer.id,
        state: peer.state,
        host: peer.host,
        cost: peer.cost,
        created_at: peer.created_at,
        updated_at: peer.updated_at,
        concurrent_piece_count: Some(peer.concurrent_piece_count),
        ..Peer::default()
    }
}

#[cfg(test)]
mod tests {
    use damselfly_api::common::v2::{Download, Host};
    use damselfly_api::damselfly::v1::{Facts, Restate};
    use damselfly_api::scheduler::v2::{
        DownloadPeerBackToSourceStartedRequest, DownloadPeerStartedRequest, NormalPersistentCacheTaskResponse,
    };

    use super::*;

    fn message(request: Request) -> AnnouncePeerRequest {
        AnnouncePeerRequest {
            host_id: "h".to_owned(),
            task_id: "t".to_owned(),
            peer_id: "p".to_owned(),
            request: Some(request),
            ..AnnouncePeerRequest::default()
        }
    }

    #[test]
    fn a_registration_says_how_the_content_is_cut_and_what_is_held() {
        let download = Download {
            tag: Some("tag".to_owned()),
            actual_piece_length: Some(8),
            actual_piece_count: Some(3),
            concurrent_piece_count: Some(5),
            ..Download::default()
        };
        let restate = Some(Restate { bitmap: vec![1], ..Restate::default() });
        let register = RegisterPeerRequest { download: Some(download), restate: restate.clone() };
        let said = request(message(Request::RegisterPeerRequest(register)), true).unwrap();
        assert_eq!((said.host_id.as_str(), said.task_id.as_str(), said.peer_id.as_str()), ("h", "t", "p"));
        let Some(CacheRequest::RegisterPersistentCachePeerRequest(said)) = said.request else {
            panic!("{said:?}")
        };
        assert_eq!((said.piece_length, said.piece_count, said.concurrent_piece_count), (8, 3, Some(5)));
        assert_eq!((said.persistent, said.tag.as_deref(), said.restate), (true, Some("tag"), restate));
    }

    #[test]
    fn nothing_is_said_of_an_origin() {
        let started = Request::DownloadPeerStartedRequest(DownloadPeerStartedRequest {});
        assert!(request(message(started), false).is_some());
        let origin = Request::DownloadPeerBackToSourceStartedRequest(
            DownloadPeerBackToSourceStartedRequest::default(),
        );
        assert!(request(message(origin), false).is_none());
        assert!(
            request(AnnouncePeerRequest { released_lease: Some(1), ..Default::default() }, false).is_none()
        );
    }

    #[test]
    fn parents_and_facts_come_through() {
        let host = Host { id: "host".to_owned(), incarnation: Some(7), ..Host::default() };
        let parent = PersistentCachePeer {
            id: "parent".to_owned(),
            state: "Succeeded".to_owned(),
            host: Some(host.clone()),
            ..PersistentCachePeer::default()
        };
        let normal = NormalPersistentCacheTaskResponse { candidate_cache_parents: vec![parent] };
        let facts = Some(Facts { generation: 2, ..Facts::default() });
        let heard = response(AnnouncePersistentCachePeerResponse {
            response: Some(CacheResponse::NormalPersistentCacheTaskResponse(normal)),
            facts: facts.clone(),
        });
        assert_eq!(heard.facts, facts);
        let Some(Response::NormalTaskResponse(normal)) = heard.response else { panic!("{heard:?}") };
        let [peer] = &normal.candidate_parents[..] else { panic!("{normal:?}") };
        assert_eq!((peer.id.as_str(), peer.state.as_str(), &peer.host), ("parent", "Succeeded", &Some(host)));
    }
}
