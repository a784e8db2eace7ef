//! One peer's dialogue with its scheduler.

use damselfly_api::scheduler::v2::{
    AnnouncePeerRequest, AnnouncePeerResponse, AnnouncePersistentCachePeerResponse,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use crate::handle::unary;
use crate::{ClientError, SchedulerHandle, dialect};

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
    stream: Answers,
    scheduler: SchedulerHandle,
}

#[derive(Debug)]
enum Answers {
    Standard(Streaming<AnnouncePeerResponse>),
    PersistentCache(Streaming<AnnouncePersistentCachePeerResponse>),
}

impl Answers {
    const fn operation(&self) -> &'static str {
        match self {
            Self::Standard(_) => STANDARD,
            Self::PersistentCache(_) => PERSISTENT_CACHE,
        }
    }
}

const STANDARD: &str = "AnnouncePeer";
const PERSISTENT_CACHE: &str = "AnnouncePersistentCachePeer";

impl Responses {
    /// The next answer; `None` when the scheduler ended the dialogue properly. Has no deadline: a healthy scheduler may
    /// be silent for hours. May be cancelled without losing an answer.
    ///
    /// # Errors
    /// When the scheduler ends the dialogue with an error or the connection breaks.
    pub async fn next(&mut self) -> Result<Option<AnnouncePeerResponse>, ClientError> {
        let next = match &mut self.stream {
            Answers::Standard(stream) => stream.message().await,
            Answers::PersistentCache(stream) => {
                stream.message().await.map(|message| message.map(dialect::response))
            }
        };
        next.map_err(|status| {
            let (operation, address) = (self.stream.operation(), self.scheduler.address());
            self.scheduler.doubt(ClientError::status(operation, address, &status))
        })
    }
}

/// A queue to the scheduler with the message that opens the dialogue in it. Only that one: whatever drains the queue
/// does not run before the call is under way.
fn queue(
    first: AnnouncePeerRequest,
) -> (mpsc::Sender<AnnouncePeerRequest>, ReceiverStream<AnnouncePeerRequest>) {
    let (tx, rx) = mpsc::channel(WAITING);
    // It is empty, and its receiver lives.
    drop(tx.try_send(first));
    (tx, ReceiverStream::new(rx))
}

impl SchedulerHandle {
    /// Opens the dialogue of one peer of a standard task with its first message.
    ///
    /// The deadline ends with the response headers; the stream itself has none.
    ///
    /// # Errors
    /// When the scheduler refuses or does not answer within 10 s.
    pub async fn announce_peer(&self, first: AnnouncePeerRequest) -> Result<AnnounceStream, ClientError> {
        let (tx, rx) = queue(first);
        let mut client = self.member.stream_client();
        let answers = self.opened(STANDARD, client.announce_peer(rx)).await?;
        Ok(self.stream(tx, Answers::Standard(answers)))
    }

    /// [`Self::announce_peer`] of a persistent cache task, translated: what speaks of an origin is not sent. With
    /// `persistent` the copy becomes a replica.
    ///
    /// # Errors
    /// As for [`Self::announce_peer`].
    pub async fn announce_persistent_cache_peer(
        &self,
        first: AnnouncePeerRequest,
        persistent: bool,
    ) -> Result<AnnounceStream, ClientError> {
        let (tx, rx) = queue(first);
        let requests = rx.filter_map(move |message| dialect::request(message, persistent));
        let mut client = self.member.stream_client();
        let answers = self.opened(PERSISTENT_CACHE, client.announce_persistent_cache_peer(requests)).await?;
        Ok(self.stream(tx, Answers::PersistentCache(answers)))
    }

    fn stream(&self, tx: mpsc::Sender<AnnouncePeerRequest>, stream: Answers) -> AnnounceStream {
        AnnounceStream { tx, rx: Responses { stream, scheduler: self.clone() } }
    }

    /// Waits for the head of the scheduler's answer.
    async fn opened<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        unary(operation, self.address(), call).await.map_err(|error| self.doubt(error))
    }
}
