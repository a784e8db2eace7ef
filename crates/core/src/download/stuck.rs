//! When nothing moves: who is asked, what may be taken without asking, and when it is over.

use std::time::Duration;

use super::config::backoff;
use super::{Download, LostClient};
use crate::Tick;

impl Download {
    /// Looks for a way on when nothing that could bring progress runs. Says whether it found one, or an end: then
    /// everything is to be settled again.
    pub(super) fn judge(&mut self) -> bool {
        if self.known.geometry.is_some() && self.known.missing.is_empty() {
            self.stuck_since = None;
            return false;
        }
        let moving = self.attempts.values().filter(|attempt| attempt.is_live()).any(|attempt| {
            let parent = attempt.parent.as_ref().map(|id| self.parents.get(id));
            parent.is_none_or(|parent| parent.is_some_and(|parent| !parent.stalled))
        });
        if moving || self.origin_recovers() || self.must_measure_first() {
            return false;
        }
        let since = *self.stuck_since.get_or_insert(self.now);
        let hope = self.gives_hope();
        if self.nothing_can_come() {
            self.give_up();
            return true;
        }
        if self.origin_is_open() && self.origin.whole.is_none() {
            let patience = if hope { self.config.hope_limit } else { self.config.desperate_after };
            let mut at = since + patience;
            if let Some(silent) = self.dialogue.silent_since() {
                let silence = if self.dialogue.foreign_broken() {
                    self.now
                } else {
                    silent + self.config.answer_deadline
                };
                at = at.min(silence);
            }
            if self.due(at) {
                self.assume_leave();
                return true;
            }
        }
        if self.ask_again(since, hope) {
            return true;
        }
        let limit = match (hope, &self.origin.failed) {
            (true, _) => self.config.hope_limit,
            (false, Some(_)) => self.config.refused_limit,
            (false, None) => self.config.stuck_limit,
        };
        let over = self.due(since + limit);
        if over {
            self.give_up();
        }
        over
    }

    /// Asks the scheduler for other parents when that may help. Says whether that way has ended instead.
    fn ask_again(&mut self, since: Tick, hope: bool) -> bool {
        let foreign = self.dialogue.is_foreign();
        if !self.dialogue.has_answered() || (foreign && self.dialogue.awaiting) {
            return false;
        }
        let (first, further) = if foreign { self.foreign_patience(hope) } else { self.patience(hope) };
        let again = self.dialogue.asked.map_or(since, |asked| asked + further);
        if !self.due((since + first).max(again)) {
            return false;
        }
        if !foreign {
            self.reschedule(self.waited_for());
            // Whether it answers or not: it is asked again.
            self.wake_at(self.now + self.patience(hope).1);
            return false;
        }
        if self.dialogue.answers < self.config.max_schedule_count {
            self.reschedule("not all pieces are downloaded from parent".to_owned());
            return false;
        }
        // Asked often enough: the origin, or the end.
        if self.origin_is_open() && self.origin.whole.is_none() {
            self.assume_leave();
        } else if self.attempts.is_empty() && !self.has_candidates() {
            self.give_up();
        } else {
            return false;
        }
        true
    }

    /// How long to stand still before our scheduler is asked for the first time, and how long from one time to the next.
    /// To ask costs little there, but a task of thousands of hosts may be in want at once.
    fn patience(&self, hope: bool) -> (Duration, Duration) {
        let (after, every) = (self.config.reschedule_after, self.config.reschedule_every);
        if hope {
            return (every, every);
        }
        let further = backoff((after, every), self.dialogue.questions);
        // Waiting makes no piece come back that was claimed and is not there.
        (if self.is_disappointed() { Duration::ZERO } else { after }, further)
    }

    /// The same for Dragonfly's scheduler, whose answers are few, and the last of which is the origin: it is asked when
    /// no parent is left, and otherwise only after a long time. Attempts that stalled may still move again.
    fn foreign_patience(&self, hope: bool) -> (Duration, Duration) {
        let patience = match (hope, self.attempts.is_empty()) {
            (true, _) => self.config.reschedule_every,
            (false, false) => self.config.foreign_patience,
            (false, true) if self.is_disappointed() => self.config.reschedule_after,
            (false, true) => Duration::ZERO,
        };
        (patience, patience)
    }

    /// Whether nothing runs, and parents have not what they said they had.
    fn is_disappointed(&self) -> bool {
        let missing = &self.known.missing;
        self.attempts.is_empty() && self.parents.values().any(|parent| parent.disappoints(missing))
    }

    /// Whether somebody is expected to get what is missing.
    fn gives_hope(&self) -> bool {
        if self.known.geometry.is_none() {
            // A sibling reads content of unknown length; its pieces exist when it has come to the end.
            return self.known.length_untold && self.dialogue.is_ours();
        }
        self.parents.values().any(|parent| parent.gives_hope(&self.known.missing))
    }

    fn has_candidates(&self) -> bool {
        self.parents.values().any(|parent| parent.is_candidate(&self.known.missing))
    }

    /// Whether waiting is in vain: the origin is closed, nobody has anything, and nobody will name anybody who has.
    fn nothing_can_come(&self) -> bool {
        if self.origin_is_open() || !self.attempts.is_empty() || self.has_candidates() {
            return false;
        }
        let sent_to_origin = self.origin.whole == Some(super::origin::Leave::Granted);
        let unknown_to_all = self.origin.failed.is_some()
            && self.dialogue.has_answered()
            && self.known.geometry.is_none()
            && !self.known.length_untold;
        self.dialogue.is_gone() || sent_to_origin || unknown_to_all
    }

    /// Every client fails, with the origin's words where it depended on the origin and that failed.
    fn give_up(&mut self) {
        let tried = format!("{}; {}", self.progress_in_words(), self.what_was_tried());
        let failed = self.origin.failed.clone();
        self.fail_everybody(|client| match &failed {
            Some(failure) if client.may_use_origin => LostClient::Source(failure.clone()),
            _ => LostClient::NoSource(tried.clone()),
        });
    }

    /// What was tried without success, in words.
    pub(super) fn what_was_tried(&self) -> String {
        let parents = match (self.parents.len(), self.banned.len()) {
            (0, 0) => "no peer has the content".to_owned(),
            (known, 0) => format!("{known} peers are known and none gives what is missing"),
            (known, banned) => {
                format!("{known} peers are known and {banned} were banned for wrong content")
            }
        };
        let origin = match &self.origin.failed {
            _ if !self.config.uses_origin => "this kind of task has no origin".to_owned(),
            Some(failure) => format!("the origin failed: {}", failure.message),
            None if !self.origin_is_open() => "no client allows the origin".to_owned(),
            None if self.origin.whole.is_none() => {
                "the scheduler gives no leave to ask the origin".to_owned()
            }
            None => "the origin is asked".to_owned(),
        };
        format!("{}; {parents}; {origin}", self.dialogue.describe())
    }
}
