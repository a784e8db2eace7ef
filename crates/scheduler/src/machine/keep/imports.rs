//! Imports, as the scheduler is asked and told.

use std::collections::BTreeMap;

use damselfly_core::download::Learned;
use damselfly_core::{Crc, HostId, PeerId, TaskKey, Tick};

use super::super::Scheduler;
use super::super::event::{Effect, Ending};
use super::super::peers::Peer;
use super::super::tasks::{Task, TaskState};
use super::super::timers::Timer;
use super::{Keep, KeepError, KeepView, Progress, ReplicaView, Upload};

impl Scheduler {
    /// The persistent cache task, while its time is not over.
    pub(in crate::machine) fn live(&self, key: &TaskKey, now: Tick) -> Option<&Task> {
        self.tasks.get(key).filter(|task| task.keep.is_some() && !task.is_expired(now))
    }

    /// The persistent cache tasks whose time is not over.
    #[must_use]
    pub fn all_kept(&self, now: Tick) -> Vec<TaskKey> {
        self.tasks.keys().filter(|key| self.live(key, now).is_some()).cloned().collect()
    }

    /// A persistent cache task.
    #[must_use]
    pub fn kept(&self, key: &TaskKey, now: Tick) -> Option<KeepView> {
        let task = self.live(key, now)?;
        let keep = task.keep.as_ref()?;
        let mut replicas: BTreeMap<&HostId, ReplicaView> = BTreeMap::new();
        for peer in task.peers.values() {
            let copy = ReplicaView {
                host: peer.host.clone(),
                persistent: peer.persistent,
                complete: task.is_copy(peer),
                alive: self.hosts.get(&peer.host).is_some_and(|host| host.alive),
            };
            let best =
                |copy: &ReplicaView| (copy.persistent && copy.complete, copy.complete, copy.persistent);
            match replicas.get(&peer.host) {
                Some(there) if best(there) >= best(&copy) => {}
                _ => drop(replicas.insert(&peer.host, copy)),
            }
        }
        Some(KeepView {
            target: keep.target,
            state: match keep.progress {
                Progress::Uploading => "Uploading",
                Progress::Succeeded => "Succeeded",
            },
            tag: task.about.tag.clone(),
            application: task.about.application.clone(),
            geometry: task.geometry,
            ttl: keep.ttl,
            created: keep.created,
            generation: keep.generation,
            updated: task.updated,
            replicas: replicas.into_values().collect(),
        })
    }

    /// Hosts that live and may keep replicas.
    #[must_use]
    pub fn keepers(&self) -> usize {
        self.hosts.iter().filter(|host| host.alive && !host.info.disable_shared).count()
    }

    /// An import begins.
    ///
    /// # Errors
    /// [`KeepError::UnknownHost`]; [`KeepError::Exists`] when a live task has the id, unless it is the same host's: it
    /// begins its import anew, or imports again what it holds.
    pub fn upload_started(
        &mut self,
        upload: Upload,
        now: Tick,
        out: &mut Vec<Effect>,
    ) -> Result<(), KeepError> {
        let Upload { task: key, host, peer, replicas, tag, application, geometry, ttl } = upload;
        if self.hosts.get(&host).is_none() {
            return Err(KeepError::UnknownHost(host));
        }
        if let Some(task) = self.live(&key, now) {
            let keep = task.keep.as_ref();
            let uploading = keep.is_some_and(|keep| keep.progress == Progress::Uploading);
            let importer = keep.and_then(|keep| keep.importer.as_ref());
            let given_up = importer.is_none_or(|importer| {
                *importer == host || !self.hosts.get(importer).is_some_and(|host| host.alive)
            });
            let has_it = |peer: &&Peer| peer.host == host && task.is_copy(peer);
            let again = task.geometry == Some(geometry) && task.peers.values().any(|peer| has_it(&peer));
            if !(again || (uploading && given_up)) {
                return Err(KeepError::Exists(key));
            }
            if !again {
                self.forget(&key, "the import begins anew", now, out);
            }
        } else {
            self.forget(&key, "another import takes its id", now, out);
        }
        self.unearth(&key, &host);
        self.tasks.entry(key.clone()).or_insert_with(|| Task::new(key.clone(), now));
        self.with(&key, now, out, |task, cx| {
            (task.about.tag, task.about.application) = (tag, application);
            let progress = match &task.keep {
                Some(keep) => keep.progress,
                None => Progress::Uploading,
            };
            task.keep = Some(Box::new(Keep {
                target: replicas,
                ttl,
                created: cx.now,
                generation: task.keep.as_ref().map_or(0, |keep| keep.generation),
                progress,
                importer: Some(host.clone()),
                orders: task.keep.take().map(|keep| keep.orders).unwrap_or_default(),
                failed: BTreeMap::new(),
                not_before: Tick(0),
            }));
            task.updated = cx.now;
            let peer = task.peer_of(&host, peer, cx);
            if task.geometry.is_none() {
                let learned = Learned {
                    content_length: Some(geometry.content_length()),
                    piece_length: geometry.piece_length(),
                    ..Learned::default()
                };
                task.learn(&peer, learned, cx);
            }
        });
        self.settle(now, out);
        Ok(())
    }

    /// An import is complete: its host has a replica, and the others are ordered. `generation` tells it from other
    /// imports under the same id.
    ///
    /// # Errors
    /// [`KeepError::NotUploading`]; [`KeepError::Exists`] when other content is known under the id: then this host's is not
    /// offered.
    pub fn upload_finished(
        &mut self,
        key: &TaskKey,
        host: &HostId,
        generation: u64,
        crcs: Vec<Crc>,
        now: Tick,
        out: &mut Vec<Effect>,
    ) -> Result<(), KeepError> {
        self.importing(key, host, now)?;
        let other = self.with(key, now, out, |task, cx| {
            let peer = task.peer_of(host, PeerId::held(host, &key.id), cx);
            task.holds_all(&peer, cx);
            task.restated(&peer, (0..).zip(crcs).collect(), cx);
            if let Some(keep) = &mut task.keep {
                (keep.progress, keep.generation) = (Progress::Succeeded, generation);
            }
            (task.state, task.updated) = (TaskState::Succeeded, cx.now);
            task.peers.get(&peer).is_some_and(|peer| peer.suspect)
        });
        self.settle(now, out);
        if other == Some(true) { Err(KeepError::Exists(key.clone())) } else { Ok(()) }
    }

    /// An import failed: it is forgotten.
    ///
    /// # Errors
    /// As [`Self::upload_finished`].
    pub fn upload_failed(
        &mut self,
        key: &TaskKey,
        host: &HostId,
        now: Tick,
        out: &mut Vec<Effect>,
    ) -> Result<(), KeepError> {
        self.importing(key, host, now)?;
        let uploading = |keep: &Keep| keep.progress == Progress::Uploading;
        if self.tasks.get(key).and_then(|task| task.keep.as_deref()).is_some_and(uploading) {
            self.forget(key, "the import failed", now, out);
        }
        self.settle(now, out);
        Ok(())
    }

    fn importing(&self, key: &TaskKey, host: &HostId, now: Tick) -> Result<(), KeepError> {
        let keep = self.live(key, now).and_then(|task| task.keep.as_ref());
        match keep {
            Some(keep) if keep.importer.as_ref() == Some(host) => Ok(()),
            _ => Err(KeepError::NotUploading(key.clone())),
        }
    }

    /// Forgets a task; streams of its peers end.
    pub(super) fn forget(&mut self, key: &TaskKey, why: &str, now: Tick, out: &mut Vec<Effect>) {
        self.with(key, now, out, |task, cx| {
            let peers: Vec<PeerId> = task.peers.keys().cloned().collect();
            for peer in peers {
                task.remove(&peer, Ending::NotFound(why.to_owned()), cx);
            }
            for given in task.keep.take().map(|keep| keep.orders).unwrap_or_default().into_values() {
                cx.orders.remove(&given.order);
            }
        });
        self.tasks.remove(key);
        self.starved.remove(key);
        self.feed_starved();
        self.dirty.remove(key);
        self.timers.set(Timer::Task(key.clone()), None);
    }

    /// Forgets what is over: tasks whose time has come, imports of hosts that are gone, and graves.
    pub(in crate::machine) fn collect_kept(&mut self, now: Tick, out: &mut Vec<Effect>) {
        self.graves.retain(|_, grave| grave.is_kept(now));
        let over: Vec<TaskKey> = self
            .tasks
            .values()
            .filter(|task| task.is_expired(now) || self.is_abandoned(task))
            .map(|task| task.key.clone())
            .collect();
        for key in over {
            self.forget(&key, "its time is over", now, out);
        }
    }

    fn is_abandoned(&self, task: &Task) -> bool {
        let importing = task.keep.as_ref().filter(|keep| keep.progress == Progress::Uploading);
        let importer = importing.and_then(|keep| keep.importer.as_ref());
        importer.is_some_and(|importer| self.hosts.get(importer).is_none())
    }
}
