//! The `Hold` stream with a scheduler of ours: signs of life, what this host holds, and orders.

mod ledger;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use damselfly_api::common::v2::Peer;
use damselfly_api::damselfly::v1::{
    Beat, Done, Hello, HoldRequest, HoldResponse, Holding, Leaving, TaskKind, Tombstone, Welcome,
    hold_request, hold_response,
};
use damselfly_core::{Kind, TaskId, TaskKey};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{info, warn};

use crate::ClientError;
use crate::announce::delete_host;
use crate::channel::ANSWER;
use crate::cluster::{Departure, Shared};
use crate::member::{Ended, Member, unknown_call};
use ledger::Ledger;

const OPERATION: &str = "Hold";
const BEAT: Duration = Duration::from_secs(2);
/// Changes of holdings are gathered for this long.
const GATHER: Duration = Duration::from_millis(250);
/// Messages between this driver and the network.
const WAITING: usize = 8;
/// Answers to orders that may wait.
const ANSWERS: usize = 64;
/// With so many messages waiting, no further orders are read.
const CONGESTED: usize = 4096;
/// A scheduler has this long to take the last words.
const FAREWELL: Duration = Duration::from_secs(2);

/// What this host holds.
pub trait Holdings: Send + Sync + 'static {
    /// Every task held, completely or in part, without CRCs.
    fn snapshot(&self) -> Vec<Holding>;
    /// The same with the CRCs of all pieces held, in the order of their numbers: a scheduler's ledger may be lost.
    fn listing(&self) -> Vec<Holding>;
    /// Tasks that were deleted and must not come back.
    fn tombstones(&self) -> Vec<Tombstone>;
    /// Changes whenever one of the two does.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// What a scheduler orders.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Fetch a task and keep it as a replica.
    Replicate {
        /// The task.
        task: TaskKey,
        /// Where from.
        parents: Vec<Peer>,
    },
    /// Delete a task up to a generation.
    Drop {
        /// The task.
        task: TaskKey,
        /// Later generations stay.
        generation: u64,
    },
    /// Keep a replica no longer, but as an ordinary copy.
    Demote {
        /// The task.
        task: TaskKey,
    },
}

/// An order of a scheduler. It wants an answer; one that is dropped without is given again after the next reconnect.
#[derive(Debug)]
pub struct Order {
    /// Who orders.
    pub scheduler: SocketAddr,
    /// What.
    pub command: Command,
    id: u64,
    answers: mpsc::Sender<Done>,
}

impl Order {
    /// Answers: carried out, or why not. An answer to a scheduler that is gone is dropped.
    pub async fn done(self, result: Result<(), String>) {
        // A closed channel is a stream that ended: its scheduler gives the order again.
        let _gone = self.answers.send(Done { order: self.id, error: result.err() }).await;
    }
}

/// The kind a scheduler of ours means; `None` for a number of the future.
#[must_use]
pub fn kind_from_wire(kind: i32) -> Option<Kind> {
    Some(match TaskKind::try_from(kind).ok()? {
        TaskKind::Standard => Kind::Standard,
        TaskKind::PersistentCache => Kind::PersistentCache,
        TaskKind::Cache => Kind::Cache,
    })
}

/// The number of a kind in `damselfly.v1`.
#[must_use]
pub fn kind_to_wire(kind: Kind) -> i32 {
    match kind {
        Kind::Standard => TaskKind::Standard,
        Kind::PersistentCache => TaskKind::PersistentCache,
        Kind::Cache => TaskKind::Cache,
    }
    .into()
}

fn request(request: hold_request::Request) -> HoldRequest {
    HoldRequest { request: Some(request) }
}

/// Holds on to a scheduler for as long as it can. `None`: the scheduler does not know `Hold`.
pub(crate) async fn hold(shared: &Arc<Shared>, member: &Member) -> Option<Ended> {
    let host = shared.options.host.host();
    let incarnation = host.incarnation.unwrap_or_default();
    let version = shared.options.version.clone();
    let (tx, rx) = mpsc::channel(WAITING);
    let hello = request(hold_request::Request::Hello(Hello { host: Some(host), incarnation, version }));
    // The channel is new and has room for this one; whatever drains it runs only once the call is under way.
    if tx.try_send(hello).is_err() {
        return Some(Ended::Broken(ClientError::Closed { scheduler: member.address }));
    }
    let mut client = member.cluster_client();
    let opening = async {
        let mut inbound = client.hold(ReceiverStream::new(rx)).await?.into_inner();
        let first = inbound.message().await?;
        Ok::<_, tonic::Status>((inbound, first))
    };
    let (inbound, first) = match tokio::time::timeout(ANSWER, opening).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(status)) if unknown_call(status.code()) => return None,
        Ok(Err(status)) => {
            return Some(Ended::Broken(ClientError::status(OPERATION, member.address, &status)));
        }
        Err(_) => {
            return Some(Ended::Broken(ClientError::Deadline {
                operation: OPERATION,
                scheduler: member.address,
                after: ANSWER,
            }));
        }
    };
    let Some(HoldResponse { response: Some(hold_response::Response::Welcome(welcome)) }) = first else {
        let what = "Hold did not begin with welcome".to_owned();
        return Some(Ended::Broken(ClientError::Protocol { scheduler: member.address, what }));
    };
    Some(stay(shared, member, tx, inbound, welcome).await)
}

/// Runs an open stream to its end.
async fn stay(
    shared: &Arc<Shared>,
    member: &Member,
    tx: mpsc::Sender<HoldRequest>,
    inbound: Streaming<HoldResponse>,
    welcome: Welcome,
) -> Ended {
    let epoch = welcome.epoch;
    if let Err(twin) = shared.healthy(member, welcome) {
        return Ended::Twin(twin);
    }
    info!(scheduler = %member.address, epoch, "holding on to scheduler");
    let (answers_tx, answers) = mpsc::channel(ANSWERS);
    let mut queue = VecDeque::new();
    let mut ledger = Ledger::default();
    let holdings = &shared.options.holdings;
    let mut changes = holdings.changes();
    changes.mark_unchanged();
    ledger.first(holdings.listing(), holdings.tombstones(), &mut queue);
    Stay { shared, member, tx, inbound, queue, ledger, changes, answers_tx, answers }.run().await
}

struct Stay<'a> {
    shared: &'a Arc<Shared>,
    member: &'a Member,
    tx: mpsc::Sender<HoldRequest>,
    inbound: Streaming<HoldResponse>,
    /// Not yet with the network. New holdings and answers are taken in only while it is short.
    queue: VecDeque<HoldRequest>,
    ledger: Ledger,
    changes: watch::Receiver<u64>,
    answers_tx: mpsc::Sender<Done>,
    answers: mpsc::Receiver<Done>,
}

/// What happens next on a stream.
enum Step {
    Answer(Result<Option<HoldResponse>, tonic::Status>),
    Room(Option<mpsc::OwnedPermit<HoldRequest>>),
    Beat,
    Changed(bool),
    Gathered,
    Done(Done),
    Leave(Departure),
}

impl Stay<'_> {
    async fn run(mut self) -> Ended {
        let shared = Arc::clone(self.shared);
        let mut departure = std::pin::pin!(shared.departure());
        let mut beats = tokio::time::interval_at(Instant::now() + BEAT, BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seq = 0;
        let mut dirty_since: Option<Instant> = None;
        let mut watching = true;
        loop {
            let step = tokio::select! {
                answer = self.inbound.message(), if self.queue.len() < CONGESTED => Step::Answer(answer),
                room = self.tx.clone().reserve_owned(), if !self.queue.is_empty() => Step::Room(room.ok()),
                _ = beats.tick() => Step::Beat,
                changed = self.changes.changed(), if watching => Step::Changed(changed.is_ok()),
                () = gathered(dirty_since), if self.queue.is_empty() => Step::Gathered,
                Some(done) = self.answers.recv(), if self.queue.len() < ANSWERS => Step::Done(done),
                departure = &mut departure => Step::Leave(departure),
            };
            match step {
                Step::Answer(Ok(Some(response))) => self.take(response),
                Step::Answer(Ok(None)) => {
                    return Ended::Broken(ClientError::Closed { scheduler: self.member.address });
                }
                Step::Answer(Err(status)) => return self.broken(&status),
                Step::Room(Some(room)) => {
                    if let Some(message) = self.queue.pop_front() {
                        room.send(message);
                    }
                }
                Step::Room(None) => return self.last_word().await,
                Step::Beat => {
                    seq += 1;
                    self.beat(seq);
                }
                Step::Changed(more) => {
                    watching = more;
                    dirty_since = dirty_since.or_else(|| more.then(Instant::now));
                }
                Step::Gathered => {
                    dirty_since = None;
                    let holdings = &self.shared.options.holdings;
                    self.ledger.changes(holdings.snapshot(), holdings.tombstones(), &mut self.queue);
                }
                Step::Done(done) => self.queue.push_back(request(hold_request::Request::Done(done))),
                Step::Leave(departure) => return self.leave(departure).await,
            }
        }
    }

    /// A beat goes before a long list of holdings, or the scheduler would think this host dead.
    fn beat(&mut self, seq: u64) {
        let beat = request(hold_request::Request::Beat(Beat { seq }));
        match self.queue.front_mut() {
            Some(HoldRequest { request: Some(hold_request::Request::Beat(waiting)) }) => waiting.seq = seq,
            _ => self.queue.push_front(beat),
        }
    }

    fn take(&mut self, response: HoldResponse) {
        let scheduler = self.member.address;
        type Make = Box<dyn FnOnce(TaskKey) -> Command>;
        let (id, kind, task, command): (_, _, _, Make) = match response.response {
            Some(hold_response::Response::Replicate(order)) => {
                let parents = order.parents;
                (order.order, order.kind, order.id, Box::new(|task| Command::Replicate { task, parents }))
            }
            Some(hold_response::Response::Drop(order)) => {
                let generation = order.generation;
                let command = move |task| Command::Drop { task, generation };
                (order.order, order.kind, order.id, Box::new(command))
            }
            Some(hold_response::Response::Demote(order)) => {
                (order.order, order.kind, order.id, Box::new(|task| Command::Demote { task }))
            }
            // A second welcome tells of a changed ring.
            Some(hold_response::Response::Welcome(welcome)) => {
                self.shared.ring_changed(self.member, &welcome);
                return;
            }
            None => return, // of a later version
        };
        let Some((kind, task)) = kind_from_wire(kind).zip(TaskId::parse(&task).ok()) else {
            return self.decline(id, "unknown kind of task or malformed task id");
        };
        let command = command(TaskKey { kind, id: task });
        let order = Order { scheduler, command, id, answers: self.answers_tx.clone() };
        // Waiting for room here would stop the beats.
        if self.shared.orders.try_send(order).is_err() {
            self.decline(id, "this host has too many orders to carry out; give it again later");
        }
    }

    fn decline(&mut self, order: u64, why: &str) {
        warn!(scheduler = %self.member.address, order, why, "order declined");
        let done = Done { order, error: Some(why.to_owned()) };
        self.queue.push_back(request(hold_request::Request::Done(done)));
    }

    fn broken(&self, status: &tonic::Status) -> Ended {
        Ended::Broken(ClientError::status(OPERATION, self.member.address, status))
    }

    /// The scheduler stopped reading: it says why, or does not.
    async fn last_word(mut self) -> Ended {
        match tokio::time::timeout(FAREWELL, self.inbound.message()).await {
            Ok(Err(status)) => self.broken(&status),
            _ => Ended::Broken(ClientError::Closed { scheduler: self.member.address }),
        }
    }

    async fn leave(mut self, departure: Departure) -> Ended {
        let (restarting, back_within) = match departure {
            Departure::ForGood => (false, None),
            Departure::Restarting { back_within } => {
                (true, prost_types::Duration::try_from(back_within).ok())
            }
        };
        self.shared.not_healthy(self.member, "this daemon is leaving".to_owned());
        let farewell = async {
            let leaving = request(hold_request::Request::Leaving(Leaving { restarting, back_within }));
            let answers = self.queue.drain(..).filter(|message| {
                matches!(
                    message.request,
                    Some(hold_request::Request::Done(_) | hold_request::Request::Tombstones(_))
                )
            });
            for message in answers.chain([leaving]) {
                if self.tx.send(message).await.is_err() {
                    return;
                }
            }
            drop(self.tx);
            // Orders that still come are not for this process any more.
            while let Ok(Some(_)) = self.inbound.message().await {}
        };
        let heard = tokio::time::timeout(FAREWELL, farewell).await.is_ok();
        if !restarting || !heard {
            let host = self.shared.options.host.host();
            if let Err(error) = delete_host(self.member, host.id).await {
                warn!(scheduler = %self.member.address, %error, "scheduler was not told that this host leaves");
            }
        }
        Ended::Left
    }
}

/// Ready when changes were gathered for long enough; never without any.
async fn gathered(since: Option<Instant>) {
    match since {
        Some(since) => tokio::time::sleep_until(since + GATHER).await,
        None => std::future::pending().await,
    }
}
