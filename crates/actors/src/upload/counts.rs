//! Pieces on their way to children, by task.

use std::collections::HashMap;
use std::sync::Arc;

use damselfly_core::TaskKey;
use parking_lot::Mutex;
use tokio::sync::watch;

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
pub struct Uploads(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    by_task: Mutex<HashMap<TaskKey, Count>>,
    /// Pieces being sent, of all tasks.
    now: watch::Sender<u64>,
}

impl Uploads {
    /// A piece is being sent until the result is dropped.
    #[must_use]
    pub fn begin(&self, key: &TaskKey) -> Uploading {
        self.0.by_task.lock().entry(key.clone()).or_default().now += 1;
        self.0.now.send_modify(|now| *now += 1);
        Uploading { uploads: self.clone(), key: key.clone() }
    }

    /// A task's uploads.
    #[must_use]
    pub fn of(&self, key: &TaskKey) -> Count {
        self.0.by_task.lock().get(key).copied().unwrap_or_default()
    }

    /// Pieces being sent, of all tasks.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        *self.0.now.borrow()
    }

    /// Returns once no piece is being sent.
    pub async fn ended(&self) {
        // The sender lives as long as we do.
        drop(self.0.now.subscribe().wait_for(|now| *now == 0).await);
    }

    /// Forgets what is not `kept`: tasks that were deleted, by whomever.
    pub fn retain(&self, kept: impl Fn(&TaskKey) -> bool) {
        self.0.by_task.lock().retain(|key, count| count.now > 0 || kept(key));
    }

    /// Forgets a task that was deleted.
    pub fn forget(&self, key: &TaskKey) {
        self.0.by_task.lock().remove(key);
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
        self.uploads.0.now.send_modify(|now| *now = now.saturating_sub(1));
        if let Some(count) = self.uploads.0.by_task.lock().get_mut(&self.key) {
            count.now = count.now.saturating_sub(1);
            count.ever += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use damselfly_core::{Kind, TaskId};

    use super::*;

    fn key(digit: char) -> TaskKey {
        TaskKey { kind: Kind::Standard, id: TaskId::parse(&digit.to_string().repeat(64)).unwrap() }
    }

    #[test]
    fn uploads_count_by_task_and_only_kept_tasks_stay() {
        let uploads = Uploads::default();
        let (a, b) = (key('a'), key('b'));
        let first = uploads.begin(&a);
        let second = uploads.begin(&a);
        drop(uploads.begin(&b));
        assert_eq!(uploads.of(&a), Count { now: 2, ever: 0 });
        assert_eq!(uploads.of(&b), Count { now: 0, ever: 1 });
        assert_eq!(uploads.in_flight(), 2);
        uploads.retain(|_| false);
        assert_eq!(uploads.of(&a).now, 2, "a task that is being served stays");
        assert_eq!(uploads.of(&b), Count::default());
        drop((first, second));
        assert_eq!(uploads.of(&a), Count { now: 0, ever: 2 });
        uploads.forget(&a);
        assert_eq!(uploads.of(&a), Count::default());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_last_upload_is_awaited() {
        let uploads = Uploads::default();
        uploads.ended().await;
        let (a, b) = (uploads.begin(&key('a')), uploads.begin(&key('b')));
        let waiting = tokio::time::timeout(Duration::from_secs(1), uploads.ended());
        drop(a);
        assert!(waiting.await.is_err());
        drop(b);
        uploads.ended().await;
    }
}
