//! Forgetting: peers, hosts and tasks that nothing will be heard of again.

use damselfly_core::{HostId, PeerId, TaskKey, Tick};

use super::Scheduler;
use super::event::{Effect, Ending};
use super::peers::{Peer, PeerState};
use super::tasks::Task;

impl Scheduler {
    /// One collection. The next is asked for by the step that runs this one.
    pub(super) fn collect(&mut self, now: Tick, out: &mut Vec<Effect>) {
        self.collect_hosts(now, out);
        self.collect_kept(now, out);
        let keys: Vec<TaskKey> = self.tasks.keys().cloned().collect();
        for key in keys {
            let gone: Vec<PeerId> = match self.tasks.get(&key) {
                Some(task) => task
                    .peers
                    .values()
                    .filter(|peer| self.is_over(task, peer, now))
                    .map(|p| p.id.clone())
                    .collect(),
                None => continue,
            };
            if !gone.is_empty() {
                self.with(&key, now, out, |task, cx| {
                    for peer in gone {
                        task.remove(&peer, Ending::Refused("nothing was heard of the peer".to_owned()), cx);
                    }
                });
            }
            let idle = |task: &Task| {
                task.peers.is_empty()
                    && task.keep.is_none()
                    && now.since(task.updated) >= self.config.task_ttl
            };
            if self.tasks.get(&key).is_some_and(idle) {
                self.tasks.remove(&key);
                self.dirty.remove(&key);
                self.timers.set(super::Timer::Task(key), None);
            }
        }
    }

    fn collect_hosts(&mut self, now: Tick, out: &mut Vec<Effect>) {
        let silent: Vec<HostId> = self
            .hosts
            .iter()
            .filter(|host| {
                !host.interval.is_zero() && now.since(host.updated) > host.interval.saturating_mul(2)
            })
            .map(|host| host.info.id.clone())
            .collect();
        for host in silent {
            self.host_left(&host, now, out);
        }
    }

    /// Whether a peer is to be forgotten. Dragonfly's rules for Dragonfly's peers; one of ours stands for what its
    /// host holds for as long as the host lives, and what it does not hold it will not be asked for.
    fn is_over(&self, task: &Task, peer: &Peer, now: Tick) -> bool {
        let Some(host) = self.hosts.get(&peer.host) else { return true };
        let quiet = now.since(peer.updated);
        if peer.state == PeerState::Leave {
            return true;
        }
        if peer.ours {
            // Empty content is held without pieces.
            let holds = !peer.pieces.is_empty() || peer.persistent;
            return !peer.is_active() && !holds && quiet >= self.config.gc_interval;
        }
        let downloads = matches!(peer.state, PeerState::Running | PeerState::BackToSource);
        let idle = peer.parents.is_empty() && peer.children.is_empty();
        peer.state == PeerState::Failed
            || (host.info.disable_shared && !peer.is_active())
            || (downloads && quiet >= self.config.piece_ttl)
            || (quiet >= self.config.peer_ttl && !peer.persistent)
            || (task.peers.len() > self.config.peer_limit
                && peer.state == PeerState::Succeeded
                && idle
                && !peer.persistent)
    }
}
