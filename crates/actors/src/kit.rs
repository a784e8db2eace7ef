//! What ractor lacks, in one thin place: typed addresses that survive restarts, questions with a deadline, timers that
//! die with their owner, services restarted with backoff, and a board on which every actor shows its state.
//!
//! Nothing outside this module relies on ractor's names, process groups or registry: they are process globals, and many
//! daemons must fit in one process.

mod address;
mod board;
mod faults;
mod group;
mod service;
mod timer;

pub use address::{Address, AskError, ask};
pub use board::{Board, Seat, Snapshot};
pub use faults::Faults;
pub use group::{Child, Group, GroupArgs, GroupMsg, Roster};
pub use service::{Service, ServiceArgs};
pub use timer::Timer;

/// What a child's end looks like to its supervisor.
pub(crate) fn cell_of(event: &ractor::SupervisionEvent) -> Option<ractor::ActorId> {
    match event {
        ractor::SupervisionEvent::ActorTerminated(cell, ..)
        | ractor::SupervisionEvent::ActorFailed(cell, _) => Some(cell.get_id()),
        _ => None,
    }
}
