//! The answering side of a stream: a bounded queue that ends with a status.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::Status;

/// Where messages for one stream go in. Dropping it ends the stream with OK, after what is queued.
pub(super) struct Outlet<T> {
    queue: mpsc::Sender<T>,
    ending: Arc<Mutex<Option<Status>>>,
    /// Dropped together with this, which ends the reading side.
    _stop: oneshot::Sender<()>,
}

/// Where they come out.
pub(super) struct Inlet<T> {
    queue: mpsc::Receiver<T>,
    ending: Arc<Mutex<Option<Status>>>,
}

/// Both ends, and what tells the reading side that the stream is over.
pub(super) fn outlet<T>(capacity: usize) -> (Outlet<T>, Inlet<T>, oneshot::Receiver<()>) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    let (stop, stopped) = oneshot::channel();
    let ending = Arc::new(Mutex::new(None));
    (
        Outlet { queue: sender, ending: ending.clone(), _stop: stop },
        Inlet { queue: receiver, ending },
        stopped,
    )
}

impl<T> Outlet<T> {
    /// Queues a message; false when the queue is full. A stream whose reader has gone swallows it: its end is on the
    /// way.
    pub(super) fn send(&self, message: T) -> bool {
        !matches!(self.queue.try_send(message), Err(mpsc::error::TrySendError::Full(_)))
    }

    /// Ends the stream after what is queued: with OK, or with `status`.
    pub(super) fn end(self, status: Option<Status>) {
        *self.ending.lock() = status;
    }
}

impl<T> Stream for Inlet<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.queue.poll_recv(context) {
            Poll::Ready(Some(message)) => Poll::Ready(Some(Ok(message))),
            Poll::Ready(None) => Poll::Ready(self.ending.lock().take().map(Err)),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn what_is_queued_comes_before_the_end() {
        let (outlet, mut inlet, stopped) = outlet::<u8>(2);
        assert!(outlet.send(1));
        assert!(outlet.send(2));
        assert!(!outlet.send(3), "the queue is bounded");
        outlet.end(Some(Status::resource_exhausted("slow")));
        assert!(stopped.await.is_err(), "the reading side is told");
        assert_eq!(inlet.next().await.unwrap().unwrap(), 1);
        assert_eq!(inlet.next().await.unwrap().unwrap(), 2);
        assert_eq!(inlet.next().await.unwrap().unwrap_err().code(), tonic::Code::ResourceExhausted);
        assert!(inlet.next().await.is_none());
    }

    #[tokio::test]
    async fn a_good_end_is_ok() {
        let (outlet, mut inlet, _stopped) = outlet::<u8>(2);
        assert!(outlet.send(1));
        outlet.end(None);
        assert_eq!(inlet.next().await.unwrap().unwrap(), 1);
        assert!(inlet.next().await.is_none());
    }
}
