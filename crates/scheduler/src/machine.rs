//! The scheduler as one state machine over hosts, tasks and peers. No tokio, no I/O, no clock.
//!
//! [`Scheduler::step`] takes an [`Event`] and the time and appends [`Effect`]s. Nothing waits inside: an answer is an
//! effect of the step that made it possible, and what only time can change is asked for by [`Scheduler::deadline`].
//! Tick zero is the scheduler's start.
//!
//! How a step goes: the event is taken in by `dialogue` (announce streams) or `presence` (hosts, Hold); whatever task
//! it touched is then settled (`settle`), which grants leases, answers whoever waits and sends what changed. Read
//! `settle` first.
//!
//! ## Between our peers
//!
//! For every peer of ours that may ask the origin and every piece it misses, at every moment: somebody it can ask
//! holds the piece, or a live lease covers it, or the peer has half a lease's worth of work left, or it waits out a
//! grace or a pause with a deadline. So a download never stands still while somebody is allowed to move it.

mod candidates;
mod config;
mod costs;
mod dialogue;
mod event;
mod facts;
mod gc;
mod hosts;
mod keep;
mod leases;
mod ledger;
mod peers;
mod presence;
mod privacy;
mod register;
mod scoring;
mod seeding;
mod settle;
mod tasks;
#[cfg(test)]
mod tests;
mod timers;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use damselfly_core::{HostId, PeerId, TaskKey, Tick};

pub use config::Config;
pub use event::{
    About, Answer, Copy, Effect, Ending, Event, HoldId, HoldMessage, Holding, HostInfo, Order, Parent,
    PeerEvent, PeerMessage, PieceReport, Priority, Register, Restate, StreamId, Tombstone,
};
pub use keep::{KeepError, KeepView, ReplicaView, Upload};
pub use peers::PeerState;
pub use tasks::TaskState;
pub use view::{HostView, PeerView, Snapshot, TaskView};

use hosts::Hosts;
use tasks::Task;
use timers::{Timer, Timers};

/// What the scheduler has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages sent on announce streams.
    pub answers: u64,
    /// Leases granted, whole-task leaves included.
    pub leases_granted: u64,
    /// Leases ended by silence.
    pub leases_expired: u64,
    /// Pieces reported from the origin.
    pub origin_pieces: u64,
    /// Pieces reported from parents.
    pub peer_pieces: u64,
    /// Piece reports that contradicted the ledger.
    pub ledger_conflicts: u64,
    /// Piece reports past the end or of a former version.
    pub ignored_reports: u64,
    /// Times that an origin's content became another.
    pub generations: u64,
    /// Seeds triggered.
    pub seeds_triggered: u64,
    /// Hosts found dead.
    pub hosts_lost: u64,
    /// Peers refused.
    pub refused: u64,
}

/// Who speaks over an announce stream.
#[derive(Debug)]
enum Seat {
    /// A registered peer.
    Peer(TaskKey, PeerId),
    /// A registration, and what followed it, waiting for its host to be announced.
    Held { host: HostId, events: Vec<PeerEvent> },
}

/// What the parts of the machine need besides the task they work on.
struct Cx<'a> {
    config: &'a Config,
    hosts: &'a mut Hosts,
    timers: &'a mut Timers,
    streams: &'a mut BTreeMap<StreamId, Seat>,
    counters: &'a mut Counters,
    next_lease: &'a mut u64,
    next_order: &'a mut u64,
    orders: &'a mut BTreeMap<u64, (TaskKey, HostId)>,
    starved: &'a mut BTreeSet<TaskKey>,
    grace_until: Tick,
    salt: u64,
    now: Tick,
    out: &'a mut Vec<Effect>,
}

impl Cx<'_> {
    fn new_lease(&mut self) -> u64 {
        *self.next_lease += 1;
        *self.next_lease
    }

    /// Between 0 and 1, the same for the same pair: spreads children over parents that are equally good.
    fn tie(&self, child: &PeerId, parent: &PeerId) -> f64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        (self.salt, child, parent).hash(&mut hasher);
        (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The machine.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    hosts: Hosts,
    tasks: BTreeMap<TaskKey, Task>,
    streams: BTreeMap<StreamId, Seat>,
    timers: Timers,
    dirty: BTreeSet<TaskKey>,
    counters: Counters,
    next_lease: u64,
    next_order: u64,
    /// Orders under way, by number: whose copy of what.
    orders: BTreeMap<u64, (TaskKey, HostId)>,
    /// Tasks that wait for an order to end before they may give another.
    starved: BTreeSet<TaskKey>,
    /// Deleted persistent cache tasks.
    graves: BTreeMap<TaskKey, keep::Grave>,
    grace_until: Tick,
    salt: u64,
}

impl Scheduler {
    /// A scheduler that knows nobody. `seed` spreads children over equal parents and separates the lease ids of
    /// one process from those of the next.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        let grace_until = if config.fresh { Tick(0) } else { Tick(0) + config.startup_grace };
        Self {
            config,
            hosts: Hosts::default(),
            tasks: BTreeMap::new(),
            streams: BTreeMap::new(),
            timers: Timers::default(),
            dirty: BTreeSet::new(),
            counters: Counters::default(),
            next_lease: seed << 32,
            next_order: 0,
            orders: BTreeMap::new(),
            starved: BTreeSet::new(),
            graves: BTreeMap::new(),
            grace_until,
            salt: seed,
        }
    }

    /// When the machine wants an [`Event::Tick`] at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Tick> {
        self.timers.next()
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes `event` in, and whatever time has brought by `now`.
    pub fn step(&mut self, event: Event, now: Tick, out: &mut Vec<Effect>) {
        while let Some(timer) = self.timers.due(now) {
            self.fire(timer, now, out);
        }
        self.take(event, now, out);
        self.settle(now, out);
        let gc = Timer::Gc;
        let anything = !self.tasks.is_empty() || self.hosts.iter().next().is_some();
        if !anything {
            self.timers.set(gc, None);
        } else if !self.timers.is_set(&gc) {
            self.timers.set(gc, Some(now + self.config.gc_interval));
        }
    }

    fn take(&mut self, event: Event, now: Tick, out: &mut Vec<Effect>) {
        match event {
            Event::HostAnnounced(info, interval) => {
                self.host_announced(*info, interval, now, out);
            }
            Event::HostLeft(host) => self.host_left(&host, now, out),
            Event::Probed { host, alive } => self.probed(&host, alive, now, out),
            Event::Peer(event) => self.peer_event(*event, now, out),
            Event::StreamClosed(stream) => self.stream_closed(stream, now, out),
            Event::Hold(hold, message) => self.hold_event(hold, message, now, out),
            Event::HoldClosed(hold) => self.hold_closed(hold, now, out),
            Event::PeerDeleted { task, peer } => {
                let ending = || Ending::Refused("the peer was deleted".to_owned());
                self.with(&task, now, out, |task, cx| task.remove(&peer, ending(), cx));
            }
            Event::TaskDeleted { host, task } => self.task_deleted(&host, &task, u64::MAX, true, now, out),
            Event::SeedEnded { task, host, failed } => {
                self.with(&task, now, out, |task, cx| {
                    if failed {
                        task.seed_failed(&host, cx.now);
                    } else {
                        task.seed_done(&host);
                    }
                });
            }
            Event::OrderEnded { order, error } => self.order_done(order, error.as_deref(), now, out),
            Event::Tick => {}
        }
    }

    fn fire(&mut self, timer: Timer, now: Tick, out: &mut Vec<Effect>) {
        match timer {
            Timer::Task(key) => {
                self.dirty.insert(key);
            }
            Timer::Host(host) => self.host_due(&host, now, out),
            Timer::Held(stream) => self.give_up_held(stream, out),
            Timer::Gc => self.collect(now, out),
        }
    }

    /// Works on a task, if it is known, and settles it in the end of the step.
    fn with<R>(
        &mut self,
        key: &TaskKey,
        now: Tick,
        out: &mut Vec<Effect>,
        work: impl FnOnce(&mut Task, &mut Cx<'_>) -> R,
    ) -> Option<R> {
        let task = self.tasks.get_mut(key)?;
        let mut cx = Cx {
            config: &self.config,
            hosts: &mut self.hosts,
            timers: &mut self.timers,
            streams: &mut self.streams,
            counters: &mut self.counters,
            next_lease: &mut self.next_lease,
            next_order: &mut self.next_order,
            orders: &mut self.orders,
            starved: &mut self.starved,
            grace_until: self.grace_until,
            salt: self.salt,
            now,
            out,
        };
        self.dirty.insert(key.clone());
        Some(work(task, &mut cx))
    }

    /// Settles every task that something happened to, and those that a host with room again can help.
    fn settle(&mut self, now: Tick, out: &mut Vec<Effect>) {
        loop {
            while let Some(key) = self.dirty.pop_first() {
                let at = self.with(&key, now, out, |task, cx| {
                    task.settle(cx);
                    task.deadline(cx)
                });
                self.dirty.remove(&key);
                self.timers.set(Timer::Task(key), at.flatten());
            }
            let relieved = std::mem::take(&mut self.hosts.relieved);
            if relieved.is_empty() {
                return;
            }
            for host in relieved {
                let tasks: BTreeSet<TaskKey> = self
                    .hosts
                    .get(&host)
                    .map(|host| host.peers.iter().map(|(task, _)| task.clone()).collect())
                    .unwrap_or_default();
                for key in tasks {
                    self.with(&key, now, out, |task, _| task.lists_dirty());
                }
            }
        }
    }
}
