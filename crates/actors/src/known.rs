//! What is known of tasks between their runs.

use std::collections::HashMap;

use damselfly_core::TaskKey;
use parking_lot::Mutex;

/// Content bytes by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// From the origin.
    pub origin: u64,
    /// From other hosts.
    pub peers: u64,
    /// From this host: they were here already.
    pub local: u64,
}

#[derive(Debug, Default)]
struct Fact {
    sources: Option<Sources>,
    limit: Option<u64>,
}

/// What this process knows of tasks on this host that do not run: kept while the task is held, forgotten at a restart.
#[derive(Debug, Default)]
pub struct Known(Mutex<HashMap<TaskKey, Fact>>);

impl Known {
    /// A run ended, for which `sources` were counted.
    pub fn ran(&self, key: &TaskKey, sources: Sources) {
        self.0.lock().entry(key.clone()).or_default().sources = Some(sources);
    }

    /// What the last run that ended has counted; `None` when none ended since the daemon started.
    #[must_use]
    pub fn sources(&self, key: &TaskKey) -> Option<Sources> {
        self.0.lock().get(key)?.sources
    }

    /// The user's limit for this task's runs, in bytes per second; `None` lifts it.
    pub fn set_limit(&self, key: &TaskKey, limit: Option<u64>) {
        self.0.lock().entry(key.clone()).or_default().limit = limit;
    }

    /// The limit a run begins with.
    #[must_use]
    pub fn limit(&self, key: &TaskKey) -> Option<u64> {
        self.0.lock().get(key)?.limit
    }

    /// Forgets what is not `kept`: tasks that were deleted, by whomever.
    pub fn retain(&self, kept: impl Fn(&TaskKey) -> bool) {
        self.0.lock().retain(|key, _| kept(key));
    }

    /// Forgets a task that was deleted.
    pub fn forget(&self, key: &TaskKey) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;

    #[test]
    fn limits_and_sources_stay_with_their_task_until_it_goes() {
        let known = Known::default();
        let (a, b) = (key('a'), key('b'));
        let sources = Sources { origin: 1, peers: 2, local: 3 };
        known.ran(&a, sources);
        known.set_limit(&a, Some(7));
        assert_eq!((known.sources(&a), known.limit(&a)), (Some(sources), Some(7)));
        known.ran(&a, Sources::default());
        assert_eq!((known.sources(&a), known.limit(&a)), (Some(Sources::default()), Some(7)));
        known.set_limit(&a, None);
        known.set_limit(&b, Some(1));
        assert_eq!((known.limit(&a), known.limit(&b), known.sources(&b)), (None, Some(1), None));
        known.retain(|key| *key == b);
        assert_eq!(known.sources(&a), None);
        known.forget(&b);
        assert_eq!(known.limit(&b), None);
    }
}
