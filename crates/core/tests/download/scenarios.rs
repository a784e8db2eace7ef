//! One rule after the other, by example.

mod clients;
mod origin;
mod parents;
mod scheduler;
mod versions;

use damselfly_core::download::{ClientId, Config, Effect, FromScheduler, Held, LostClient};
use damselfly_core::{Geometry, PieceSet};

use crate::checker::Checker;
use crate::script::{PIECE, facts, ms};

pub(super) fn fresh() -> Checker {
    Checker::new(Config::default(), Held::default())
}

/// Registered with our scheduler, which knows the geometry.
pub(super) fn connected(pieces: u32) -> Checker {
    let mut t = fresh();
    t.join(1);
    t.scheduler(FromScheduler::Connected { ours: true });
    t.scheduler(facts(pieces));
    t
}

pub(super) fn held(pieces: u32, numbers: &[u32]) -> Held {
    let mut set = PieceSet::new(pieces);
    for &number in numbers {
        set.insert(number);
    }
    Held {
        geometry: Some(Geometry::new(u64::from(pieces) * PIECE, PIECE).unwrap()),
        pieces: set,
        ..Held::default()
    }
}

/// Delivers whatever is in flight until nothing is.
pub(super) fn deliver_all(t: &mut Checker) -> Vec<Effect> {
    let mut effects = Vec::new();
    while let Some(&id) = t.live().first() {
        t.advance(ms(20));
        effects.extend(t.deliver(id));
        effects.extend(t.reap());
    }
    effects
}

pub(super) fn lost(t: &Checker, id: u64) -> &LostClient {
    &t.failed[&ClientId(id)]
}
