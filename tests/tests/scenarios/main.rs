//! Real daemons on loopback, an origin that misbehaves on request, and what must come of it. One file per theme.
#![expect(clippy::unwrap_used, reason = "clippy.toml's leave does not reach the helpers of tests")]

mod clients;
mod dfcache;
mod limits;
mod origin_faults;
mod parents;
mod private;
mod schedulers;
mod sizes;
mod supervision;
mod uploads;

/// The shortest length of a piece, and that of all content in these tests.
const PIECE: u64 = 4 << 20;
