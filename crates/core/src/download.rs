//! The Download machine: what one task does next.
//!
//! A state machine without I/O: [`Download::step`] takes an [`Event`] and the time and returns [`Effect`]s, which the
//! task supervisor performs in order. Whatever can happen to a download is an event, including time
//! ([`Event::Tick`], asked for by [`Download::deadline`]), so a whole swarm can be played under a virtual clock.

mod event;

pub use event::{
    AttemptId, Client, ClientId, Effect, Event, Facts, Failure, FailureKind, Fetch, FromAttempt, FromParent,
    FromScheduler, HeadersId, Held, Learned, Lease, LostClient, Outcome, ParentInfo, Source, ToScheduler,
    Validator,
};
