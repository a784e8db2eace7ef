//! What a running task shows of itself.

use std::time::Duration;

use damselfly_core::{PeerId, Tick};
use tokio::time::Instant;

use super::TaskState;

/// A parent as shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentView {
    /// Its peer id.
    pub id: PeerId,
    /// Where it serves pieces, or its gRPC address.
    pub address: String,
    /// Whether it is one of ours.
    pub ours: bool,
    /// Whether its bytes or geometry were wrong.
    pub banned: bool,
    /// Attempts in flight.
    pub fetches: u32,
    /// Pieces that came from it.
    pub pieces: u32,
    /// Bytes that came from it.
    pub bytes: u64,
}

/// A running task as shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskView {
    /// What it is doing.
    pub state: String,
    /// Pieces that waiting clients still need.
    pub wanted: u32,
    /// Attempts in flight.
    pub fetches: u32,
    /// Clients waiting.
    pub clients: u32,
    /// Speed limit in bytes per second.
    pub limit: Option<u64>,
    /// Its parents.
    pub parents: Vec<ParentView>,
    /// Bytes from the origin in this run.
    pub origin_bytes: u64,
    /// Bytes from peers in this run.
    pub peer_bytes: u64,
    /// Bytes that were here before this run.
    pub local_bytes: u64,
}

/// How often the missing pieces are counted while the task moves: that costs a look at every piece.
const COUNT_EVERY: Duration = Duration::from_millis(50);

/// How long a task stands still before the log says so, and why. Before, it only waits for an answer.
const STANDSTILL: Duration = Duration::from_secs(1);

/// The standstill that the log tells of.
#[derive(Debug, Default)]
pub(super) struct Standstill(Option<Tick>);

impl Standstill {
    /// Whether the one that began at `since` is to be told: once, as soon as it has lasted.
    fn is_news(&mut self, since: Option<Tick>, now: Tick) -> bool {
        let told = since.filter(|since| now.since(*since) >= STANDSTILL);
        let news = told.is_some() && self.0 != told;
        self.0 = told;
        news
    }
}

impl TaskState {
    /// Says what a task waits for that does not get on.
    fn explain(&mut self) {
        let (since, now) = (self.machine.stands_still_since(), self.engine().clock.now());
        if self.standstill.is_news(since, now) {
            tracing::warn!(situation = self.machine.situation(), "task does not get on");
        }
    }

    /// Wanted pieces that are not held. A little old while attempts run, because then more news comes soon.
    fn missing(&mut self) -> u32 {
        let now = Instant::now();
        if let Some((at, missing)) = self.counted
            && !self.attempts.is_empty()
            && now.saturating_duration_since(at) < COUNT_EVERY
        {
            return missing;
        }
        let wanted = self.machine.wanted();
        let held = u32::try_from(wanted.common_from(self.machine.held(), 0).count()).unwrap_or(u32::MAX);
        let missing = wanted.len().saturating_sub(held);
        self.counted = Some((now, missing));
        missing
    }

    pub(super) fn publish(&mut self) {
        self.explain();
        let wanted = self.missing();
        let view = |id: &PeerId, banned: bool, fetches: usize| {
            let known = self.parents.get(id);
            let address =
                known.map_or_else(String::new, |known| known.vortex.unwrap_or(known.grpc).to_string());
            let (pieces, bytes) = self.tally.parents.get(id).copied().unwrap_or_default();
            ParentView {
                id: id.clone(),
                address,
                ours: known.is_some_and(|known| known.ours),
                banned,
                fetches: u32::try_from(fetches).unwrap_or(u32::MAX),
                pieces,
                bytes,
            }
        };
        let parents = self.machine.parents().map(|parent| view(&parent.id, false, parent.in_flight));
        let parents: Vec<ParentView> =
            parents.chain(self.machine.banned().map(|id| view(id, true, 0))).collect();
        let view = TaskView {
            state: self.machine.state().to_owned(),
            wanted,
            fetches: u32::try_from(self.attempts.len()).unwrap_or(u32::MAX),
            clients: u32::try_from(self.machine.clients().count()).unwrap_or(u32::MAX),
            limit: self.args.limit.rate(),
            parents,
            origin_bytes: self.tally.origin,
            peer_bytes: self.tally.peers,
            local_bytes: self.tally.local,
        };
        self.seat.show(format!("{}, {} pieces missing, {} fetches", view.state, view.wanted, view.fetches));
        let machine = &self.machine;
        let wanted = machine.geometry().is_some().then(|| machine.wanted());
        self.engine().live.plan(&self.key, &self.args.peer_id, machine.is_paused(), wanted);
        self.engine().live.show(&self.key, &self.args.peer_id, view);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_standstill_is_told_once_after_it_has_lasted() {
        let at = |milliseconds| Tick::default() + Duration::from_millis(milliseconds);
        let mut standstill = Standstill::default();
        let mut told = |since: Option<u64>, now| standstill.is_news(since.map(at), at(now));
        assert!(!told(None, 0) && !told(Some(0), 999));
        assert!(told(Some(0), 1000) && !told(Some(0), 5000), "once");
        assert!(!told(None, 5100) && !told(Some(5200), 5300));
        assert!(told(Some(5200), 9000), "another one");
        assert!(!told(Some(9500), 9600) && told(Some(9500), 10_500));
    }
}
