//! One deadline per thing that waits.

use std::collections::{BTreeMap, BTreeSet};

use damselfly_core::{HostId, TaskKey, Tick};

use super::event::StreamId;

/// What a deadline belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The earliest deadline of a task: leases, waiting peers, pushes.
    Task(TaskKey),
    /// A host's silence or its next probe.
    Host(HostId),
    /// A registration that waits for its host.
    Held(StreamId),
    /// The next collection.
    Gc,
}

/// Deadlines by owner and by time.
#[derive(Debug, Default)]
pub(super) struct Timers {
    at: BTreeMap<Timer, Tick>,
    order: BTreeSet<(Tick, Timer)>,
}

impl Timers {
    /// Sets, moves or clears the owner's deadline.
    pub(super) fn set(&mut self, timer: Timer, at: Option<Tick>) {
        if let Some(old) = self.at.get(&timer) {
            if Some(*old) == at {
                return;
            }
            self.order.remove(&(*old, timer.clone()));
        }
        match at {
            Some(at) => {
                self.order.insert((at, timer.clone()));
                self.at.insert(timer, at);
            }
            None => {
                self.at.remove(&timer);
            }
        }
    }

    pub(super) fn is_set(&self, timer: &Timer) -> bool {
        self.at.contains_key(timer)
    }

    pub(super) fn next(&self) -> Option<Tick> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes the earliest deadline that has come.
    pub(super) fn due(&mut self, now: Tick) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let (_, timer) = self.order.pop_first()?;
        self.at.remove(&timer);
        Some(timer)
    }
}
