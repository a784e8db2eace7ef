//! Children that are restarted with backoff.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{Board, Faults, Seat, Service, ServiceArgs, cell_of};

/// A child that lived this long before it failed starts its backoff anew.
const CALM: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How long a group waits for its children when it stops.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

type Start = Arc<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;

/// One child of a [`Group`]: its name and how to start it, the first time and every other.
#[derive(Clone)]
pub struct Child {
    name: String,
    start: Start,
}

impl Child {
    /// `start` spawns the actor linked to the cell it is given and moves it into its address, if it has one.
    pub fn new<F, Fut>(name: impl Into<String>, start: F) -> Self
    where
        F: Fn(ActorCell) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<ActorCell, SpawnErr>> + Send + 'static,
    {
        Self { name: name.into(), start: Arc::new(move |parent| Box::pin(start(parent))) }
    }

    /// A service that is a long-running future and nothing else.
    pub fn service(args: ServiceArgs) -> Self {
        Self::named_service(args.name, args)
    }

    /// One of several services of the same kind.
    pub fn named_service(name: impl Into<String>, args: ServiceArgs) -> Self {
        Self::new(name, move |parent| {
            let args = args.clone();
            async move { Ok(Actor::spawn_linked(None, Service, args, parent).await?.0.get_cell()) }
        })
    }
}

/// Which children there should be besides those a group begins with. One that is on it no longer ends by itself.
#[derive(Clone)]
pub struct Roster(Arc<dyn Fn() -> Vec<Child> + Send + Sync>);

impl Roster {
    /// `list` is asked often and must not block. Children are told apart by their names.
    pub fn new(list: impl Fn() -> Vec<Child> + Send + Sync + 'static) -> Self {
        Self(Arc::new(list))
    }
}

impl Default for Roster {
    fn default() -> Self {
        Self::new(Vec::new)
    }
}

impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Roster")
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Child({})", self.name)
    }
}

/// Keeps its children running: a child that panics or fails is started again after a pause that doubles.
#[derive(Debug)]
pub struct Group;

/// What a group needs to start.
#[derive(Debug)]
pub struct GroupArgs {
    /// Its place in the tree.
    pub path: String,
    /// Started in this order.
    pub children: Vec<Child>,
    /// Followed whenever the group is told to, after the start by whoever starts it.
    pub roster: Roster,
    /// Where it shows itself.
    pub board: Board,
    /// For tests.
    pub faults: Faults,
    /// Cancelled before the children are stopped, so that services return.
    pub stop: CancellationToken,
}

/// A group's messages.
#[derive(Debug)]
pub enum GroupMsg {
    /// Start the children of the roster that do not run.
    Reconcile,
    /// Start the child of this name again.
    Start(String),
    /// Does nothing but pass the fault point; tests use it.
    Poke,
}

#[derive(Debug)]
struct Running {
    child: Child,
    cell: Option<ActorCell>,
    since: Instant,
    pause: Duration,
}

/// A group's state.
#[derive(Debug)]
pub struct GroupState {
    args: GroupArgs,
    running: Vec<Running>,
    seat: Seat,
}

impl GroupState {
    /// Starts a child, now or, if it cannot be started, after its pause.
    async fn start(&mut self, index: usize, myself: &ActorRef<GroupMsg>) {
        let running = &mut self.running[index];
        match (running.child.start)(myself.get_cell()).await {
            Ok(cell) => (running.cell, running.since) = (Some(cell), Instant::now()),
            Err(why) => {
                error!(actor = %self.args.path, child = %running.child.name, %why, "restart failed");
                running.pause = (running.pause * 2).min(LAST_PAUSE);
                let name = running.child.name.clone();
                drop(myself.send_after(running.pause, move || GroupMsg::Start(name)));
            }
        }
    }
}

impl Actor for Group {
    type Msg = GroupMsg;
    type State = GroupState;
    type Arguments = GroupArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<GroupMsg>,
        mut args: GroupArgs,
    ) -> Result<GroupState, ActorProcessingErr> {
        let seat = args.board.sit(&args.path);
        let mut running = Vec::new();
        for child in std::mem::take(&mut args.children) {
            let cell = Some((child.start)(myself.get_cell()).await?);
            running.push(Running { child, cell, since: Instant::now(), pause: FIRST_PAUSE });
        }
        Ok(GroupState { args, running, seat })
    }

    async fn handle(
        &self,
        myself: ActorRef<GroupMsg>,
        message: GroupMsg,
        state: &mut GroupState,
    ) -> Result<(), ActorProcessingErr> {
        state.args.faults.point("group");
        if state.args.stop.is_cancelled() {
            return Ok(());
        }
        match message {
            GroupMsg::Reconcile => {
                for child in (state.args.roster.0)() {
                    if state.running.iter().all(|running| running.child.name != child.name) {
                        let (since, pause) = (Instant::now(), FIRST_PAUSE);
                        state.running.push(Running { child, cell: None, since, pause });
                        state.start(state.running.len() - 1, &myself).await;
                    }
                }
            }
            GroupMsg::Start(name) => {
                let index = state.running.iter().position(|running| running.child.name == name);
                if let Some(index) = index {
                    state.start(index, &myself).await;
                }
            }
            GroupMsg::Poke => {}
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<GroupMsg>,
        event: SupervisionEvent,
        state: &mut GroupState,
    ) -> Result<(), ActorProcessingErr> {
        let Some(id) = cell_of(&event) else { return Ok(()) };
        let found =
            state.running.iter().position(|r| r.cell.as_ref().is_some_and(|cell| cell.get_id() == id));
        let Some(index) = found else { return Ok(()) };
        let SupervisionEvent::ActorFailed(_, why) = event else {
            // It had nothing left to do. Should it be wanted again, the roster says so.
            state.running.remove(index);
            drop(myself.cast(GroupMsg::Reconcile));
            return Ok(());
        };
        let running = &mut state.running[index];
        running.cell = None;
        if state.args.stop.is_cancelled() {
            return Ok(());
        }
        if running.since.elapsed() > CALM {
            running.pause = FIRST_PAUSE;
        }
        warn!(actor = %state.args.path, child = %running.child.name, %why, pause = ?running.pause, "child failed, restarting");
        state.seat.show(format!("restarting {}", running.child.name));
        let name = running.child.name.clone();
        drop(myself.send_after(running.pause, move || GroupMsg::Start(name)));
        running.pause = (running.pause * 2).min(LAST_PAUSE);
        Ok(())
    }

    async fn post_stop(
        &self,
        myself: ActorRef<GroupMsg>,
        state: &mut GroupState,
    ) -> Result<(), ActorProcessingErr> {
        state.args.stop.cancel();
        myself.stop_children_and_wait(None, Some(STOP_DEADLINE)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn group(children: Vec<Child>, faults: &Faults, stop: &CancellationToken) -> GroupArgs {
        GroupArgs {
            path: "test".to_owned(),
            children,
            roster: Roster::default(),
            board: Board::default(),
            faults: faults.clone(),
            stop: stop.clone(),
        }
    }

    fn counting(faults: &Faults, stop: &CancellationToken, starts: &Arc<AtomicU32>) -> Child {
        let starts = Arc::clone(starts);
        Child::service(ServiceArgs {
            name: "counted",
            path: "test/counted".to_owned(),
            board: Board::default(),
            faults: faults.clone(),
            stop: stop.clone(),
            run: ServiceArgs::run(move |stop| {
                starts.fetch_add(1, Ordering::SeqCst);
                async move {
                    stop.cancelled().await;
                    Ok(())
                }
            }),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_panics_is_started_again_and_the_group_lives() {
        let (faults, stop, starts) =
            (Faults::armable(), CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let args = group(vec![counting(&faults, &stop, &starts)], &faults, &stop);
        let (root, ended) = Actor::spawn(None, Group, args).await.unwrap();
        for round in 1..4 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(starts.load(Ordering::SeqCst), round);
            faults.arm("counted", 1);
        }
        root.stop(None);
        ended.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopping_group_stops_its_services() {
        let (faults, stop, starts) =
            (Faults::default(), CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let args = group(vec![counting(&faults, &stop, &starts)], &faults, &stop);
        let board = args.board.clone();
        let (root, ended) = Actor::spawn(None, Group, args).await.unwrap();
        root.stop(None);
        ended.await.unwrap();
        assert!(board.is_empty());
        assert!(stop.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_on_the_roster_runs_until_it_ends_by_itself_and_again_when_it_is_wanted_still() {
        let (faults, stop) = (Faults::armable(), CancellationToken::new());
        let (wanted, end) = (Arc::new(AtomicU32::new(0)), Arc::new(tokio::sync::Notify::new()));
        let mut args = group(vec![], &faults, &stop);
        let board = args.board.clone();
        args.roster = {
            let (wanted, end, board, faults) =
                (Arc::clone(&wanted), Arc::clone(&end), board.clone(), faults.clone());
            Roster::new(move || {
                let child = |number: u32| {
                    let end = Arc::clone(&end);
                    Child::named_service(
                        number.to_string(),
                        ServiceArgs {
                            name: "listed",
                            path: format!("test/{number}"),
                            board: board.clone(),
                            faults: faults.clone(),
                            stop: CancellationToken::new(),
                            run: ServiceArgs::run_seated(move |_, seat| {
                                let end = Arc::clone(&end);
                                seat.show(format!("number {number}"));
                                async move {
                                    end.notified().await;
                                    Ok(())
                                }
                            }),
                        },
                    )
                };
                (0..wanted.load(Ordering::SeqCst)).map(child).collect()
            })
        };
        let listed = || -> Vec<(String, u64)> {
            let seats = board.snapshot().into_iter().filter(|seat| seat.path != "test");
            seats.map(|seat| (seat.state, seat.number)).collect()
        };
        let states = || listed().into_iter().map(|(state, _)| state).collect::<Vec<_>>();
        let (root, ended) = Actor::spawn(None, Group, args).await.unwrap();
        let settle = async |wish: u32| {
            wanted.store(wish, Ordering::SeqCst);
            root.cast(GroupMsg::Reconcile).unwrap();
            tokio::time::sleep(Duration::from_secs(10)).await;
        };
        settle(2).await;
        let both = ["number 0", "number 1"];
        assert_eq!(states(), both);
        let before = listed();
        settle(2).await;
        assert_eq!(listed(), before, "who runs is left alone");
        faults.arm("listed", 1);
        settle(2).await;
        assert_eq!(states(), both);
        assert_ne!(listed(), before, "one of them panicked and is back");
        end.notify_one();
        settle(2).await;
        assert_eq!(states(), both, "one of them ended and is wanted still");
        wanted.store(0, Ordering::SeqCst);
        end.notify_waiters();
        settle(0).await;
        assert!(listed().is_empty());
        settle(1).await;
        assert_eq!(states(), ["number 0"], "wanted again later");
        root.stop(None);
        // This service does not look at its token.
        end.notify_one();
        ended.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_that_does_not_start_is_tried_again_with_pauses_that_grow() {
        let (faults, stop, starts) =
            (Faults::armable(), CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let tries = Arc::new(AtomicU32::new(0));
        let inner = counting(&faults, &stop, &starts);
        let counted = Arc::clone(&tries);
        let unwilling = Child::new("unwilling", move |parent| {
            let (number, inner) = (counted.fetch_add(1, Ordering::SeqCst), inner.clone());
            async move {
                // Starts, crashes, cannot be started five times, starts.
                if (1..=5).contains(&number) {
                    return Err(SpawnErr::StartupFailed("not yet".into()));
                }
                (inner.start)(parent).await
            }
        });
        let (root, ended) = Actor::spawn(None, Group, group(vec![unwilling], &faults, &stop)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        faults.arm("counted", 1);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let early = tries.load(Ordering::SeqCst);
        assert!((2..=4).contains(&early), "{early} tries within 300 ms");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(tries.load(Ordering::SeqCst), 7);
        assert_eq!(starts.load(Ordering::SeqCst), 2);
        root.stop(None);
        ended.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_cannot_start_leaves_nothing_running() {
        let (faults, stop, starts) =
            (Faults::default(), CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let impossible = Child::new("impossible", |_| async { Err(SpawnErr::StartupFailed("never".into())) });
        let mut args = group(vec![], &faults, &stop);
        let board = args.board.clone();
        let running = Child::service(ServiceArgs {
            name: "running",
            path: "test/running".to_owned(),
            board: board.clone(),
            faults: faults.clone(),
            stop: stop.clone(),
            run: ServiceArgs::run(|stop| async move {
                stop.cancelled().await;
                Ok(())
            }),
        });
        args.children = vec![running, counting(&faults, &stop, &starts), impossible];
        assert!(Actor::spawn(None, Group, args).await.is_err());
        let mut seats = board.changes();
        let left = tokio::time::timeout(Duration::from_secs(5), seats.wait_for(|seats| *seats == 0)).await;
        assert!(left.is_ok(), "{:?}", board.snapshot());
    }
}
