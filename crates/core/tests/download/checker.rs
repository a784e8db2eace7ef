//! A Download machine under watch: after every step, everything it must never do is checked against what an observer of
//! events and effects knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use damselfly_core::download::{
    AttemptId, Client, ClientId, Config, Download, Effect, Event, Facts, Failure, FailureKind, Fetch,
    FromAttempt, FromParent, FromScheduler, HeadersId, Held, Lease, ToScheduler,
};
use damselfly_core::{Crc, Geometry, PeerId, Tick};

/// An attempt as an observer sees it.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) fetch: Fetch,
    pub(crate) piece: Option<u32>,
    pub(crate) parent: Option<PeerId>,
    pub(crate) cancelled: bool,
    pub(crate) done: bool,
}

pub(crate) struct Checker {
    pub(crate) machine: Download,
    pub(crate) config: Config,
    pub(crate) now: Tick,
    pub(crate) running: BTreeMap<AttemptId, Running>,
    pub waiting: BTreeMap<ClientId, Client>,
    pub(crate) ready: BTreeSet<ClientId>,
    pub(crate) failed: BTreeMap<ClientId, damselfly_core::download::LostClient>,
    pub(crate) held: BTreeSet<u32>,
    pub(crate) geometry: Option<Geometry>,
    pub(crate) generation: u64,
    pub(crate) paused: bool,
    pub(crate) finished: Option<damselfly_core::download::Outcome>,
    pub(crate) watched: BTreeSet<PeerId>,
    banned: BTreeSet<PeerId>,
    known_parents: BTreeSet<PeerId>,
    /// The scheduler's present list.
    named: BTreeSet<PeerId>,
    /// What parents had not although they said so, until they say so again or are named anew.
    denied: BTreeSet<(PeerId, u32)>,
    /// The origin did not tell the length: who reads such content keeps its lease, however long it is silent.
    unmeasured: bool,
    ledger: BTreeMap<u32, Crc>,
    /// What was said of the ledger while a new version waited to be taken up. What has been said since outweighs it.
    late: BTreeMap<u32, Vec<Crc>>,
    /// The newest version that the scheduler has spoken of over this stream.
    heard: u64,
    /// By number and generation: another scheduler may count both anew while former leases live.
    leases: BTreeMap<(u64, u64), (Lease, Tick)>,
    lease_generation: u64,
    /// Leave for everything: for ever, or until the scheduler's next answer.
    granted: bool,
    assumed: bool,
    ours: bool,
    open: bool,
    registered: bool,
    /// Whether the present stream has brought an answer, and when the last one came or the last one broke.
    answered: bool,
    last_answer: Tick,
    answers: u32,
    /// The last verified piece. Other progress makes the machine more patient, never less.
    last_progress: Tick,
}

impl Checker {
    pub(crate) fn new(config: Config, held: Held) -> Self {
        let now = Tick(1_000_000);
        Self {
            held: held.pieces.iter().collect(),
            geometry: held.geometry,
            generation: held.generation,
            paused: held.paused,
            ours: !config.foreign_scheduler,
            machine: Download::new(config.clone(), held, now),
            config,
            now,
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ready: BTreeSet::new(),
            failed: BTreeMap::new(),
            finished: None,
            watched: BTreeSet::new(),
            banned: BTreeSet::new(),
            known_parents: BTreeSet::new(),
            named: BTreeSet::new(),
            denied: BTreeSet::new(),
            unmeasured: false,
            ledger: BTreeMap::new(),
            late: BTreeMap::new(),
            heard: 0,
            leases: BTreeMap::new(),
            lease_generation: 0,
            granted: false,
            assumed: false,
            open: false,
            registered: false,
            answered: false,
            last_answer: now,
            answers: 0,
            last_progress: now,
        }
    }

    /// Lets time pass without an event.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.now += by;
    }

    pub(crate) fn step(&mut self, event: Event) -> Vec<Effect> {
        self.observe(&event);
        self.assume_leave();
        if self.unmeasured && self.geometry.is_none() && self.open && self.ours {
            self.renew_leases();
        }
        let effects = self.machine.step(event, self.now);
        assert!(self.finished.is_none() || effects.is_empty(), "{effects:?} after the end");
        for effect in &effects {
            self.check(effect);
        }
        self.check_state();
        effects
    }

    fn renew_leases(&mut self) {
        let now = self.now;
        self.leases.values_mut().for_each(|(lease, until)| *until = now + lease.silence);
    }

    fn observe(&mut self, event: &Event) {
        match event {
            Event::Join(client) if self.finished.is_none() => {
                let now = self.now;
                self.waiting.entry(client.id).or_insert_with(|| {
                    self.last_progress = now;
                    client.clone()
                });
            }
            Event::Leave(id) => drop(self.waiting.remove(id)),
            Event::Pause => self.paused = true,
            Event::Resume => {
                self.paused = false;
                self.last_progress = self.now;
            }
            Event::Scheduler(message) if self.registered => self.observe_scheduler(message),
            Event::Parent(parent, FromParent::Has(pieces)) => {
                self.denied.retain(|(denier, piece)| denier != parent || !pieces.contains(piece));
            }
            Event::Parent(parent, FromParent::Ended | FromParent::Lost(_)) => {
                self.watched.remove(parent);
            }
            Event::Attempt(id, message) => self.observe_attempt(*id, message),
            _ => {}
        }
    }

    /// Leave that may be taken without being given; it lasts until the scheduler's next answer.
    fn assume_leave(&mut self) {
        let silent = !self.answered && self.now.since(self.last_answer) >= self.config.answer_deadline;
        let desperate = self.now.since(self.last_progress) >= self.config.desperate_after;
        let exhausted = !self.ours && self.answers >= self.config.max_schedule_count;
        self.assumed |= silent || desperate || exhausted;
    }

    fn observe_scheduler(&mut self, message: &FromScheduler) {
        match message {
            FromScheduler::Facts(Facts { generation, .. })
            | FromScheduler::BackToSource(Some(Lease { generation, .. })) => {
                self.heard = self.heard.max(*generation);
            }
            FromScheduler::Refused(_) | FromScheduler::Absent | FromScheduler::Lost(_) => self.heard = 0,
            _ => {}
        }
        let mut answer = || {
            if !self.open {
                self.renew_leases();
                self.lease_generation = 0;
            }
            self.open = true;
            self.assumed = false;
            self.answered = true;
            self.last_answer = self.now;
            self.answers += 1;
        };
        match message {
            FromScheduler::Connected { ours } => {
                if !self.open {
                    self.lease_generation = 0;
                }
                (self.open, self.ours) = (true, *ours);
                self.renew_leases();
            }
            FromScheduler::Empty => answer(),
            FromScheduler::Parents(list) => {
                answer();
                let named: BTreeSet<PeerId> = list.iter().map(|info| info.id.clone()).collect();
                // Whoever was not named for a while is forgotten, and begins anew.
                self.denied.retain(|(denier, _)| self.named.contains(denier) || !named.contains(denier));
                self.named = if self.ours { named } else { &self.named | &named };
                self.known_parents.extend(list.iter().map(|info| info.id.clone()));
            }
            FromScheduler::BackToSource(None) => {
                answer();
                self.granted = true;
            }
            FromScheduler::BackToSource(Some(lease)) => {
                answer();
                if lease.generation >= self.lease_generation {
                    self.lease_generation = lease.generation;
                    let until = self.now + lease.silence;
                    self.leases.insert((lease.id, lease.generation), (lease.clone(), until));
                }
            }
            FromScheduler::Facts(_) => answer(),
            FromScheduler::Length(_) => {}
            FromScheduler::Refused(_) | FromScheduler::Absent => {
                self.assumed = true;
                (self.open, self.registered, self.answered) = (false, false, false);
            }
            FromScheduler::Lost(_) => {
                // Dragonfly's daemons go to the origin when the stream breaks.
                self.assumed |= !self.ours;
                if self.answered {
                    self.last_answer = self.now;
                }
                (self.open, self.registered, self.answered) = (false, false, false);
            }
        }
    }

    fn observe_attempt(&mut self, id: AttemptId, message: &FromAttempt) {
        let Some(running) = self.running.get_mut(&id) else { return };
        match message {
            FromAttempt::Stored { piece, .. } => {
                // Without a geometry there is no piece to be done with.
                running.done |= running.piece == Some(*piece) && self.geometry.is_some();
            }
            FromAttempt::Over(result) => {
                let running = self.running.remove(&id).unwrap();
                let missing = matches!(result, Err(Failure { kind: FailureKind::Missing, .. }));
                if let (true, Some(parent), Some(piece), false) =
                    (missing, &running.parent, running.piece, running.cancelled || running.done)
                {
                    self.denied.insert((parent.clone(), piece));
                }
                if let (Err(Failure { kind: FailureKind::Wrong, .. }), Some(parent), false) =
                    (result, running.parent, running.cancelled || running.done)
                {
                    self.banned.insert(parent);
                }
            }
            FromAttempt::Learned(learned) => {
                self.unmeasured |= learned.content_length.is_none();
                let streams = learned.content_length.is_none() || learned.ranges == Some(false);
                if streams && matches!(running.fetch, Fetch::OriginFirst { .. }) {
                    running.piece = None;
                }
            }
            FromAttempt::Ended { .. } => running.done |= running.parent.is_none(),
        }
    }

    fn check(&mut self, effect: &Effect) {
        match effect {
            Effect::Fetch(id, fetch) => self.check_fetch(*id, fetch),
            Effect::Cancel(id) => {
                let running = self.running.get_mut(id).unwrap_or_else(|| panic!("cancels unknown {id:?}"));
                assert!(!running.cancelled, "cancels {id:?} twice");
                running.cancelled = true;
            }
            Effect::Verified { piece, .. } => {
                assert!(self.held.insert(*piece), "piece {piece} verified twice");
                self.last_progress = self.now;
            }
            Effect::Invalidate(piece) => {
                self.held.remove(piece);
            }
            Effect::NewGeneration(generation) => {
                assert!(self.running.is_empty(), "a new generation while {:?} run", self.running);
                assert_eq!(*generation, self.generation + 1);
                self.generation = *generation;
                self.held.clear();
                self.geometry = None;
                self.ledger.clear();
                self.denied.clear();
                self.unmeasured = false;
                self.last_progress = self.now;
            }
            Effect::Learn(learned) => {
                let length = learned.content_length.unwrap();
                self.geometry = Some(Geometry::new(length, learned.piece_length).unwrap());
            }
            Effect::ClientReady(id, range) => {
                let client = self.waiting.remove(id).unwrap_or_else(|| panic!("{id:?} does not wait"));
                let geometry = self.geometry.expect("ready without geometry");
                assert_eq!(client.range.resolve(geometry.content_length()), Ok(*range));
                for piece in geometry.pieces_of(*range) {
                    assert!(self.held.contains(&piece), "{id:?} is ready without piece {piece}");
                }
                self.ready.insert(*id);
            }
            Effect::ClientFailed(id, why) => {
                assert!(self.waiting.remove(id).is_some(), "{id:?} does not wait");
                self.failed.insert(*id, why.clone());
            }
            Effect::Finish(outcome) => {
                assert!(self.waiting.is_empty() && self.running.is_empty(), "finishes early");
                assert!(self.watched.is_empty(), "watches {:?} after the end", self.watched);
                self.finished = Some(outcome.clone());
            }
            Effect::Register { .. } => {
                assert!(!self.registered && !self.paused, "registers twice");
                self.registered = true;
            }
            Effect::Tell(message) => {
                assert!(self.open, "tells {message:?} to nobody");
                self.check_tell(message);
            }
            Effect::Watch(parent) => {
                assert!(!self.banned.contains(parent), "watches banned {parent}");
                assert!(self.watched.insert(parent.clone()), "watches {parent} twice");
            }
            Effect::Unwatch(parent) => assert!(self.watched.remove(parent), "{parent} is not watched"),
        }
    }

    fn check_tell(&mut self, message: &ToScheduler) {
        match message {
            ToScheduler::Release(id) => self.leases.retain(|(lease, _), _| lease != id),
            ToScheduler::PieceFailed { parent, .. } => drop(self.banned.insert(parent.clone())),
            ToScheduler::PieceFinished { .. } => {
                self.renew_leases();
            }
            _ => {}
        }
    }

    fn check_fetch(&mut self, id: AttemptId, fetch: &Fetch) {
        assert!(!self.paused, "{fetch:?} while paused");
        assert!(!self.running.contains_key(&id), "{id:?} used twice");
        let (piece, parent) = match fetch {
            Fetch::Piece { piece, parent, crc, .. } => {
                assert!(self.known_parents.contains(parent) && !self.banned.contains(parent), "{fetch:?}");
                assert!(!self.denied.contains(&(parent.clone(), *piece)), "{fetch:?} of what was denied");
                let late = self.late.get(piece).zip(*crc).is_some_and(|(late, crc)| late.contains(&crc));
                assert!(late || *crc == self.ledger.get(piece).copied(), "{fetch:?}");
                (Some(*piece), Some(parent.clone()))
            }
            Fetch::OriginPiece { piece, .. } => (Some(*piece), None),
            Fetch::OriginFirst { first_piece, .. } => (first_piece.then_some(0), None),
            Fetch::OriginStream { .. } => (None, None),
        };
        if let Fetch::OriginPiece { headers, .. }
        | Fetch::OriginFirst { headers, .. }
        | Fetch::OriginStream { headers } = fetch
        {
            self.check_leave(fetch, *headers, piece);
        }
        if let Some(piece) = piece {
            assert!(!self.held.contains(&piece), "fetches held piece {piece}");
            let others =
                self.running.values().filter(|other| other.piece == Some(piece) && !other.done).count();
            assert!(others < 2, "a third attempt at piece {piece}");
            let hedge =
                matches!(fetch, Fetch::Piece { hedge: true, .. } | Fetch::OriginPiece { hedge: true, .. });
            assert_eq!(hedge, others == 1, "{fetch:?} beside {others} others");
        }
        let live = |from_parent: bool| {
            let live = self.running.values().filter(|other| !other.cancelled && !other.done);
            live.filter(|other| other.parent.is_some() == from_parent).count()
        };
        if let Some(parent) = &parent {
            assert!(live(true) < 2 * self.config.max_in_flight, "too many in flight");
            let here = self
                .running
                .values()
                .filter(|other| !other.cancelled && !other.done && other.parent.as_ref() == Some(parent));
            assert!(here.count() <= self.config.window.1, "too many in flight at {parent}");
        } else {
            assert!(live(false) < self.config.origin_window, "too many in flight at the origin");
            let streams =
                |fetch: &Fetch| matches!(fetch, Fetch::OriginStream { .. } | Fetch::OriginFirst { .. });
            assert!(!streams(fetch) || live(false) == 0, "{fetch:?} beside another");
        }
        self.running
            .insert(id, Running { fetch: fetch.clone(), piece, parent, cancelled: false, done: false });
    }

    fn check_leave(&mut self, fetch: &Fetch, headers: HeadersId, piece: Option<u32>) {
        assert!(self.config.uses_origin, "{fetch:?} although there is no origin");
        let allowed = |client: &Client| client.headers == headers && client.may_use_origin;
        assert!(self.waiting.values().any(allowed), "{fetch:?} with nobody's headers");
        let measured = self.config.foreign_scheduler && !self.registered;
        if self.granted || self.assumed || measured {
            return;
        }
        let live = || self.leases.values().filter(|(_, until)| *until > self.now).map(|(lease, _)| lease);
        match piece {
            Some(piece) => {
                let covered = live().any(|lease| lease.ranges.iter().any(|range| range.contains(&piece)));
                assert!(covered, "{fetch:?} without leave");
            }
            None => assert!(live().next().is_some(), "{fetch:?} without leave"),
        }
    }

    fn check_state(&mut self) {
        let machine_waits: BTreeSet<ClientId> = self.machine.clients().map(|client| client.id).collect();
        if self.finished.is_some() {
            assert_eq!(self.machine.deadline(), None);
            assert!(self.machine.is_finished());
            return;
        }
        assert_eq!(machine_waits, self.waiting.keys().copied().collect(), "clients differ");
        assert_eq!(self.machine.held().iter().collect::<BTreeSet<_>>(), self.held, "held pieces differ");
        match self.machine.deadline() {
            Some(at) => assert!(at > self.now, "deadline in the past"),
            None => {
                assert!(self.running.is_empty(), "no tick although {:?} run", self.running);
                assert!(
                    self.waiting.is_empty() || self.paused,
                    "waits for nothing: {}",
                    self.machine.situation()
                );
            }
        }
    }

    /// The ledger as the scheduler is about to tell it: fetches must carry it.
    pub(crate) fn tell_ledger(&mut self, first: u32, crcs: Vec<Crc>) -> Vec<Effect> {
        let count = self.geometry.map_or(u32::MAX, |geometry| geometry.piece_count());
        let restarting = self.machine.is_restarting();
        let told = (first..).zip(crcs.clone()).filter(|_| self.registered);
        for (piece, crc) in told {
            if restarting {
                self.late.entry(piece).or_default().push(crc);
            } else if piece < count {
                self.late.remove(&piece);
                self.ledger.insert(piece, crc);
            }
        }
        let facts = Facts { generation: self.heard, first, crcs, ..Facts::default() };
        self.step(Event::Scheduler(FromScheduler::Facts(facts)))
    }
}
