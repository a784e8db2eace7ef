//! A task's progress: an append-only log that every waiting client reads at its own pace.
//!
//! Publishing never waits. A slow client costs its cursor, nothing else; every client sees every event from the moment
//! it joined, and finds what came before in storage.

use std::sync::Arc;
use std::time::Duration;

use damselfly_core::ByteRange;
use damselfly_core::download::{ClientId, LostClient, Source};
use parking_lot::Mutex;
use tokio::sync::watch;

/// One thing that happened to a task.
#[derive(Clone, Debug, PartialEq)]
pub enum ProgressEvent {
    /// The content's geometry and headers are known; storage has them.
    Learned,
    /// A piece is verified and held.
    Verified {
        /// Its number.
        piece: u32,
        /// Where it came from.
        source: Source,
        /// How long its attempt took.
        cost: Duration,
    },
    /// The content changed at the origin: everything reported before is void.
    NewGeneration(u64),
    /// All that the client wanted is held.
    Ready(ClientId, ByteRange),
    /// The client gets nothing more.
    Failed(ClientId, LostClient),
    /// The supervisor crashed twice: every client fails.
    Crashed,
}

/// The log.
#[derive(Debug)]
pub struct Progress {
    log: Mutex<Vec<ProgressEvent>>,
    len: watch::Sender<usize>,
}

impl Progress {
    /// An empty log.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { log: Mutex::default(), len: watch::Sender::new(0) })
    }

    /// Appends an event and wakes the readers.
    pub fn publish(&self, event: ProgressEvent) {
        let len = {
            let mut log = self.log.lock();
            log.push(event);
            log.len()
        };
        self.len.send_replace(len);
    }

    /// A cursor that sees what is published from now on.
    #[must_use]
    pub fn follow(self: &Arc<Self>) -> Cursor {
        let changed = self.len.subscribe();
        let at = self.log.lock().len();
        Cursor { progress: Arc::clone(self), at, changed }
    }
}

/// One reader's place in the log.
#[derive(Debug)]
pub struct Cursor {
    progress: Arc<Progress>,
    at: usize,
    changed: watch::Receiver<usize>,
}

impl Cursor {
    /// The next event, in order and without gaps.
    pub async fn next(&mut self) -> ProgressEvent {
        loop {
            if let Some(event) = self.try_next() {
                return event;
            }
            if self.changed.changed().await.is_err() {
                // The cursor keeps the log alive, and the log its sender.
                return std::future::pending().await;
            }
        }
    }

    /// The next event if it was published already.
    pub fn try_next(&mut self) -> Option<ProgressEvent> {
        let event = self.progress.log.lock().get(self.at).cloned();
        self.at += usize::from(event.is_some());
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cursor_sees_everything_after_it_was_made_and_nothing_before() {
        let progress = Progress::new();
        progress.publish(ProgressEvent::Learned);
        let mut early = progress.follow();
        progress.publish(ProgressEvent::NewGeneration(1));
        progress.publish(ProgressEvent::Crashed);
        let mut late = progress.follow();
        assert_eq!(early.next().await, ProgressEvent::NewGeneration(1));
        assert_eq!(early.next().await, ProgressEvent::Crashed);
        assert_eq!(early.try_next(), None);
        let waiting = tokio::spawn(async move { late.next().await });
        progress.publish(ProgressEvent::Learned);
        assert_eq!(waiting.await.unwrap(), ProgressEvent::Learned);
    }
}
