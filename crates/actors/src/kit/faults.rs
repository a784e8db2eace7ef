//! Panics on purpose, for the tests that show what a panic costs.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Panics armed by a test, by kind of actor. A daemon started by its program has none armed, ever.
#[derive(Clone, Debug, Default)]
pub struct Faults(Option<Arc<Armed>>);

#[derive(Debug, Default)]
struct Armed {
    times: Mutex<HashMap<&'static str, u32>>,
    changed: tokio::sync::Notify,
}

impl Faults {
    /// A set that tests can arm.
    #[must_use]
    pub fn armable() -> Self {
        Self(Some(Arc::default()))
    }

    /// The next `times` handlers of actors of `kind` panic.
    pub fn arm(&self, kind: &'static str, times: u32) {
        if let Some(faults) = &self.0 {
            faults.times.lock().insert(kind, times);
            faults.changed.notify_waiters();
        }
    }

    /// How many panics of `kind` are still to come.
    #[must_use]
    pub fn armed(&self, kind: &str) -> u32 {
        self.0.as_ref().and_then(|faults| faults.times.lock().get(kind).copied()).unwrap_or(0)
    }

    /// Returns once `kind` is armed; never, when nothing can be armed.
    pub async fn wait(&self, kind: &str) {
        let Some(faults) = &self.0 else { return std::future::pending().await };
        loop {
            let changed = faults.changed.notified();
            if self.armed(kind) > 0 {
                return;
            }
            changed.await;
        }
    }

    /// Panics when armed. Every kind of actor calls this in its handler.
    ///
    /// # Panics
    /// When a test armed `kind`.
    pub fn point(&self, kind: &'static str) {
        let Some(faults) = &self.0 else { return };
        let due = match faults.times.lock().get_mut(kind) {
            Some(times) if *times > 0 => {
                *times -= 1;
                true
            }
            _ => false,
        };
        assert!(!due, "injected panic in {kind}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn armed_panics_happen_as_often_as_armed_and_nothing_else_does() {
        let faults = Faults::armable();
        faults.point("a");
        let waiting = {
            let faults = faults.clone();
            tokio::spawn(async move { faults.wait("a").await })
        };
        faults.arm("a", 2);
        waiting.await.unwrap();
        for _ in 0..2 {
            let faults = faults.clone();
            assert!(tokio::spawn(async move { faults.point("a") }).await.unwrap_err().is_panic());
        }
        faults.point("a");
        assert_eq!(faults.armed("a"), 0);
        let never = Faults::default();
        never.arm("a", 1);
        never.point("a");
        assert_eq!(never.armed("a"), 0);
        let wait = tokio::time::timeout(std::time::Duration::from_millis(1), never.wait("a"));
        assert!(wait.await.is_err());
    }
}
