//! Performing the machine's effects.

use std::sync::Arc;

use damselfly_api::common::v2 as common;
use damselfly_core::download::{
    AttemptId, Effect, Event, Failure, FailureKind, Fetch, FromAttempt, FromParent, FromScheduler, Lease,
    Outcome, Source, ToScheduler, Validator,
};
use damselfly_core::{Geometry, PeerId, PieceSet, PieceSpan};
use damselfly_storage::Facts;
use ractor::{Actor, ActorRef};
use tokio_util::sync::CancellationToken;

use super::fetch::{FetchArgs, Job, PieceFetch, Report, failure, storage_failure};
use super::session::{SchedulerSession, SessionArgs, SessionMsg};
use super::watch::{ParentWatch, WatchArgs};
use super::{Kid, Running, TaskMsg, TaskState, wire};
use crate::progress::ProgressEvent;

impl TaskState {
    /// Performs one effect; returns what it brought up at once.
    pub(super) async fn perform(&mut self, myself: &ActorRef<TaskMsg>, effect: Effect) -> Vec<Event> {
        match effect {
            Effect::Register { restate } => return self.register(myself, &restate).await,
            Effect::Tell(message) => self.tell(&message),
            Effect::Watch(parent) => return self.watch(myself, &parent).await,
            Effect::Unwatch(parent) => {
                if let Some(watch) = self.watches.remove(&parent) {
                    self.kids.remove(&watch.get_id());
                    watch.kill();
                }
            }
            Effect::Fetch(attempt, fetch) => return self.fetch(myself, attempt, fetch).await,
            Effect::Cancel(attempt) => {
                if let Some(running) = self.attempts.get(&attempt) {
                    running.cancel.cancel();
                }
            }
            Effect::Learn(learned) => return self.learn(&learned),
            Effect::Verified { piece, source, cost } => {
                self.count(piece, &source);
                self.args.progress.publish(ProgressEvent::Verified { piece, source, cost });
            }
            Effect::Invalidate(piece) => {
                if let Err(why) = tokio::task::block_in_place(|| self.args.content.invalidate(piece)) {
                    tracing::error!(piece, %why, "cannot drop a piece that the ledger contradicts");
                    return vec![Event::Cancel];
                }
            }
            Effect::NewGeneration(generation) => return self.new_generation(generation),
            Effect::ClientReady(client, range) => {
                self.args.progress.publish(ProgressEvent::Ready(client, range))
            }
            Effect::ClientFailed(client, why) => {
                self.args.progress.publish(ProgressEvent::Failed(client, why))
            }
            Effect::Finish(outcome) => self.finish(outcome),
        }
        Vec::new()
    }

    /// What this peer registers with: the first client's words, and what is known by now.
    fn registration(&self, geometry: Option<Geometry>) -> common::Download {
        let mut download = (*self.download).clone();
        if let Some(geometry) = geometry {
            wire::set_geometry(&mut download, geometry);
        }
        download.concurrent_piece_count = Some(self.engine().config.download.concurrent_piece_count);
        download
    }

    async fn register(&mut self, myself: &ActorRef<TaskMsg>, restate: &[Lease]) -> Vec<Event> {
        let meta = self.args.content.meta();
        let download = self.registration(meta.geometry);
        let held = self.args.content.pieces();
        let restated = (!restate.is_empty() || !held.is_empty())
            .then(|| wire::restate(restate, &held, meta.generation, &meta.validator));
        let args = SessionArgs {
            engine: Arc::clone(self.engine()),
            task: self.key.clone(),
            persistent: meta.persistent,
            register: Box::new(self.dialogue.register(download, restated)),
            geometry_known: meta.geometry.is_some(),
            supervisor: myself.clone(),
            seat: self.engine().board.sit(format!("{}/session", self.args.path)),
        };
        if let Some(old) = self.session.take() {
            self.kids.remove(&old.get_id());
            old.kill();
        }
        match Actor::spawn_linked(None, SchedulerSession, args, myself.get_cell()).await {
            Ok((session, _)) => {
                self.kids.insert(session.get_id(), Kid::Session);
                self.session = Some(session);
                Vec::new()
            }
            Err(why) => vec![Event::Scheduler(FromScheduler::Lost(why.to_string()))],
        }
    }

    fn tell(&mut self, message: &ToScheduler) {
        let Some(session) = &self.session else { return };
        let geometry = self.args.content.meta().geometry;
        let wire = match message {
            ToScheduler::Wants(range) => Some(self.dialogue.wants(self.registration(geometry), *range)),
            _ => self.dialogue.tell(message, geometry),
        };
        let Some(wire) = wire else { return };
        let wire = Box::new(wire);
        if !matches!(message, ToScheduler::Finished { .. } | ToScheduler::Failed { .. }) {
            drop(session.cast(SessionMsg::Tell(wire)));
            return;
        }
        // The farewell must not keep this supervisor, and so no client: the session ends beneath the registry.
        drop(session.cast(SessionMsg::Farewell(wire)));
        if let (Some(me), Some(registry)) = (session.try_get_supervisor(), self.engine().tasks.get()) {
            session.unlink(me);
            session.link(registry.get_cell());
        }
        self.kids.remove(&session.get_id());
        self.session = None;
    }

    async fn watch(&mut self, myself: &ActorRef<TaskMsg>, parent: &PeerId) -> Vec<Event> {
        let Some(known) = self.parents.get(parent) else {
            return vec![Event::Parent(parent.clone(), FromParent::Lost("address unknown".to_owned()))];
        };
        let geometry = self.args.content.meta().geometry;
        let interest = self.args.content.pieces().missing().collect();
        let args = WatchArgs {
            engine: Arc::clone(self.engine()),
            task: self.key.clone(),
            parent: known.clone(),
            interest,
            geometry,
            supervisor: myself.clone(),
            seat: self.engine().board.sit(format!("{}/watch {}", self.args.path, known.grpc)),
        };
        match Actor::spawn_linked(None, ParentWatch, args, myself.get_cell()).await {
            Ok((watch, _)) => {
                self.kids.insert(watch.get_id(), Kid::Watch(parent.clone()));
                self.watches.insert(parent.clone(), watch);
                Vec::new()
            }
            Err(why) => vec![Event::Parent(parent.clone(), FromParent::Lost(why.to_string()))],
        }
    }

    fn job(&mut self, fetch: Fetch) -> Result<Job, Failure> {
        let request = |headers| {
            self.requests
                .get(&headers)
                .cloned()
                .ok_or_else(|| failure(FailureKind::Cancelled, "the client of this origin request has left"))
        };
        Ok(match fetch {
            Fetch::Piece { piece, parent, crc, hedge } => {
                let parent = self.parents.get(&parent).cloned();
                let parent =
                    parent.ok_or_else(|| failure(FailureKind::Missing, "parent's address unknown"))?;
                Job::Piece { span: self.place(piece)?, parent, crc, hedge }
            }
            Fetch::OriginFirst { headers, first_piece } => {
                Job::OriginFirst { request: request(headers)?, first_piece }
            }
            Fetch::OriginPiece { piece, headers, hedge } => {
                let request = request(headers)?;
                Job::OriginPiece {
                    span: self.place(piece)?,
                    request,
                    expect: self.args.content.meta().validator,
                    hedge,
                }
            }
            Fetch::OriginStream { headers } => {
                Job::OriginStream { request: request(headers)?, expect: self.args.content.meta().validator }
            }
        })
    }

    /// Where the piece lies; room for all wanted pieces is reserved before the first is fetched.
    fn place(&mut self, piece: u32) -> Result<PieceSpan, Failure> {
        let geometry = self.args.content.meta().geometry;
        let span = geometry.and_then(|geometry| geometry.piece(piece));
        let span =
            span.ok_or_else(|| failure(FailureKind::Cancelled, "piece has no place in the content"))?;
        self.reserve()?;
        Ok(span)
    }

    fn reserve(&mut self) -> Result<(), Failure> {
        let wanted = self.machine.wanted();
        if *wanted != self.reserved {
            tokio::task::block_in_place(|| self.args.content.reserve(wanted))
                .map_err(|why| storage_failure(&why))?;
            self.reserved = self.machine.wanted().clone();
        }
        Ok(())
    }

    async fn fetch(&mut self, myself: &ActorRef<TaskMsg>, attempt: AttemptId, fetch: Fetch) -> Vec<Event> {
        let over = |why| vec![Event::Attempt(attempt, FromAttempt::Over(Err(why)))];
        let job = match self.job(fetch) {
            Ok(job) => job,
            Err(why) => return over(why),
        };
        let (name, span) = describe(attempt, &job);
        let (report, cancel) = (Arc::<Report>::default(), CancellationToken::new());
        let args = FetchArgs {
            engine: Arc::clone(self.engine()),
            content: Arc::clone(&self.args.content),
            attempt,
            job,
            lore: Arc::clone(&self.lore),
            report: Arc::clone(&report),
            supervisor: myself.clone(),
            cancel: cancel.clone(),
            limit: self.args.limit.clone(),
            span,
            seat: self.engine().board.sit(format!("{}/{name}", self.args.path)),
        };
        match Actor::spawn_linked(None, PieceFetch, args, myself.get_cell()).await {
            Ok((actor, _)) => {
                self.kids.insert(actor.get_id(), Kid::Fetch(attempt));
                self.attempts.insert(attempt, Running { report, cancel, seen: 0 });
                Vec::new()
            }
            Err(why) => over(failure(FailureKind::Retry { after: None }, why.to_string())),
        }
    }

    fn count(&mut self, piece: u32, source: &Source) {
        let span = self.args.content.meta().geometry.and_then(|geometry| geometry.piece(piece));
        let length = span.map_or(0, |span| span.length);
        match source {
            Source::Origin(_) => self.tally.origin += length,
            Source::Parent(parent) => {
                self.tally.peers += length;
                let (pieces, bytes) = self.tally.parents.entry(parent.clone()).or_default();
                *pieces += 1;
                *bytes += length;
            }
        }
    }

    fn learn(&mut self, learned: &damselfly_core::download::Learned) -> Vec<Event> {
        if let Some(length) = learned.content_length {
            let geometry = Geometry::new(length, learned.piece_length);
            let facts = geometry.map(|geometry| Facts {
                geometry: Some(geometry),
                validator: learned.validator.clone(),
                headers: learned.headers.clone(),
                private: learned.private,
            });
            let set = match facts {
                Ok(facts) => tokio::task::block_in_place(|| self.args.content.set_facts(facts))
                    .map_err(|why| why.to_string()),
                Err(why) => Err(why.to_string()),
            };
            if let Err(why) = set {
                tracing::error!(why, "content facts refused");
                return vec![Event::Cancel];
            }
        }
        self.args.progress.publish(ProgressEvent::Learned);
        self.admit()
    }

    /// The first contact with the origin fetches a piece before there is a length to reserve room for. What does not fit
    /// is refused before that piece is there.
    fn admit(&mut self) -> Vec<Event> {
        let Some(first) = self.attempts.keys().min().copied() else { return Vec::new() };
        let Err(why) = self.reserve() else { return Vec::new() };
        if let Some(running) = self.attempts.get(&first) {
            running.cancel.cancel();
        }
        vec![Event::Attempt(first, FromAttempt::Over(Err(why)))]
    }

    fn new_generation(&mut self, generation: u64) -> Vec<Event> {
        self.reserved = PieceSet::default();
        let content = &self.args.content;
        let begun =
            tokio::task::block_in_place(|| content.begin_generation(generation, Validator::default()));
        self.args.progress.publish(ProgressEvent::NewGeneration(generation));
        match begun {
            Ok(_) => Vec::new(),
            Err(why) => {
                tracing::error!(%why, "cannot begin a new generation");
                vec![Event::Cancel]
            }
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        tracing::info!(?outcome, "task over");
        if self.args.content.is_complete()
            && let Err(why) = tokio::task::block_in_place(|| self.args.content.mark_finished())
        {
            tracing::warn!(%why, "cannot record that the task is finished");
        }
        self.engine().holdings.changed();
        self.finished = Some(outcome);
    }
}

fn describe(attempt: AttemptId, job: &Job) -> (String, tracing::Span) {
    let number = attempt.0;
    match job {
        Job::Piece { span, parent, hedge, .. } => (
            format!("fetch {number} piece {} from {}", span.number, parent.grpc),
            tracing::info_span!("fetch", attempt = number, piece = span.number, parent = %parent.id, hedge),
        ),
        Job::OriginFirst { .. } => (
            format!("fetch {number} first contact"),
            tracing::info_span!("fetch", attempt = number, origin = "first"),
        ),
        Job::OriginPiece { span, .. } => (
            format!("fetch {number} piece {} from origin", span.number),
            tracing::info_span!("fetch", attempt = number, piece = span.number, origin = "range"),
        ),
        Job::OriginStream { .. } => {
            (format!("fetch {number} body"), tracing::info_span!("fetch", attempt = number, origin = "body"))
        }
    }
}
