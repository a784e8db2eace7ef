//! Protobuf types and gRPC services generated from proto/, checked in.
