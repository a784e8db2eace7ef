//! The hosts: who is alive, how loaded and how fast.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use damselfly_core::{HostId, PeerId, TaskKey, Tick};

use super::config::Config;
use super::event::{HoldId, HostInfo};

/// One host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) info: HostInfo,
    /// Its peers are offered.
    pub(super) alive: bool,
    /// Its Hold stream, while open.
    pub(super) hold: Option<HoldId>,
    /// When its Hold was heard of last.
    pub(super) heard: Tick,
    /// Probes missed in a row.
    pub(super) misses: u32,
    /// When it is probed next, unless it has a Hold.
    pub(super) next_probe: Tick,
    /// It announces itself again within so long.
    pub(super) interval: Duration,
    /// Its first full list of holdings, while it is being received: since when, and the tasks named so far.
    pub(super) listing: Option<(Tick, BTreeSet<TaskKey>)>,
    /// Its peers.
    pub(super) peers: BTreeSet<(TaskKey, PeerId)>,
    /// Children its peers serve.
    pub(super) children: u32,
    /// Bytes per second its pieces arrive with elsewhere, smoothed.
    pub(super) speed: Option<f64>,
    pub(super) updated: Tick,
}

impl Host {
    pub(super) fn is_ours(&self) -> bool {
        self.info.incarnation.is_some()
    }

    pub(super) fn upload_limit(&self, config: &Config) -> u32 {
        if self.info.seed { config.seed_upload_limit } else { config.upload_limit }
    }

    /// Whether one more child may be sent here.
    pub(super) fn has_room(&self, config: &Config) -> bool {
        self.children < self.upload_limit(config)
    }

    /// A piece of `length` bytes from here took `cost`.
    pub(super) fn served(&mut self, length: u64, cost: Duration) {
        if cost.is_zero() {
            return;
        }
        let sample = length as f64 / cost.as_secs_f64();
        self.speed = Some(self.speed.map_or(sample, |speed| 0.9 * speed + 0.1 * sample));
    }

    /// What the host is waiting for: the end of its Hold's patience, or its next probe.
    fn deadline(&self, config: &Config) -> Option<Tick> {
        if self.hold.is_some() {
            return self.alive.then(|| self.heard + config.hold_silence);
        }
        // Nobody asks about a host that serves nobody, except for seeds, which are chosen among the living.
        (self.info.seed || !self.peers.is_empty()).then_some(self.next_probe)
    }

    /// Its deadline from now on. As long as it had a Hold, or served nobody, it was not probed: that is not made up for.
    pub(super) fn rearm(&mut self, config: &Config, now: Tick) -> Option<Tick> {
        if self.next_probe <= now {
            self.next_probe = now + config.probe_interval;
        }
        self.deadline(config)
    }
}

/// What an announcement changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announced {
    /// Nothing that scheduling looks at.
    Same,
    /// It has more room than before, and nothing else has changed.
    Emptier,
    /// The host is new, back, or serves others than before.
    Changed,
    /// Its former process is gone, and with it the former peers.
    Restarted,
}

/// All hosts.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    all: BTreeMap<HostId, Host>,
    holds: BTreeMap<HoldId, HostId>,
    /// Hosts that had no room for another child and have again.
    pub(super) relieved: BTreeSet<HostId>,
}

impl Hosts {
    pub(super) fn get(&self, id: &HostId) -> Option<&Host> {
        self.all.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &HostId) -> Option<&mut Host> {
        self.all.get_mut(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Host> {
        self.all.values()
    }

    pub(super) fn by_hold(&self, hold: HoldId) -> Option<&HostId> {
        self.holds.get(&hold)
    }

    /// Takes an announcement over.
    pub(super) fn announce(
        &mut self,
        info: HostInfo,
        interval: Duration,
        config: &Config,
        now: Tick,
    ) -> Announced {
        let Some(host) = self.all.get_mut(&info.id) else {
            let host = Host {
                alive: true,
                hold: None,
                heard: now,
                misses: 0,
                next_probe: now + config.probe_interval,
                interval,
                listing: None,
                peers: BTreeSet::new(),
                children: 0,
                speed: None,
                updated: now,
                info,
            };
            self.all.insert(host.info.id.clone(), host);
            return Announced::Changed;
        };
        let restarted = host.info.incarnation.is_some()
            && info.incarnation.is_some()
            && host.info.incarnation != info.incarnation;
        let changed = !host.alive
            || host.info.disable_shared != info.disable_shared
            || host.info.incarnation.is_some() != info.incarnation.is_some();
        let emptier = info.disk_free > host.info.disk_free;
        host.alive = true;
        host.misses = 0;
        host.next_probe = now + config.probe_interval;
        host.interval = interval;
        host.updated = now;
        host.info = info;
        match (restarted, changed) {
            (true, _) => Announced::Restarted,
            (false, true) => Announced::Changed,
            (false, false) if emptier => Announced::Emptier,
            (false, false) => Announced::Same,
        }
    }

    /// Binds a Hold to its host; returns the one it replaces.
    pub(super) fn bind(&mut self, id: &HostId, hold: HoldId, now: Tick) -> Option<HoldId> {
        let host = self.all.get_mut(id)?;
        host.heard = now;
        host.listing = Some((now, BTreeSet::new()));
        let former = host.hold.replace(hold);
        self.holds.insert(hold, id.clone());
        if let Some(former) = former.filter(|former| *former != hold) {
            self.holds.remove(&former);
            return Some(former);
        }
        None
    }

    /// Takes the Hold from its host; returns whose it was, unless another has replaced it.
    pub(super) fn unbind(&mut self, hold: HoldId) -> Option<HostId> {
        let id = self.holds.remove(&hold)?;
        let host = self.all.get_mut(&id)?;
        (host.hold == Some(hold)).then(|| {
            host.hold = None;
            host.listing = None;
            id
        })
    }

    pub(super) fn remove(&mut self, id: &HostId) -> Option<Host> {
        let host = self.all.remove(id)?;
        if let Some(hold) = host.hold {
            self.holds.remove(&hold);
        }
        Some(host)
    }

    /// Counts a child more.
    pub(super) fn child_added(&mut self, id: &HostId) {
        if let Some(host) = self.all.get_mut(id) {
            host.children += 1;
        }
    }

    /// Counts a child less, and remembers when that made room.
    pub(super) fn child_removed(&mut self, id: &HostId, config: &Config) {
        if let Some(host) = self.all.get_mut(id) {
            let full = !host.has_room(config);
            host.children = host.children.saturating_sub(1);
            if full && host.has_room(config) {
                self.relieved.insert(id.clone());
            }
        }
    }

    /// The seed that `task` belongs to: the live one with the highest hash of its address and the task's id.
    pub(super) fn seed_for(&self, task: &TaskKey) -> Option<&Host> {
        let weight = |host: &Host| {
            use std::hash::{DefaultHasher, Hash, Hasher};
            let mut hasher = DefaultHasher::new();
            (host.info.address, task.id.as_str()).hash(&mut hasher);
            hasher.finish()
        };
        self.all.values().filter(|host| host.info.seed && host.alive).max_by_key(|host| weight(host))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::machine) fn info(name: &str, incarnation: Option<u64>) -> HostInfo {
        HostInfo {
            id: HostId::from(name),
            seed: false,
            address: "10.0.0.1:4000".parse().unwrap(),
            idc: String::new(),
            location: String::new(),
            max_tx_bandwidth: 1 << 30,
            tx_bandwidth: 0,
            disk_free: None,
            disable_shared: false,
            incarnation,
        }
    }

    #[test]
    fn a_new_incarnation_is_a_restart() {
        let (mut hosts, config) = (Hosts::default(), Config::default());
        let minute = Duration::from_secs(60);
        assert_eq!(hosts.announce(info("a", Some(1)), minute, &config, Tick(0)), Announced::Changed);
        assert_eq!(hosts.announce(info("a", Some(1)), minute, &config, Tick(1)), Announced::Same);
        assert_eq!(hosts.announce(info("a", Some(2)), minute, &config, Tick(2)), Announced::Restarted);
    }

    #[test]
    fn a_late_end_of_a_replaced_hold_says_nothing() {
        let (mut hosts, config) = (Hosts::default(), Config::default());
        hosts.announce(info("a", Some(1)), Duration::ZERO, &config, Tick(0));
        let id = HostId::from("a");
        assert_eq!(hosts.bind(&id, HoldId(1), Tick(0)), None);
        assert_eq!(hosts.bind(&id, HoldId(2), Tick(0)), Some(HoldId(1)));
        assert_eq!(hosts.unbind(HoldId(1)), None);
        assert_eq!(hosts.unbind(HoldId(2)), Some(id));
    }

    #[test]
    fn a_full_host_is_relieved_once_a_child_goes() {
        let config = Config { upload_limit: 2, ..Config::default() };
        let mut hosts = Hosts::default();
        hosts.announce(info("a", None), Duration::ZERO, &config, Tick(0));
        let id = HostId::from("a");
        hosts.child_added(&id);
        hosts.child_removed(&id, &config);
        assert!(hosts.relieved.is_empty());
        hosts.child_added(&id);
        hosts.child_added(&id);
        assert!(!hosts.get(&id).unwrap().has_room(&config));
        hosts.child_removed(&id, &config);
        assert!(hosts.relieved.contains(&id));
    }

    #[test]
    fn a_task_keeps_its_seed_while_that_lives() {
        let (mut hosts, config) = (Hosts::default(), Config::default());
        let task = TaskKey {
            kind: damselfly_core::Kind::Standard,
            id: damselfly_core::TaskId::parse("abcdef").unwrap(),
        };
        assert!(hosts.seed_for(&task).is_none());
        for port in 4001..4005 {
            let mut seed = info(&format!("seed-{port}"), None);
            seed.seed = true;
            seed.address.set_port(port);
            hosts.announce(seed, Duration::ZERO, &config, Tick(0));
        }
        let chosen = hosts.seed_for(&task).unwrap().info.id.clone();
        let other = hosts.iter().find(|host| host.info.id != chosen).unwrap().info.id.clone();
        hosts.get_mut(&other).unwrap().alive = false;
        assert_eq!(hosts.seed_for(&task).unwrap().info.id, chosen);
        hosts.get_mut(&chosen).unwrap().alive = false;
        assert_ne!(hosts.seed_for(&task).unwrap().info.id, chosen);
    }
}
