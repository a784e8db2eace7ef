//! A download's progress on stderr: a bar on a terminal, a line every few seconds elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::units;

/// How often [`Progress::tick`] wants to be called.
pub const TICK: Duration = Duration::from_millis(200);
/// Downloads shorter than this print no line.
const FIRST_LINE: Duration = Duration::from_secs(1);
/// Time between two lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Dragonfly's bar.
const BAR: &str =
    "{msg}\n[{elapsed_precise}] [{bar:60.green/red}] {percent:>3}% ({bytes_per_sec:.red}, {eta:.cyan})";
/// While nobody knows how much there is.
const SPINNER: &str = "{msg}\n[{elapsed_precise}] {spinner} {bytes} ({bytes_per_sec:.red})";

/// What has been shown of one download.
#[derive(Debug)]
pub struct Progress {
    shown: Shown,
    name: String,
    started: Instant,
    total: Option<u64>,
    done: u64,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Elsewhere(Arc<AtomicU64>),
    Lines { next: Instant, last: (Instant, u64) },
    Nothing,
}

impl Progress {
    /// Progress of the download called `name`, on stderr.
    #[must_use]
    pub fn new(name: &str, hidden: bool) -> Self {
        let now = Instant::now();
        let shown = if hidden {
            Shown::Nothing
        } else if io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(SPINNER) {
                bar.set_style(style);
            }
            bar.set_message(format!("\x1b[1m{name}\x1b[0m"));
            Shown::Bar(bar)
        } else {
            Shown::Lines { next: now + FIRST_LINE, last: (now, 0) }
        };
        Self { shown, name: name.to_owned(), started: now, total: None, done: 0 }
    }

    /// A sign of life on a terminal while somebody else does the work and does not say how much is done.
    #[must_use]
    pub fn waiting(text: &str, hidden: bool) -> Self {
        Self::new(text, hidden || !io::stderr().is_terminal())
    }

    /// Progress that somebody else shows, who reads the bytes done from `done`.
    #[must_use]
    pub fn elsewhere(done: Arc<AtomicU64>) -> Self {
        let shown = Shown::Elsewhere(done);
        Self { shown, name: String::new(), started: Instant::now(), total: None, done: 0 }
    }

    /// The number of bytes to come is known.
    pub fn set_total(&mut self, total: u64) {
        self.total = Some(total);
        if let Shown::Bar(bar) = &self.shown {
            if let Ok(style) = ProgressStyle::with_template(BAR) {
                bar.set_style(style.progress_chars("=>-"));
            }
            bar.set_length(total);
        }
    }

    /// `count` more bytes are there.
    pub fn add(&mut self, count: u64) {
        self.set(self.done + count);
    }

    /// `done` bytes are there, fewer than before perhaps.
    pub fn set(&mut self, done: u64) {
        self.done = done;
        match &self.shown {
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Elsewhere(shown) => shown.store(done, Ordering::Relaxed),
            Shown::Lines { .. } | Shown::Nothing => {}
        }
    }

    /// Begins anew, because the download does.
    pub fn reset(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.reset();
        }
        self.set(0);
    }

    /// Draws what is due.
    pub fn tick(&mut self) {
        if let Some(line) = self.due_line(Instant::now()) {
            // Nobody is left to tell when stderr is closed.
            let _printed = writeln!(io::stderr().lock(), "{line}");
        }
        if let Shown::Bar(bar) = &self.shown {
            bar.tick();
        }
    }

    /// The line that should be printed at `now`, if one should.
    fn due_line(&mut self, now: Instant) -> Option<String> {
        let Shown::Lines { next, last } = &mut self.shown else { return None };
        if now < *next {
            return None;
        }
        let speed = units::rate(self.done.saturating_sub(last.1), now - last.0).unwrap_or(0);
        let average = units::rate(self.done, now - self.started).unwrap_or(0);
        (*next, *last) = (now + LINE_INTERVAL, (now, self.done));
        Some(format!("{}: {}", self.name, line(self.done, self.total, speed, average)))
    }

    /// Prints a line to stderr in place of the bar, which is drawn anew below it.
    pub fn note(&self, text: &str) {
        let print = || {
            // Nobody is left to tell when stderr is closed.
            let _printed = writeln!(io::stderr().lock(), "{text}");
        };
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(print),
            Shown::Elsewhere(_) | Shown::Lines { .. } | Shown::Nothing => print(),
        }
    }

    /// Takes the bar away: the receipt or the report takes its place.
    pub fn clear(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

/// `12.0 MiB of 64.0 MiB (18%), 4.0 MiB/s, 13.00 s left`: `speed` is the latest, `average` tells the remaining time.
fn line(done: u64, total: Option<u64>, speed: u64, average: u64) -> String {
    let Some(total) = total else {
        return format!("{}, {}/s", units::bytes(done), units::bytes(speed));
    };
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let mut text =
        format!("{} of {} ({percent}%), {}/s", units::bytes(done), units::bytes(total), units::bytes(speed));
    if let Some(left) = total.saturating_sub(done).checked_div(average).filter(|_| done < total) {
        text.push_str(&format!(", {} left", units::duration(Duration::from_secs(left))));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn lines_say_how_much_how_fast_and_how_long() {
        assert_eq!(
            line(16 * MIB, Some(64 * MIB), 4 * MIB, 2 * MIB),
            "16.0 MiB of 64.0 MiB (25%), 4.0 MiB/s, 24.00 s left"
        );
        assert_eq!(line(16 * MIB, None, 4 * MIB, 2 * MIB), "16.0 MiB, 4.0 MiB/s");
        assert_eq!(line(0, Some(MIB), 0, 0), "0 B of 1.0 MiB (0%), 0 B/s");
        assert_eq!(line(MIB, Some(MIB), MIB, MIB), "1.0 MiB of 1.0 MiB (100%), 1.0 MiB/s");
    }

    #[test]
    fn lines_come_after_a_second_and_then_every_five() {
        let start = Instant::now();
        let mut progress = Progress {
            shown: Shown::Lines { next: start + FIRST_LINE, last: (start, 0) },
            name: "/f".to_owned(),
            started: start,
            total: None,
            done: 0,
        };
        progress.set_total(64 * MIB);
        progress.add(4 * MIB);
        assert_eq!(progress.due_line(start + Duration::from_millis(900)), None);
        let first = progress.due_line(start + Duration::from_secs(1));
        assert_eq!(first.as_deref(), Some("/f: 4.0 MiB of 64.0 MiB (6%), 4.0 MiB/s, 15.00 s left"));
        assert_eq!(progress.due_line(start + Duration::from_secs(5)), None);
        progress.add(20 * MIB);
        let second = progress.due_line(start + Duration::from_secs(6));
        assert_eq!(second.as_deref(), Some("/f: 24.0 MiB of 64.0 MiB (37%), 4.0 MiB/s, 10.00 s left"));
    }

    #[test]
    fn hidden_progress_prints_nothing() {
        let mut progress = Progress::new("/f", true);
        progress.add(1);
        assert_eq!(progress.due_line(Instant::now() + Duration::from_secs(60)), None);
    }
}
