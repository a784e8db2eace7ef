//! The actor runtime: supervision tree, task engine, daemon assembly.
