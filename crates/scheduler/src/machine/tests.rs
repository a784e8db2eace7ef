//! The machine as a whole.

mod kit;
