//! What follows for a task from whatever has just happened: leases, answers, pushes, and when to look again.

use std::collections::BTreeSet;
use std::time::Duration;

use damselfly_core::download::{Lease, ORIGIN_WINDOW};
use damselfly_core::pieces::runs;
use damselfly_core::{PeerId, Tick};

use super::Cx;
use super::candidates::Candidate;
use super::event::{Answer, Ending};
use super::peers::{Peer, Step};
use super::tasks::Task;

/// The longest time without a lease after giving several back in a row.
const MAX_HOLD_OFF: Duration = Duration::from_secs(30);
/// What the first peer of unknown content is to fetch: it asks for two pieces at first, and others may be about to come.
const FIRST_LEASE: u32 = 2;

/// How free pieces are shared out.
#[derive(Debug)]
struct Shares {
    /// Pieces per lease, at most.
    lease: usize,
    /// Who has so many leased and unfinished needs no more.
    enough: usize,
}

impl Shares {
    /// A peer alone gets long leases. Of several each gets the less at a time the fewer are left: all have something to
    /// swap from the start, and in the end nobody sits on pieces that another could be fetching. Until then everybody has
    /// its next piece before the one at hand is done.
    fn of(free: usize, sharing: usize, most: usize) -> Self {
        let sharing = sharing.max(1);
        let most = most.max(1);
        let lease = if sharing == 1 { most } else { (free / sharing / 2).clamp(1, most) };
        let at_a_time = (ORIGIN_WINDOW / sharing).max(1);
        let next = usize::from(free > 2 * sharing);
        Self { lease, enough: (lease / 2).max(at_a_time + next) }
    }
}

impl Task {
    /// Does all that is due. Afterwards every peer that may ask the origin has leases enough or there is nothing left
    /// to lease, and every waiting peer waits for something that will happen or for a deadline.
    pub(super) fn settle(&mut self, cx: &mut Cx<'_>) {
        self.expire(cx);
        let open = self.open_for_push(cx);
        let mut pushed = BTreeSet::new();
        for id in &open {
            if self.push_facts(id, cx) {
                pushed.insert(id.clone());
            }
        }
        if self.is_empty_content() {
            self.answer_empty(cx);
        } else {
            self.grant(cx);
            self.answer_waiting(cx);
            for id in self.open_for_push(cx) {
                if self.push_list(&id, cx) {
                    pushed.insert(id);
                }
            }
            // A list may show that held pieces are out of reach for a peer.
            self.grant(cx);
            self.greet(cx);
        }
        // Larger swarms are told less often. A list that became doubtful while others were looked at waits, too.
        let next = cx.now + cx.config.push_gap + Duration::from_millis(self.peers.len() as u64);
        for peer in self.peers.values_mut() {
            if pushed.contains(&peer.id) || (peer.list_dirty && peer.next_push <= cx.now) {
                peer.next_push = next;
            }
        }
        self.refuse_hopeless(cx);
        self.replicate(cx);
    }

    /// Ends what has run out: leases, whole-task leaves, blocks, a seed's time to register.
    fn expire(&mut self, cx: &mut Cx<'_>) {
        let silent = self.silent_fetcher().cloned();
        for id in self.coverage.expire(cx.now, silent.as_ref()) {
            cx.counters.leases_expired += 1;
            self.set_back(&id, cx.now);
            self.refresh(&id, cx);
        }
        let over: Vec<PeerId> =
            self.whole.iter().filter(|(_, until)| **until <= cx.now).map(|(id, _)| id.clone()).collect();
        for id in over {
            cx.counters.leases_expired += 1;
            self.whole.remove(&id);
            self.refresh(&id, cx);
        }
        for peer in self.peers.values_mut() {
            let before = peer.blocked.len();
            peer.blocked.retain(|_, until| until.is_none_or(|until| until > cx.now));
            peer.list_dirty |= peer.blocked.len() < before;
        }
        let late = self.seeding.as_ref().filter(|seeding| seeding.until.is_some_and(|until| until <= cx.now));
        if let Some(host) = late.map(|seeding| seeding.host.clone()) {
            self.seed_failed(&host, cx.now);
        }
    }

    /// The peer gave a lease back or let it run out: others come first for a while.
    pub(super) fn set_back(&mut self, id: &PeerId, now: Tick) {
        if let Some(peer) = self.peers.get_mut(id) {
            let pause = Duration::from_secs(1 << peer.setbacks.min(5));
            peer.hold_off = now + pause.min(MAX_HOLD_OFF);
            peer.setbacks += 1;
        }
    }

    fn open_for_push(&self, cx: &Cx<'_>) -> Vec<PeerId> {
        self.peers
            .values()
            .filter(|peer| peer.ours && peer.is_active() && peer.next_push <= cx.now && !peer.metadata_only)
            .map(|peer| peer.id.clone())
            .collect()
    }

    /// Nothing is granted before.
    fn grace(&self, cx: &Cx<'_>) -> Tick {
        self.grace_until.max(cx.grace_until)
    }

    fn may_lease(&self, id: &PeerId, cx: &Cx<'_>) -> bool {
        let Some(peer) = self.peers.get(id) else { return false };
        peer.ours
            && peer.is_active()
            && peer.may_use_origin
            && !peer.metadata_only
            && peer.hold_off <= cx.now
            && cx.hosts.get(&peer.host).is_some_and(|host| host.alive)
            && self.seeding.as_ref().is_none_or(|seeding| seeding.host == peer.host)
    }

    /// Leases to whoever may have one and has little left, those with the least first.
    fn grant(&mut self, cx: &mut Cx<'_>) {
        if cx.now < self.grace(cx) {
            return;
        }
        let nothing = self.coverage.free().is_empty() || !self.whole.is_empty();
        if self.geometry.is_some() && nothing && self.peers.values().all(|peer| peer.stranded.is_empty()) {
            return;
        }
        let mut eligible: Vec<(usize, u64, PeerId)> = self
            .peers
            .values()
            .filter(|peer| self.may_lease(&peer.id, cx))
            .map(|peer| (self.coverage.unfinished(&peer.id), peer.order, peer.id.clone()))
            .collect();
        eligible.sort();
        if self.geometry.is_none() {
            // Unknown content: one peer asks, and the others learn from it. Others may be about to come.
            let first = eligible.first().filter(|_| !self.coverage.any() && self.whole.is_empty());
            if let Some((_, _, id)) = first {
                self.lease(&id.clone(), (0..FIRST_LEASE).collect(), cx);
            }
            return;
        }
        if self.without_ranges() {
            let all = self.coverage.free().len();
            let next = eligible.iter().find(|(_, _, id)| !self.coverage.any_other(id)).cloned();
            if let Some((_, _, id)) = next {
                self.solo = Some(id.clone());
                let pieces = self.leasable(&id, all);
                self.lease(&id, pieces, cx);
            }
            return;
        }
        self.share_out(eligible, cx);
    }

    /// Shares the free pieces out among those who have little left, a lease's worth each at most. Peers that want different
    /// parts may leave some over, which the next round gives to the others.
    fn share_out(&mut self, mut needy: Vec<(usize, u64, PeerId)>, cx: &mut Cx<'_>) {
        let sharing = needy.len();
        loop {
            let shares = Shares::of(self.coverage.free().len(), sharing, cx.config.lease_pieces as usize);
            needy.retain(|(_, _, id)| self.coverage.unfinished(id) < shares.enough);
            let share = self.coverage.free().len().div_ceil(needy.len().max(1)).clamp(1, shares.lease);
            needy.retain(|(_, _, id)| {
                let pieces = self.leasable(id, share);
                !pieces.is_empty() && self.lease(id, pieces, cx)
            });
            if needy.is_empty() {
                return;
            }
        }
    }

    /// The first `most` pieces that the peer misses and that may be leased to it.
    fn leasable(&self, id: &PeerId, most: usize) -> Vec<u32> {
        let (Some(peer), Some(geometry)) = (self.peers.get(id), self.geometry) else { return Vec::new() };
        let wanted = peer.wants(&geometry);
        let free = self.coverage.free().range(wanted).copied();
        let free = free.filter(|piece| self.whole.is_empty() && !peer.pieces.contains(*piece));
        let stranded = peer
            .stranded
            .iter()
            .copied()
            .filter(|piece| !peer.pieces.contains(*piece) && self.coverage.leased_to(*piece).is_none());
        free.chain(stranded).take(most).collect()
    }

    /// Grants a lease for those of `pieces` that nobody else has; says whether there were any.
    fn lease(&mut self, id: &PeerId, pieces: Vec<u32>, cx: &mut Cx<'_>) -> bool {
        let silence = self.silence(cx.config.lease_silence);
        let lease = cx.new_lease();
        let granted = self.coverage.grant(lease, id, pieces.into_iter(), cx.now + silence);
        if granted.is_empty() {
            return false;
        }
        cx.counters.leases_granted += 1;
        // What runs already shows life as much as what begins.
        self.coverage.renew(id, cx.now + silence);
        let (ranges, generation) = (runs(granted), self.generation_for(id));
        let lease = Lease { id: lease, ranges, silence, generation };
        let answer = Answer::BackToSource { description: "nobody has these pieces yet", lease: Some(lease) };
        self.answer(id, answer, cx);
        self.refresh(id, cx);
        true
    }

    /// A peer of ours that there is nothing to tell yet is told that: its daemon takes a scheduler that says nothing
    /// for a dead one, and asks the origin without leave.
    fn greet(&mut self, cx: &mut Cx<'_>) {
        let silent = |peer: &&Peer| peer.ours && peer.is_active() && peer.answers == 0;
        let ids: Vec<PeerId> = self.peers.values().filter(silent).map(|peer| peer.id.clone()).collect();
        for id in ids {
            self.answer(&id, Answer::Parents(Vec::new()), cx);
        }
    }

    fn answer_empty(&mut self, cx: &mut Cx<'_>) {
        let waiting: Vec<PeerId> = self
            .peers
            .values()
            .filter(|peer| peer.stream.is_some() && peer.waiting.is_some())
            .map(|peer| peer.id.clone())
            .collect();
        for id in waiting {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.waiting = None;
            }
            self.advance(&id, Step::RegisterEmpty, cx.now);
            self.answer(&id, Answer::Empty, cx);
        }
    }

    /// Answers every waiting Dragonfly peer that can be answered.
    fn answer_waiting(&mut self, cx: &mut Cx<'_>) {
        let mut waiting: Vec<(u64, PeerId)> = self
            .peers
            .values()
            .filter(|peer| !peer.ours && peer.is_active() && peer.waiting.is_some())
            .map(|peer| (peer.order, peer.id.clone()))
            .collect();
        waiting.sort();
        for (_, id) in waiting {
            self.answer_dragonfly(&id, cx);
        }
    }

    fn answer_dragonfly(&mut self, id: &PeerId, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get(id) else { return };
        let Some(since) = peer.waiting else { return };
        if peer.answers >= cx.config.answer_limit {
            self.refuse(id, "scheduling exceeded the number of answers a daemon accepts", cx);
            return;
        }
        let waited = cx.now.since(since);
        let possible = peer.may_use_origin && self.whole.len() < cx.config.back_to_source_limit;
        let ready = cx.now >= self.grace(cx);
        if !peer.need_back_to_source && !peer.suspect {
            let candidates: Vec<Candidate> = self.candidates(peer, cx);
            let parents: Vec<PeerId> = candidates
                .iter()
                .filter(|candidate| candidate.room)
                .take(cx.config.parent_limit)
                .map(|candidate| candidate.id.clone())
                .collect();
            if !parents.is_empty() {
                self.set_parents(id, parents.iter().cloned().collect(), cx);
                let answer = Answer::Parents(self.describe(&parents));
                self.answered(id, answer, cx);
                return;
            }
            let hope = !candidates.is_empty() || self.is_fetched_by_other(id);
            if hope && waited < cx.config.back_to_source_after {
                return;
            }
        }
        if possible && ready {
            let until = cx.now + self.silence(cx.config.lease_silence);
            self.whole.insert(id.clone(), until);
            cx.counters.leases_granted += 1;
            let description = if waited < cx.config.back_to_source_after {
                "no peer has the content"
            } else {
                "scheduling exceeded RetryBackToSourceLimit"
            };
            self.answered(id, Answer::BackToSource { description, lease: None }, cx);
            self.refresh(id, cx);
        } else if !possible && waited >= cx.config.refuse_after {
            self.refuse(id, "scheduling exceeded RetryLimit: nobody can serve the content", cx);
        }
    }

    fn answered(&mut self, id: &PeerId, answer: Answer, cx: &mut Cx<'_>) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.waiting = None;
        }
        self.answer(id, answer, cx);
    }

    pub(super) fn refuse(&mut self, id: &PeerId, why: &str, cx: &mut Cx<'_>) {
        cx.counters.refused += 1;
        self.advance(id, Step::Fail, cx.now);
        self.retire(id, cx);
        self.close(id, Ending::Refused(why.to_owned()), cx);
    }

    /// Looks at the list of a peer of ours again and sends it if it changed; says whether it did.
    fn push_list(&mut self, id: &PeerId, cx: &mut Cx<'_>) -> bool {
        let Some(peer) = self.peers.get(id).filter(|peer| peer.list_dirty) else { return false };
        let Some(geometry) = self.geometry else { return false };
        let candidates = self.candidates(peer, cx);
        let list = self.choose(peer, &candidates, cx.config.our_parent_limit);
        let out_of_reach = (!peer.blocked.is_empty() || self.dragonfly > 0)
            && peer.may_use_origin
            && !candidates.iter().any(|candidate| self.whole.contains_key(&candidate.id));
        let stranded: BTreeSet<u32> = if out_of_reach {
            let reachable = |piece: u32| {
                candidates
                    .iter()
                    .filter_map(|candidate| self.peers.get(&candidate.id))
                    .any(|parent| parent.pieces.contains(piece))
            };
            peer.missing(&geometry)
                .filter(|piece| self.coverage.holders(*piece) > 0 || !self.whole.is_empty())
                .filter(|piece| !reachable(*piece))
                .collect()
        } else {
            BTreeSet::new()
        };
        let parents: BTreeSet<PeerId> = list.parents.iter().cloned().collect();
        let Some(peer) = self.peers.get_mut(id) else { return false };
        peer.list_dirty = false;
        peer.truncated = list.truncated;
        peer.uncovered = list.uncovered;
        peer.stranded = stranded;
        // Whoever asks may have forgotten what it was sent; and whoever asks is answered.
        let asked = std::mem::take(&mut peer.asked);
        if peer.pushed == parents && !asked {
            self.set_parents(id, parents, cx);
            return false;
        }
        peer.pushed.clone_from(&parents);
        self.set_parents(id, parents, cx);
        let answer = Answer::Parents(self.describe(&list.parents));
        self.answer(id, answer, cx);
        true
    }

    /// Refuses peers of ours that nothing can come to: nobody has or fetches the content, and they may not.
    fn refuse_hopeless(&mut self, cx: &mut Cx<'_>) {
        let mut hopeless = Vec::new();
        for peer in self.peers.values().filter(|peer| peer.ours && peer.is_active()) {
            // The cheap questions come first: this is asked at every step of a large swarm.
            let hope = peer.may_use_origin
                || peer.metadata_only
                || !peer.pushed.is_empty()
                || self.is_fetched_by_other(&peer.id)
                || self.geometry.is_some_and(|geometry| peer.missing(&geometry).next().is_none());
            let since = peer.waiting.unwrap_or(cx.now);
            if !hope || peer.waiting.is_some() {
                hopeless.push((peer.id.clone(), hope, since));
            }
        }
        for (id, hope, since) in hopeless {
            if !hope && cx.now.since(since) >= cx.config.refuse_after {
                self.refuse(&id, "nobody has the content, and this peer may not ask the origin", cx);
            } else if let Some(peer) = self.peers.get_mut(&id) {
                // With hope the wait begins anew; without a geometry the content may still turn out to be empty.
                let since = if hope { cx.now } else { since };
                peer.waiting = (!hope || self.geometry.is_none()).then_some(since);
            }
        }
    }

    /// When something of this task runs out next.
    pub(super) fn deadline(&self, cx: &Cx<'_>) -> Option<Tick> {
        let silent = self.silent_fetcher();
        let mut at = vec![
            self.coverage.deadline(silent),
            self.whole.values().min().copied(),
            self.seeding.as_ref().and_then(|seeding| seeding.until),
            self.keep_deadline(cx),
        ];
        let grace = self.grace(cx);
        let granting = self.geometry.is_none() || !self.coverage.free().is_empty();
        for peer in self.peers.values().filter(|peer| peer.is_active()) {
            at.extend(peer.blocked.values().copied());
            if cx.now < grace {
                at.push(Some(grace));
            }
            if let Some(since) = peer.waiting {
                let give_up =
                    [cx.config.back_to_source_after, cx.config.refuse_after].map(|wait| since + wait);
                at.extend(give_up.into_iter().filter(|at| *at > cx.now).map(Some));
            }
            if peer.ours {
                let facts =
                    self.learned.is_some() && peer.facts_seen.is_none_or(|seen| seen < self.ledger.len());
                let list = peer.list_dirty && self.geometry.is_some();
                if (facts || list) && peer.next_push > cx.now {
                    at.push(Some(peer.next_push));
                }
                let stranded = !peer.stranded.is_empty();
                if peer.may_use_origin && (granting || stranded) && peer.hold_off > cx.now {
                    at.push(Some(peer.hold_off));
                }
            }
        }
        at.into_iter().flatten().min()
    }
}
