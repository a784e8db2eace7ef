//! Typed addresses and questions.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use ractor::{ActorRef, Message, RpcReplyPort};
use thiserror::Error;

/// Why a question got no answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AskError {
    /// Nobody is there: the actor is being restarted or the daemon shuts down.
    #[error("the {0} actor is not running")]
    Absent(&'static str),
    /// It did not answer in time.
    #[error("the {0} actor did not answer in time")]
    Timeout(&'static str),
}

/// Where an actor is found, also after it was restarted under a new reference.
///
/// Cloning is cheap; all clones see the newest reference.
pub struct Address<M: Message> {
    name: &'static str,
    current: Arc<RwLock<Option<ActorRef<M>>>>,
}

impl<M: Message> Address<M> {
    /// An address nobody lives at yet; `name` is for errors.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, current: Arc::default() }
    }

    /// Moves the newest actor in.
    pub fn set(&self, actor: ActorRef<M>) {
        *self.current.write() = Some(actor);
    }

    /// The actor that lives here now.
    #[must_use]
    pub fn get(&self) -> Option<ActorRef<M>> {
        self.current.read().clone()
    }

    /// Forgets the actor, so that it is not kept alive by its address.
    pub fn clear(&self) {
        *self.current.write() = None;
    }

    /// Sends without waiting; a message to nobody is dropped.
    ///
    /// Mailboxes are unbounded, so whoever casts must be bounded by construction (one message per attempt, per client,
    /// per timer).
    pub fn cast(&self, message: M) {
        let actor = self.current.read().clone();
        if let Some(actor) = actor {
            // A dead actor's messages are dropped; its supervisor knows already.
            drop(actor.cast(message));
        }
    }

    /// Asks and waits for the answer. Only for leaves, whom nobody asks, so that no two actors wait for each other.
    ///
    /// # Errors
    /// When nobody is there, or no answer came within `deadline`.
    pub async fn ask<T: Send + 'static>(
        &self,
        deadline: Duration,
        message: impl FnOnce(RpcReplyPort<T>) -> M,
    ) -> Result<T, AskError> {
        let actor = self.current.read().clone().ok_or(AskError::Absent(self.name))?;
        ask(&actor, self.name, deadline, message).await
    }
}

/// Asks one actor and waits for the answer.
///
/// # Errors
/// When it is dead, or no answer came within `deadline`.
pub async fn ask<M: Message, T: Send + 'static>(
    actor: &ActorRef<M>,
    name: &'static str,
    deadline: Duration,
    message: impl FnOnce(RpcReplyPort<T>) -> M,
) -> Result<T, AskError> {
    let (tx, rx) = tokio::sync::oneshot::channel();
    actor.cast(message(tx.into())).map_err(|_| AskError::Absent(name))?;
    match tokio::time::timeout(deadline, rx).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(AskError::Absent(name)),
        Err(_) => Err(AskError::Timeout(name)),
    }
}

impl<M: Message> Clone for Address<M> {
    fn clone(&self) -> Self {
        Self { name: self.name, current: Arc::clone(&self.current) }
    }
}

impl<M: Message> std::fmt::Debug for Address<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Address({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use ractor::{Actor, ActorProcessingErr};

    use super::*;

    /// Answers some questions, and keeps the others open.
    struct Oracle;

    #[derive(Debug)]
    enum Question {
        Answered(RpcReplyPort<u32>),
        Kept(RpcReplyPort<u32>),
        Dropped(RpcReplyPort<u32>),
    }

    impl Actor for Oracle {
        type Msg = Question;
        type State = Vec<RpcReplyPort<u32>>;
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<Question>, (): ()) -> Result<Self::State, ActorProcessingErr> {
            Ok(Vec::new())
        }

        async fn handle(
            &self,
            _: ActorRef<Question>,
            question: Question,
            kept: &mut Self::State,
        ) -> Result<(), ActorProcessingErr> {
            match question {
                Question::Answered(reply) => drop(reply.send(42)),
                Question::Kept(reply) => kept.push(reply),
                Question::Dropped(reply) => drop(reply),
            }
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn questions_end_one_way_or_another() {
        let (address, soon) = (Address::new("oracle"), Duration::from_secs(1));
        assert_eq!(address.ask(soon, Question::Answered).await, Err(AskError::Absent("oracle")));
        let (cast, mut heard) = tokio::sync::oneshot::channel();
        address.cast(Question::Answered(cast.into()));
        assert!(heard.try_recv().is_err(), "said to nobody");

        let (oracle, ended) = Actor::spawn(None, Oracle, ()).await.unwrap();
        let copy = address.clone();
        address.set(oracle.clone());
        assert_eq!(copy.ask(soon, Question::Answered).await, Ok(42));
        assert_eq!(copy.ask(soon, Question::Kept).await, Err(AskError::Timeout("oracle")));
        assert_eq!(copy.ask(soon, Question::Dropped).await, Err(AskError::Absent("oracle")));
        oracle.stop(None);
        ended.await.unwrap();
        assert_eq!(copy.ask(soon, Question::Answered).await, Err(AskError::Absent("oracle")));
        address.clear();
        assert!(copy.get().is_none());
        assert_eq!(format!("{copy:?}"), "Address(oracle)");
        assert!(AskError::Timeout("oracle").to_string().contains("did not answer in time"));
    }
}
