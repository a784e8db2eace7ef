//! The service over real sockets, with Dragonfly's dialogue and with ours.

#[path = "wire/dragonfly.rs"]
mod dragonfly;
#[path = "wire/kit.rs"]
mod kit;
#[path = "wire/ours.rs"]
mod ours;
#[path = "wire/unary.rs"]
mod unary;
