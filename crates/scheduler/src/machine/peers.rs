//! One peer of one task.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use damselfly_core::{ByteRange, Geometry, HostId, PeerId, PieceSet, Tick};

use super::costs::Costs;
use super::event::{Priority, StreamId};

/// Where a peer stands, in Dragonfly's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerState {
    /// Known, not answered.
    Pending,
    /// Told that the content is empty.
    ReceivedEmpty,
    /// Registered for content.
    ReceivedNormal,
    /// Downloading from parents.
    Running,
    /// Downloading from the origin.
    BackToSource,
    /// Has what it wanted.
    Succeeded,
    /// Gave up.
    Failed,
    /// About to be forgotten.
    Leave,
}

/// What moves a peer from state to state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    RegisterEmpty,
    RegisterNormal,
    Download,
    DownloadBackToSource,
    Succeed,
    Fail,
    Leave,
}

impl PeerState {
    /// The name that StatPeer and candidate parents show.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::ReceivedEmpty => "ReceivedEmpty",
            Self::ReceivedNormal => "ReceivedNormal",
            Self::Running => "Running",
            Self::BackToSource => "BackToSource",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Leave => "Leave",
        }
    }

    /// The state after `step`, or `None` where the dialogue does not allow it.
    ///
    /// Wider than Dragonfly's table in two places, both of which its daemons need: a started peer may start
    /// again after a reschedule, in either form, and a peer may register again.
    pub(super) fn after(self, step: Step) -> Option<Self> {
        use PeerState as S;
        let to = match step {
            Step::RegisterEmpty => S::ReceivedEmpty,
            Step::RegisterNormal => S::ReceivedNormal,
            Step::Download => S::Running,
            Step::DownloadBackToSource => S::BackToSource,
            Step::Succeed => S::Succeeded,
            Step::Fail => S::Failed,
            Step::Leave => S::Leave,
        };
        let from: &[S] = match step {
            Step::RegisterEmpty | Step::RegisterNormal => {
                &[S::Pending, S::ReceivedEmpty, S::ReceivedNormal, S::Running, S::BackToSource]
            }
            Step::Download | Step::DownloadBackToSource | Step::Succeed => {
                &[S::ReceivedEmpty, S::ReceivedNormal, S::Running, S::BackToSource]
            }
            Step::Fail => &[
                S::Pending,
                S::ReceivedEmpty,
                S::ReceivedNormal,
                S::Running,
                S::BackToSource,
                S::Succeeded,
                S::Failed,
            ],
            Step::Leave => &[
                S::Pending,
                S::ReceivedEmpty,
                S::ReceivedNormal,
                S::Running,
                S::BackToSource,
                S::Succeeded,
                S::Failed,
            ],
        };
        from.contains(&self).then_some(to)
    }

    /// Whether the dialogue is over.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Leave)
    }
}

/// One peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) host: HostId,
    /// Its daemon is ours.
    pub(super) ours: bool,
    pub(super) state: PeerState,
    /// Its announce stream, while open.
    pub(super) stream: Option<StreamId>,
    /// Registrations are served in this order.
    pub(super) order: u64,
    pub(super) priority: Priority,
    pub(super) range: Option<ByteRange>,
    pub(super) may_use_origin: bool,
    pub(super) need_back_to_source: bool,
    pub(super) metadata_only: bool,
    /// Its URL names another resource than the task's, which only an id that is not made from the URL allows.
    pub(super) elsewhere: bool,
    /// Its host keeps the content as a replica.
    pub(super) persistent: bool,
    /// What it holds; over no pieces while the geometry is unknown.
    pub(super) pieces: PieceSet,
    /// What it said it holds before the geometry was known.
    pub(super) early: Option<Vec<u8>>,
    /// By how much the versions of the content are counted ahead of this scheduler's own count for it: its daemon may have
    /// counted with another one, and a verdict against what it says it saw is a later word than what it had heard.
    pub(super) ahead: u64,
    /// The version of the task that its host holds, as its daemon counts them, where the host has said so.
    pub(super) generation: Option<u64>,
    /// Its pieces are counted as held in the task's coverage.
    pub(super) counted: bool,
    /// It may be offered as a parent.
    pub(super) potential: bool,
    /// Its bytes contradicted the ledger and it would not fetch them anew (Dragonfly's, and what a host of ours holds
    /// without a dialogue), or its geometry is another.
    pub(super) suspect: bool,
    /// Parents it does not want: for good, or until then.
    pub(super) blocked: BTreeMap<PeerId, Option<Tick>>,
    /// Edges of the peer graph.
    pub(super) parents: BTreeSet<PeerId>,
    pub(super) children: BTreeSet<PeerId>,
    /// Since when it waits for an answer.
    pub(super) waiting: Option<Tick>,
    /// Messages sent to it.
    pub(super) answers: u32,
    /// Times of its pieces.
    pub(super) costs: Costs,
    /// It gets no lease before: it gave one back or let one run out.
    pub(super) hold_off: Tick,
    pub(super) setbacks: u32,
    /// Missing pieces that are held, but by nobody it can ask: the origin is open to it for these.
    pub(super) stranded: BTreeSet<u32>,
    /// How much of the ledger it was told; `None` before the first facts.
    pub(super) facts_seen: Option<usize>,
    /// The parents it was told.
    pub(super) pushed: BTreeSet<PeerId>,
    /// Its list has to be looked at again.
    pub(super) list_dirty: bool,
    /// It has asked for its list: that is sent even if it is the one sent before.
    pub(super) asked: bool,
    /// Not all candidates fit into its list.
    pub(super) truncated: bool,
    /// Its list does not cover what it misses.
    pub(super) uncovered: bool,
    /// The next list or facts not before.
    pub(super) next_push: Tick,
    pub(super) created: Tick,
    pub(super) updated: Tick,
}

impl Peer {
    pub(super) fn new(id: PeerId, host: HostId, ours: bool, now: Tick) -> Self {
        Self {
            id,
            host,
            ours,
            state: PeerState::Pending,
            stream: None,
            order: 0,
            priority: Priority::Level0,
            range: None,
            may_use_origin: true,
            need_back_to_source: false,
            metadata_only: false,
            elsewhere: false,
            persistent: false,
            pieces: PieceSet::default(),
            early: None,
            ahead: 0,
            generation: None,
            counted: false,
            potential: false,
            suspect: false,
            blocked: BTreeMap::new(),
            parents: BTreeSet::new(),
            children: BTreeSet::new(),
            waiting: None,
            answers: 0,
            costs: Costs::default(),
            hold_off: Tick(0),
            setbacks: 0,
            stranded: BTreeSet::new(),
            facts_seen: None,
            pushed: BTreeSet::new(),
            list_dirty: false,
            asked: false,
            truncated: false,
            uncovered: false,
            next_push: Tick(0),
            created: now,
            updated: now,
        }
    }

    /// Whether its dialogue runs.
    pub(super) fn is_active(&self) -> bool {
        self.stream.is_some() && !self.state.is_final()
    }

    /// The pieces it wants, held or not.
    pub(super) fn wants(&self, geometry: &Geometry) -> Range<u32> {
        self.range.map_or(0..geometry.piece_count(), |range| geometry.pieces_of(range))
    }

    /// The pieces it wants and does not hold, ascending.
    pub(super) fn missing<'a>(&'a self, geometry: &Geometry) -> impl Iterator<Item = u32> + use<'a> {
        self.wants(geometry).filter(|piece| !self.pieces.contains(*piece))
    }

    pub(super) fn blocks(&self, parent: &PeerId, now: Tick) -> bool {
        self.blocked.get(parent).is_some_and(|until| until.is_none_or(|until| until > now))
    }

    pub(super) fn is_complete(&self) -> bool {
        self.pieces.count() > 0 && self.pieces.is_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_dialogue_is_allowed() {
        let mut state = PeerState::Pending;
        for (step, name) in [
            (Step::RegisterNormal, "ReceivedNormal"),
            (Step::Download, "Running"),
            (Step::Download, "Running"),
            (Step::DownloadBackToSource, "BackToSource"),
            (Step::Succeed, "Succeeded"),
            (Step::Fail, "Failed"),
            (Step::Leave, "Leave"),
        ] {
            state = state.after(step).unwrap();
            assert_eq!(state.name(), name);
        }
    }

    #[test]
    fn a_peer_starts_and_ends_only_after_it_registered() {
        assert_eq!(PeerState::Pending.after(Step::Download), None);
        assert_eq!(PeerState::Pending.after(Step::Succeed), None);
        assert_eq!(PeerState::Succeeded.after(Step::Download), None);
        assert_eq!(PeerState::Failed.after(Step::Succeed), None);
        assert_eq!(PeerState::Leave.after(Step::Leave), None);
        assert_eq!(PeerState::Pending.after(Step::RegisterEmpty), Some(PeerState::ReceivedEmpty));
        assert_eq!(PeerState::ReceivedEmpty.after(Step::Succeed), Some(PeerState::Succeeded));
    }
}
