//! The sidecar: what is held of a task, and everything else known of it.
//!
//! ```text
//! 0      header A     4 KiB   written alternately with B: a torn write leaves the other one, one step older
//! 4096   header B     4 KiB
//! 8192   records      16 bytes per piece, each checksummed over itself, its number and the task
//! …      overflow     what does not fit a header, checksummed, beside the one the older header names
//! ```
//!
//! A header's generation dates every record: records of another generation mean "missing", so one header write drops
//! all pieces at once. [`frame`], [`header`] and [`record`] are pure; [`file`] does the writing.

pub(crate) mod file;
pub(crate) mod frame;
pub(crate) mod header;
pub(crate) mod record;

pub(crate) use file::{Loaded, SidecarFile};
pub(crate) use header::{Header, Linked, Upload};

/// The storage format written here, and the newest one read.
pub(crate) const FORMAT: u32 = 1;

#[cfg(test)]
mod tests;
