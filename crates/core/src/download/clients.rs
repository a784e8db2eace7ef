//! The clients that wait, and what they still wait for.

use std::ops::Range;

use super::{Client, ClientId, Download, Effect, Failure, HeadersId, LastEnd, LostClient};
use crate::{ByteRange, PieceSet, RangeSpec};

/// A client that is neither satisfied nor failed.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) client: Client,
    /// What it wants, once the geometry is known.
    pub(super) wish: Option<Wish>,
}

/// A client's range in bytes and pieces.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) range: ByteRange,
    pub(super) pieces: Range<u32>,
    /// How many of the pieces are not held.
    pub(super) missing: u32,
}

impl Download {
    pub(super) fn on_join(&mut self, client: Client) {
        if self.clients.iter().any(|waiting| waiting.client.id == client.id) {
            return;
        }
        if client.may_use_origin {
            // A newcomer is a new chance: its headers may have been refused, or the origin given up, long ago.
            self.origin.forgive(client.headers);
        }
        if self.last_end.is_none() {
            self.dialogue.registers_with = match client.range {
                RangeSpec::Span(range) => Some(range),
                RangeSpec::Whole | RangeSpec::From(_) | RangeSpec::Last(_) => None,
            };
        }
        self.last_end = Some(LastEnd::Joined);
        self.stuck_since = None;
        self.clients.push(Waiting { client, wish: None });
        if self.restart.is_none() {
            // Else what is held is about to go.
            self.resolve_clients();
        }
    }

    pub(super) fn on_leave(&mut self, client: ClientId) {
        let before = self.clients.len();
        self.clients.retain(|waiting| waiting.client.id != client);
        if self.clients.len() < before {
            self.last_end = Some(LastEnd::Left);
            self.recount_wanted();
        }
    }

    pub(super) fn on_pause(&mut self) {
        self.paused = true;
        self.cancel_all();
    }

    pub(super) fn on_resume(&mut self) {
        self.paused = false;
        self.stuck_since = None;
        self.dialogue.listen_from(self.now);
    }

    pub(super) fn on_cancel(&mut self) {
        self.cancel_all();
        self.fail_everybody(|_| LostClient::Cancelled);
        self.last_end = Some(LastEnd::Cancelled);
    }

    /// Gives every client its pieces where the geometry allows it, and ends those that have them all or never can.
    pub(super) fn resolve_clients(&mut self) {
        let Some(geometry) = self.known.geometry else { return };
        let mut outside = Vec::new();
        for waiting in self.clients.iter_mut().filter(|waiting| waiting.wish.is_none()) {
            match waiting.client.range.resolve(geometry.content_length()) {
                Ok(range) => {
                    let pieces = geometry.pieces_of(range);
                    let missing =
                        pieces.clone().filter(|&piece| !self.known.held.contains(piece)).count() as u32;
                    waiting.wish = Some(Wish { range, pieces, missing });
                }
                Err(error) => outside.push((waiting.client.id, error.to_string())),
            }
        }
        for (client, why) in outside {
            self.fail_client(client, LostClient::Range(why));
        }
        self.recount_wanted();
        self.end_satisfied();
    }

    /// The content changed: nobody's pieces are known any more.
    pub(super) fn unresolve_clients(&mut self) {
        for waiting in &mut self.clients {
            waiting.wish = None;
        }
    }

    /// A held piece was given up.
    pub(super) fn recount_clients(&mut self) {
        for waiting in &mut self.clients {
            waiting.wish = None;
        }
        self.resolve_clients();
    }

    /// A piece is held now.
    pub(super) fn count_piece(&mut self, piece: u32) {
        self.known.missing.remove(piece);
        for wish in self.clients.iter_mut().filter_map(|waiting| waiting.wish.as_mut()) {
            if wish.pieces.contains(&piece) {
                wish.missing -= 1;
            }
        }
        self.end_satisfied();
    }

    fn end_satisfied(&mut self) {
        let before = self.clients.len();
        let mut ready = Vec::new();
        self.clients.retain(|waiting| match &waiting.wish {
            Some(wish) if wish.missing == 0 => {
                ready.push((waiting.client.id, wish.range));
                false
            }
            _ => true,
        });
        for (client, range) in ready {
            self.emit(Effect::ClientReady(client, range));
        }
        if self.clients.len() < before {
            self.last_end = Some(LastEnd::Ready);
            self.recount_wanted();
        }
    }

    fn recount_wanted(&mut self) {
        let count = self.known.piece_count();
        let mut wanted = PieceSet::new(count);
        for wish in self.clients.iter().filter_map(|waiting| waiting.wish.as_ref()) {
            wanted.insert_range(wish.pieces.clone());
        }
        let mut missing = wanted.clone();
        for piece in self.known.held.iter() {
            missing.remove(piece);
        }
        (self.known.wanted, self.known.missing) = (wanted, missing);
    }

    pub(super) fn fail_client(&mut self, client: ClientId, why: LostClient) {
        let before = self.clients.len();
        self.clients.retain(|waiting| waiting.client.id != client);
        if self.clients.len() < before {
            self.last_end = Some(LastEnd::Failed(reason(&why)));
            self.emit(Effect::ClientFailed(client, why));
            self.recount_wanted();
        }
    }

    pub(super) fn fail_everybody(&mut self, why: impl Fn(&Client) -> LostClient) {
        let lost: Vec<(ClientId, LostClient)> =
            self.clients.iter().map(|waiting| (waiting.client.id, why(&waiting.client))).collect();
        for (client, why) in lost {
            self.fail_client(client, why);
        }
    }

    /// The origin does not let these headers in: nobody with them may have the content.
    pub(super) fn fail_unauthorized(&mut self, headers: HeadersId, failure: &Failure) {
        let lost: Vec<ClientId> = self
            .clients
            .iter()
            .filter(|waiting| waiting.client.headers == headers)
            .map(|waiting| waiting.client.id)
            .collect();
        for client in lost {
            self.fail_client(client, LostClient::Source(failure.clone()));
        }
    }

    /// Fails the clients whose deadlines have passed.
    pub(super) fn settle_deadlines(&mut self) {
        let deadlines: Vec<_> = self
            .clients
            .iter()
            .filter_map(|waiting| Some((waiting.client.id, waiting.client.deadline?)))
            .collect();
        for (client, deadline) in deadlines {
            if self.due(deadline) {
                let waited_for = self.waited_for();
                self.fail_client(client, LostClient::Deadline(waited_for));
            }
        }
    }

    pub(super) fn progress_in_words(&self) -> String {
        if self.known.geometry.is_none() {
            return "the content's length is not known yet".to_owned();
        }
        let (missing, wanted) = (self.known.missing.len(), self.known.wanted.len());
        format!("{missing} of {wanted} pieces are missing")
    }

    /// What the download waits for, in words.
    pub(super) fn waited_for(&self) -> String {
        let progress = self.progress_in_words();
        let running = self.attempts.values().filter(|attempt| attempt.is_live()).count();
        let what = if self.paused {
            "the task is paused".to_owned()
        } else if self.restart.is_some() {
            "the content changed and begins anew".to_owned()
        } else if running > 0 {
            format!("{running} fetches are running")
        } else {
            self.what_was_tried()
        };
        format!("{progress}; {what}")
    }

    /// Whether a client may want the first piece, as far as can be told before the length is known.
    pub(super) fn first_piece_wanted(&self) -> bool {
        let piece_length = self.config.piece_length.unwrap_or(crate::geometry::MIN_PIECE_LENGTH);
        self.clients.iter().any(|waiting| match waiting.client.range {
            RangeSpec::Whole => true,
            RangeSpec::Span(range) => range.length > 0 && range.start < piece_length,
            RangeSpec::From(start) => start < piece_length,
            RangeSpec::Last(_) => false,
        })
    }
}

fn reason(why: &LostClient) -> String {
    match why {
        LostClient::Source(failure) => failure.message.clone(),
        LostClient::Range(why) | LostClient::Deadline(why) | LostClient::NoSource(why) => why.clone(),
        LostClient::Cancelled => "cancelled by the user".to_owned(),
        LostClient::Changed { .. } => "the content kept changing".to_owned(),
    }
}
