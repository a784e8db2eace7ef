//! What a snapshot shows.

use super::{AttemptId, ClientId, Download, PeerId, Source};
use crate::{Geometry, PieceSet, Tick};

/// One attempt in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptView {
    /// Its id.
    pub id: AttemptId,
    /// The piece; `None` when it reads from end to end or asks for the facts only.
    pub piece: Option<u32>,
    /// Where from.
    pub source: Source,
    /// Bytes received as of the last tick.
    pub bytes: u64,
    /// Whether it has been cancelled and has not ended yet.
    pub ending: bool,
}

/// One parent in a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct ParentView {
    /// Its id.
    pub id: PeerId,
    /// `ready`, `stalled`, `backoff`, `lost`, `ended` or `dropped`.
    pub state: &'static str,
    /// Bytes per second, once observed.
    pub rate: Option<f64>,
    /// Attempts in flight.
    pub in_flight: usize,
    /// Pieces it has said to hold.
    pub pieces: u32,
}

/// One waiting client in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientView {
    /// Its id.
    pub id: ClientId,
    /// Pieces it still waits for, once the geometry is known.
    pub missing: Option<u32>,
}

impl Download {
    /// The state's name: `idle`, `waiting`, `downloading`, `paused`, `restarting`, `ending` or `finished`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match () {
            () if self.finished => "finished",
            () if self.clients.is_empty() && self.last_end.is_none() => "idle",
            () if self.clients.is_empty() => "ending",
            () if self.restart.is_some() => "restarting",
            () if self.paused => "paused",
            () if self.attempts.values().any(|attempt| attempt.is_live()) => "downloading",
            () => "waiting",
        }
    }

    /// Whether [`super::Effect::Finish`] has been returned.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether the user paused the task.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether a new version of the content waits until no attempt at the old one runs.
    #[must_use]
    pub fn is_restarting(&self) -> bool {
        self.restart.is_some()
    }

    /// What the download waits for and what was tried, in words for a log line or a user.
    #[must_use]
    pub fn situation(&self) -> String {
        self.waited_for()
    }

    /// Since when clients wait while nothing runs that could bring them a piece. At first that is only the way of things:
    /// the scheduler has to answer.
    #[must_use]
    pub fn stands_still_since(&self) -> Option<Tick> {
        let waits = !(self.clients.is_empty() || self.paused || self.restart.is_some());
        self.stuck_since.filter(|_| waits)
    }

    /// The geometry, once known.
    #[must_use]
    pub fn geometry(&self) -> Option<Geometry> {
        self.known.geometry
    }

    /// The content generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.known.generation
    }

    /// Verified pieces.
    #[must_use]
    pub fn held(&self) -> &PieceSet {
        &self.known.held
    }

    /// Pieces that a waiting client wants.
    #[must_use]
    pub fn wanted(&self) -> &PieceSet {
        &self.known.wanted
    }

    /// Attempts under way, oldest first.
    pub fn attempts(&self) -> impl Iterator<Item = AttemptView> + '_ {
        self.attempts.iter().map(|(&id, attempt)| AttemptView {
            id,
            piece: attempt.piece,
            source: attempt.source(),
            bytes: attempt.bytes,
            ending: !attempt.is_live(),
        })
    }

    /// Known parents.
    pub fn parents(&self) -> impl Iterator<Item = ParentView> + '_ {
        self.parents.iter().map(|(id, parent)| ParentView {
            id: id.clone(),
            state: parent.state(),
            rate: parent.rate,
            in_flight: self.live_at(id),
            pieces: parent.has.len(),
        })
    }

    /// Peers from which nothing is taken any more: their bytes or their geometry were wrong.
    pub fn banned(&self) -> impl Iterator<Item = &PeerId> {
        self.banned.iter()
    }

    /// Waiting clients, in the order they joined.
    pub fn clients(&self) -> impl Iterator<Item = ClientView> + '_ {
        self.clients.iter().map(|waiting| ClientView {
            id: waiting.client.id,
            missing: waiting.wish.as_ref().map(|wish| wish.missing),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::RangeSpec;
    use crate::download::{Client, Config, Event, FromScheduler, HeadersId, Held};

    #[test]
    fn a_download_that_waits_for_its_scheduler_stands_still_unless_it_is_paused() {
        let begin = Tick::default();
        let mut machine = Download::new(Config::default(), Held::default(), begin);
        assert_eq!(machine.stands_still_since(), None, "nobody waits");
        let client = Client {
            id: ClientId(1),
            range: RangeSpec::Whole,
            headers: HeadersId(1),
            may_use_origin: true,
            deadline: None,
        };
        machine.step(Event::Join(client), begin);
        machine.step(Event::Scheduler(FromScheduler::Connected { ours: true }), begin);
        let later = begin + Duration::from_secs(2);
        machine.step(Event::Tick { progress: Vec::new() }, later);
        assert_eq!(machine.stands_still_since(), Some(begin));
        assert!(machine.situation().contains("no peer has the content"), "{}", machine.situation());
        machine.step(Event::Pause, later);
        assert_eq!(machine.stands_still_since(), None);
    }
}
