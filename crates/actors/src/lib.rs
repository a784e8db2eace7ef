//! The actor runtime of Damselfly: the supervision tree, the task engine and the daemon's assembly.
//!
//! Start reading at [`daemon`] (how the tree is put together), [`task`] (the supervisor that performs what the Download
//! machine decides) and [`task::fetch`] (the way of a piece's bytes).

mod announcer;
pub mod clock;
pub mod config;
pub mod connections;
pub mod daemon;
pub mod embedded;
pub mod engine;
mod grpc;
mod holdings;
pub mod host;
mod import;
pub mod kit;
mod known;
pub mod listeners;
pub mod live;
pub mod local;
pub mod metrics;
mod orders;
pub mod output;
mod patience;
pub mod progress;
mod receipts;
pub mod request;
mod socket;
pub mod stream;
pub mod task;
pub mod tasks;
#[cfg(test)]
mod testing;
pub mod upload;
