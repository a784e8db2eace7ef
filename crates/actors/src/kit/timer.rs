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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use parking_lot::Mutex;
    use ractor::{Actor, ActorProcessingErr};

    use super::*;

    struct Heard;

    impl Actor for Heard {
        type Msg = u32;
        type State = Arc<Mutex<Vec<u32>>>;
        type Arguments = Self::State;

        async fn pre_start(
            &self,
            _: ActorRef<u32>,
            heard: Self::State,
        ) -> Result<Self::State, ActorProcessingErr> {
            Ok(heard)
        }

        async fn handle(
            &self,
            _: ActorRef<u32>,
            word: u32,
            heard: &mut Self::State,
        ) -> Result<(), ActorProcessingErr> {
            heard.lock().push(word);
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_last_message_comes_and_none_after_the_owner_has_gone() {
        let heard = Arc::<Mutex<Vec<u32>>>::default();
        let (actor, _) = Actor::spawn(None, Heard, Arc::clone(&heard)).await.unwrap();
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut timer = Timer::default();
        assert!(!timer.is_set());
        timer.set(&actor, start + second, 1);
        // The same time: the first message stands.
        timer.set(&actor, start + second, 2);
        tokio::time::sleep(2 * second).await;
        assert_eq!(*heard.lock(), [1]);
        timer.set(&actor, start + 3 * second, 3);
        timer.set(&actor, start + 4 * second, 4);
        tokio::time::sleep(3 * second).await;
        assert_eq!(*heard.lock(), [1, 4]);
        timer.set(&actor, start + 6 * second, 5);
        assert!(timer.is_set());
        drop(timer);
        tokio::time::sleep(5 * second).await;
        assert_eq!(*heard.lock(), [1, 4]);
        actor.stop(None);
    }
}
