//! A seed that was triggered, and how the wait for it ends.

use damselfly_core::{HostId, PeerId, Tick};

use super::tasks::Task;

/// A seed that was asked to fetch the task.
#[derive(Debug)]
pub(super) struct Seeding {
    pub(super) host: HostId,
    /// It has to register until then; once it has, nothing.
    pub(super) until: Option<Tick>,
}

impl Task {
    /// The seed that was triggered failed or is gone: others may ask the origin, and no seed is asked for a while.
    pub(super) fn seed_failed(&mut self, host: &HostId, now: Tick) {
        if self.seeding.as_ref().is_some_and(|seeding| seeding.host == *host) {
            self.seeding = None;
            self.seed_failed = Some(now);
        }
    }

    /// The triggered seed's call has ended well. That may be all that is heard of it: what it holds it need not fetch.
    pub(super) fn seed_done(&mut self, host: &HostId) {
        self.seeding.take_if(|seeding| seeding.host == *host);
    }

    /// Nobody waits for a seed whose only peer here is ended. Whether the seed is to blame says whoever calls
    /// [`Task::seed_failed`] before.
    pub(super) fn release_seeding(&mut self, id: &PeerId) {
        let Some(ended) = self.peers.get(id).filter(|peer| peer.stream.is_some()) else { return };
        let others =
            self.peers.values().any(|peer| peer.id != *id && peer.host == ended.host && peer.is_active());
        if !others {
            let host = &ended.host;
            self.seeding.take_if(|seeding| seeding.host == *host && seeding.until.is_none());
        }
    }
}
