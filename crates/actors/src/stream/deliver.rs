//! Following one task for one client, from joining to the last byte.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use damselfly_api::common::v2::{Piece, TrafficType};
use damselfly_api::damselfly::v1::{Receipt, ReceiptParent};
use damselfly_core::download::Source;
use damselfly_core::{ByteRange, Content, Geometry, PeerId, PieceSet, RangeSpec};
use damselfly_storage::{Meta, PieceRef, Pin, TaskContent};
use tokio::time::Instant;
use tonic::Status;

use super::item::{Item, Started};
use super::join::{Joined, join};
use super::{StreamArgs, Telling, confirm, verdict};
use crate::local::persistent_cache;
use crate::metrics::Traffic;
use crate::progress::ProgressEvent;
use crate::task::wire;
use crate::tasks::Membership;

/// How long after a client's deadline its task may take to say so.
const LATE: Duration = Duration::from_secs(30);

/// What one client has seen so far.
struct Follower<'a> {
    args: &'a StreamArgs,
    content: Arc<TaskContent>,
    /// Until the output is in place: the supervisor may be gone by then.
    _pin: Pin,
    membership: Membership,
    began: Instant,
    was_complete: bool,
    confirmed: bool,
    story: Option<Story>,
    /// What the client was told of a version that is void now.
    former: Option<(Geometry, ByteRange)>,
    origin_bytes: u64,
    local_bytes: u64,
    parents: BTreeMap<PeerId, Share>,
}

/// What one parent gave.
#[derive(Default)]
struct Share {
    address: String,
    pieces: u32,
    bytes: u64,
}

/// From `Started` on.
struct Story {
    geometry: Geometry,
    range: ByteRange,
    pieces: std::ops::Range<u32>,
    told: PieceSet,
    /// In order: the next byte to send.
    next: u64,
}

/// Returns the bytes that were wanted and are delivered.
pub(super) async fn deliver(args: &StreamArgs) -> Result<u64, Status> {
    let Joined { content, pin, membership, was_complete, held } = join(args).await?;
    args.seat.show(format!("waiting for the task, as {}", membership.peer_id));
    let mut follower = Follower {
        args,
        content,
        _pin: pin,
        membership,
        began: Instant::now(),
        was_complete,
        confirmed: false,
        story: None,
        former: None,
        origin_bytes: 0,
        local_bytes: 0,
        parents: BTreeMap::new(),
    };
    follower.tell_held(&held).await?;
    loop {
        let event = follower.next().await?;
        if follower.take(event).await? {
            return follower.finish().await;
        }
    }
}

impl Follower<'_> {
    /// What happens next. The machine watches the client's deadline; this one is for a machine that does not.
    async fn next(&mut self) -> Result<ProgressEvent, Status> {
        let event = self.membership.events.next();
        let Some(deadline) = self.args.wish.deadline else { return Ok(event.await) };
        let late = self.args.engine.clock.instant(deadline) + LATE;
        tokio::time::timeout_at(late, event).await.map_err(|_| {
            Status::deadline_exceeded("the task did not end by the download's deadline; see the daemon's log")
        })
    }

    /// Takes one event; true when everything wanted is held.
    async fn take(&mut self, event: ProgressEvent) -> Result<bool, Status> {
        let me = self.membership.client;
        match event {
            ProgressEvent::Learned => self.begin(None).await?,
            ProgressEvent::Verified { piece, source, cost } => self.verified(piece, &source, cost).await?,
            ProgressEvent::NewGeneration(_) => self.renew()?,
            ProgressEvent::Ready(client, range) if client == me => {
                self.begin(Some(range)).await?;
                let held = self.content.pieces();
                self.tell_held(&held).await?;
                return Ok(true);
            }
            ProgressEvent::Failed(client, why) if client == me => return Err(verdict::status_of(&why)),
            ProgressEvent::Crashed => {
                return Err(Status::internal("the task's supervisor crashed twice; see the daemon's log"));
            }
            ProgressEvent::Ready(..) | ProgressEvent::Failed(..) => {}
        }
        Ok(false)
    }

    /// Sends `Started` once the geometry is known.
    async fn begin(&mut self, range: Option<ByteRange>) -> Result<(), Status> {
        if self.story.is_some() {
            return Ok(());
        }
        let meta = self.content.meta();
        let Some(geometry) = meta.geometry else { return Ok(()) };
        let resolved = match range {
            Some(range) => range,
            None => match self.args.wish.range.resolve(geometry.content_length()) {
                Ok(range) => range,
                // The machine tells this client what is wrong with its range.
                Err(_) => return Ok(()),
            },
        };
        self.confirm(&meta).await?;
        self.own();
        let pieces = geometry.pieces_of(resolved);
        let started = Started {
            peer_id: self.membership.peer_id.clone(),
            geometry,
            range: resolved,
            partial: self.args.wish.range != RangeSpec::Whole,
            headers: meta.headers,
            pieces: pieces.clone().filter_map(|number| geometry.piece(number)).collect(),
            was_complete: self.was_complete,
        };
        let told = PieceSet::new(geometry.piece_count());
        self.story = Some(Story { geometry, range: resolved, pieces, told, next: resolved.start });
        match self.former {
            _ if self.args.telling == Telling::Silent => Ok(()),
            None => self.args.send(Item::Started(started)).await,
            Some(former) if former == (geometry, resolved) => Ok(()),
            // A client compares every piece with the geometry it was told: that cannot be mended.
            Some(_) => Err(changed()),
        }
    }

    /// A task that was fetched with request headers is shown only to those whom the origin lets in.
    async fn confirm(&mut self, meta: &Meta) -> Result<(), Status> {
        if meta.private && !self.confirmed && self.args.engine.config.private_tasks {
            confirm::at_the_origin(self.args, meta).await?;
            self.confirmed = true;
        }
        Ok(())
    }

    /// Tells every wanted piece that storage held without this client's doing and that was not told yet.
    async fn tell_held(&mut self, held: &PieceSet) -> Result<(), Status> {
        self.begin(None).await?;
        let Some(story) = &self.story else { return Ok(()) };
        let untold: Vec<u32> = story
            .pieces
            .clone()
            .filter(|number| held.contains(*number) && !story.told.contains(*number))
            .collect();
        for number in untold {
            self.tell(number, None, Duration::ZERO).await?;
        }
        Ok(())
    }

    async fn verified(&mut self, number: u32, source: &Source, cost: Duration) -> Result<(), Status> {
        if let Source::Origin(headers) = source
            && !self.confirmed
        {
            let ours = *headers == self.args.wish.headers();
            self.confirmed = ours && confirm::is_its_url(self.args, &self.content);
        }
        self.begin(None).await?;
        self.tell(number, Some(source), cost).await
    }

    async fn tell(&mut self, number: u32, source: Option<&Source>, cost: Duration) -> Result<(), Status> {
        let Some(story) = &mut self.story else { return Ok(()) };
        if !story.pieces.contains(&number) || !story.told.insert(number) {
            return Ok(());
        }
        let Some(span) = story.geometry.piece(number) else { return Ok(()) };
        let (traffic, parent) = match source {
            None => {
                self.local_bytes += span.length;
                self.args.engine.metrics.downloaded(Traffic::Local, span.length);
                (TrafficType::LocalPeer, None)
            }
            Some(Source::Origin(_)) => {
                self.origin_bytes += span.length;
                (TrafficType::BackToSource, None)
            }
            Some(Source::Parent(parent)) => {
                let (engine, key) = (&self.args.engine, &self.args.key);
                let share = self.parents.entry(parent.clone()).or_insert_with(|| Share {
                    // Asked now, because nobody knows it once the task is over.
                    address: engine.live.parent_address(key, parent).unwrap_or_default(),
                    ..Share::default()
                });
                share.pieces += 1;
                share.bytes += span.length;
                (TrafficType::RemotePeer, Some(parent.to_string()))
            }
        };
        match self.args.telling {
            Telling::Silent => Ok(()),
            Telling::Ordered => self.send_in_order().await,
            Telling::Pieces { content } => {
                let content = if content { Some(self.piece(number)?) } else { None };
                let crc = self.content.crc(number);
                let piece = Piece {
                    number,
                    parent_id: parent,
                    offset: span.offset,
                    length: span.length,
                    digest: crc.map(|crc| crc.to_string()).unwrap_or_default(),
                    content: None,
                    traffic_type: Some(traffic.into()),
                    cost: wire::duration(cost),
                    created_at: Some(SystemTime::now().into()),
                };
                self.args.send(Item::Piece { piece, content }).await
            }
        }
    }

    /// A held piece, verified.
    fn piece(&self, number: u32) -> Result<PieceRef, Status> {
        let found = tokio::task::block_in_place(|| self.content.piece(number))
            .map_err(|why| verdict::storage(&why))?;
        found.ok_or_else(|| {
            Status::aborted(format!("piece {number} was lost while it was being read; try again"))
        })
    }

    /// Sends every byte from the next one on that is there.
    async fn send_in_order(&mut self) -> Result<(), Status> {
        loop {
            let Some(story) = &self.story else { return Ok(()) };
            if story.next >= story.range.end() {
                return Ok(());
            }
            let number = u32::try_from(story.next / story.geometry.piece_length()).unwrap_or(u32::MAX);
            let Some(span) = story.geometry.piece(number).filter(|_| story.told.contains(number)) else {
                return Ok(());
            };
            let (skip, end) = (story.next - span.offset, story.range.end().min(span.offset + span.length));
            let length = end - story.next;
            let piece = self.piece(number)?;
            let content = part(&piece.content, skip, length);
            self.args.send(Item::Chunk { content, piece }).await?;
            if let Some(story) = &mut self.story {
                story.next = end;
            }
        }
    }

    /// The content changed: a client that has seen bytes of the former version cannot go on.
    fn renew(&mut self) -> Result<(), Status> {
        let Some(story) = &mut self.story else { return Ok(()) };
        let gave_content = match self.args.telling {
            Telling::Pieces { content: true } => !story.told.is_empty(),
            Telling::Ordered => story.next > story.range.start,
            Telling::Pieces { content: false } | Telling::Silent => false,
        };
        if gave_content {
            return Err(changed());
        }
        // Its pieces are told again; clients take the repetition.
        self.former = Some((story.geometry, story.range));
        self.story = None;
        (self.origin_bytes, self.local_bytes) = (0, 0);
        self.parents.clear();
        Ok(())
    }

    /// Everything wanted is held: digest, output, farewell.
    async fn finish(&mut self) -> Result<u64, Status> {
        let whole = self.args.whole();
        if let Some(expected) = self.args.digest.as_ref().filter(|_| whole) {
            self.args.seat.show("checking the digest");
            let computed = tokio::task::block_in_place(|| self.content.digest(expected.algorithm()))
                .map_err(|why| verdict::storage(&why))?;
            if !expected.matches(&computed) {
                let message = format!("digest mismatch expected: {expected}, actual: {computed}");
                return Err(Status::internal(message));
            }
        }
        if self.args.new.persistent && whole {
            self.args.seat.show("keeping a replica");
            let kept = tokio::task::block_in_place(|| persistent_cache::replica(&self.content, true));
            kept.map_err(|why| verdict::storage(&why))?;
            self.args.engine.holdings.changed();
        }
        let range = self.story.as_ref().map(|story| story.range);
        let mut receipt = self.receipt();
        if let (Some(output), Some(range)) = (&self.args.output, range) {
            self.args.seat.show("writing the output");
            let published = output.publish(&self.content, (!whole).then_some(range)).await?;
            receipt.transfer = published.transfer.to_owned();
            receipt.transfer_reason = published.way.to_owned();
        } else if self.args.telling != Telling::Silent {
            receipt.transfer = "stream".to_owned();
        }
        let bytes = range.map_or(0, |range| range.length);
        let took = self.began.elapsed().as_secs_f64() * 1000.0;
        self.args.engine.metrics.download_took(&self.args.labels, bytes, took);
        self.args.engine.receipts.put(self.membership.peer_id.to_string(), receipt.clone());
        if self.args.telling != Telling::Silent {
            self.args.send(Item::Finished(receipt)).await?;
        }
        Ok(bytes)
    }

    /// Whoever is let in is one of the task's users, and may pause or delete it. Asking for it is not enough: a stranger
    /// whom the origin turned away must not have a say in what others fetch later.
    fn own(&self) {
        let Some(uid) = self.args.owner else { return };
        if let Err(why) = tokio::task::block_in_place(|| self.content.add_owner(uid)) {
            tracing::warn!(key = %self.args.key, uid, %why, "cannot record a user of the task");
        }
    }

    fn receipt(&self) -> Receipt {
        let mut parents: Vec<ReceiptParent> = self
            .parents
            .iter()
            .map(|(id, share)| ReceiptParent {
                peer_id: id.to_string(),
                host_id: String::new(),
                address: share.address.clone(),
                pieces: share.pieces,
                bytes: share.bytes,
            })
            .collect();
        parents.sort_by_key(|parent| std::cmp::Reverse(parent.bytes));
        Receipt {
            origin_bytes: self.origin_bytes,
            peer_bytes: self.parents.values().map(|share| share.bytes).sum(),
            local_bytes: self.local_bytes,
            parents,
            elapsed: wire::duration(self.began.elapsed()),
            ..Receipt::default()
        }
    }
}

fn changed() -> Status {
    Status::aborted("the content changed at the origin while it was being downloaded; try again")
}

/// `length` bytes of `content` from byte `skip`.
pub(crate) fn part(content: &Content, skip: u64, length: u64) -> Content {
    match content {
        Content::File { file, offset, .. } => {
            Content::File { file: Arc::clone(file), offset: offset + skip, length }
        }
        Content::Bytes(bytes) => {
            let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(bytes.len());
            Content::Bytes(bytes.slice(at(skip)..at(skip + length)))
        }
    }
}
