//! The store as its users see it, on a machine that can be stopped, filled and damaged.

mod boot;
mod collect;
mod crash;
mod evict;
mod full;
mod imports;
mod model;
mod opening;
mod outputs;
mod room;
mod slots;
mod units;
mod uploads;
