//! One announce stream: read, checked, passed on.

use std::sync::Arc;

use damselfly_api::scheduler::v2::announce_peer_request::Request;
use damselfly_api::scheduler::v2::{
    AnnouncePeerRequest, AnnouncePeerResponse, AnnouncePersistentCachePeerRequest,
    AnnouncePersistentCachePeerResponse,
};
use damselfly_core::{HostId, Kind, PeerId};
use tokio::sync::oneshot;
use tokio_stream::StreamExt as _;
use tonic::codegen::BoxStream;
use tonic::{Response, Status, Streaming};

use super::stream::{Inlet, outlet};
use super::{Announce, SchedulerService, convert, persistent_cache, validate};
use crate::machine::{Event, PeerEvent, StreamId};

impl SchedulerService {
    /// Opens a stream of a standard task's peer. It answers with headers at once: daemons wait ten seconds for them, and
    /// the first message may take longer.
    pub(super) fn open_announce(
        self: &Arc<Self>,
        requests: Streaming<AnnouncePeerRequest>,
    ) -> Result<Response<BoxStream<AnnouncePeerResponse>>, Status> {
        let inlet = self.open(requests, Self::take_announce)?;
        Ok(Response::new(Box::pin(inlet)))
    }

    /// The same of a persistent cache task's peer, whose answers are translated on their way out.
    pub(super) fn open_persistent_cache_announce(
        self: &Arc<Self>,
        requests: Streaming<AnnouncePersistentCachePeerRequest>,
    ) -> Result<Response<BoxStream<AnnouncePersistentCachePeerResponse>>, Status> {
        let inlet = self.open(requests, Self::take_persistent_cache_announce)?;
        let service = Arc::clone(self);
        Ok(Response::new(Box::pin(
            inlet.map(move |answer| answer.map(|answer| service.cache_response(answer))),
        )))
    }

    fn open<Q: Send + 'static>(
        self: &Arc<Self>,
        requests: Streaming<Q>,
        take: fn(&Arc<Self>, StreamId, Q) -> Result<(), Status>,
    ) -> Result<Inlet<AnnouncePeerResponse>, Status> {
        let stream = StreamId(self.next_id());
        let (outlet, inlet, stopped) = outlet(self.config.queue);
        {
            let mut inner = self.inner.lock();
            if inner.closing {
                return Err(Status::unavailable("the scheduler is shutting down"));
            }
            inner.announces.insert(stream, Announce { outlet, download: None });
        }
        tokio::spawn(self.clone().read_announce(stream, requests, stopped, take));
        Ok(inlet)
    }

    /// Reads until either side ends the stream. Only the first message has a deadline: later a paused task's stream is
    /// silent for as long as its user likes, and HTTP/2 keepalive finds the dead.
    async fn read_announce<Q: Send + 'static>(
        self: Arc<Self>,
        stream: StreamId,
        mut requests: Streaming<Q>,
        mut stopped: oneshot::Receiver<()>,
        take: fn(&Arc<Self>, StreamId, Q) -> Result<(), Status>,
    ) {
        let late = tokio::time::sleep(self.config.first_message);
        tokio::pin!(late);
        let mut silent = true;
        let ending = loop {
            let request = tokio::select! {
                _ = &mut stopped => return,
                request = requests.message() => request,
                () = &mut late, if silent => break Some(super::too_late("a registration")),
            };
            silent = false;
            match request {
                Ok(Some(request)) => {
                    if let Err(status) = take(&self, stream, request) {
                        break Some(status);
                    }
                }
                Ok(None) => break None,
                Err(status) => {
                    // Where it is the message that was wrong, its sender is still there to be told.
                    tracing::debug!(code = ?status.code(), "announce stream broke");
                    break Some(status);
                }
            }
        };
        self.step(Event::StreamClosed(stream));
        let announce = self.inner.lock().announces.remove(&stream);
        super::end(announce, ending);
    }

    fn take_announce(self: &Arc<Self>, stream: StreamId, request: AnnouncePeerRequest) -> Result<(), Status> {
        validate::given("host_id", &request.host_id)?;
        validate::given("peer_id", &request.peer_id)?;
        let task = validate::task("task_id", &request.task_id)?;
        if request.request.is_none() && request.learned.is_none() && request.released_lease.is_none() {
            return Err(validate::invalid("request", "must be given"));
        }
        if let Some(Request::RegisterPeerRequest(register)) = &request.request {
            let download = register.download.clone().map(Box::new);
            if let Some(announce) = self.inner.lock().announces.get_mut(&stream) {
                announce.download = download;
            }
        }
        let event = PeerEvent {
            stream,
            host: HostId::from(request.host_id),
            task,
            peer: PeerId::from(request.peer_id),
            learned: request.learned.map(convert::learned),
            released: request.released_lease,
            message: request.request.map(convert::message).transpose()?,
        };
        self.step(Event::Peer(Box::new(event)));
        Ok(())
    }

    fn take_persistent_cache_announce(
        self: &Arc<Self>,
        stream: StreamId,
        request: AnnouncePersistentCachePeerRequest,
    ) -> Result<(), Status> {
        validate::given("host_id", &request.host_id)?;
        validate::given("peer_id", &request.peer_id)?;
        let task = validate::task_of(Kind::PersistentCache, "task_id", &request.task_id)?;
        let message = request.request.ok_or_else(|| validate::invalid("request", "must be given"))?;
        let event = PeerEvent {
            stream,
            host: HostId::from(request.host_id),
            task,
            peer: PeerId::from(request.peer_id),
            learned: None,
            released: None,
            message: Some(persistent_cache::message(message)?),
        };
        self.step(Event::Peer(Box::new(event)));
        Ok(())
    }
}
