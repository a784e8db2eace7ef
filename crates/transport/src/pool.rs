//! Reusable buffers under a byte budget.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many unused buffers are kept for the next user; the rest goes back to the allocator.
const KEEP: usize = 8;

/// Lends buffers of one size; never more at a time than the budget has room for.
///
/// Cloning gives another handle on the same pool. Nobody may wait for a buffer while holding one: two who did would
/// wait for each other.
#[derive(Clone)]
pub struct BufferPool {
    inner: Arc<Inner>,
}

struct Inner {
    size: usize,
    count: usize,
    permits: Arc<Semaphore>,
    free: Mutex<Vec<Vec<u8>>>,
}

impl BufferPool {
    /// The buffer size that suits sockets and files alike, 256 KiB.
    pub const DEFAULT_SIZE: usize = 256 << 10;

    /// A pool of buffers of `size` bytes that together never exceed `budget` bytes; one buffer is always granted.
    #[must_use]
    pub fn new(budget: u64, size: usize) -> Self {
        let size = size.max(1);
        let count = usize::try_from(budget / size as u64).unwrap_or(usize::MAX);
        let count = count.clamp(1, Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(count));
        Self { inner: Arc::new(Inner { size, count, permits, free: Mutex::new(Vec::new()) }) }
    }

    /// Waits for a buffer. Its bytes are whatever its last user left.
    pub async fn acquire(&self) -> Buffer {
        let permit = self.inner.permits.clone().acquire_owned().await;
        // The semaphore is never closed; without a permit the buffer is merely not counted.
        self.lend(permit.ok())
    }

    /// A buffer, if one is left.
    #[must_use]
    pub fn try_acquire(&self) -> Option<Buffer> {
        let permit = self.inner.permits.clone().try_acquire_owned().ok()?;
        Some(self.lend(Some(permit)))
    }

    /// Bytes of each buffer.
    #[must_use]
    pub fn buffer_size(&self) -> usize {
        self.inner.size
    }

    /// How many buffers may be lent at a time.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.inner.count
    }

    /// How many buffers are lent now.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.inner.count.saturating_sub(self.inner.permits.available_permits())
    }

    fn lend(&self, permit: Option<OwnedSemaphorePermit>) -> Buffer {
        let bytes = self.inner.free.lock().pop();
        let bytes = bytes.unwrap_or_else(|| vec![0; self.inner.size]);
        Buffer { bytes, pool: self.inner.clone(), _permit: permit }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPool({} of {} lent, {} bytes each)", self.lent(), self.inner.count, self.inner.size)
    }
}

/// A lent buffer; goes back to its pool when dropped.
pub struct Buffer {
    bytes: Vec<u8>,
    pool: Arc<Inner>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes.len())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock();
        if free.len() < KEEP {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_budget_bounds_what_is_lent() {
        let pool = BufferPool::new(1 << 20, 256 << 10);
        assert_eq!(pool.capacity(), 4);
        let mut lent: Vec<_> = (0..4).map(|_| pool.try_acquire().expect("within the budget")).collect();
        assert!(pool.try_acquire().is_none());
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.acquire().await.len() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        lent.pop();
        assert_eq!(waiting.await.expect("no panic"), 256 << 10);
        drop(lent);
        assert_eq!(pool.lent(), 0);
    }

    #[tokio::test]
    async fn buffers_are_used_again() {
        let pool = BufferPool::new(64 << 20, 256 << 10);
        let mut buffer = pool.acquire().await;
        buffer[0] = 42;
        let place = buffer.as_ptr();
        drop(buffer);
        assert_eq!(pool.acquire().await.as_ptr(), place);
        let many: Vec<_> = (0..20).map(|_| pool.try_acquire().expect("within the budget")).collect();
        drop(many);
        assert_eq!(pool.inner.free.lock().len(), KEEP);
    }

    #[test]
    fn a_budget_below_one_buffer_still_lends_one() {
        let pool = BufferPool::new(0, 1024);
        let buffer = pool.try_acquire();
        assert!(buffer.is_some() && pool.try_acquire().is_none());
    }
}
