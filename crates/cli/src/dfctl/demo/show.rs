//! The demonstration while it runs: a bar per host on a terminal, a line per second elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::stage::name;
use crate::units;

const TICK: Duration = Duration::from_millis(100);
const LINE_INTERVAL: Duration = Duration::from_secs(1);
const BAR: &str = "{prefix:>8} [{bar:50.green/red}] {percent:>3}%  {bytes_per_sec}";

/// What is shown on stderr.
#[derive(Debug)]
pub(super) struct Show {
    total: u64,
    counters: Vec<Arc<AtomicU64>>,
    origin: Arc<AtomicU64>,
    interval: Interval,
    way: Way,
    started: Instant,
}

#[derive(Debug)]
enum Way {
    Bars(MultiProgress, Vec<ProgressBar>),
    Lines { next: Instant },
    Nothing,
}

impl Show {
    /// Shows how `counters`, one per host, grow to `total`, and what the origin has sent for it.
    pub(super) fn new(
        total: u64,
        counters: Vec<Arc<AtomicU64>>,
        origin: Arc<AtomicU64>,
        hidden: bool,
    ) -> Self {
        let started = Instant::now();
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let way = if hidden {
            Way::Nothing
        } else if io::stderr().is_terminal() {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
            let bars = (0..counters.len()).map(|index| bar(&all, total, index)).collect();
            Way::Bars(all, bars)
        } else {
            Way::Lines { next: started + LINE_INTERVAL }
        };
        Self { total, counters, origin, interval, way, started }
    }

    /// Waits for the next tick and draws.
    pub(super) async fn tick(&mut self) {
        let now = self.interval.tick().await;
        match &mut self.way {
            Way::Bars(_, bars) => {
                for (bar, done) in bars.iter().zip(&self.counters) {
                    bar.set_position(done.load(Ordering::Relaxed));
                }
            }
            Way::Lines { next } if now >= *next => {
                *next = now + LINE_INTERVAL;
                let line = self.line(now - self.started);
                // Nobody is left to tell when stderr is closed.
                let _printed = writeln!(io::stderr().lock(), "{line}");
            }
            Way::Lines { .. } | Way::Nothing => {}
        }
    }

    fn line(&self, elapsed: Duration) -> String {
        let mut line = format!("{}:", units::duration(elapsed));
        for (index, done) in self.counters.iter().enumerate() {
            let percent = u128::from(done.load(Ordering::Relaxed)) * 100 / u128::from(self.total.max(1));
            line.push_str(&format!(" {} {percent}%,", name(index)));
        }
        line + &format!(" origin sent {}", units::bytes(self.origin.load(Ordering::Relaxed)))
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if let Way::Bars(all, _) = &self.way {
            // The table takes their place; a terminal that is gone needs no clearing.
            let _cleared = all.clear();
        }
    }
}

fn bar(all: &MultiProgress, total: u64, index: usize) -> ProgressBar {
    let bar = all.add(ProgressBar::new(total));
    if let Ok(style) = ProgressStyle::with_template(BAR) {
        bar.set_style(style.progress_chars("=>-"));
    }
    bar.set_prefix(name(index));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_tells_every_host() {
        let counters = [50, 100].map(|done| Arc::new(AtomicU64::new(done))).to_vec();
        let show = Show::new(200, counters, Arc::new(AtomicU64::new(1 << 20)), true);
        assert_eq!(show.line(Duration::from_secs(2)), "2.00 s: host-1 25%, host-2 50%, origin sent 1.0 MiB");
    }
}
