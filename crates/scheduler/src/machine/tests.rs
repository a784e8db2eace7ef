//! The machine as a whole.

mod dialogues;
mod holdings;
mod keep;
mod kit;
mod limits;
mod mixed;
mod presence;
mod privacy;
mod seeds;
mod swarm;
mod versions;
