//! A peer registers: what it brings along, and the rules that decide before any parent is looked for.

use damselfly_core::geometry::MAX_PIECES;
use damselfly_core::{HostId, Kind, PeerId, PieceSet, Tick};

use super::event::{Answer, Effect, Ending, PeerEvent, Priority, Register, Restate, StreamId};
use super::leases::pieces_of;
use super::peers::{Peer, Step};
use super::privacy::ELSEWHERE;
use super::seeding::Seeding;
use super::tasks::{Task, TaskState};
use super::timers::Timer;
use super::{Cx, Scheduler, Seat};

/// Messages kept while a registration waits for its host.
const MAX_HELD: usize = 256;

impl Scheduler {
    /// The first message on a stream. A host that has not been announced may be about to be: both go over different
    /// streams.
    pub(super) fn first_message(&mut self, event: PeerEvent, now: Tick, out: &mut Vec<Effect>) {
        if self.hosts.get(&event.host).is_none() {
            let until = now + self.config.unknown_host_wait;
            self.timers.set(Timer::Held(event.stream), Some(until));
            let seat = Seat::Held { host: event.host.clone(), events: vec![event.clone()] };
            self.streams.insert(event.stream, seat);
            return;
        }
        let key = event.task.clone();
        if key.kind == Kind::PersistentCache && self.live(&key, now).is_none() {
            let why = format!("persistent cache task {} not found", key.id);
            out.push(Effect::Close(event.stream, Ending::NotFound(why)));
            return;
        }
        self.unearth(&key, &event.host);
        self.tasks.entry(key.clone()).or_insert_with(|| Task::new(key.clone(), now));
        self.with(&key, now, out, |task, cx| task.register(event, cx));
    }

    /// One more message of a registration that waits.
    pub(super) fn hold_back(&mut self, event: PeerEvent, out: &mut Vec<Effect>) {
        let stream = event.stream;
        let Some(Seat::Held { events, .. }) = self.streams.get_mut(&stream) else { return };
        if events.len() < MAX_HELD {
            events.push(event);
            return;
        }
        self.streams.remove(&stream);
        self.timers.set(Timer::Held(stream), None);
        out.push(Effect::Close(
            stream,
            Ending::Exhausted("too many messages before the host was announced".to_owned()),
        ));
    }

    /// The host is known now: its registrations go on.
    pub(super) fn release_held(&mut self, host: &HostId, now: Tick, out: &mut Vec<Effect>) {
        let waiting: Vec<StreamId> = self
            .streams
            .iter()
            .filter(|(_, seat)| matches!(seat, Seat::Held { host: held, .. } if held == host))
            .map(|(stream, _)| *stream)
            .collect();
        for stream in waiting {
            self.timers.set(Timer::Held(stream), None);
            if let Some(Seat::Held { events, .. }) = self.streams.remove(&stream) {
                for event in events {
                    self.peer_event(event, now, out);
                }
            }
        }
    }

    /// The host was not announced in time.
    pub(super) fn give_up_held(&mut self, stream: StreamId, out: &mut Vec<Effect>) {
        if let Some(Seat::Held { host, .. }) = self.streams.remove(&stream) {
            let why = format!("host {host} not found: announce it before its peers register");
            out.push(Effect::Close(stream, Ending::NotFound(why)));
        }
    }
}

impl Task {
    /// Takes a registration in.
    pub(super) fn register(&mut self, event: PeerEvent, cx: &mut Cx<'_>) {
        let PeerEvent { stream, host, peer: id, learned, message, .. } = event;
        let Some(super::PeerMessage::Register(register)) = message else { return };
        let Register { about, restate, range, .. } = *register;
        let register = Register { about: Default::default(), restate: None, range, ..*register };
        let (ours, seed) =
            cx.hosts.get(&host).map_or((false, false), |host| (host.is_ours(), host.info.seed));
        // What is kept is what its importer says. Who exports it has labels of its own.
        let elsewhere = self.keep.is_none() && self.take_about(about);
        let kept = self.peers.values().any(|peer| peer.host == host && peer.persistent);
        let inherited = self.absorb(&id, &host, ours, stream, cx);
        *cx.next_order += 1;
        let mut peer = Peer::new(id.clone(), host.clone(), ours, cx.now);
        peer.stream = Some(stream);
        peer.order = *cx.next_order;
        peer.priority = register.priority;
        peer.range = range;
        peer.may_use_origin = !register.disable_back_to_source;
        peer.need_back_to_source = register.need_back_to_source;
        peer.metadata_only = register.metadata_only;
        peer.elsewhere = elsewhere;
        peer.persistent = register.persistent || kept;
        peer.list_dirty = true;
        self.insert(peer, cx);
        cx.streams.insert(stream, Seat::Peer(self.key.clone(), id.clone()));
        if elsewhere && self.is_private() {
            return self.refuse(&id, ELSEWHERE, cx);
        }
        if let Some(learned) = learned.filter(|_| ours) {
            self.learn(&id, learned, cx);
            if !self.peers.get(&id).is_some_and(Peer::is_active) {
                return;
            }
        }
        if let Some(length) = register.content_length {
            self.learn_length(&id, length, register.piece_length, cx);
        }
        match restate.filter(|_| ours) {
            Some(restate) => self.restate(&id, restate, cx),
            None => {
                if let Some(pieces) = inherited.filter(|pieces| Some(pieces.count()) == self.piece_count()) {
                    self.set_pieces(&id, pieces, cx);
                }
            }
        }
        self.advance(&id, Step::RegisterNormal, cx.now);
        if register.metadata_only {
            self.answer(&id, Answer::MetadataOnly, cx);
            return;
        }
        self.state = TaskState::Running;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.waiting = Some(cx.now);
        }
        if let Some(seeding) = self.seeding.as_mut().filter(|seeding| seeding.host == host) {
            seeding.until = None;
        }
        let decided =
            self.coverage.has_lease(&id) || seed || register.need_back_to_source || self.is_empty_content();
        if !decided && !self.is_available(&id, &host) {
            self.apply_priority(&id, register.priority, stream, cx);
        }
    }

    pub(super) fn piece_count(&self) -> Option<u32> {
        self.geometry.map(|geometry| geometry.piece_count())
    }

    /// Takes the place of whoever this peer was before: itself on a stream that broke, or, for ours, what its host
    /// held without a stream. One daemon of ours has one store, so all of that is the same content. Returns its pieces.
    fn absorb(
        &mut self,
        id: &PeerId,
        host: &HostId,
        ours: bool,
        stream: StreamId,
        cx: &mut Cx<'_>,
    ) -> Option<PieceSet> {
        // A seed that takes its own place is still waited for.
        let seeding = self.seeding.take();
        let former: Vec<PeerId> = self
            .peers
            .values()
            .filter(|peer| peer.id == *id || (ours && peer.host == *host && !peer.is_active()))
            .map(|peer| peer.id.clone())
            .collect();
        let mut inherited: Option<PieceSet> = None;
        for former in former {
            let Some(peer) = self.peers.get_mut(&former) else { continue };
            if peer.stream == Some(stream) {
                peer.stream = None;
            }
            let pieces = std::mem::take(&mut inherited).unwrap_or_else(|| PieceSet::new(peer.pieces.count()));
            inherited = Some(peer.pieces.iter().fold(pieces, |mut pieces, piece| {
                pieces.insert(piece);
                pieces
            }));
            self.remove(&former, Ending::Superseded("the peer registered again".to_owned()), cx);
        }
        self.seeding = seeding;
        inherited
    }

    /// Takes over what the peer held and fetched before its stream or its scheduler died, unless it is of another
    /// version. Leases come back as far as nobody else has been given the pieces.
    fn restate(&mut self, id: &PeerId, restate: Restate, cx: &mut Cx<'_>) {
        let newest = restate.leases.iter().map(|lease| lease.generation).fold(restate.generation, u64::max);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.ahead = newest.saturating_sub(self.generation);
        }
        let known = self.learned.as_ref();
        if known.is_some_and(|known| known.validator.differs(&restate.validator)) {
            return;
        }
        match self.piece_count() {
            Some(count) => self.set_pieces(id, PieceSet::from_bytes(&restate.bitmap, count), cx),
            None => {
                let mut bitmap = restate.bitmap;
                bitmap.truncate(MAX_PIECES.div_ceil(8) as usize);
                if let Some(peer) = self.peers.get_mut(id) {
                    peer.early = Some(bitmap);
                }
            }
        }
        let held = self.peers.get(id).map(|peer| peer.pieces.clone()).unwrap_or_default();
        let most = self.piece_count().unwrap_or(cx.config.lease_pieces) as usize;
        let until = cx.now + self.silence(cx.config.lease_silence);
        if !restate.leases.is_empty() && self.peers.len() == 1 && !self.coverage.any() {
            // Others are about to restate theirs.
            self.grace_until = cx.now + cx.config.startup_grace;
        }
        for lease in restate.leases {
            let pieces = pieces_of(&lease.ranges, &held, most);
            let inside =
                pieces.into_iter().filter(|piece| self.geometry.is_none_or(|g| *piece < g.piece_count()));
            let inside: Vec<u32> = inside.collect();
            self.coverage.grant(lease.id, id, inside.into_iter(), until);
            *cx.next_lease = (*cx.next_lease).max(lease.id);
        }
        self.refresh(id, cx);
    }

    /// Whether another host has some of the content or fetches it.
    fn is_available(&self, id: &PeerId, host: &HostId) -> bool {
        self.is_fetched_by_other(id)
            || self.peers.values().any(|peer| peer.potential && peer.id != *id && peer.host != *host)
    }

    /// Nobody has the content: the priority says who may get it from where.
    fn apply_priority(&mut self, id: &PeerId, own: Priority, stream: StreamId, cx: &mut Cx<'_>) {
        let application = self.about.application.as_deref().unwrap_or_default();
        let priority = match own {
            Priority::Level0 => cx.config.applications.get(application).copied().unwrap_or_default(),
            own => own,
        };
        match priority {
            Priority::Level1 => {
                let why = "priority LEVEL1 forbids the origin, and no peer has the content";
                self.refuse(id, why, cx);
            }
            Priority::Level2 => {
                cx.counters.refused += 1;
                self.advance(id, Step::Fail, cx.now);
                self.retire(id, cx);
                let why = "priority LEVEL2 forbids the origin, and no peer has the content";
                self.close(id, Ending::NotFound(why.to_owned()), cx);
            }
            Priority::Level3 => {}
            Priority::Level0 | Priority::Level4 | Priority::Level5 | Priority::Level6 => {
                let failed = self.seed_failed.is_some_and(|at| cx.now.since(at) < cx.config.seed_retry);
                let Some(seed) = cx.hosts.seed_for(&self.key).filter(|_| !failed) else { return };
                let (host, address) = (seed.info.id.clone(), seed.info.address);
                cx.counters.seeds_triggered += 1;
                self.seeding =
                    Some(Seeding { host: host.clone(), until: Some(cx.now + cx.config.seed_deadline) });
                cx.out.push(Effect::TriggerSeed { stream, task: self.key.clone(), host, address });
            }
        }
    }

    /// A registration on a stream that is registered already: what the peer wants has changed.
    pub(super) fn register_again(&mut self, id: &PeerId, register: &Register, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.range = register.range;
        peer.may_use_origin = !register.disable_back_to_source;
        peer.need_back_to_source = register.need_back_to_source;
        peer.list_dirty = true;
        peer.hold_off = cx.now;
        if !peer.ours || self.geometry.is_none() {
            peer.waiting = Some(cx.now);
        }
        if let Some(length) = register.content_length {
            self.learn_length(id, length, register.piece_length, cx);
        }
    }
}
