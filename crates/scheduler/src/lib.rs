//! Scheduling as pure state machines, and its gRPC face.
//!
//! [`machine::Scheduler`] decides: who may ask the origin for which pieces, who is offered to whom as a parent, who is
//! dead. It does no I/O and reads no clock. [`service::SchedulerService`] puts it on the network, speaking
//! Dragonfly's `scheduler.v2` to every daemon and our extensions to our own.
//!
//! State is soft. Daemons hold the truth and say it again to a scheduler that has forgotten it.

pub mod machine;
pub mod service;
