//! Waiting for an event under a deadline.

use std::fmt::Debug;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio::time;

/// Longer than any loaded machine needs, short enough that a hanging test names its reason.
const DEADLINE: Duration = Duration::from_secs(60);

/// A wait that did not end well; the text shows the last state seen.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Waited {
    /// The deadline passed.
    #[error("not so within {DEADLINE:?}; last seen: {0}")]
    Late(String),
    /// What was watched is gone.
    #[error("can no longer become so; last seen: {0}")]
    Gone(String),
}

/// Waits until `state` is as wished, and returns it.
pub(crate) async fn until<T: Clone + Debug>(
    state: &watch::Sender<T>,
    is_so: impl FnMut(&T) -> bool,
) -> Result<T, Waited> {
    let mut seen = state.subscribe();
    match time::timeout(DEADLINE, seen.wait_for(is_so)).await {
        Ok(Ok(state)) => Ok(state.clone()),
        Ok(Err(_)) => Err(Waited::Gone(format!("{:?}", *state.borrow()))),
        Err(_) => Err(Waited::Late(format!("{:?}", *state.borrow()))),
    }
}

/// Waits until what `look` sees is as wished, looking again whenever `changes` does, and returns it.
pub(crate) async fn following<C, T: Debug>(
    mut changes: watch::Receiver<C>,
    look: impl Fn() -> T,
    is_so: impl Fn(&T) -> bool,
) -> Result<T, Waited> {
    let mut last = String::new();
    let found = time::timeout(DEADLINE, async {
        loop {
            // The value is not looked at under its own lock: what is looked at may lock otherwise.
            changes.mark_unchanged();
            let seen = look();
            if is_so(&seen) {
                return Some(seen);
            }
            last = format!("{seen:?}");
            if changes.changed().await.is_err() {
                return None;
            }
        }
    });
    match found.await {
        Ok(Some(seen)) => Ok(seen),
        Ok(None) => Err(Waited::Gone(last)),
        Err(_) => Err(Waited::Late(last)),
    }
}
