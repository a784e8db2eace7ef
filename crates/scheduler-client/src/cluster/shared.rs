//! What the dialogues with the members and the users of a cluster share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use damselfly_api::damselfly::v1::Welcome;
use damselfly_core::TaskId;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

use super::{ClusterOptions, Departure, SchedulerInfo};
use crate::SchedulerHandle;
use crate::channel::Tls;
use crate::dynconfig::BlockList;
use crate::hold::Order;
use crate::member::{Member, Standing};
use crate::ring::Ring;

/// Addresses and, for each, the name its TLS certificate must carry.
pub(crate) type Names = BTreeMap<SocketAddr, String>;

/// The state of a cluster.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: ClusterOptions,
    pub(crate) tls: Option<Tls>,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) leaving: watch::Sender<Option<Departure>>,
    /// How many members somebody keeps up with.
    pub(crate) attended: watch::Sender<usize>,
    pub(crate) blocks: Mutex<Arc<BlockList>>,
    pub(crate) refresh: Notify,
    /// The members may have to change.
    pub(crate) membership: Notify,
    state: Mutex<State>,
    sessions: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// What the source says.
    sourced: Names,
    members: BTreeMap<SocketAddr, Arc<Member>>,
    ring: Ring<Arc<Member>>,
    had_healthy: Option<bool>,
}

impl Shared {
    pub(crate) fn new(options: ClusterOptions, tls: Option<Tls>, orders: mpsc::Sender<Order>) -> Self {
        Self {
            options,
            tls,
            orders,
            changes: watch::Sender::new(0),
            leaving: watch::Sender::new(None),
            attended: watch::Sender::new(0),
            blocks: Mutex::default(),
            refresh: Notify::new(),
            membership: Notify::new(),
            state: Mutex::default(),
            sessions: AtomicU64::new(0),
        }
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.borrow().is_some()
    }

    /// Ready once the daemon leaves.
    pub(crate) async fn departure(&self) -> Departure {
        let mut leaving = self.leaving.subscribe();
        loop {
            let departure = *leaving.borrow_and_update();
            match departure {
                Some(departure) => return departure,
                // The sender is a field of ours, so it outlives this.
                None => drop(leaving.changed().await),
            }
        }
    }

    pub(crate) fn changed(&self) {
        self.changes.send_modify(|version| *version += 1);
    }

    pub(crate) fn pick(&self, task: &TaskId) -> Option<SchedulerHandle> {
        if self.is_leaving() {
            return None;
        }
        self.state.lock().ring.clockwise(task).find_map(handle)
    }

    pub(crate) fn handles(&self) -> Vec<SchedulerHandle> {
        self.state.lock().members.values().filter_map(handle).collect()
    }

    pub(crate) fn infos(&self) -> Vec<SchedulerInfo> {
        let state = self.state.lock();
        let info = |member: &Arc<Member>| {
            let standing = member.standing.lock();
            SchedulerInfo {
                address: member.address,
                ours: standing.ours == Some(true),
                healthy: standing.healthy,
                error: standing.error.clone(),
            }
        };
        state.members.values().map(info).collect()
    }

    /// Takes over what the source says. Says whether anything changed.
    pub(crate) fn source(&self, sourced: Names) {
        let mut state = self.state.lock();
        if state.sourced != sourced {
            let schedulers: Vec<String> = sourced.keys().map(ToString::to_string).collect();
            info!(?schedulers, "list of schedulers changed");
            state.sourced = sourced;
            self.membership.notify_one();
        }
    }

    /// Every scheduler there should be: what the source says, and what the rings of healthy schedulers of ours name
    /// besides.
    pub(crate) fn wanted(&self) -> Names {
        let state = self.state.lock();
        let mut wanted = state.sourced.clone();
        let local = wanted.keys().all(|address| address.ip().is_loopback());
        let standings: Vec<(SocketAddr, Standing)> = state
            .members
            .values()
            .map(|member| (member.address, member.standing.lock().clone()))
            .filter(|(_, standing)| standing.healthy)
            .collect();
        for address in standings.iter().flat_map(|(_, standing)| standing.ring.iter().copied()) {
            // Somebody else's loopback is not ours, and nobody can dial "any address".
            let dialable = !address.ip().is_unspecified()
                && address.port() != 0
                && (local || !address.ip().is_loopback());
            let text = address.to_string();
            let held_by_another_name = standings
                .iter()
                .any(|(other, standing)| *other != address && standing.stated.as_deref() == Some(&text));
            if dialable && !held_by_another_name {
                wanted.entry(address).or_insert_with(|| address.ip().to_string());
            }
        }
        wanted
    }

    pub(crate) fn members(&self) -> BTreeMap<SocketAddr, Arc<Member>> {
        self.state.lock().members.clone()
    }

    pub(crate) fn healthy_members(&self) -> Vec<Arc<Member>> {
        let state = self.state.lock();
        state.members.values().filter(|member| member.standing.lock().healthy).cloned().collect()
    }

    /// Somebody keeps up with `member` until the guard is dropped, however that comes about.
    pub(crate) fn attended<'a>(&'a self, member: &'a Member) -> Attended<'a> {
        self.attended.send_modify(|count| *count += 1);
        Attended { shared: self, member }
    }

    pub(crate) fn set_members(&self, members: BTreeMap<SocketAddr, Arc<Member>>) {
        let mut state = self.state.lock();
        state.members = members;
        self.rebuild(state);
    }

    /// A scheduler without `Hold` is healthy.
    pub(crate) fn healthy_foreign(&self, member: &Member) {
        {
            let mut standing = member.standing.lock();
            standing.healthy = true;
            standing.ours = Some(false);
            standing.stated = None;
            standing.ring.clear();
            standing.error = None;
            standing.session = self.session();
        }
        info!(scheduler = %member.address, ours = false, "scheduler is healthy");
        self.rebuild(self.state.lock());
    }

    /// A scheduler of ours welcomed this host. Fails with the other member's address when that one already holds on to
    /// the same scheduler.
    pub(crate) fn healthy(&self, member: &Member, welcome: Welcome) -> Result<(), SocketAddr> {
        let state = self.state.lock();
        let twin = state.members.values().find(|other| {
            other.address != member.address && {
                let standing = other.standing.lock();
                standing.healthy
                    && standing.ours == Some(true)
                    && standing.epoch == welcome.epoch
                    && standing.stated.as_deref() == Some(&welcome.address)
            }
        });
        if let Some(twin) = twin {
            return Err(twin.address);
        }
        {
            let mut standing = member.standing.lock();
            standing.healthy = true;
            standing.ours = Some(true);
            standing.ring = addresses(&welcome.ring);
            standing.stated = Some(welcome.address).filter(|address| !address.is_empty());
            standing.epoch = welcome.epoch;
            standing.error = None;
            standing.session = self.session();
        }
        info!(scheduler = %member.address, ours = true, "scheduler is healthy");
        self.membership.notify_one();
        self.rebuild(state);
        Ok(())
    }

    /// A scheduler of ours states another ring.
    pub(crate) fn ring_changed(&self, member: &Member, welcome: &Welcome) {
        member.standing.lock().ring = addresses(&welcome.ring);
        self.membership.notify_one();
    }

    pub(crate) fn not_healthy(&self, member: &Member, error: String) {
        let (was, first) = {
            let mut standing = member.standing.lock();
            let first = standing.error.replace(error.clone()).is_none();
            (std::mem::replace(&mut standing.healthy, false), first)
        };
        if was && !self.is_leaving() {
            warn!(scheduler = %member.address, error, "scheduler is not healthy any more");
        }
        let mut state = self.state.lock();
        if !was && state.had_healthy.is_none() {
            state.had_healthy = Some(false);
            warn!(scheduler = %member.address, error, "no healthy scheduler yet; retrying");
        }
        if was || first {
            self.rebuild(state);
        }
    }

    fn session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn rebuild(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        // The healthy come first, so that of two members with one key the one that can be asked stays.
        let mut members: Vec<&Arc<Member>> = state.members.values().collect();
        members.sort_by_key(|member| !member.standing.lock().healthy);
        let any = members.first().is_some_and(|member| member.standing.lock().healthy);
        let ring = Ring::new(members.into_iter().map(|member| (member.ring_key(), Arc::clone(member))));
        state.ring = ring;
        if state.had_healthy == Some(true) && !any && !self.is_leaving() {
            warn!("no healthy scheduler; retrying");
        }
        if any || state.had_healthy.is_some() {
            state.had_healthy = Some(any);
        }
        drop(state);
        self.changed();
    }
}

/// See [`Shared::attended`].
#[derive(Debug)]
pub(crate) struct Attended<'a> {
    shared: &'a Shared,
    member: &'a Member,
}

impl Drop for Attended<'_> {
    fn drop(&mut self) {
        // A farewell has said so before.
        let healthy = self.member.standing.lock().healthy;
        if healthy {
            self.shared.not_healthy(self.member, "the dialogue with it was cut off".to_owned());
        }
        self.shared.attended.send_modify(|count| *count -= 1);
    }
}

fn handle(member: &Arc<Member>) -> Option<SchedulerHandle> {
    let standing = member.standing.lock();
    standing.healthy.then(|| SchedulerHandle {
        member: Arc::clone(member),
        ours: standing.ours == Some(true),
        session: standing.session,
    })
}

fn addresses(texts: &[String]) -> Vec<SocketAddr> {
    texts
        .iter()
        .filter_map(|text| text.parse::<SocketAddr>().ok())
        .map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
        .collect()
}
