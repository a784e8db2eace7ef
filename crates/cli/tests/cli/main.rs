//! The programs as a user meets them: real processes, with a daemon that is played or with real ones.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod alone;
mod cached;
mod demo;
mod dfcache;
mod dfcache_export;
mod dfcache_flags;
mod dfctl;
mod dfget;
mod fake;
mod flags;
mod interrupted;
mod killed;
mod modes;
mod newcomer;
mod node;
mod paused;
mod pooled;
mod servers;
mod uploads;
