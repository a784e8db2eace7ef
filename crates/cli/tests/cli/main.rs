//! The programs as a user meets them: real processes, a daemon that is played.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod dfctl;
mod dfget;
mod fake;
mod flags;
mod interrupted;
mod servers;
