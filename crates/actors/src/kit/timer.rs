//! One-shot timers that die with their owner.

use ractor::{ActorRef, Message};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Casts one message at a time to come. Setting it again, or dropping it, forgets the former one.
#[derive(Debug, Default)]
pub struct Timer(Option<(Instant, AbortHandle)>);

impl Timer {
    /// Casts `message` to `actor` at `when`; nothing changes if it is set for that time already.
    pub fn set<M: Message>(&mut self, actor: &ActorRef<M>, when: Instant, message: M) {
        if self.0.as_ref().is_some_and(|(at, _)| *at == when) {
            return;
        }
        self.clear();
        let actor = actor.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep_until(when).await;
            drop(actor.cast(message));
        });
        self.0 = Some((when, task.abort_handle()));
    }

    /// Whether a message is to come, or came and was not cleared.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Forgets the message. To be called when it arrived, too.
    pub fn clear(&mut self) {
        if let Some((_, task)) = self.0.take() {
            task.abort();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.clear();
    }
}
