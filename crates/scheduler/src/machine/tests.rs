//! The machine as a whole.

mod dialogues;
mod kit;
mod mixed;
mod presence;
mod swarm;
