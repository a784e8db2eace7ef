//! The programs: dfdaemon, dfget, dfcache, dfctl, dfscheduler.
//!
//! Each `main` only builds a runtime and calls one `run` here; every `run` returns an [`exit::Exit`].

mod by_daemon;
mod client;

pub mod dfcache;
pub mod dfctl;
pub mod dfdaemon;
pub mod dfget;
pub mod dfscheduler;
pub mod endpoint;
pub mod exit;
pub mod failure;
mod handing;
pub mod logging;
mod memory;
pub mod output;
pub mod part;
pub mod progress;
mod reading;
pub mod receipt;
pub mod report;
pub mod signals;
mod stdout;
pub mod table;
mod ticker;
pub mod transfer;
pub mod units;
pub mod version;
