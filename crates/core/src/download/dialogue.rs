//! The dialogue with the scheduler: registering, what it says, what it is told.
//!
//! ```text
//! Idle ── Register ──▶ Registering ── Connected, any answer ──▶ Open
//!                        ▲   │ Lost ▼                             │ Lost
//!                        └─ Backoff ◀─────────────────────────────┘
//! Registering, Open ── Refused, Absent ──▶ Gone
//! ```

use super::config::backoff;
use super::origin::Leave;
use super::{Download, Effect, FromScheduler, Learned, PeerId, ToScheduler};
use crate::{ByteRange, Geometry, Tick};

/// The state of the dialogue.
#[derive(Debug)]
pub(super) struct Dialogue {
    state: State,
    ours: bool,
    /// Whether the scheduler has answered since it was registered with.
    answered: bool,
    /// Since when it has owed its first answer.
    silent_since: Tick,
    /// Breaks of the stream since the last answer.
    failures: u32,
    /// Answers of a scheduler that counts them.
    pub(super) answers: u32,
    /// Whether a question is open.
    pub(super) awaiting: bool,
    /// When it was asked last, and how often since the last piece came.
    pub(super) asked: Option<Tick>,
    pub(super) questions: u32,
    ever_open: bool,
    started_told: bool,
    /// The scheduler was told that this peer fetches everything from the origin.
    back_to_source: bool,
    pub(super) learned_told: bool,
    /// The newest version of the content that it has spoken of over this stream, as it counts them.
    pub(super) heard: Option<u64>,
    /// The part of the content that the first client wants, with which this peer registers; the whole without one.
    pub(super) registers_with: Option<ByteRange>,
    /// The part of which the scheduler grants leases, as it was told last, and when that was.
    pub(super) told_range: (Option<ByteRange>, Tick),
    /// Reports for a scheduler that cannot be told yet; at most one per piece.
    untold: Vec<ToScheduler>,
    /// The last refusal or loss, for error texts.
    trouble: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Registering,
    Open,
    /// Registers again then.
    Backoff(Tick),
    /// Nobody to talk to; with a moment to look again if there once was.
    Gone(Option<Tick>),
}

impl Dialogue {
    pub(super) fn new(ours: bool, now: Tick) -> Self {
        Self {
            state: State::Idle,
            ours,
            answered: false,
            silent_since: now,
            failures: 0,
            answers: 0,
            awaiting: false,
            asked: None,
            questions: 0,
            ever_open: false,
            started_told: false,
            back_to_source: false,
            learned_told: false,
            heard: None,
            registers_with: None,
            told_range: (None, now),
            untold: Vec::new(),
            trouble: None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone(_))
    }

    /// Whether the stream stands and the scheduler is ours.
    pub(super) fn is_ours(&self) -> bool {
        self.ours && self.state == State::Open
    }

    /// Whether the stream stands and the scheduler counts its answers.
    pub(super) fn is_foreign(&self) -> bool {
        !self.ours && self.state == State::Open
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answered && self.state == State::Open
    }

    /// Since when the scheduler has been silent, where it owes an answer; for how long that is borne is the asker's.
    pub(super) fn silent_since(&self) -> Option<Tick> {
        let owes = match self.state {
            State::Registering | State::Backoff(_) => true,
            State::Open => !self.answered,
            State::Idle | State::Gone(_) => false,
        };
        owes.then_some(self.silent_since)
    }

    /// Whether the stream to Dragonfly's scheduler broke: its daemons go to the origin then.
    pub(super) fn foreign_broken(&self) -> bool {
        !self.ours && self.ever_open && matches!(self.state, State::Backoff(_))
    }

    /// Time before `now` was not spent waiting.
    pub(super) fn listen_from(&mut self, now: Tick) {
        self.silent_since = now;
    }

    /// In words, for errors and snapshots.
    pub(super) fn describe(&self) -> String {
        let trouble = self.trouble.as_deref().unwrap_or("no answer yet");
        match self.state {
            State::Idle => "no scheduler was asked yet".to_owned(),
            State::Registering => format!("the scheduler has not answered ({trouble})"),
            State::Open if !self.answered => "the scheduler has not answered".to_owned(),
            State::Open => "the scheduler is connected".to_owned(),
            State::Backoff(_) => format!("the scheduler was lost ({trouble})"),
            State::Gone(_) => format!("no scheduler helps ({trouble})"),
        }
    }

    /// The pieces that were to be reported are of a version that has gone.
    pub(super) fn forget_reports(&mut self) {
        self.untold.clear();
    }

    /// The stream is over; what was told over it must be told anew.
    fn close(&mut self, state: State, trouble: String) {
        self.state = state;
        self.trouble = Some(trouble);
        (self.answered, self.awaiting, self.started_told, self.learned_told) = (false, false, false, false);
        self.back_to_source = false;
        self.heard = None;
    }
}

impl Download {
    /// Tells the scheduler, when there is one that listens.
    pub(super) fn tell(&mut self, message: ToScheduler) {
        let ours_only =
            matches!(message, ToScheduler::Release(_) | ToScheduler::Learned(_) | ToScheduler::Wants(_));
        if self.dialogue.state == State::Open && (self.dialogue.ours || !ours_only) {
            self.emit(Effect::Tell(message));
        }
    }

    /// Reports a piece, now or as soon as the scheduler listens.
    pub(super) fn report(&mut self, message: ToScheduler) {
        let listens = self.dialogue.state == State::Open && (self.dialogue.ours || self.dialogue.answered);
        if listens {
            self.leases.renew(self.now);
            self.emit(Effect::Tell(message));
        } else if !self.dialogue.is_gone() {
            self.dialogue.untold.push(message);
        }
    }

    /// What the last message before the stream's end is to be, in the form the scheduler expects.
    pub(super) fn tell_end(&mut self, failure: Option<String>) {
        let back_to_source = self.dialogue.back_to_source;
        self.tell(match failure {
            None => ToScheduler::Finished { back_to_source },
            Some(description) => ToScheduler::Failed { description, back_to_source },
        });
    }

    /// Registers when something is missing and nobody was asked, or again when the time has come.
    pub(super) fn settle_dialogue(&mut self) {
        if self.known.geometry.is_some() && self.known.missing.is_empty() {
            return;
        }
        match self.dialogue.state {
            State::Idle if self.must_measure_first() => {}
            State::Idle
                if self.config.foreign_scheduler
                    && self.known.stream_only()
                    && self.known.geometry.is_none() =>
            {
                // Dragonfly's scheduler has no place for content without a length.
                self.dialogue
                    .close(State::Gone(None), "the origin does not tell the content's length".to_owned());
                self.assume_leave();
            }
            State::Idle => self.register(),
            State::Backoff(at) | State::Gone(Some(at)) => {
                if self.due(at) {
                    self.register();
                }
            }
            State::Open => self.settle_wishes(),
            State::Registering | State::Gone(None) => {}
        }
    }

    fn register(&mut self) {
        if self.dialogue.is_idle() {
            self.dialogue.silent_since = self.now;
        }
        self.dialogue.state = State::Registering;
        self.dialogue.told_range = (self.dialogue.registers_with, self.now);
        let restate = self.leases.restate(&self.known);
        self.emit(Effect::Register { restate });
    }

    pub(super) fn on_scheduler(&mut self, message: FromScheduler) {
        if !matches!(self.dialogue.state, State::Registering | State::Open) {
            // From a stream that is over.
            return;
        }
        match message {
            FromScheduler::Connected { ours } => self.on_connected(ours),
            FromScheduler::Empty => {
                self.on_answer();
                self.tell_started();
                if self.known.geometry.is_none()
                    && let Ok(geometry) = Geometry::derived(0)
                {
                    self.adopt(geometry, &Learned::default());
                }
            }
            FromScheduler::Parents(list) => {
                self.on_answer();
                self.on_candidates(list, self.dialogue.ours);
                self.tell_started();
                self.flush_reports();
            }
            FromScheduler::BackToSource(lease) => {
                self.on_answer();
                if !self.dialogue.started_told || lease.is_none() && !self.dialogue.back_to_source {
                    self.dialogue.started_told = true;
                    self.tell(ToScheduler::BackToSourceStarted);
                }
                match lease {
                    Some(lease) => self.on_lease(lease),
                    None => {
                        self.dialogue.back_to_source = true;
                        self.origin.whole = Some(Leave::Granted);
                    }
                }
                self.flush_reports();
            }
            FromScheduler::Facts(facts) => {
                self.on_answer();
                self.on_facts(facts);
            }
            FromScheduler::Length(geometry) => self.on_hearsay(geometry),
            FromScheduler::Refused(why) => {
                self.dialogue.close(State::Gone(None), why);
                // Nor may it go on with the parents it was given: the content may not be its own.
                self.forget_parents();
                self.cancel_where(|attempt| attempt.parent.is_some());
                self.assume_leave();
            }
            FromScheduler::Absent => {
                let again = self.dialogue.ever_open.then(|| self.now + self.config.scheduler_backoff.1);
                self.dialogue.close(State::Gone(again), "no scheduler can be reached".to_owned());
                self.assume_leave();
            }
            FromScheduler::Lost(why) => {
                if self.dialogue.answered {
                    self.dialogue.silent_since = self.now;
                }
                self.dialogue.failures = self.dialogue.failures.saturating_add(1);
                let wait = backoff(self.config.scheduler_backoff, self.dialogue.failures);
                // All hosts lose a scheduler at once; they should not all come back at once.
                let early = wait.mul_f64((self.spread(self.now.0) % 256) as f64 / 1024.0);
                let at = self.now + wait.saturating_sub(early);
                self.dialogue.close(State::Backoff(at), why);
            }
        }
    }

    fn on_connected(&mut self, ours: bool) {
        if self.dialogue.state == State::Registering {
            self.count_versions_anew();
        }
        (self.dialogue.state, self.dialogue.ours, self.dialogue.ever_open) = (State::Open, ours, true);
        self.leases.renew(self.now);
        if ours {
            self.tell_learned();
            self.flush_reports();
        }
    }

    /// The scheduler speaks: from here on it decides again.
    fn on_answer(&mut self) {
        if self.dialogue.state == State::Registering {
            self.on_connected(self.dialogue.ours);
        }
        self.dialogue.answered = true;
        self.dialogue.awaiting = false;
        self.dialogue.failures = 0;
        self.dialogue.answers = self.dialogue.answers.saturating_add(1);
        self.end_assumed_leave();
    }

    /// Dragonfly's scheduler wants to hear of the start after each of its answers, ours once.
    fn tell_started(&mut self) {
        if !self.dialogue.started_told || !self.dialogue.ours {
            self.dialogue.started_told = true;
            self.tell(ToScheduler::Started);
        }
    }

    fn flush_reports(&mut self) {
        for report in std::mem::take(&mut self.dialogue.untold) {
            self.report(report);
        }
    }

    /// Asks the scheduler for other parents.
    pub(super) fn reschedule(&mut self, description: String) {
        let parents: Vec<PeerId> =
            self.parents.iter().filter(|(_, parent)| parent.listed).map(|(id, _)| id.clone()).collect();
        self.dialogue.awaiting = true;
        self.dialogue.asked = Some(self.now);
        self.dialogue.questions = self.dialogue.questions.saturating_add(1);
        self.tell(ToScheduler::Reschedule { parents, description });
    }
}
