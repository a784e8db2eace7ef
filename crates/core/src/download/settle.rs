//! From what is known to what is done, after every event.

use super::{Download, Effect, LastEnd, Outcome};

impl Download {
    pub(super) fn settle(&mut self) {
        self.wake = None;
        self.settle_restart();
        self.settle_deadlines();
        loop {
            if self.clients.is_empty() {
                self.settle_end();
                break;
            }
            self.settle_leases();
            if self.paused || self.restart.is_some() {
                break;
            }
            self.settle_dialogue();
            self.settle_parents();
            self.settle_pieces();
            self.settle_origin();
            // Each verdict takes a way that can be taken once, or ends the clients: this comes to an end.
            if !self.judge() {
                break;
            }
        }
        if !self.attempts.is_empty() {
            self.wake_at(self.last_tick + self.config.tick);
        }
    }

    /// Nobody waits any more: lets the rest end, says goodbye, finishes.
    fn settle_end(&mut self) {
        let Some(end) = self.last_end.clone() else { return };
        match end {
            // Second requests, and pieces for clients that left.
            LastEnd::Ready | LastEnd::Cancelled => self.cancel_all(),
            // Pieces in flight may end; what has no end in sight may not.
            LastEnd::Joined | LastEnd::Left | LastEnd::Failed(_) => {
                self.cancel_where(|attempt| attempt.piece.is_none());
            }
        }
        if !self.attempts.is_empty() {
            return;
        }
        self.release_leases();
        self.forget_parents();
        let complete = self.known.geometry.is_some() && self.known.held.is_full();
        let (outcome, failure) = match end {
            LastEnd::Ready => (Outcome::Done, None),
            LastEnd::Joined | LastEnd::Left => (Outcome::Parked, Some("every client left".to_owned())),
            LastEnd::Failed(why) => (Outcome::Parked, Some(why)),
            LastEnd::Cancelled => (Outcome::Cancelled, Some("cancelled by the user".to_owned())),
        };
        self.tell_end(failure.filter(|_| !complete));
        self.emit(Effect::Finish(outcome));
        self.finished = true;
    }
}
