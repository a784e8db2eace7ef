//! Pieces on their way to children, by task.

use std::collections::HashMap;
use std::sync::Arc;

use damselfly_core::TaskKey;
use parking_lot::Mutex;

/// One task's uploads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Pieces being sent.
    pub now: u32,
    /// Pieces sent, well or not, since the daemon started.
    pub ever: u64,
}

/// Uploads of every task. A task that was never asked for has no entry.
#[derive(Clone, Debug, Default)]
pub struct Uploads(Arc<Mutex<HashMap<TaskKey, Count>>>);

impl Uploads {
    /// A piece is being sent until the result is dropped.
    #[must_use]
    pub fn begin(&self, key: &TaskKey) -> Uploading {
        self.0.lock().entry(key.clone()).or_default().now += 1;
        Uploading { uploads: self.clone(), key: key.clone() }
    }

    /// A task's uploads.
    #[must_use]
    pub fn of(&self, key: &TaskKey) -> Count {
        self.0.lock().get(key).copied().unwrap_or_default()
    }

    /// Forgets a task that was deleted.
    pub fn forget(&self, key: &TaskKey) {
        self.0.lock().remove(key);
    }
}

/// One piece on its way.
#[derive(Debug)]
pub struct Uploading {
    uploads: Uploads,
    key: TaskKey,
}

impl Drop for Uploading {
    fn drop(&mut self) {
        if let Some(count) = self.uploads.0.lock().get_mut(&self.key) {
            count.now = count.now.saturating_sub(1);
            count.ever += 1;
        }
    }
}
