//! Has a file that is being written put on its device as it grows, so that the flush at its end has little left to do.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Bytes between two flushes. Less would wait for the device more often, more would leave more to the end.
const STEP: u64 = 32 << 20;

/// The background flushes of one file. Content that is shorter than a step has none.
#[derive(Debug, Default)]
pub(crate) struct Flusher {
    thread: Option<SyncSender<()>>,
    /// Where the last flush was asked for.
    asked: u64,
}

impl Flusher {
    /// The file at `path` has been written up to `position`.
    pub(crate) fn written(&mut self, position: u64, path: &Path) {
        if position < self.asked + STEP {
            return;
        }
        self.asked = position;
        if self.thread.is_none() {
            // It is for speed only: the flush at the end does what this one does not.
            self.thread = start(path).inspect_err(|why| tracing::debug!(%why, "no flush ahead")).ok();
        }
        if let Some(thread) = &self.thread {
            // One that is under way is followed by another, for all that was written meanwhile.
            let _asked = thread.try_send(());
        }
    }
}

/// Opens the file anew: a failure is told to everybody who has it open, so the flush at the end hears of it as well.
fn start(path: &Path) -> io::Result<SyncSender<()>> {
    let file = File::open(path)?;
    let (wake, woken) = sync_channel(1);
    thread::Builder::new().name("flush".to_owned()).spawn(move || flush(&file, &woken))?;
    Ok(wake)
}

fn flush(file: &File, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        if let Err(why) = file.sync_data() {
            tracing::debug!(%why, "flush ahead failed");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_the_first_step_and_ends_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut flusher = Flusher::default();
        flusher.written(STEP, &path);
        assert!(flusher.thread.is_none(), "there is no file");
        std::fs::write(&path, "x").unwrap();
        flusher.written(STEP + 1, &path);
        assert!(flusher.thread.is_none(), "too little since");
        for step in 2..100 {
            flusher.written(step * STEP, &path);
        }
        let thread = flusher.thread.take().unwrap();
        thread.send(()).unwrap();
        drop(flusher);
        let (wake, woken) = sync_channel(1);
        wake.send(()).unwrap();
        drop(wake);
        // Returns because nobody can wake it any more.
        flush(&File::open(&path).unwrap(), &woken);
        assert!(woken.recv().is_err());
    }
}
