//! The Download machine: what one task does next.
//!
//! A state machine without I/O: [`Download::step`] takes an [`Event`] and the time and returns [`Effect`]s, which the
//! task supervisor performs in order. Whatever can happen to a download is an event, including time
//! ([`Event::Tick`], asked for by [`Download::deadline`]), so a whole swarm can be played under a virtual clock.
//!
//! # How a step works
//! First the event changes what is known (`clients`, `dialogue`, `parents`, `attempts`, `facts`). Then `settle` derives
//! from all that is known what to do: expire what time has ended, register, watch parents, start attempts, judge whether
//! the download is stuck, and end it. Nothing is done in the first part that the second could decide, so the rules hold
//! whatever the order of events. A rule that waits for a moment says so (`wake_at`), which is where
//! [`Download::deadline`] comes from.
//!
//! # What never happens
//! - More than two attempts at one piece, a fetch of a held piece, a fetch from a banned parent.
//! - A request to the origin without leave: a lease, the scheduler's word, or its absence or silence; and always with
//!   the headers of a waiting client that allows it.
//! - A piece verified twice in a generation, unless the ledger made it invalid in between.
//! - A client that ends twice or never; any effect after [`Effect::Finish`].

mod attempts;
mod clients;
mod config;
mod dialogue;
mod event;
mod facts;
mod hedge;
mod leases;
mod origin;
mod parents;
mod pick;
mod settle;
mod stuck;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use config::{Config, ORIGIN_WINDOW};
pub use event::{
    AttemptId, Client, ClientId, Effect, Event, Facts, Failure, FailureKind, Fetch, FromAttempt, FromParent,
    FromScheduler, HeadersId, Held, Learned, Lease, LostClient, Outcome, ParentInfo, Source, ToScheduler,
    Validator,
};
pub use view::{AttemptView, ClientView, ParentView};

use self::attempts::Attempt;
use self::clients::Waiting;
use self::dialogue::Dialogue;
use self::facts::{Known, Restart};
use self::leases::Leases;
use self::origin::Origin;
use self::parents::Parent;
use crate::{PeerId, Tick, mix};

/// One task's download, from the first client to the last.
#[derive(Debug)]
pub struct Download {
    config: Config,
    now: Tick,
    /// The earliest moment at which a rule wants to look again.
    wake: Option<Tick>,
    out: Vec<Effect>,

    known: Known,
    restart: Option<Restart>,
    restarts: u32,
    paused: bool,
    finished: bool,

    clients: Vec<Waiting>,
    /// How the last client so far ended; `None` until the first one joined.
    last_end: Option<LastEnd>,

    dialogue: Dialogue,
    leases: Leases,
    origin: Origin,

    parents: BTreeMap<PeerId, Parent>,
    /// Never asked again, even when the scheduler names them anew.
    banned: BTreeSet<PeerId>,

    attempts: BTreeMap<AttemptId, Attempt>,
    next_attempt: u64,
    /// Attempts in a row that ended as cancelled without having been cancelled.
    crashes: u32,
    last_tick: Tick,
    stuck_since: Option<Tick>,
}

/// What ended the latest client: it decides what the machine's own end is called.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LastEnd {
    /// Clients wait, or came and went before.
    Joined,
    Ready,
    Left,
    Failed(String),
    Cancelled,
}

impl Download {
    /// A machine for a task of which storage holds `held`. It does nothing before the first [`Event::Join`].
    #[must_use]
    pub fn new(config: Config, held: Held, now: Tick) -> Self {
        Self {
            now,
            wake: None,
            out: Vec::new(),
            restart: None,
            restarts: 0,
            paused: held.paused,
            finished: false,
            known: Known::new(held),
            clients: Vec::new(),
            last_end: None,
            dialogue: Dialogue::new(!config.foreign_scheduler, now),
            leases: Leases::default(),
            origin: Origin::default(),
            parents: BTreeMap::new(),
            banned: BTreeSet::new(),
            attempts: BTreeMap::new(),
            next_attempt: 0,
            crashes: 0,
            last_tick: now,
            stuck_since: None,
            config,
        }
    }

    /// Takes one event and says what to do, in order. After [`Effect::Finish`] nothing is answered any more.
    ///
    /// `now` must not run backwards; where it does, the later time counts.
    pub fn step(&mut self, event: Event, now: Tick) -> Vec<Effect> {
        if self.finished {
            return Vec::new();
        }
        self.now = self.now.max(now);
        match event {
            Event::Join(client) => self.on_join(client),
            Event::Leave(client) => self.on_leave(client),
            Event::Pause => self.on_pause(),
            Event::Resume => self.on_resume(),
            Event::Cancel => self.on_cancel(),
            Event::Tick { progress } => self.on_tick(&progress),
            Event::Scheduler(message) => self.on_scheduler(message),
            Event::Parent(parent, message) => self.on_parent(&parent, message),
            Event::Attempt(attempt, message) => self.on_attempt(attempt, message),
        }
        self.settle();
        std::mem::take(&mut self.out)
    }

    /// When the next [`Event::Tick`] is due, unless another event comes first. Always later than the last step.
    ///
    /// `None` only when nothing is waited for but the user: no client has joined, the task is paused, or it is finished.
    #[must_use]
    pub fn deadline(&self) -> Option<Tick> {
        if self.finished { None } else { self.wake }
    }

    fn emit(&mut self, effect: Effect) {
        self.out.push(effect);
    }

    /// Asks for a tick at `at`, or as soon as possible where that has passed.
    fn wake_at(&mut self, at: Tick) {
        let at = at.max(self.now + Duration::from_millis(1));
        self.wake = Some(self.wake.map_or(at, |earlier| earlier.min(at)));
    }

    /// Whether `at` has come; where not, asks for a tick then.
    fn due(&mut self, at: Tick) -> bool {
        let due = self.now >= at;
        if !due {
            self.wake_at(at);
        }
        due
    }

    /// A number that differs between hosts and salts, the same for the same two.
    fn spread(&self, salt: u64) -> u64 {
        mix(self.config.fingerprint ^ mix(salt))
    }
}
