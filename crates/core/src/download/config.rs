//! What a Download machine is told once, with the defaults of Damselfly.

use std::time::Duration;

/// Attempts at the origin by all hosts of a task together, one at least by each. Who shares out the pieces reckons with it.
pub const ORIGIN_WINDOW: usize = 4;

/// Settings of one machine. Times are as exact as the shell's ticks, see [`Config::tick`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether the kind of task has an origin at all. Persistent cache tasks have none. Default: true.
    pub uses_origin: bool,
    /// Whether the scheduler is Dragonfly's: it is registered with only after the origin told the content's length, and
    /// it limits how often it is asked. Default: false.
    pub foreign_scheduler: bool,
    /// Bytes per piece where the user named them; else derived from the content length. Default: none.
    pub piece_length: Option<u64>,
    /// This peer's [`PeerId::fingerprint`](crate::PeerId::fingerprint): its siblings reckon with it, too. Default: 0.
    pub fingerprint: u64,

    /// Attempts at moving parents together, 1 or more, those included that wait for their turn in a parent's queue.
    /// Stalled ones come on top, up to as many again. Default: 16.
    pub max_in_flight: usize,
    /// Attempts at one parent: least and most. Between the two, its rate decides. Default: 2 and 16.
    pub window: (usize, usize),
    /// Attempts at a parent whose rate is not known yet, and the least at one beside which there is no other: what is
    /// queued there keeps nobody waiting, and fills a long link from the start. Default: 4 and 16.
    pub first_window: (usize, usize),
    /// How much work lies queued at one parent: enough to fill the pipe, and little enough not to wait for at the end.
    /// Default: 400 ms.
    pub queue_time: Duration,
    /// Parents known at once; what the scheduler offers beyond is ignored. Default: 32.
    pub max_parents: usize,
    /// Attempts at the origin, by a lone host or by all siblings together, but at least one by each: pieces done one
    /// after another can be passed on early. Default: [`ORIGIN_WINDOW`].
    pub origin_window: usize,
    /// How long a host that has a lease and knows of no siblings makes do with one attempt at first. Then it is two until
    /// its first piece is there. Default: 300 ms.
    pub sibling_grace: Duration,
    /// Attempts at parents while siblings wait for pieces that this peer is fetching from the origin: those come first
    /// on the link, for nobody else can get them. Default: 4.
    pub max_in_flight_leased: usize,

    /// How often ticks are asked for while anything is in flight. Default: 100 ms.
    pub tick: Duration,
    /// Without a byte for this long a source is stalled. Default: 600 ms.
    pub stall: Duration,
    /// A piece in flight is asked for again elsewhere if that takes at most this many percent of the remaining time, and
    /// saves [`Config::hedge_least`]. Default: 75.
    pub hedge_percent: u32,
    /// The least time a second request must save. Default: 50 ms.
    pub hedge_least: Duration,

    /// With fewer attempts in flight at one parent than this, a connection to it rests, and may do better with a piece than
    /// the one it is on, which may have lost a packet. Default: 4, as many as there are at least.
    pub lanes: usize,
    /// The least time that a second request to the same parent must save, and half of what is left. Default: 200 ms.
    pub lane_hedge_least: Duration,

    /// Waiting time after a parent's first failure in a row, and the most it doubles to. Default: 250 ms, 5 s.
    pub parent_backoff: (Duration, Duration),
    /// The same for the origin, whose `Retry-After` counts besides. Default: 500 ms, 30 s.
    pub origin_backoff: (Duration, Duration),
    /// Failures of the origin in a row, without a piece in between, before its clients fail. Default: 6.
    pub origin_tries: u32,
    /// Waiting time before registering again after the announce stream broke. Default: 200 ms, 5 s.
    pub scheduler_backoff: (Duration, Duration),

    /// Silence of the scheduler after registering until the origin is asked without it. Default: 5 s.
    pub answer_deadline: Duration,
    /// Answers of Dragonfly's scheduler before it is given up. Default: 5.
    pub max_schedule_count: u32,
    /// Time without any source until the scheduler is asked again, and from the first such request to the second. It
    /// doubles up to [`Config::reschedule_every`] while nothing comes of it. Default: 1 s.
    pub reschedule_after: Duration,
    /// Most time between two such requests, and until a parent that is watched but has nothing new counts as none.
    /// Default: 10 s.
    pub reschedule_every: Duration,
    /// For how long attempts stand still before Dragonfly's scheduler is asked for other parents, and how long until it
    /// is asked again: after a few answers it sends to the origin. Ours is asked after [`Config::reschedule_after`].
    /// Default: 5 s.
    pub foreign_patience: Duration,
    /// Time without any source until the origin is asked although the scheduler gave no leave. Default: 15 s.
    pub desperate_after: Duration,
    /// Time without any source, the origin having refused, until the clients fail. Default: 10 s.
    pub refused_limit: Duration,
    /// Time without any source until the clients fail. Default: 30 s.
    pub stuck_limit: Duration,
    /// The same while a sibling that is still fetching keeps its SyncPieces stream open to us. Default: 5 min.
    pub hope_limit: Duration,
    /// How often a task begins anew because its content changed. Default: 2.
    pub max_restarts: u32,
}

impl Default for Config {
    fn default() -> Self {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        Self {
            uses_origin: true,
            foreign_scheduler: false,
            piece_length: None,
            fingerprint: 0,
            max_in_flight: 16,
            window: (2, 16),
            first_window: (4, 16),
            queue_time: ms(400),
            max_parents: 32,
            origin_window: ORIGIN_WINDOW,
            sibling_grace: ms(300),
            max_in_flight_leased: 4,
            tick: ms(100),
            stall: ms(600),
            hedge_percent: 75,
            hedge_least: ms(50),
            lanes: 4,
            lane_hedge_least: ms(200),
            parent_backoff: (ms(250), s(5)),
            origin_backoff: (ms(500), s(30)),
            origin_tries: 6,
            scheduler_backoff: (ms(200), s(5)),
            answer_deadline: s(5),
            max_schedule_count: 5,
            reschedule_after: s(1),
            reschedule_every: s(10),
            foreign_patience: s(5),
            desperate_after: s(15),
            refused_limit: s(10),
            stuck_limit: s(30),
            hope_limit: s(300),
            max_restarts: 2,
        }
    }
}

/// `first` doubled once per failure after the first, up to `most`.
pub(super) fn backoff((first, most): (Duration, Duration), failures: u32) -> Duration {
    first.saturating_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX)).min(most)
}
