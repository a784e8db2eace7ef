//! The Download machine: scenarios, a reference model under random events, and a simulated swarm.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod checker;
mod model;
mod scenarios;
mod script;
mod simulation;
mod simulator;
