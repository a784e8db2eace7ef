//! Where content lives: disk tier, sidecars, admission and eviction.
