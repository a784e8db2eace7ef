//! Progress that keeps moving while an answer is awaited.

use std::future::Future;
use std::io::{self, Write as _};

use tokio::time::{Interval, MissedTickBehavior};

use crate::progress::{Progress, TICK};

/// A [`Progress`] and its clock.
#[derive(Debug)]
pub(crate) struct Ticker {
    progress: Progress,
    interval: Interval,
}

impl Ticker {
    pub(crate) fn new(progress: Progress) -> Self {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { progress, interval }
    }

    /// Waits for `future`, drawing meanwhile.
    pub(crate) async fn beside<T>(&mut self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        loop {
            tokio::select! {
                biased;
                output = &mut future => return output,
                _ = self.interval.tick() => self.progress.tick(),
            }
        }
    }

    pub(crate) fn set_total(&mut self, total: u64) {
        self.progress.set_total(total);
    }

    pub(crate) fn add(&mut self, count: u64) {
        self.progress.add(count);
    }

    pub(crate) fn reset(&mut self) {
        self.progress.reset();
    }

    /// Prints a line to stderr in place of the bar, which is drawn anew below it.
    pub(crate) fn note(&self, text: &str) {
        self.progress.suspend(|| {
            // Nobody is left to tell when stderr is closed.
            let _printed = writeln!(io::stderr().lock(), "{text}");
        });
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.progress.clear();
    }
}
