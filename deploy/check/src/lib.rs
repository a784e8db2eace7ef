//! Whether Kubernetes, systemd and our programs accept what `deploy/` says.

pub mod manifest;
pub mod program;
pub mod unit;

use std::path::{Path, PathBuf};

/// `deploy/`.
#[must_use]
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
