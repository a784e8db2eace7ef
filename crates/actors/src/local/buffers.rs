//! Buffers for clients of the socket, of which nobody gets all.
//!
//! A client that does not read holds buffers until its stream is given up. They are its user's: the others' streams go
//! on meanwhile.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

use damselfly_transport::{Buffer, BufferPool};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A pool with a share for each user.
#[derive(Clone, Debug)]
pub(super) struct Buffers {
    pool: BufferPool,
    shares: Arc<Mutex<HashMap<u32, Weak<Semaphore>>>>,
}

impl Buffers {
    pub(super) fn new(pool: BufferPool) -> Self {
        Self { pool, shares: Arc::default() }
    }

    /// The share of `uid`: three quarters of the pool.
    pub(super) fn of(&self, uid: u32) -> Share {
        let mut shares = self.shares.lock();
        shares.retain(|_, share| share.strong_count() > 0);
        let known = shares.get(&uid).and_then(Weak::upgrade);
        let share = known.unwrap_or_else(|| {
            let share = Arc::new(Semaphore::new((self.pool.capacity() * 3 / 4).max(1)));
            shares.insert(uid, Arc::downgrade(&share));
            share
        });
        Share { pool: self.pool.clone(), share }
    }
}

/// What one user may have of the pool.
#[derive(Clone, Debug)]
pub(super) struct Share {
    pool: BufferPool,
    share: Arc<Semaphore>,
}

impl Share {
    /// Waits for a buffer.
    pub(super) async fn acquire(&self) -> Lent {
        // Never closed; without a permit the buffer is merely not counted.
        let permit = Arc::clone(&self.share).acquire_owned().await.ok();
        Lent { buffer: self.pool.acquire().await, _permit: permit }
    }
}

/// A lent buffer.
#[derive(Debug)]
pub(super) struct Lent {
    buffer: Buffer,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn nobody_gets_all() {
        let pool = BufferPool::new(8, 1);
        let buffers = Buffers::new(pool.clone());
        let (one, other) = (buffers.of(1), buffers.of(2));
        let mut held = Vec::new();
        while let Some(lent) = one.acquire().now_or_never() {
            held.push(lent);
        }
        assert_eq!(held.len(), 6);
        drop(one);
        assert!(buffers.of(1).acquire().now_or_never().is_none(), "what is lent counts for a new stream too");
        assert!(other.acquire().now_or_never().is_some());
        held.pop();
        assert!(buffers.of(1).acquire().now_or_never().is_some());
        drop(held);
        assert_eq!(pool.lent(), 0);
    }
}
