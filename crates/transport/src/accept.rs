//! What to do when a listener cannot accept.

use std::io;
use std::time::Duration;

/// How long to wait before accepting again when the process is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Whether only the connection failed that was to be accepted; the next one may work at once.
#[must_use]
pub fn concerns_one(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | WouldBlock)
}

/// Says so and waits where `error` concerns the whole process: accepting again at once would only use up a processor.
pub async fn pause(listener: &'static str, error: &io::Error) {
    if !concerns_one(error) {
        tracing::warn!(listener, %error, "cannot accept a connection; trying again shortly");
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_what_concerns_the_process_is_waited_for() {
        for (errno, waits) in
            [(Errno::CONNABORTED, false), (Errno::INTR, false), (Errno::MFILE, true), (Errno::NOMEM, true)]
        {
            let begun = tokio::time::Instant::now();
            pause("test", &errno.into()).await;
            assert_eq!(begun.elapsed() == PAUSE, waits, "{errno}");
        }
    }
}
