//! The machine as a whole.

mod dialogues;
mod holdings;
mod kit;
mod limits;
mod mixed;
mod presence;
mod privacy;
mod seeds;
mod swarm;
mod versions;
