//! Who uses a task: what the collector must not take away.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Inner, Life, TaskContent};
use crate::error::StoreError;

/// How a task is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Pin,
    Read,
    Write,
}

/// One use; it ends when dropped. Begun under the task's lock only, so that a deletion that looked there cannot miss it.
pub(crate) struct Using {
    task: Arc<TaskContent>,
    what: Use,
}

impl Using {
    pub(crate) fn task(&self) -> &Arc<TaskContent> {
        &self.task
    }
}

impl fmt::Debug for Using {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Using({:?} {})", self.what, self.task.key)
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        let before = self.task.count(self.what).fetch_sub(1, Ordering::AcqRel);
        if self.what == Use::Pin && before == 1 {
            self.task.unpinned();
        }
    }
}

/// Keeps a task from being collected or deleted, and its files open: held by whoever works on the task.
///
/// When the last pin goes, what was reserved and not written is given back, which may punch holes into a file: drop it
/// where blocking is allowed.
#[derive(Debug)]
pub struct Pin(Using);

impl Pin {
    /// The task.
    #[must_use]
    pub fn task(&self) -> &Arc<TaskContent> {
        &self.0.task
    }
}

impl TaskContent {
    fn count(&self, what: Use) -> &AtomicU32 {
        match what {
            Use::Pin => &self.pins,
            Use::Read => &self.reads,
            Use::Write => &self.writes,
        }
    }

    /// `_inner` is the proof that the lock is held.
    pub(super) fn begin(self: &Arc<Self>, what: Use, _inner: &Inner) -> Using {
        self.count(what).fetch_add(1, Ordering::AcqRel);
        Using { task: Arc::clone(self), what }
    }

    /// Pins the task.
    ///
    /// # Errors
    /// [`StoreError::Gone`] when it was deleted meanwhile: ask the store again.
    pub fn pin(self: &Arc<Self>) -> Result<Pin, StoreError> {
        let pin = {
            let inner = self.inner.lock();
            self.live(&inner)?;
            Pin(self.begin(Use::Pin, &inner))
        };
        self.touch();
        // Only saves opening them for every piece; without descriptors to spare it works all the same.
        let mut io = self.io.lock();
        if let (Ok(data), Ok(sidecar)) = (self.data(&io), io.file()) {
            self.inner.lock().keep = Some((data, sidecar));
        }
        Ok(pin)
    }

    fn unpinned(&self) {
        let kept = {
            let mut inner = self.inner.lock();
            if self.pins.load(Ordering::Acquire) > 0 { None } else { inner.keep.take() }
        };
        drop(kept);
        self.release_reserved();
    }

    /// The weightiest use right now; `None` when the task may go.
    fn current_use(&self) -> Option<Use> {
        [Use::Pin, Use::Write, Use::Read]
            .into_iter()
            .find(|&what| self.count(what).load(Ordering::Acquire) > 0)
    }

    /// Whether anybody uses it.
    pub(crate) fn in_use(&self) -> bool {
        self.current_use().is_some()
    }

    /// Counts as being served from here on.
    pub(crate) fn serve(self: &Arc<Self>) -> Result<Using, StoreError> {
        let inner = self.inner.lock();
        self.live(&inner)?;
        Ok(self.begin(Use::Read, &inner))
    }

    /// Ends the task if nobody uses it; afterwards nobody can begin to. `while_served`: readers do not matter, what
    /// they opened stays theirs. Returns the bytes that were held.
    pub(crate) fn end(&self, while_served: bool) -> Result<u64, StoreError> {
        let held = {
            let mut inner = self.inner.lock();
            self.live(&inner)?;
            let how = match self.current_use() {
                Some(Use::Pin) => Some("in use by a download or an import"),
                Some(Use::Write) => Some("being written"),
                Some(Use::Read) if !while_served => Some("being served"),
                Some(Use::Read) | None => None,
            };
            if let Some(how) = how {
                return Err(StoreError::InUse { key: self.key.clone(), how });
            }
            inner.life = Life::Gone;
            inner.epoch += 1;
            let held = inner.held_bytes();
            self.drop_pieces(&mut inner);
            held
        };
        self.announce();
        Ok(held)
    }
}
