//! What is ordered of hosts so that a task has as many replicas as it is to have, and what comes of it.
//!
//! Too few: copies that are there become replicas, then others are made. Too many, because a host has come back or two made
//! the same: one becomes an ordinary copy, which its host may evict and others may still fetch from. So what a wrong guess
//! takes away is there to be taken back. Dragonfly's hosts know no way back to an ordinary copy; theirs is deleted.
//!
//! Nothing is taken away that is needed: only replicas count that are whole on hosts that live and have said all that they
//! hold, and those about to be taken away do not count any more.

use damselfly_core::{HostId, PeerId, TaskKey, Tick};

use super::super::event::{Copy, Effect, Ending, HostInfo, Order};
use super::super::hosts::Host;
use super::super::tasks::Task;
use super::super::{Cx, Scheduler};
use super::failures::Failure;
use super::places::{self, Place};
use super::{Keep, Progress};

/// Orders under way in the whole cluster: repair must not take all the bandwidth there is.
const MAX_ORDERS: usize = 32;

/// What a host is to do about its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Errand {
    /// Make a copy and keep it.
    Fetch,
    /// Keep the copy that is there.
    Promote,
    /// Keep the copy no longer.
    Demote,
}

/// An order under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    pub(super) order: u64,
    errand: Errand,
}

impl Keep {
    fn target(&self) -> usize {
        usize::try_from(self.target).unwrap_or(usize::MAX).max(1)
    }

    /// Hosts that are about to have a replica.
    fn making(&self) -> impl Iterator<Item = &HostId> {
        self.orders.iter().filter(|(_, given)| given.errand != Errand::Demote).map(|(host, _)| host)
    }

    fn rests(&self, host: &HostId, now: Tick) -> bool {
        self.failed.get(host).is_some_and(|failure| failure.until > now)
    }
}

impl Task {
    /// Orders what is missing of the replicas, and what is too much of them.
    pub(in crate::machine) fn replicate(&mut self, cx: &mut Cx<'_>) {
        let Some(mut keep) = self.keep.take() else { return };
        let length = self.geometry.map_or(0, |geometry| geometry.content_length());
        keep.failed.retain(|host, failure| {
            cx.hosts.get(host).is_some_and(|host| !failure.is_over(&host.info, length))
        });
        keep.orders.retain(|host, given| {
            let stays = cx.hosts.get(host).is_some_and(|host| host.alive);
            if !stays {
                cx.orders.remove(&given.order);
            }
            stays
        });
        let due =
            keep.progress == Progress::Succeeded && cx.now >= keep.not_before && cx.now >= cx.grace_until;
        if due && keep.expires() > cx.now {
            self.order_missing(&mut keep, length, cx);
            self.order_surplus(&mut keep, cx);
        }
        self.keep = Some(keep);
    }

    /// Hosts with whole replicas, but for those that are about to be none.
    fn replicas<'a>(&'a self, keep: &'a Keep, cx: &'a Cx<'_>) -> impl Iterator<Item = &'a Host> {
        let copies = self.peers.values().filter(|peer| peer.persistent && self.is_copy(peer));
        copies
            .filter(|peer| !keep.orders.contains_key(&peer.host))
            .filter_map(|peer| cx.hosts.get(&peer.host))
    }

    fn order_missing(&self, keep: &mut Keep, length: u64, cx: &mut Cx<'_>) {
        let there = self.replicas(keep, cx).filter(|host| counts(host, cx)).map(|host| &host.info);
        let making = keep.making().filter_map(|host| cx.hosts.get(host)).map(|host| &host.info);
        let mut replicas: Vec<&HostInfo> = there.chain(making).collect();
        let somebody_has_it = self.peers.values().any(|peer| self.is_copy(peer) && peer.potential);
        if replicas.len() >= keep.target() || !(somebody_has_it || self.is_empty_content()) {
            return;
        }
        let mut places = self.places(keep, length, cx);
        let mut chosen = Vec::new();
        while replicas.len() < keep.target() {
            let Some(best) = places::best(&places, &replicas, &self.key) else { break };
            let place = places.swap_remove(best);
            replicas.push(place.info);
            chosen.push((place.info.id.clone(), if place.copy { Errand::Promote } else { Errand::Fetch }));
        }
        let enough = replicas.len() >= keep.target();
        for (host, errand) in chosen {
            if !self.order(&host, errand, keep, cx) {
                return;
            }
        }
        if !enough {
            // Until another host comes.
            cx.starved.insert(self.key.clone());
        }
    }

    /// Where further replicas could be.
    fn places<'a>(&self, keep: &Keep, length: u64, cx: &'a Cx<'_>) -> Vec<Place<'a>> {
        let mut places = Vec::new();
        for host in cx.hosts.iter() {
            let id = &host.info.id;
            if !takes_orders(host) || keep.orders.contains_key(id) || keep.rests(id, cx.now) {
                continue;
            }
            let peer = self.peers.values().filter(|peer| peer.host == *id).max_by_key(|peer| peer.persistent);
            let copy = peer.is_some_and(|peer| self.is_copy(peer));
            if peer.is_some_and(|peer| peer.persistent && copy) {
                continue;
            }
            if !copy && host.info.disk_free.is_some_and(|free| free < length) {
                continue;
            }
            places.push(self.place(host, copy, keep));
        }
        places
    }

    fn place<'a>(&self, host: &'a Host, copy: bool, keep: &Keep) -> Place<'a> {
        let failures = keep.failed.get(&host.info.id).map_or(0, |failure| failure.times);
        Place { info: &host.info, children: host.children, copy, failures }
    }

    fn order_surplus(&self, keep: &mut Keep, cx: &mut Cx<'_>) {
        let fetching = |peer: &super::Peer| peer.persistent && peer.is_active() && !self.is_copy(peer);
        if keep.making().next().is_some() || self.peers.values().any(fetching) {
            return;
        }
        // A host that has just come back counts once it has said all that it holds.
        let settled = |host: &&Host| takes_orders(host) && host.listing.is_none();
        let settled = self.replicas(keep, cx).filter(settled);
        let mut replicas: Vec<Place<'_>> = settled.map(|host| self.place(host, true, keep)).collect();
        let mut chosen = Vec::new();
        while replicas.len() > keep.target() {
            let may = |place: &Place<'_>| !keep.rests(&place.info.id, cx.now);
            let Some(surplus) = places::surplus(&replicas, &self.key, may) else { break };
            chosen.push(replicas.swap_remove(surplus).info.id.clone());
        }
        for host in chosen {
            if !self.order(&host, Errand::Demote, keep, cx) {
                return;
            }
        }
    }

    /// Gives an order; not while too many are under way: then this task waits for one of them to end.
    fn order(&self, host: &HostId, errand: Errand, keep: &mut Keep, cx: &mut Cx<'_>) -> bool {
        if cx.orders.len() >= MAX_ORDERS {
            cx.starved.insert(self.key.clone());
            return false;
        }
        let order = cx.new_lease();
        let Some(place) = cx.hosts.get(host) else { return true };
        let task = self.key.clone();
        let effect = match (place.hold, errand) {
            (Some(hold), Errand::Fetch | Errand::Promote) => {
                Effect::Order(hold, order, Order::Replicate(task))
            }
            (Some(hold), Errand::Demote) => Effect::Order(hold, order, Order::Demote(task)),
            (None, _) => Effect::Copy {
                order,
                task,
                host: host.clone(),
                address: place.info.address,
                copy: match errand {
                    Errand::Fetch => Copy::Fetch {
                        tag: self.about.tag.clone(),
                        application: self.about.application.clone(),
                    },
                    Errand::Promote => Copy::Promote,
                    Errand::Demote => Copy::Delete,
                },
            },
        };
        cx.out.push(effect);
        cx.orders.insert(order, (self.key.clone(), host.clone()));
        keep.orders.insert(host.clone(), Given { order, errand });
        true
    }

    /// The host keeps its copy no longer.
    fn demoted(&mut self, host: &HostId, cx: &mut Cx<'_>) {
        let ours = cx.hosts.get(host).is_some_and(|host| host.is_ours());
        let copies: Vec<PeerId> =
            self.peers.values().filter(|peer| peer.host == *host).map(|peer| peer.id.clone()).collect();
        for id in copies {
            if !ours {
                self.remove(&id, Ending::Refused("the copy was deleted on this host".to_owned()), cx);
            } else if let Some(peer) = self.peers.get_mut(&id) {
                peer.persistent = false;
            }
        }
    }

    /// When something about the replicas is due next.
    pub(in crate::machine) fn keep_deadline(&self, cx: &Cx<'_>) -> Option<Tick> {
        let keep = self.keep.as_ref()?;
        let dying = self.peers.values().filter(|peer| peer.persistent).filter_map(|peer| {
            let host = cx.hosts.get(&peer.host).filter(|host| !host.alive)?;
            Some(host.updated + cx.config.repair_after)
        });
        let rested = keep.failed.values().map(|failure| failure.until);
        let at = dying.chain(rested).chain([keep.not_before, cx.grace_until, keep.expires()]);
        at.filter(|at| *at > cx.now).min()
    }
}

/// Whether what a host has counts: it lives, or may come back.
fn counts(host: &Host, cx: &Cx<'_>) -> bool {
    host.alive || host.updated + cx.config.repair_after > cx.now
}

/// Whether a host can be told to keep something, and others can fetch it there.
fn takes_orders(host: &Host) -> bool {
    host.alive && !host.info.disable_shared && (!host.is_ours() || host.hold.is_some())
}

impl Scheduler {
    /// Whether the order was this host's: nobody answers for another.
    pub(in crate::machine) fn is_ordered(&self, order: u64, host: &HostId) -> bool {
        self.orders.get(&order).is_some_and(|(_, ordered)| ordered == host)
    }

    /// An order was carried out, or not.
    pub(in crate::machine) fn order_done(
        &mut self,
        order: u64,
        error: Option<&str>,
        now: Tick,
        out: &mut Vec<Effect>,
    ) {
        let Some((key, host)) = self.orders.remove(&order) else { return };
        let made = self.with(&key, now, out, |task, cx| {
            let keep = task.keep.as_mut()?;
            let given = keep.orders.remove(&host)?;
            if error.is_some() {
                if let Some(place) = cx.hosts.get(&host) {
                    let failure = Failure::after(keep.failed.get(&host), &place.info, cx.now);
                    keep.failed.insert(host.clone(), failure);
                }
                return None;
            }
            keep.failed.remove(&host);
            if given.errand == Errand::Demote {
                task.demoted(&host, cx);
                return None;
            }
            let peer = task.peer_of(&host, PeerId::held(&host, &key.id), cx);
            task.holds_all(&peer, cx);
            Some(())
        });
        if made.flatten().is_some() {
            self.unearth(&key, &host);
        }
        self.feed_starved();
    }

    /// There is room for orders again, or another host to give them to.
    pub(in crate::machine) fn feed_starved(&mut self) {
        let starved = std::mem::take(&mut self.starved);
        self.dirty.extend(starved);
    }

    /// The process that was to carry out a host's orders is gone: they are given again, to whomever.
    pub(in crate::machine) fn orders_lost(&mut self, host: &HostId, now: Tick, out: &mut Vec<Effect>) {
        let lost: Vec<(u64, TaskKey)> = self
            .orders
            .iter()
            .filter(|(_, (_, ordered))| ordered == host)
            .map(|(order, (task, _))| (*order, task.clone()))
            .collect();
        if !lost.is_empty() {
            self.feed_starved();
        }
        for (order, task) in lost {
            self.orders.remove(&order);
            self.with(&task, now, out, |task, _| {
                if let Some(keep) = &mut task.keep {
                    keep.orders.remove(host);
                }
            });
        }
    }
}
