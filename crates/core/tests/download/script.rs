//! The words scenarios are written in.

use std::collections::BTreeMap;
use std::time::Duration;

use damselfly_core::download::{
    AttemptId, Client, ClientId, Effect, Event, Facts, Failure, FailureKind, FromAttempt, FromParent,
    FromScheduler, HeadersId, Learned, Lease, ParentInfo, Source, ToScheduler,
};
use damselfly_core::{Crc, RangeSpec};

use crate::checker::Checker;

impl Checker {
    pub(crate) fn join(&mut self, id: u64) -> Vec<Effect> {
        self.step(Event::Join(client(id)))
    }

    pub(crate) fn scheduler(&mut self, message: FromScheduler) -> Vec<Effect> {
        self.step(Event::Scheduler(message))
    }

    pub(crate) fn parents(&mut self, list: &[(&str, bool)]) -> Vec<Effect> {
        let info = |&(id, complete): &(&str, bool)| ParentInfo { id: id.into(), ours: true, complete };
        self.scheduler(FromScheduler::Parents(list.iter().map(info).collect()))
    }

    pub(crate) fn has(&mut self, parent: &str, pieces: &[u32]) -> Vec<Effect> {
        self.step(Event::Parent(parent.into(), FromParent::Has(pieces.to_vec())))
    }

    pub(crate) fn tick(&mut self, after: Duration, progress: &[(AttemptId, u64)]) -> Vec<Effect> {
        self.advance(after);
        self.step(Event::Tick { progress: progress.to_vec() })
    }

    /// Stores the attempt's piece and ends it.
    pub(crate) fn deliver(&mut self, id: AttemptId) -> Vec<Effect> {
        let piece = self.running[&id].piece.unwrap();
        let mut effects = self.stored(id, piece, crc_of(piece));
        effects.extend(self.over(id));
        effects
    }

    pub(crate) fn stored(&mut self, id: AttemptId, piece: u32, crc: Crc) -> Vec<Effect> {
        self.step(Event::Attempt(id, FromAttempt::Stored { piece, crc, cost: ms(10) }))
    }

    pub(crate) fn over(&mut self, id: AttemptId) -> Vec<Effect> {
        self.step(Event::Attempt(id, FromAttempt::Over(Ok(()))))
    }

    pub(crate) fn fail(&mut self, id: AttemptId, kind: FailureKind) -> Vec<Effect> {
        self.step(Event::Attempt(id, FromAttempt::Over(Err(failure(kind)))))
    }

    pub(crate) fn learn(&mut self, id: AttemptId, learned: Learned) -> Vec<Effect> {
        self.step(Event::Attempt(id, FromAttempt::Learned(learned)))
    }

    /// Ends every cancelled attempt, as a shell does.
    pub(crate) fn reap(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        while let Some(id) = self.running.iter().find(|(_, running)| running.cancelled).map(|(&id, _)| id) {
            effects.extend(self.fail(id, FailureKind::Cancelled));
        }
        effects
    }

    /// Attempts that are neither cancelled nor done.
    pub(crate) fn live(&self) -> Vec<AttemptId> {
        let live = self.running.iter().filter(|(_, running)| !running.cancelled && !running.done);
        live.map(|(&id, _)| id).collect()
    }

    /// The live attempts at a parent and their pieces.
    pub(crate) fn at(&self, parent: &str) -> Vec<(AttemptId, u32)> {
        let live = self.live().into_iter();
        live.filter(|id| self.running[id].parent.as_ref().is_some_and(|at| at.as_str() == parent))
            .map(|id| (id, self.running[&id].piece.unwrap()))
            .collect()
    }

    /// The live attempts at the origin.
    pub(crate) fn at_origin(&self) -> Vec<(AttemptId, Option<u32>)> {
        let live = self.live().into_iter();
        live.filter(|id| self.running[id].parent.is_none()).map(|id| (id, self.running[&id].piece)).collect()
    }
}

pub(crate) const PIECE: u64 = 4 << 20;

pub(crate) fn client(id: u64) -> Client {
    Client {
        id: ClientId(id),
        range: RangeSpec::Whole,
        headers: HeadersId(1),
        may_use_origin: true,
        deadline: None,
    }
}

pub(crate) fn crc_of(piece: u32) -> Crc {
    Crc(piece.wrapping_mul(2_654_435_761) ^ 0x5bd1_e995)
}

pub(crate) fn failure(kind: FailureKind) -> Failure {
    Failure { message: format!("{kind:?}"), kind, status: None, headers: BTreeMap::new() }
}

pub(crate) fn learned(pieces: u32) -> Learned {
    Learned {
        content_length: Some(u64::from(pieces) * PIECE),
        piece_length: PIECE,
        ranges: Some(true),
        ..Learned::default()
    }
}

pub(crate) fn facts(pieces: u32) -> FromScheduler {
    FromScheduler::Facts(Facts {
        learned: Some(Learned { ranges: None, ..learned(pieces) }),
        ..Facts::default()
    })
}

pub(crate) fn lease(id: u64, range: std::ops::Range<u32>) -> FromScheduler {
    FromScheduler::BackToSource(Some(Lease {
        id,
        ranges: vec![range],
        silence: Duration::from_secs(10),
        generation: 0,
    }))
}

/// Where the verified pieces came from.
pub(crate) fn sources(effects: &[Effect]) -> Vec<(u32, Source)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Verified { piece, source, .. } => Some((*piece, source.clone())),
            _ => None,
        })
        .collect()
}

pub(crate) fn told(effects: &[Effect]) -> Vec<ToScheduler> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Tell(message) => Some(message.clone()),
            _ => None,
        })
        .collect()
}

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
