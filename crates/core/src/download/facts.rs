//! What is known of the content: geometry, version, pieces held, the CRC ledger; and how a new version replaces it.

use std::collections::BTreeMap;

use super::{
    Download, Effect, Facts, Failure, FailureKind, Held, Learned, LostClient, ToScheduler, Validator,
};
use crate::{Crc, Geometry, PeerId, PieceSet};

/// Facts kept while a new version waits to be taken up: as many as a scheduler says within the moment that takes.
const MAX_LATER: usize = 64;

/// The content as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) geometry: Option<Geometry>,
    pub(super) validator: Validator,
    pub(super) generation: u64,
    /// Whether the origin gives ranges; `None` while nobody knows: then it is tried.
    pub(super) ranges: Option<bool>,
    /// Somebody learned that the origin does not say how long the content is.
    pub(super) length_untold: bool,
    /// What our own attempt learned from the origin, until the content changes.
    pub(super) from_origin: Option<Learned>,
    /// Where the version comes from the origin itself in this run: what the scheduler had spoken of by then
    /// (`Dialogue::heard`). Only its later word outweighs that.
    seen_at_origin: Option<u64>,
    pub(super) held: PieceSet,
    /// The union of the waiting clients' pieces.
    pub(super) wanted: PieceSet,
    /// Wanted and not held.
    pub(super) missing: PieceSet,
    /// CRCs of held pieces and the parents that gave them, as far as known.
    pub(super) crcs: BTreeMap<u32, (Crc, Option<PeerId>)>,
    /// What the scheduler says the CRCs are.
    pub(super) ledger: BTreeMap<u32, Crc>,
}

/// A new version of the content was seen; it is taken up as soon as no attempt at the old one runs.
#[derive(Debug)]
pub(super) struct Restart {
    validator: Validator,
    /// As of the new version.
    seen_at_origin: Option<u64>,
    /// The scheduler's word on the new version, where it brought the news, and what it has said since.
    facts: Vec<Facts>,
}

impl Restart {
    fn keep(&mut self, facts: Facts) {
        self.facts.retain(|earlier| earlier.generation >= facts.generation);
        if self.facts.len() < MAX_LATER {
            self.facts.push(facts);
        }
    }
}

impl Known {
    pub(super) fn new(held: Held) -> Self {
        let count = held.geometry.map_or(0, |geometry| geometry.piece_count());
        let mut pieces = PieceSet::new(count);
        for number in held.pieces.iter() {
            pieces.insert(number);
        }
        Self {
            geometry: held.geometry,
            validator: held.validator,
            generation: held.generation,
            crcs: held.crcs.into_iter().map(|(piece, crc)| (piece, (crc, None))).collect(),
            held: pieces,
            wanted: PieceSet::new(count),
            missing: PieceSet::new(count),
            ..Self::default()
        }
    }

    pub(super) fn piece_count(&self) -> u32 {
        self.geometry.map_or(0, |geometry| geometry.piece_count())
    }

    /// Bytes of a piece; 0 when there is no such piece.
    pub(super) fn length_of(&self, piece: u32) -> u64 {
        self.geometry.and_then(|geometry| geometry.piece(piece)).map_or(0, |span| span.length)
    }

    /// Whether the origin can only be read from beginning to end.
    pub(super) fn stream_only(&self) -> bool {
        self.ranges == Some(false) || (self.geometry.is_none() && self.length_untold)
    }

    /// Whether `learned` speaks of another version than the one known.
    fn contradicts(&self, learned: &Learned, geometry: Option<Geometry>) -> bool {
        let length_differs =
            matches!((self.geometry, geometry), (Some(ours), Some(theirs)) if ours != theirs);
        length_differs || self.validator.differs(&learned.validator)
    }

    /// Fills in the parts of the validator that were not known.
    fn merge(&mut self, validator: &Validator) {
        let Validator { etag, last_modified } = validator;
        self.validator.etag = self.validator.etag.take().or_else(|| etag.clone());
        self.validator.last_modified = self.validator.last_modified.take().or_else(|| last_modified.clone());
    }
}

impl Download {
    /// Our own attempt has the origin's first answer.
    pub(super) fn on_learned(&mut self, learned: Learned) {
        let Some(geometry) = self.geometry_of(&learned) else { return };
        if self.known.contradicts(&learned, geometry) {
            return self.begin_restart(learned.validator, None);
        }
        self.known.merge(&learned.validator);
        self.known.seen_at_origin = Some(self.dialogue.heard.unwrap_or_default());
        self.stuck_since = None;
        self.known.ranges = learned.ranges.or(self.known.ranges);
        self.known.length_untold |= learned.content_length.is_none();
        let mut learned = learned;
        learned.piece_length = geometry.map_or(0, |geometry| geometry.piece_length());
        self.known.from_origin = Some(learned.clone());
        if let Some(geometry) = geometry {
            self.adopt(geometry, &learned);
        }
        self.dialogue.learned_told = false;
        self.tell_learned();
    }

    /// Passes on what the origin said, once per announce stream and news.
    pub(super) fn tell_learned(&mut self) {
        if self.dialogue.is_ours()
            && !self.dialogue.learned_told
            && self.restart.is_none()
            && let Some(learned) = self.known.from_origin.clone()
        {
            self.dialogue.learned_told = true;
            self.tell(ToScheduler::Learned(learned));
        }
    }

    /// The scheduler has spoken of this version. Says whether it is the newest so far; what was said of older ones is
    /// no news.
    pub(super) fn hear(&mut self, generation: u64) -> bool {
        if self.dialogue.heard.is_some_and(|heard| generation < heard) {
            return false;
        }
        if self.dialogue.heard.replace(generation).is_none() {
            // Its first word on a new stream was said without having heard what we saw.
            let restart = self.restart.as_mut().map(|restart| &mut restart.seen_at_origin);
            for seen in [Some(&mut self.known.seen_at_origin), restart].into_iter().flatten() {
                *seen = seen.map(|_| generation);
            }
        }
        true
    }

    /// Another stream, perhaps to another scheduler.
    pub(super) fn count_versions_anew(&mut self) {
        self.leases.count_anew();
        if let Some(restart) = &mut self.restart {
            restart.facts.clear();
        }
    }

    /// The scheduler says what it knows.
    pub(super) fn on_facts(&mut self, facts: Facts) {
        if !self.hear(facts.generation) {
            return;
        }
        match &mut self.restart {
            Some(restart) => restart.keep(facts),
            None => self.take_facts(facts),
        }
    }

    fn take_facts(&mut self, facts: Facts) {
        if let Some(learned) = &facts.learned {
            let Some(geometry) = self.geometry_of(learned) else { return };
            if self.known.contradicts(learned, geometry) {
                // Its CRCs are of that version, too.
                if self.known.seen_at_origin.is_none_or(|seen| seen < facts.generation) {
                    let validator = learned.validator.clone();
                    self.begin_restart(validator, Some(facts));
                }
                return;
            }
            self.known.merge(&learned.validator);
            self.known.ranges = self.known.ranges.or(learned.ranges);
            match geometry {
                Some(geometry) => self.adopt(geometry, &learned.clone()),
                None => self.known.length_untold = true,
            }
        }
        for (piece, crc) in (facts.first..).zip(facts.crcs) {
            self.on_ledger(piece, crc);
        }
    }

    /// The length at second hand, without a version to it. Where the origin comes to say another, that is a new version.
    pub(super) fn on_hearsay(&mut self, geometry: Geometry) {
        let told = self.known.seen_at_origin.is_some() || self.restarts > 0;
        if !told && self.restart.is_none() {
            self.adopt(geometry, &Learned::default());
        }
    }

    /// The ledger's word on one piece. A held piece that differs is given up, and its parent banned.
    fn on_ledger(&mut self, piece: u32, crc: Crc) {
        if self.known.geometry.is_some() && piece >= self.known.piece_count() {
            return;
        }
        self.known.ledger.insert(piece, crc);
        let Some((held, parent)) = self.known.crcs.get(&piece).cloned() else { return };
        if held == crc || !self.known.held.contains(piece) {
            return;
        }
        self.drop_piece(piece);
        if let Some(parent) = parent {
            self.ban(&parent, piece);
        }
    }

    /// A held piece is wrong.
    fn drop_piece(&mut self, piece: u32) {
        self.known.held.remove(piece);
        self.known.crcs.remove(&piece);
        self.emit(Effect::Invalidate(piece));
        self.recount_clients();
    }

    /// The geometry `learned` amounts to; the outer `None` when there cannot be one, which fails every client.
    fn geometry_of(&mut self, learned: &Learned) -> Option<Option<Geometry>> {
        let Some(length) = learned.content_length else { return Some(None) };
        match Geometry::told(length, self.config.piece_length.unwrap_or(learned.piece_length)) {
            Ok(geometry) => Some(Some(geometry)),
            Err(error) => {
                let failure = Failure {
                    kind: FailureKind::Refused,
                    message: error.to_string(),
                    status: None,
                    headers: learned.headers.clone(),
                };
                self.cancel_all();
                self.fail_everybody(|_| LostClient::Source(failure.clone()));
                None
            }
        }
    }

    /// Takes the geometry over, when it is news.
    pub(super) fn adopt(&mut self, geometry: Geometry, learned: &Learned) {
        if self.known.geometry.is_some() {
            return;
        }
        let count = geometry.piece_count();
        self.known.geometry = Some(geometry);
        self.known.held = PieceSet::new(count);
        self.known.ledger.retain(|&piece, _| piece < count);
        for parent in self.parents.values_mut() {
            parent.resize(count);
        }
        let learned = Learned {
            content_length: Some(geometry.content_length()),
            piece_length: geometry.piece_length(),
            ..learned.clone()
        };
        self.emit(Effect::Learn(learned));
        self.resolve_clients();
    }

    /// The content is another version. Attempts at the old one are cancelled, and its parents forgotten: what they hold
    /// is the old version as far as we know.
    pub(super) fn begin_restart(&mut self, validator: Validator, facts: Option<Facts>) {
        if self.restart.is_some() {
            return;
        }
        self.cancel_all();
        self.forget_parents();
        self.dialogue.forget_reports();
        // Where nobody waits it is for whoever joins before the end.
        self.restarts += u32::from(!self.clients.is_empty());
        if self.restarts > self.config.max_restarts {
            let before = self.known.validator.clone();
            self.fail_everybody(|_| LostClient::Changed { before: before.clone(), after: validator.clone() });
        }
        let seen_at_origin = facts.is_none().then(|| self.dialogue.heard.unwrap_or_default());
        self.restart = Some(Restart { validator, seen_at_origin, facts: facts.into_iter().collect() });
    }

    /// Begins the new generation once the last attempt at the old one is over.
    pub(super) fn settle_restart(&mut self) {
        // More than once where the scheduler has spoken of yet another version since.
        while self.attempts.is_empty()
            && !self.clients.is_empty()
            && let Some(restart) = self.restart.take()
        {
            self.stuck_since = None;
            let generation = self.known.generation + 1;
            self.known = Known {
                generation,
                validator: restart.validator,
                seen_at_origin: restart.seen_at_origin,
                ..Known::default()
            };
            self.emit(Effect::NewGeneration(generation));
            self.unresolve_clients();
            for facts in restart.facts {
                match &mut self.restart {
                    Some(restart) => restart.keep(facts),
                    None => self.take_facts(facts),
                }
            }
        }
    }
}
