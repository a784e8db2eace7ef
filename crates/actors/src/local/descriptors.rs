//! Files that callers opened and handed over.
//!
//! ```text
//!   OpenDescriptor ──▶ token ──▶ descriptor connection: token, file ──▶ call with the token in its metadata
//! ```
//!
//! A token is good once, for half a minute, and for the very process that asked for it.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use damselfly_transport::local::{Caller, DescriptorError, Direction, LocalStream, Token};
use parking_lot::Mutex;
use tonic::Status;

/// From the token to the call that uses the descriptor.
const PATIENCE: Duration = Duration::from_secs(30);
/// Tokens of one uid at a time. Each may hold a descriptor of this process.
const PER_USER: usize = 64;
/// Tokens of all callers.
const MOST: usize = 1024;

#[derive(Debug)]
struct Pending {
    caller: Arc<Caller>,
    direction: Direction,
    file: Option<File>,
}

impl Pending {
    fn is_of(&self, caller: &Caller) -> bool {
        let of = |caller: &Caller| (caller.uid, caller.gid, caller.pid);
        of(&self.caller) == of(caller)
    }
}

/// The tokens of one daemon.
#[derive(Debug, Default)]
pub(crate) struct Descriptors(Mutex<HashMap<Token, Pending>>);

impl Descriptors {
    /// A new token.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED while there are too many.
    pub(crate) fn open(self: &Arc<Self>, caller: Arc<Caller>, direction: Direction) -> Result<Token, Status> {
        let token = Token(rand::random());
        {
            let mut all = self.0.lock();
            let of_user = all.values().filter(|pending| pending.caller.uid == caller.uid).count();
            if of_user >= PER_USER || all.len() >= MOST {
                return Err(Status::resource_exhausted(format!(
                    "{of_user} descriptors of uid {} are being handed over, {} of all callers; try again",
                    caller.uid,
                    all.len()
                )));
            }
            all.insert(token, Pending { caller, direction, file: None });
        }
        let all = Arc::downgrade(self);
        // Ends at the deadline; a daemon that stops does not wait for it.
        tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            drop(all.upgrade().and_then(|all| all.0.lock().remove(&token)));
        });
        Ok(token)
    }

    /// Takes in what comes over a descriptor connection.
    pub(crate) async fn receive(&self, mut stream: LocalStream) {
        let caller = Arc::clone(stream.caller());
        let came = async {
            let token = stream.token().await?;
            let expected = self.expected(&caller, &token);
            let direction = match expected {
                Ok(direction) => direction,
                Err(reason) => {
                    stream.answer(Err(reason.clone())).await?;
                    return Err(DescriptorError::Refused(reason));
                }
            };
            stream.answer(Ok(())).await?;
            let file = stream.descriptor(direction).await;
            match &file {
                // Before the answer: the call may follow at once.
                Ok(_) => {}
                Err(why) => stream.answer(Err(why.to_string())).await?,
            }
            self.keep(&token, file?);
            stream.answer(Ok(())).await
        };
        if let Err(why) = came.await {
            tracing::info!(uid = caller.uid, %why, "no descriptor taken");
        }
    }

    fn expected(&self, caller: &Caller, token: &Token) -> Result<Direction, String> {
        let all = self.0.lock();
        let pending = all.get(token).filter(|pending| pending.is_of(caller) && pending.file.is_none());
        pending
            .map(|pending| pending.direction)
            .ok_or_else(|| "its token is not one of this caller's, or too old; try again".to_owned())
    }

    fn keep(&self, token: &Token, file: File) {
        if let Some(pending) = self.0.lock().get_mut(token) {
            pending.file = Some(file);
        }
    }

    /// The descriptor that a call names.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when none came under the token from this caller, for this direction.
    pub(crate) fn take(&self, caller: &Caller, token: &Token, direction: Direction) -> Result<File, Status> {
        let mut all = self.0.lock();
        let fits = |pending: &Pending| pending.is_of(caller) && pending.direction == direction;
        let file = all.get(token).is_some_and(fits).then(|| all.remove(token)).flatten();
        file.and_then(|pending| pending.file).ok_or_else(|| {
            Status::failed_precondition(
                "no descriptor of this caller's came under this token, or half a minute ago; try again",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(pid: i32) -> Arc<Caller> {
        let mut caller = Caller::foreign(7, 7);
        caller.pid = Some(pid);
        Arc::new(caller)
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_for_one_process_and_for_a_while() {
        let all = Arc::new(Descriptors::default());
        let token = all.open(caller(1), Direction::FromClient).unwrap();
        assert!(all.expected(&caller(2), &token).is_err(), "another process");
        assert_eq!(all.expected(&caller(1), &token), Ok(Direction::FromClient));
        // Nothing came yet, and the token is used up by asking.
        let early = all.open(caller(1), Direction::FromClient).unwrap();
        assert!(all.take(&caller(1), &early, Direction::FromClient).is_err());
        all.keep(&token, tempfile::tempfile().unwrap());
        assert!(all.expected(&caller(1), &token).is_err(), "a second descriptor");
        assert!(all.take(&caller(2), &token, Direction::FromClient).is_err());
        assert!(all.take(&caller(1), &token, Direction::ToClient).is_err());
        assert!(all.take(&caller(1), &token, Direction::FromClient).is_ok());
        assert!(all.take(&caller(1), &token, Direction::FromClient).is_err(), "twice");

        let late = all.open(caller(1), Direction::ToClient).unwrap();
        all.keep(&late, tempfile::tempfile().unwrap());
        tokio::time::sleep(PATIENCE + Duration::from_secs(1)).await;
        assert!(all.take(&caller(1), &late, Direction::ToClient).is_err());
        assert!(all.0.lock().is_empty(), "the descriptor is closed");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_takes_all_tokens() {
        let all = Arc::new(Descriptors::default());
        for _ in 0..PER_USER {
            all.open(caller(1), Direction::ToClient).unwrap();
        }
        let refused = all.open(caller(1), Direction::ToClient).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        all.open(Arc::new(Caller::foreign(8, 8)), Direction::ToClient).unwrap();
    }
}
