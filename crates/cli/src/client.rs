//! What ends a client's work, and what its requests and answers have in common.

use std::future::Future;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Sleep;
use tonic::Request;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::signals::{Ending, Signals};
use crate::units;

/// A call that is answered from memory, or after the scheduler was asked.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// After a signal the work is dropped at its next wait; a write that hangs longer than this is not waited for.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);
const RESUMES: &str = "; run the same command again, it resumes";

/// A request with its deadline.
pub(crate) fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Prints one JSON object on stdout, or on stderr where stdout is for content.
pub(crate) fn print_json(value: &serde_json::Value, stdout_is_taken: bool) {
    // Nobody is left to tell when the reader is gone.
    let _printed = if stdout_is_taken {
        writeln!(io::stderr().lock(), "{value}")
    } else {
        writeln!(io::stdout().lock(), "{value}")
    };
}

/// What ends work that is not done: a signal, or `--timeout`.
pub(crate) struct Limits {
    title: &'static str,
    timeout: Duration,
    signals: Signals,
    deadline: Pin<Box<Sleep>>,
}

impl Limits {
    /// Listens for signals and counts the time from now on. `title` is a failure's first line.
    pub(crate) fn begin(title: &'static str, timeout: Duration) -> Result<Self, Failure> {
        let signals = Signals::listen().map_err(|why| Failure::new(title, Exit::Failure, why))?;
        Ok(Self { title, timeout, signals, deadline: Box::pin(tokio::time::sleep(timeout)) })
    }

    /// Waits for `future`; drops it when the time is up. `resumes` says whether the next run goes on from there.
    pub(crate) async fn within<T>(
        &mut self,
        resumes: bool,
        future: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let ending = tokio::select! {
            output = future => return output,
            ending = self.signals.next() => Some(ending),
            () = &mut self.deadline => None,
        };
        Err(self.ended(ending, resumes))
    }

    /// Waits for `work`; aborts it when the time is up, and with it its calls and its unfinished output.
    pub(crate) async fn carry_out<T>(
        &mut self,
        resumes: bool,
        mut work: JoinHandle<Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let ending = tokio::select! {
            joined = &mut work => {
                return joined.map_err(|why| Failure::new(self.title, Exit::Failure, why)).flatten();
            }
            ending = self.signals.next() => Some(ending),
            () = &mut self.deadline => None,
        };
        work.abort();
        // Whatever it ended with, it is over.
        let _ended = tokio::time::timeout(DROP_TIMEOUT, work).await;
        Err(self.ended(ending, resumes))
    }

    /// Waits for `future`, which only a signal ends early.
    pub(crate) async fn unless_signalled(
        &mut self,
        resumes: bool,
        future: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        tokio::select! {
            () = future => Ok(()),
            ending = self.signals.next() => Err(self.ended(Some(ending), resumes)),
        }
    }

    /// `ending` is `None` for the deadline.
    fn ended(&self, ending: Option<Ending>, resumes: bool) -> Failure {
        match ending {
            Some(ending) => {
                let hint = if resumes { RESUMES } else { "" };
                Failure::new(self.title, ending.exit(), format!("ended by {}{hint}", ending.name()))
            }
            None => {
                let hint = if resumes { RESUMES } else { "; give it more time" };
                let text = format!("not finished within {} (--timeout){hint}", units::duration(self.timeout));
                Failure::new(self.title, Exit::Timeout, text)
            }
        }
    }
}
