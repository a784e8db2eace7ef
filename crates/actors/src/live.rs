//! The tasks that run right now, readable without asking anybody.

use std::collections::HashMap;

use damselfly_core::{PeerId, PieceSet, TaskKey};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::task::TaskView;

/// What a running task means to fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Nothing, until its user resumes it.
    pub paused: bool,
    /// The pieces that its clients want, held ones included; `None` until the geometry is known.
    pub wanted: Option<PieceSet>,
}

impl Plan {
    /// Whether `piece` may be about to come.
    #[must_use]
    pub fn covers(&self, piece: u32) -> bool {
        !self.paused && self.wanted.as_ref().is_none_or(|wanted| wanted.contains(piece))
    }
}

#[derive(Debug)]
struct Running {
    peer: PeerId,
    view: TaskView,
    plan: watch::Sender<Plan>,
    over: CancellationToken,
}

/// One entry per live supervisor: what it shows, and a token that is cancelled when it ends.
#[derive(Debug, Default)]
pub struct Live {
    all: RwLock<HashMap<TaskKey, Running>>,
    /// How many there are.
    count: watch::Sender<usize>,
}

impl Live {
    /// A supervisor starts, as `peer`.
    pub fn insert(&self, key: &TaskKey, peer: &PeerId) {
        let running = Running {
            peer: peer.clone(),
            view: TaskView::default(),
            plan: watch::Sender::default(),
            over: CancellationToken::new(),
        };
        let mut all = self.all.write();
        if let Some(former) = all.insert(key.clone(), running) {
            former.over.cancel();
        }
        self.count.send_replace(all.len());
    }

    /// A supervisor ends; nothing happens if another one runs as another peer already.
    pub fn remove(&self, key: &TaskKey, peer: &PeerId) {
        let mut all = self.all.write();
        if all.get(key).is_some_and(|running| running.peer == *peer)
            && let Some(running) = all.remove(key)
        {
            running.over.cancel();
        }
        self.count.send_replace(all.len());
    }

    /// Every supervisor is gone: the registry that knew them crashed or stops.
    pub fn clear(&self) {
        let mut all = self.all.write();
        for (_, running) in all.drain() {
            running.over.cancel();
        }
        self.count.send_replace(0);
    }

    /// Shows what the supervisor is doing.
    pub fn show(&self, key: &TaskKey, peer: &PeerId, view: TaskView) {
        if let Some(running) = self.all.write().get_mut(key).filter(|running| running.peer == *peer) {
            running.view = view;
        }
    }

    /// Says what the supervisor means to fetch, to those who wait for a piece of it.
    pub fn plan(&self, key: &TaskKey, peer: &PeerId, paused: bool, wanted: Option<&PieceSet>) {
        if let Some(running) = self.all.read().get(key).filter(|running| running.peer == *peer) {
            running.plan.send_if_modified(|plan| {
                let news = plan.paused != paused || plan.wanted.as_ref() != wanted;
                if news {
                    *plan = Plan { paused, wanted: wanted.cloned() };
                }
                news
            });
        }
    }

    /// Follows what the supervisor of `key` means to fetch; ends with it. `None` when none lives.
    #[must_use]
    pub fn follow_plan(&self, key: &TaskKey) -> Option<watch::Receiver<Plan>> {
        self.all.read().get(key).map(|running| running.plan.subscribe())
    }

    /// What the supervisor of `key` shows, if one lives.
    #[must_use]
    pub fn view(&self, key: &TaskKey) -> Option<TaskView> {
        self.all.read().get(key).map(|running| running.view.clone())
    }

    /// Where the supervisor of `key` fetches from `parent`.
    #[must_use]
    pub fn parent_address(&self, key: &TaskKey, parent: &PeerId) -> Option<String> {
        let all = self.all.read();
        let shown = all.get(key)?.view.parents.iter().find(|shown| shown.id == *parent)?;
        Some(shown.address.clone())
    }

    /// A token that is cancelled when the supervisor of `key` ends; `None` when none lives.
    #[must_use]
    pub fn until_over(&self, key: &TaskKey) -> Option<CancellationToken> {
        self.all.read().get(key).map(|running| running.over.clone())
    }

    /// Follows how many supervisors live.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// How many supervisors live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.read().len()
    }

    /// Whether no supervisor lives.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::ParentView;
    use crate::testing::key;

    #[test]
    fn a_run_that_was_replaced_neither_shows_nor_ends_the_new_one() {
        let (live, key) = (Live::default(), key('a'));
        let (first, second): (PeerId, PeerId) = ("first".into(), "second".into());
        live.insert(&key, &first);
        let over = live.until_over(&key).unwrap();
        live.insert(&key, &second);
        assert!(over.is_cancelled());
        let over = live.until_over(&key).unwrap();
        live.show(&key, &first, TaskView { clients: 9, ..TaskView::default() });
        live.remove(&key, &first);
        assert_eq!(live.view(&key).unwrap().clients, 0);
        assert!(!over.is_cancelled());
        let parent = ParentView {
            id: "p".into(),
            address: "10.0.0.1:4005".to_owned(),
            ours: true,
            banned: false,
            fetches: 1,
            pieces: 2,
            bytes: 3,
        };
        live.show(&key, &second, TaskView { clients: 2, parents: vec![parent], ..TaskView::default() });
        assert_eq!(live.view(&key).unwrap().clients, 2);
        assert_eq!(live.parent_address(&key, &"p".into()).as_deref(), Some("10.0.0.1:4005"));
        assert_eq!(live.parent_address(&key, &"q".into()), None);
        live.remove(&key, &second);
        assert!(over.is_cancelled() && live.is_empty());
    }

    #[test]
    fn a_crash_of_the_registry_ends_every_run() {
        let live = Live::default();
        live.insert(&key('a'), &"p".into());
        live.insert(&key('b'), &"p".into());
        let over = live.until_over(&key('b')).unwrap();
        assert_eq!(live.len(), 2);
        live.clear();
        assert!(over.is_cancelled() && live.until_over(&key('a')).is_none());
    }
}
