//! One announce stream: read, checked, passed on.

use std::sync::Arc;

use damselfly_api::scheduler::v2::announce_peer_request::Request;
use damselfly_api::scheduler::v2::{AnnouncePeerRequest, AnnouncePeerResponse};
use damselfly_core::{HostId, PeerId};
use tokio::sync::oneshot;
use tonic::codegen::BoxStream;
use tonic::{Response, Status, Streaming};

use super::stream::outlet;
use super::{Announce, SchedulerService, convert, validate};
use crate::machine::{Event, PeerEvent, StreamId};

impl SchedulerService {
    /// Opens a stream. It answers with headers at once: daemons wait ten seconds for them, and the first message
    /// may take longer.
    pub(super) fn open_announce(
        self: &Arc<Self>,
        requests: Streaming<AnnouncePeerRequest>,
    ) -> Result<Response<BoxStream<AnnouncePeerResponse>>, Status> {
        let stream = StreamId(self.next_id());
        let (outlet, inlet, stopped) = outlet(self.config.queue);
        {
            let mut inner = self.inner.lock();
            if inner.closing {
                return Err(Status::unavailable("the scheduler is shutting down"));
            }
            inner.announces.insert(stream, Announce { outlet, download: None });
        }
        tokio::spawn(self.clone().read_announce(stream, requests, stopped));
        Ok(Response::new(Box::pin(inlet)))
    }

    /// Reads until either side ends the stream. Only the first message has a deadline: later a paused task's stream is
    /// silent for as long as its user likes, and HTTP/2 keepalive finds the dead.
    async fn read_announce(
        self: Arc<Self>,
        stream: StreamId,
        mut requests: Streaming<AnnouncePeerRequest>,
        mut stopped: oneshot::Receiver<()>,
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
                    if let Err(status) = self.take_announce(stream, request) {
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
}
