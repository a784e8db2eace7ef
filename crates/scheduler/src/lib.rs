//! Scheduling as pure state machines, and its gRPC face.
