//! A daemon's side of the dialogue with schedulers, ours and Dragonfly's.
//!
//! [`Cluster`] keeps the set of schedulers: where they are ([`Source`]), which of them are healthy, which are ours
//! (they accept `Hold`), and which one owns a task (the [`Ring`]). Its futures, which the owner runs, announce the host
//! to all of them and hold a `Hold` stream with each of ours. [`SchedulerHandle`] talks to one of them about tasks.
//!
//! [`Dynconfig`] is the file of schedulers and block lists; a manager may stand in for it.

mod announce;
mod channel;
mod cluster;
mod dialect;
mod dynconfig;
mod error;
mod handle;
mod hold;
mod member;
mod peer;
mod persistent_cache;
mod ring;
mod target;

pub use announce::HostProvider;
pub use cluster::{Cluster, ClusterOptions, Departure, SchedulerInfo};
pub use dynconfig::{Action, BlockList, Blocked, Dynconfig, DynconfigError, ManagerSource, Source, Subject};
pub use error::ClientError;
pub use handle::SchedulerHandle;
pub use hold::{Command, Holdings, Order, kind_from_wire, kind_to_wire};
pub use peer::{AnnounceStream, Responses};
pub use ring::{Ring, RingKey};
pub use target::{Target, TargetError, TlsFiles};
