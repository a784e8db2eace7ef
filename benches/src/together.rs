//! Several commands at once, and what memory they and a daemon need meanwhile.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::MissedTickBehavior;

use crate::process::{memory, succeeded};
use crate::{BenchError, io};

/// Nothing tells when memory grows, so it is looked at this often.
const SAMPLE: Duration = Duration::from_millis(5);

/// What commands printed, and the most memory that was seen, in bytes.
#[derive(Debug)]
pub struct Together {
    /// In the order of the commands; stdout where they have it piped.
    pub outputs: Vec<Output>,
    /// The daemon's.
    pub daemon: u64,
    /// Of any one of the commands.
    pub command: u64,
}

/// Runs all commands at once to their ends.
///
/// # Errors
/// When one of them cannot be started or fails, or the daemon has gone.
pub async fn together(daemon: u32, commands: Vec<Command>) -> Result<Together, BenchError> {
    let (mut running, mut pids) = (Vec::new(), Vec::new());
    for command in commands {
        let what = format!("{command:?}");
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().map_err(io(&what))?;
        pids.extend(child.id());
        running.push(async move { succeeded(&what, child.wait_with_output().await.map_err(io(&what))?) });
    }
    let mut peak = Together { outputs: Vec::new(), daemon: 0, command: 0 };
    let mut samples = tokio::time::interval(SAMPLE);
    samples.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let all = try_join_all(running);
    tokio::pin!(all);
    loop {
        tokio::select! {
            biased;
            _ = samples.tick() => {
                peak.daemon = peak.daemon.max(memory(daemon)?);
                // Those that have ended need none.
                let most = pids.iter().filter_map(|pid| memory(*pid).ok()).max();
                peak.command = peak.command.max(most.unwrap_or(0));
            }
            outputs = &mut all => return Ok(Together { outputs: outputs?, ..peak }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        command
    }

    #[tokio::test]
    async fn outputs_are_in_order_and_memory_is_seen() {
        let commands = vec![shell("head -c 10000000 /dev/zero | wc -c; echo a"), shell("echo b")];
        let done = together(std::process::id(), commands).await.unwrap();
        let said = |at: usize| String::from_utf8_lossy(&done.outputs[at].stdout).into_owned();
        assert_eq!((said(0), said(1)), ("10000000\na\n".to_owned(), "b\n".to_owned()));
        assert!(done.daemon > 0, "this process has memory of its own");
    }

    #[tokio::test]
    async fn one_that_fails_says_why() {
        let commands = vec![shell("echo fine"), shell("echo broken >&2; exit 3")];
        let why = together(std::process::id(), commands).await.unwrap_err().to_string();
        assert!(why.contains("broken") && why.contains('3'), "{why}");
    }
}
