//! Which connection a call gets, and when one is closed: the pool's decisions, without a socket and without a clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use damselfly_core::Tick;

use super::{Counters, PoolOptions, Purpose};

/// Calls on one connection at a time. Servers admit 100 and more; what is beyond waits in HTTP/2 without a word.
pub(super) const CALLS: u32 = 64;

/// A connection, or the place for one. Never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot(u64);

/// Somebody who waits for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(u64);

/// What whoever asked is to do. Each is answered by one [`Slots::release`] in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// Use it.
    Use(Slot),
    /// See whether it lives, then [`Slots::passed`] or [`Slots::replace`].
    Check(Slot),
    /// Open it: [`Slots::dial`] before each try, then [`Slots::opened`] or [`Slots::failed`].
    Open(Slot),
}

impl Grant {
    pub(super) fn slot(self) -> Slot {
        let (Grant::Use(slot) | Grant::Check(slot) | Grant::Open(slot)) = self;
        slot
    }
}

#[derive(Debug)]
enum State {
    /// Its one user opens it. `ended` if the connection that was opened last is gone already.
    Opening {
        purpose: Purpose,
        ended: bool,
    },
    Idle {
        since: Tick,
    },
    /// Its one user-to-be asks whether it lives.
    Checking {
        purpose: Purpose,
        since: Tick,
    },
    Busy {
        calls: u32,
        content: bool,
    },
}

#[derive(Debug)]
struct Held<C> {
    state: State,
    /// What is open; `None` while it is not.
    connection: Option<C>,
    /// Which of the slot's connections, by the number of its try: news of an earlier one's end is no news.
    dialled: u64,
    /// Whether anything was ever asked on it: what was just opened needs no check.
    used: bool,
    /// Something failed on it: nobody gets it unchecked.
    suspect: bool,
}

/// The connections of a pool, which are `C` to their users, and those who wait for one.
#[derive(Debug)]
pub(super) struct Slots<C> {
    max: usize,
    idle_timeout: Duration,
    check_after: Duration,
    held: BTreeMap<Slot, Held<C>>,
    queue: VecDeque<(Ticket, Purpose)>,
    counters: Counters,
    /// Connections that ended and were not replaced yet.
    missing: u64,
    next: u64,
}

impl<C: Clone> Slots<C> {
    pub(super) fn new(options: &PoolOptions) -> Self {
        Self {
            max: options.max_connections.max(1),
            idle_timeout: options.idle_timeout,
            check_after: options.check_after,
            held: BTreeMap::new(),
            queue: VecDeque::new(),
            counters: Counters::default(),
            missing: 0,
            next: 0,
        }
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    /// A connection for `purpose`, or a place in the queue.
    pub(super) fn ask(&mut self, purpose: Purpose, now: Tick) -> Result<Grant, Ticket> {
        self.pick(purpose, now).ok_or_else(|| {
            let ticket = Ticket(self.number());
            self.queue.push_back((ticket, purpose));
            ticket
        })
    }

    /// Whoever waits has gone away.
    pub(super) fn withdraw(&mut self, ticket: Ticket) {
        self.queue.retain(|(waiting, _)| *waiting != ticket);
    }

    /// Whoever waits has waited long enough.
    pub(super) fn refuse(&mut self, ticket: Ticket) {
        self.withdraw(ticket);
        self.counters.refused += 1;
    }

    /// Who of the queue gets a connection now, first come, first served. To be called after every other change.
    pub(super) fn settle(&mut self, now: Tick) -> Vec<(Ticket, Purpose, Grant)> {
        let mut granted = Vec::new();
        for (ticket, purpose) in std::mem::take(&mut self.queue) {
            match self.pick(purpose, now) {
                Some(grant) => granted.push((ticket, purpose, grant)),
                None => self.queue.push_back((ticket, purpose)),
            }
        }
        granted
    }

    /// A try to open begins; returns the number under which [`Slots::ended`] hears of its end.
    pub(super) fn dial(&mut self, slot: Slot) -> u64 {
        let number = self.number();
        if let Some(held) = self.held.get_mut(&slot) {
            held.dialled = number;
            if let State::Opening { ended, .. } = &mut held.state {
                *ended = false;
            }
        }
        number
    }

    /// It is open and in use. False when it has ended meanwhile: to be tried again.
    pub(super) fn opened(&mut self, slot: Slot, connection: C) -> bool {
        let Some(held) = self.held.get_mut(&slot) else { return false };
        let State::Opening { purpose, ended: false } = held.state else { return false };
        (held.connection, held.used, held.suspect) = (Some(connection), true, false);
        held.state = State::busy(purpose);
        self.counters.opened += 1;
        if self.missing > 0 {
            self.missing -= 1;
            self.counters.reconnects += 1;
        }
        true
    }

    /// Whoever had it opened asked nothing on it: the first call finds it as new.
    pub(super) fn keep_fresh(&mut self, slot: Slot) {
        if let Some(held) = self.held.get_mut(&slot) {
            held.used = false;
        }
    }

    /// What is open in `slot`.
    pub(super) fn connection(&self, slot: Slot) -> Option<C> {
        self.held.get(&slot)?.connection.clone()
    }

    /// It cannot be opened; its user is told so, and so are the calls in the queue, which waited for it.
    pub(super) fn failed(&mut self, slot: Slot) -> Vec<Ticket> {
        self.held.remove(&slot);
        let is_call = |(_, purpose): &(Ticket, Purpose)| *purpose == Purpose::Call;
        let calls = self.queue.iter().filter(|waiting| is_call(waiting)).map(|(ticket, _)| *ticket).collect();
        self.queue.retain(|waiting| !is_call(waiting));
        calls
    }

    /// The check went well; it is in use. False when it has ended meanwhile: to be opened.
    pub(super) fn passed(&mut self, slot: Slot) -> bool {
        let Some(held) = self.held.get_mut(&slot) else { return false };
        let State::Checking { purpose, .. } = held.state else { return false };
        held.suspect = false;
        held.state = State::busy(purpose);
        self.counters.reused += 1;
        true
    }

    /// The check failed: whoever checked opens another connection in its place.
    pub(super) fn replace(&mut self, slot: Slot) {
        let Some(held) = self.held.get_mut(&slot) else { return };
        if let State::Checking { purpose, .. } = held.state {
            (held.state, held.connection) = (State::Opening { purpose, ended: false }, None);
            self.counters.checks_failed += 1;
            self.missing += 1;
        }
    }

    /// The user is done, or has given up opening or checking. `suspect` if something failed that need not have been
    /// the call's fault.
    pub(super) fn release(&mut self, slot: Slot, purpose: Purpose, suspect: bool, now: Tick) {
        let Some(held) = self.held.get_mut(&slot) else { return };
        held.suspect |= suspect;
        match &mut held.state {
            State::Opening { .. } => {
                self.held.remove(&slot);
            }
            State::Checking { since, .. } => held.state = State::Idle { since: *since },
            State::Busy { calls, content } => {
                match purpose {
                    Purpose::Call => *calls = calls.saturating_sub(1),
                    Purpose::Content => *content = false,
                }
                if *calls == 0 && !*content {
                    held.state = State::Idle { since: now };
                }
            }
            State::Idle { .. } => {}
        }
    }

    /// The connection that was opened by the try of this number is gone.
    pub(super) fn ended(&mut self, slot: Slot, dialled: u64) {
        let Some(held) = self.held.get_mut(&slot).filter(|held| held.dialled == dialled) else { return };
        match &mut held.state {
            // It counts as never opened.
            State::Opening { ended, .. } => *ended = true,
            State::Checking { .. } => self.replace(slot),
            State::Idle { .. } | State::Busy { .. } => {
                self.held.remove(&slot);
                self.counters.lost += 1;
                self.missing += 1;
            }
        }
    }

    /// Closes what has been idle for long enough.
    pub(super) fn expire(&mut self, now: Tick) {
        let (before, idle_timeout) = (self.held.len(), self.idle_timeout);
        self.held
            .retain(|_, held| !matches!(held.state, State::Idle { since } if since + idle_timeout <= now));
        self.counters.evicted += (before - self.held.len()) as u64;
    }

    /// When [`Slots::expire`] will next have something to do.
    pub(super) fn next_deadline(&self) -> Option<Tick> {
        let idle = self.held.values().filter_map(|held| match held.state {
            State::Idle { since } => Some(since + self.idle_timeout),
            _ => None,
        });
        idle.min()
    }

    fn pick(&mut self, purpose: Purpose, now: Tick) -> Option<Grant> {
        let is_call = purpose == Purpose::Call;
        if let Some(slot) = self.busy(|content, suspect| is_call && !content && !suspect) {
            return Some(self.share(slot));
        }
        if let Some(slot) = self.idle() {
            return self.take_idle(slot, purpose, now);
        }
        if is_call && self.held.values().any(Held::will_carry_calls) {
            return None;
        }
        if self.held.len() < self.max {
            let slot = Slot(self.number());
            let state = State::Opening { purpose, ended: false };
            self.held.insert(slot, Held { state, connection: None, dialled: 0, used: false, suspect: false });
            return Some(Grant::Open(slot));
        }
        // A stream's connection can carry a small call too; better than none.
        let last = self.busy(|_, _| is_call);
        last.map(|slot| self.share(slot))
    }

    /// The first connection in use that has room for a call and will do: `will_do` hears whether content is under way on
    /// it, and whether it is suspect.
    fn busy(&self, will_do: impl Fn(bool, bool) -> bool) -> Option<Slot> {
        let mut all = self.held.iter();
        let found = all.find(|(_, held)| match held.state {
            State::Busy { calls, content } => calls < CALLS && will_do(content, held.suspect),
            _ => false,
        });
        found.map(|(slot, _)| *slot)
    }

    fn share(&mut self, slot: Slot) -> Grant {
        if let Some(Held { state: State::Busy { calls, .. }, .. }) = self.held.get_mut(&slot) {
            *calls += 1;
            self.counters.reused += 1;
        }
        Grant::Use(slot)
    }

    /// The connection that was used last: the others come of age.
    fn idle(&self) -> Option<Slot> {
        let idle = self.held.iter().filter_map(|(slot, held)| match held.state {
            State::Idle { since } => Some((!held.suspect, since, *slot)),
            _ => None,
        });
        idle.max().map(|(.., slot)| slot)
    }

    fn take_idle(&mut self, slot: Slot, purpose: Purpose, now: Tick) -> Option<Grant> {
        let held = self.held.get_mut(&slot)?;
        let State::Idle { since } = held.state else { return None };
        if held.suspect || (held.used && now.since(since) >= self.check_after) {
            held.state = State::Checking { purpose, since };
            return Some(Grant::Check(slot));
        }
        self.counters.reused += u64::from(held.used);
        held.used = true;
        held.state = State::busy(purpose);
        Some(Grant::Use(slot))
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl State {
    fn busy(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Call => State::Busy { calls: 1, content: false },
            Purpose::Content => State::Busy { calls: 0, content: true },
        }
    }
}

impl<C> Held<C> {
    /// Whether a call had better wait for this one than have another opened.
    fn will_carry_calls(&self) -> bool {
        matches!(
            self.state,
            State::Opening { purpose: Purpose::Call, .. } | State::Checking { purpose: Purpose::Call, .. }
        )
    }
}

#[cfg(test)]
mod tests;
