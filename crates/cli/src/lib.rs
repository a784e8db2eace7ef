//! The programs: dfdaemon, dfget, dfctl, dfscheduler.
//!
//! Each `main` only builds a runtime and calls one `run` here; every `run` returns an [`exit::Exit`].

pub mod dfctl;
pub mod dfdaemon;
pub mod dfget;
pub mod dfscheduler;
pub mod endpoint;
pub mod exit;
pub mod failure;
pub mod logging;
pub mod progress;
pub mod report;
pub mod signals;
pub mod table;
pub mod units;
pub mod version;
