//! What this host does for other hosts: pieces over Vortex, and the network's gRPC service.

mod counts;
pub mod provider;
mod service;
#[cfg(test)]
mod tests;

pub use counts::{Count, Uploading, Uploads};
pub use service::UploadService;
