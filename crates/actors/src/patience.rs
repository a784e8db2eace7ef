//! Waiting for the other side of a local transfer: for long, but not in silence.

use std::time::Duration;

use tokio::time::timeout;

/// How long a transfer may stand still before the log says which side waits for what.
const QUIET: Duration = Duration::from_secs(30);

/// Waits for `step`, at most for `patience`; `None` when it does not come. When it takes long the log says once that
/// `who` waits, and `what` for.
pub(crate) async fn wait<T>(
    patience: Duration,
    who: &str,
    what: &str,
    step: impl Future<Output = T>,
) -> Option<T> {
    let say =
        || tracing::warn!("{who} does not get on: for {} s it has been waiting {what}", QUIET.as_secs());
    wait_and(say, patience, step).await
}

async fn wait_and<T>(say: impl FnOnce(), patience: Duration, step: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(step);
    let quiet = QUIET.min(patience);
    if let Ok(done) = timeout(quiet, &mut step).await {
        return Some(done);
    }
    say();
    timeout(patience - quiet, step).await.ok()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_stands_still_is_said_once_and_given_up_in_the_end() {
        let (said, began) = (Cell::new(0), Instant::now());
        let after = async |seconds| {
            let step = sleep(Duration::from_secs(seconds));
            wait_and(|| said.set(said.get() + 1), Duration::from_secs(600), step).await
        };
        assert_eq!((after(29).await, said.get()), (Some(()), 0));
        assert_eq!((after(599).await, said.get()), (Some(()), 1));
        assert_eq!((after(601).await, said.get()), (None, 2));
        assert_eq!(began.elapsed(), Duration::from_secs(29 + 599 + 600));
    }
}
