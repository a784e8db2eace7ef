//! Progress that keeps moving while an answer is awaited.

use std::fs::File;
use std::future::Future;
use std::io::Seek as _;

use tokio::time::{Interval, MissedTickBehavior};

use crate::progress::{Progress, TICK};

/// A [`Progress`] and its clock.
#[derive(Debug)]
pub(crate) struct Ticker {
    progress: Progress,
    interval: Interval,
    /// Somebody else's work is seen at this file's offset.
    watched: Option<File>,
}

impl Ticker {
    pub(crate) fn new(progress: Progress) -> Self {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { progress, interval, watched: None }
    }

    /// Waits for `future`, drawing meanwhile.
    pub(crate) async fn beside<T>(&mut self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        loop {
            tokio::select! {
                biased;
                output = &mut future => return output,
                _ = self.interval.tick() => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        if let Some(Ok(at)) = self.watched.as_mut().map(|file| file.stream_position()) {
            self.progress.set(at);
        }
        self.progress.tick();
    }

    /// From now on as many bytes are done as the offset of `file` says, which is shared with who works on it.
    pub(crate) fn watch(&mut self, file: &File) {
        // Without it nothing is shown to move.
        self.watched = file.try_clone().ok();
    }

    pub(crate) fn set_total(&mut self, total: u64) {
        self.progress.set_total(total);
    }

    pub(crate) fn add(&mut self, count: u64) {
        self.progress.add(count);
    }

    pub(crate) fn reset(&mut self) {
        self.watched = None;
        self.progress.reset();
    }

    /// Prints a line to stderr in place of the bar, which is drawn anew below it.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        let text = text.as_ref();
        self.progress.note(text);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.progress.clear();
    }
}
