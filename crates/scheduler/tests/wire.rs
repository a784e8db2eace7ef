//! The service over real sockets, with Dragonfly's dialogue and with ours.

#[cfg(test)]
#[path = "wire/dragonfly.rs"]
mod dragonfly;
#[cfg(test)]
#[path = "wire/kit.rs"]
mod kit;
#[cfg(test)]
#[path = "wire/limits.rs"]
mod limits;
#[cfg(test)]
#[path = "wire/ours.rs"]
mod ours;
#[cfg(test)]
#[path = "wire/outbound.rs"]
mod outbound;
#[cfg(test)]
#[path = "wire/persistent_cache.rs"]
mod persistent_cache;
#[cfg(test)]
#[path = "wire/unary.rs"]
mod unary;
