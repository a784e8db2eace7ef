//! A swarm on a virtual clock, seen from one peer: parents and an origin with rates, latencies and vices, and a shell
//! that performs effects the way a task supervisor does.

use std::collections::BTreeMap;
use std::time::Duration;

use damselfly_core::download::{
    AttemptId, Config, Effect, Event, FailureKind, Fetch, FromAttempt, FromParent, FromScheduler, Held,
    Learned, Lease, ParentInfo, ToScheduler,
};
use damselfly_core::{PeerId, Tick};

use crate::checker::Checker;
use crate::script::{client, crc_of, facts, failure, learned, ms};

/// The clock's step.
const STEP: Duration = Duration::from_millis(5);
/// A fetch without a byte for this long gives up, as the shell's does.
const READ_DEADLINE: Duration = Duration::from_secs(8);

/// How a source behaves.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    /// Bytes per second over all its requests.
    pub(crate) rate: f64,
    pub(crate) latency: Duration,
    /// Serves requests one after another; else all at once, sharing the rate.
    pub(crate) in_order: bool,
    /// When it stops sending, and when it begins again.
    pub(crate) mute: Option<(Duration, Duration)>,
    /// Every how many pieces it gives wrong bytes.
    pub(crate) wrong: Option<u32>,
    /// Every how many requests it breaks in the middle.
    pub(crate) breaks: Option<u32>,
    /// Every how many pieces it says it has and has not.
    pub(crate) lies: Option<u32>,
    /// Whether its SyncPieces stream breaks now and then.
    pub(crate) loses_watch: bool,
    /// When it gets its pieces: piece n after n times this. Zero means it is complete.
    pub(crate) growth: Duration,
}

impl Behaviour {
    pub(crate) fn good(rate: f64) -> Self {
        Self {
            rate,
            latency: ms(1),
            in_order: true,
            mute: None,
            wrong: None,
            breaks: None,
            lies: None,
            loses_watch: false,
            growth: Duration::ZERO,
        }
    }

    fn lies_about(&self, piece: u32) -> bool {
        self.lies.is_some_and(|every| (piece + 1).is_multiple_of(every))
    }

    fn is_mute(&self, since_start: Duration) -> bool {
        self.mute.is_some_and(|(from, to)| (from..to).contains(&since_start))
    }
}

/// What the scheduler does.
#[derive(Clone, Debug)]
pub(crate) enum SchedulerWay {
    /// Tells all parents and the geometry at once, grants no lease.
    ParentsOnly,
    /// Ours: grants leases of 8 pieces as long as there are any left.
    Leases,
    /// Ours, where somebody holds everything as far as it knows: tells all parents at once, and grants what is missing
    /// when it is asked for others.
    OnDemand,
    /// Nobody there.
    Absent,
    /// Breaks the stream every so often, comes back, tells parents and grants leases.
    Flaky(Duration),
    /// Accepts and never says a word.
    Silent,
}

struct Request {
    piece: u32,
    parent: Option<PeerId>,
    started: Tick,
    moved: Tick,
    bytes: f64,
    reported: u64,
    length: u64,
    /// Breaks when this many bytes have come.
    breaks_at: Option<f64>,
}

pub(crate) struct World {
    pub(crate) t: Checker,
    parents: BTreeMap<PeerId, Behaviour>,
    origin: Behaviour,
    scheduler: SchedulerWay,
    pieces: u32,
    start: Tick,
    requests: BTreeMap<AttemptId, Request>,
    counters: BTreeMap<Option<PeerId>, u32>,
    told: BTreeMap<PeerId, u32>,
    next_lease: u64,
    leased: u32,
    queue: Vec<Event>,
    connected: bool,
    last_break: Tick,
    /// Every fetch as it was started: when, which piece, from whom.
    pub(crate) log: Vec<(Duration, u32, Option<PeerId>)>,
    pub(crate) received: u64,
    /// Pieces that were in flight at a parent when it fell silent.
    pub(crate) stranded: Vec<u32>,
}

impl World {
    pub(crate) fn new(
        config: Config,
        pieces: u32,
        parents: Vec<Behaviour>,
        origin: Behaviour,
        scheduler: SchedulerWay,
    ) -> Self {
        let t = Checker::new(config, Held::default());
        let start = t.now;
        let named = |(index, behaviour)| (PeerId::from(format!("p{index}")), behaviour);
        Self {
            t,
            parents: parents.into_iter().enumerate().map(named).collect(),
            origin,
            scheduler,
            pieces,
            start,
            requests: BTreeMap::new(),
            counters: BTreeMap::new(),
            told: BTreeMap::new(),
            next_lease: 0,
            leased: 0,
            queue: Vec::new(),
            connected: false,
            last_break: start,
            log: Vec::new(),
            received: 0,
            stranded: Vec::new(),
        }
    }

    fn since_start(&self) -> Duration {
        self.t.now.since(self.start)
    }

    /// The most often that one parent was asked for one piece that it claims and does not have.
    pub(crate) fn denials(&self) -> usize {
        let mut times: BTreeMap<(&PeerId, u32), usize> = BTreeMap::new();
        for (_, piece, parent) in &self.log {
            if let Some(parent) = parent.as_ref().filter(|id| self.parents[*id].lies_about(*piece)) {
                *times.entry((parent, *piece)).or_default() += 1;
            }
        }
        times.into_values().max().unwrap_or(0)
    }

    /// Plays until the machine has finished or `limit` is over; says how long it took.
    pub(crate) fn run(&mut self, limit: Duration) -> Option<Duration> {
        self.feed(Event::Join(client(1)));
        while self.since_start() < limit {
            while !self.queue.is_empty() {
                let event = self.queue.remove(0);
                self.feed(event);
            }
            if self.t.finished.is_some() {
                return Some(self.since_start());
            }
            self.t.advance(STEP);
            self.announce();
            self.disturb();
            self.transfer();
            if self.t.machine.deadline().is_some_and(|at| at <= self.t.now) {
                let progress = self.progress();
                self.feed(Event::Tick { progress });
            }
        }
        None
    }

    fn progress(&mut self) -> Vec<(AttemptId, u64)> {
        let mut progress = Vec::new();
        for (&id, request) in &mut self.requests {
            let bytes = request.bytes as u64;
            if bytes != request.reported {
                request.reported = bytes;
                progress.push((id, bytes));
            }
        }
        progress
    }

    fn feed(&mut self, event: Event) {
        for effect in self.t.step(event) {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Register { .. } => self.register(),
            Effect::Fetch(id, fetch) => self.fetch(id, &fetch),
            Effect::Cancel(id) => {
                self.received += self.requests.remove(&id).map_or(0, |request| request.bytes as u64);
                self.queue.push(Event::Attempt(id, FromAttempt::Over(Err(failure(FailureKind::Cancelled)))));
            }
            Effect::Watch(parent) => drop(self.told.insert(parent, 0)),
            Effect::Unwatch(parent) => drop(self.told.remove(&parent)),
            Effect::Tell(ToScheduler::Reschedule { .. }) => {
                self.answer();
                self.grant_missing();
            }
            Effect::Tell(ToScheduler::Learned(_) | ToScheduler::PieceFinished { .. }) => self.grant(),
            _ => {}
        }
    }

    fn register(&mut self) {
        match self.scheduler {
            SchedulerWay::Absent => self.queue.push(Event::Scheduler(FromScheduler::Absent)),
            SchedulerWay::Silent => {
                self.queue.push(Event::Scheduler(FromScheduler::Connected { ours: true }))
            }
            _ => {
                self.connected = true;
                self.queue.push(Event::Scheduler(FromScheduler::Connected { ours: true }));
                self.answer();
                self.leased = 0;
                self.grant();
            }
        }
    }

    fn answer(&mut self) {
        if matches!(self.scheduler, SchedulerWay::Silent | SchedulerWay::Absent) || self.parents.is_empty() {
            return;
        }
        self.queue.push(Event::Scheduler(facts(self.pieces)));
        let info = |(id, behaviour): (&PeerId, &Behaviour)| ParentInfo {
            id: id.clone(),
            ours: true,
            complete: behaviour.growth.is_zero() && behaviour.lies.is_none(),
        };
        let list = self.parents.iter().map(info).collect();
        self.queue.push(Event::Scheduler(FromScheduler::Parents(list)));
    }

    /// Keeps eight pieces leased ahead.
    fn grant(&mut self) {
        let leases = matches!(self.scheduler, SchedulerWay::Leases | SchedulerWay::Flaky(_));
        let held = self.t.held.len() as u32;
        if leases && self.connected && self.leased < self.pieces && self.leased < held + 8 {
            let range = self.leased..self.leased + 8;
            self.leased += 8;
            self.lease(vec![range]);
        }
    }

    fn grant_missing(&mut self) {
        if matches!(self.scheduler, SchedulerWay::OnDemand) {
            let missing = (0..self.pieces).filter(|piece| !self.t.held.contains(piece));
            let ranges = missing.map(|piece| piece..piece + 1).collect();
            self.lease(ranges);
        }
    }

    fn lease(&mut self, ranges: Vec<std::ops::Range<u32>>) {
        self.next_lease += 1;
        let lease = Lease { id: self.next_lease, ranges, silence: Duration::from_secs(10), generation: 0 };
        self.queue.push(Event::Scheduler(FromScheduler::BackToSource(Some(lease))));
    }

    fn fetch(&mut self, id: AttemptId, fetch: &Fetch) {
        let (piece, parent) = match fetch {
            Fetch::Piece { piece, parent, .. } => (*piece, Some(parent.clone())),
            Fetch::OriginPiece { piece, .. } => (*piece, None),
            Fetch::OriginFirst { .. } => {
                let news: Learned = learned(self.pieces);
                self.queue.push(Event::Attempt(id, FromAttempt::Learned(news)));
                (0, None)
            }
            Fetch::OriginStream { .. } => unreachable!("this origin has ranges"),
        };
        self.log.push((self.since_start(), piece, parent.clone()));
        let count = self.counters.entry(parent.clone()).or_default();
        *count += 1;
        let behaviour = parent.as_ref().map_or(&self.origin, |parent| &self.parents[parent]);
        let length = crate::script::PIECE;
        let breaks = behaviour.breaks.is_some_and(|every| (*count).is_multiple_of(every));
        let lie = behaviour.lies_about(piece);
        let request = Request {
            piece,
            parent,
            started: self.t.now,
            moved: self.t.now,
            bytes: 0.0,
            reported: 0,
            length,
            // What it does not have it says at once.
            breaks_at: if lie { Some(0.0) } else { breaks.then_some(length as f64 / 2.0) },
        };
        self.requests.insert(id, request);
    }

    /// Parents tell what they have by now.
    fn announce(&mut self) {
        let now = self.since_start();
        for (id, told) in &mut self.told {
            let growth = self.parents[id].growth;
            let has = if growth.is_zero() {
                self.pieces
            } else {
                self.pieces.min((now.as_secs_f64() / growth.as_secs_f64()) as u32)
            };
            if has > *told {
                let news = (*told..has).collect();
                *told = has;
                self.queue.push(Event::Parent(id.clone(), FromParent::Has(news)));
            }
        }
    }

    fn disturb(&mut self) {
        if let SchedulerWay::Flaky(every) = self.scheduler
            && self.connected
            && self.t.now.since(self.last_break) >= every
        {
            self.last_break = self.t.now;
            self.connected = false;
            self.queue.push(Event::Scheduler(FromScheduler::Lost("broken".into())));
        }
        let second = self.since_start().as_millis().is_multiple_of(1000);
        let lost: Vec<PeerId> =
            self.told.keys().filter(|id| second && self.parents[*id].loses_watch).cloned().collect();
        for id in lost {
            self.told.remove(&id);
            self.queue.push(Event::Parent(id, FromParent::Lost("broken".into())));
        }
    }

    /// One step's worth of bytes on every connection.
    fn transfer(&mut self) {
        let now = self.t.now;
        let mut sources: Vec<Option<PeerId>> = self.parents.keys().cloned().map(Some).collect();
        sources.push(None);
        for source in sources {
            let behaviour = source.as_ref().map_or(&self.origin, |id| &self.parents[id]).clone();
            let ready: Vec<AttemptId> = self
                .requests
                .iter()
                .filter(|(_, request)| {
                    request.parent == source && now.since(request.started) >= behaviour.latency
                })
                .map(|(&id, _)| id)
                .collect();
            if behaviour.is_mute(self.since_start()) {
                if !behaviour.is_mute(self.since_start().saturating_sub(STEP)) {
                    let requests = self.requests.values().filter(|request| request.parent == source);
                    self.stranded.extend(requests.map(|request| request.piece));
                }
                continue;
            }
            let mut budget = behaviour.rate * STEP.as_secs_f64();
            let share = budget / ready.len().max(1) as f64;
            for id in ready {
                let request = self.requests.get_mut(&id).unwrap();
                let want = request.breaks_at.unwrap_or(request.length as f64) - request.bytes;
                let given = want.min(if behaviour.in_order { budget } else { share });
                budget -= given;
                if given > 0.0 {
                    request.bytes += given;
                    request.moved = now;
                }
            }
        }
        self.complete();
    }

    /// Whether nothing can have come back yet, or nothing comes any more.
    fn is_silent(&self, request: &Request) -> bool {
        let behaviour = request.parent.as_ref().map_or(&self.origin, |parent| &self.parents[parent]);
        let early = self.t.now.since(request.started) < behaviour.latency;
        early || behaviour.is_mute(self.since_start())
    }

    fn complete(&mut self) {
        let now = self.t.now;
        let over: Vec<AttemptId> = self
            .requests
            .iter()
            .filter(|(_, request)| {
                let end = request.breaks_at.unwrap_or(request.length as f64);
                let answered = !self.is_silent(request) && request.bytes >= end - 0.5;
                answered || now.since(request.moved) >= READ_DEADLINE
            })
            .map(|(&id, _)| id)
            .collect();
        for id in over {
            let request = self.requests.remove(&id).unwrap();
            let behaviour = request.parent.as_ref().map_or(&self.origin, |parent| &self.parents[parent]);
            let wrong = behaviour.wrong.is_some_and(|every| (request.piece + 1).is_multiple_of(every));
            let result = if behaviour.lies_about(request.piece) {
                Err(FailureKind::Missing)
            } else if request.bytes < request.length as f64 - 0.5 {
                Err(FailureKind::Retry { after: None })
            } else if request.parent.is_some() && wrong {
                Err(FailureKind::Wrong)
            } else {
                Ok(())
            };
            self.received += request.bytes as u64;
            if result.is_ok() {
                let (piece, cost) = (request.piece, now.since(request.started));
                let stored = FromAttempt::Stored { piece, crc: crc_of(piece), cost };
                self.queue.push(Event::Attempt(id, stored));
            }
            self.queue.push(Event::Attempt(id, FromAttempt::Over(result.map_err(failure))));
        }
    }
}
