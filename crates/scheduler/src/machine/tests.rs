//! The machine as a whole.

mod dialogues;
mod graves;
mod holdings;
mod keep;
pub(super) mod kit;
mod limits;
mod mixed;
mod presence;
mod privacy;
mod seeds;
mod surplus;
mod swarm;
mod versions;
