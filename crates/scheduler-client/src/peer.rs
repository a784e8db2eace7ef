//! One peer's dialogue with its scheduler.

use damselfly_api::scheduler::v2::{AnnouncePeerRequest, AnnouncePeerResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::channel::ANSWER;
use crate::{ClientError, SchedulerHandle};

/// Messages that may wait for the network; a peer that reports faster than the scheduler reads waits in `send`.
const WAITING: usize = 64;

/// The open stream of one peer.
#[derive(Debug)]
pub struct AnnounceStream {
    /// To the scheduler. Dropping it half-closes the stream. A send fails once the stream is over; `rx` says why.
    pub tx: mpsc::Sender<AnnouncePeerRequest>,
    /// From the scheduler.
    pub rx: Responses,
}

/// What the scheduler answers.
#[derive(Debug)]
pub struct Responses {
    stream: Streaming<AnnouncePeerResponse>,
    scheduler: SchedulerHandle,
}

impl Responses {
    /// The next answer; `None` when the scheduler ended the dialogue properly. Has no deadline: a healthy scheduler may
    /// be silent for hours. May be cancelled without losing an answer.
    ///
    /// # Errors
    /// When the scheduler ends the dialogue with an error or the connection breaks.
    pub async fn next(&mut self) -> Result<Option<AnnouncePeerResponse>, ClientError> {
        self.stream.message().await.map_err(|status| {
            self.scheduler.doubt(ClientError::status("AnnouncePeer", self.scheduler.address(), &status))
        })
    }
}

impl SchedulerHandle {
    /// Opens the dialogue of one peer with its first message.
    ///
    /// Only that message is queued before the call is under way: whatever drains the queue does not run earlier. The
    /// deadline ends with the response headers; the stream itself has none.
    ///
    /// # Errors
    /// When the scheduler refuses or does not answer within 10 s.
    pub async fn announce_peer(&self, first: AnnouncePeerRequest) -> Result<AnnounceStream, ClientError> {
        const OPERATION: &str = "AnnouncePeer";
        let (tx, rx) = mpsc::channel(WAITING);
        if tx.try_send(first).is_err() {
            return Err(ClientError::Closed { scheduler: self.address() });
        }
        let mut client = self.member.stream_client();
        let call = client.announce_peer(ReceiverStream::new(rx));
        let response = match tokio::time::timeout(ANSWER, call).await {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => {
                return Err(self.doubt(ClientError::status(OPERATION, self.address(), &status)));
            }
            Err(_) => {
                let late =
                    ClientError::Deadline { operation: OPERATION, scheduler: self.address(), after: ANSWER };
                return Err(self.doubt(late));
            }
        };
        Ok(AnnounceStream { tx, rx: Responses { stream: response.into_inner(), scheduler: self.clone() } })
    }
}
