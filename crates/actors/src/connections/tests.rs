use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use damselfly_core::{Content, Crc, Kind, PieceSpan, TaskId};
use damselfly_transport::tcp::{
    self, LaneError, PieceProvider, Served, ServedFuture, ServerOptions, UploadCounters,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connection::IDLE;
use super::*;
use crate::kit::ask;

const LENGTH: usize = 256 << 10;
const SOON: Duration = Duration::from_secs(10);

/// A parent that holds every piece of every task.
struct Rich(Bytes);

impl PieceProvider for Rich {
    fn piece<'a>(&'a self, _: Kind, _: &'a TaskId, piece: u32) -> ServedFuture<'a> {
        let served = Served {
            content: Content::Bytes(self.0.clone()),
            offset: u64::from(piece) * LENGTH as u64,
            digest: Crc(crc32fast::hash(&self.0)).to_string(),
            parent_id: String::new(),
            cost: Duration::ZERO,
            created_at: 0,
            guard: Box::new(()),
        };
        Box::pin(std::future::ready(Ok(Some(served))))
    }
}

struct Parent {
    address: SocketAddr,
    counters: Arc<UploadCounters>,
    _running: DropGuard,
}

async fn parent() -> Parent {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, counters, stop) =
        (listener.local_addr().unwrap(), Arc::<UploadCounters>::default(), CancellationToken::new());
    let options = ServerOptions { counters: Arc::clone(&counters), ..ServerOptions::default() };
    let provider = Arc::new(Rich(Bytes::from(vec![7; LENGTH])));
    tokio::spawn(tcp::serve(listener, provider, options, stop.clone()));
    Parent { address, counters, _running: stop.drop_guard() }
}

async fn pool(board: &Board) -> ActorRef<ConnectionsMsg> {
    let args =
        ConnectionsArgs { dial: DialOptions::new(true), board: board.clone(), faults: Faults::default() };
    Actor::spawn(None, Connections, args).await.unwrap().0
}

async fn lease(
    pool: &ActorRef<ConnectionsMsg>,
    address: SocketAddr,
    ours: bool,
) -> Result<Lent, Arc<LaneError>> {
    ask(pool, "connections", SOON, |reply| ConnectionsMsg::Lease { address, ours, reply }).await.unwrap()
}

async fn fetch(pool: &ActorRef<ConnectionsMsg>, address: SocketAddr, ours: bool, number: u32) {
    let span = PieceSpan { number, offset: u64::from(number) * LENGTH as u64, length: LENGTH as u64 };
    let lent = lease(pool, address, ours).await.unwrap();
    let id = TaskId::parse(&"a".repeat(64)).unwrap();
    let ticket = lent.request(Kind::Standard, &id, span).unwrap();
    drop(lent);
    let mut body = ticket.response().await.unwrap();
    let (mut buffer, mut done) = (vec![0; 64 << 10], 0);
    while done < LENGTH {
        done += body.read(&mut buffer).await.unwrap();
    }
    body.finish().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_of_one_near_parent_of_ours_share_four_connections() {
    let (parent, board) = (parent().await, Board::default());
    let pool = pool(&board).await;
    // Alone, so that the round trip is measured: the machine's load can make a dial look like 10 ms.
    for number in 0..4 {
        fetch(&pool, parent.address, true, number).await;
    }
    let mut workers = JoinSet::new();
    let next = Arc::new(AtomicUsize::new(4));
    for _ in 0..16 {
        let (pool, next, address) = (pool.clone(), Arc::clone(&next), parent.address);
        workers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= 256 {
                    return;
                }
                fetch(&pool, address, true, u32::try_from(number).unwrap()).await;
            }
        });
    }
    workers.join_all().await;
    let figures = parent.counters.figures();
    // Every fetch above was complete; the parent may still be counting the last one.
    assert!(figures.pieces >= 255 && figures.failures == 0, "{figures:?}");
    assert!((1..=4).contains(&figures.accepted), "{} connections", figures.accepted);
    pool.stop(None);
}

#[tokio::test]
async fn those_who_ask_at_once_are_spread_over_the_lanes() {
    let (parent, board) = (parent().await, Board::default());
    let pool = pool(&board).await;
    let mut asking = JoinSet::new();
    for _ in 0..8 {
        let (pool, address) = (pool.clone(), parent.address);
        asking.spawn(async move { lease(&pool, address, true).await.unwrap() });
    }
    let lent = asking.join_all().await;
    let lanes: std::collections::HashSet<_> = lent.iter().map(|lent| Arc::as_ptr(&lent._claim)).collect();
    assert!((2..=4).contains(&lanes.len()), "{} lanes", lanes.len());
    pool.stop(None);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_piece_of_a_foreign_parent_has_a_connection_of_its_own() {
    let (parent, board) = (parent().await, Board::default());
    let pool = pool(&board).await;
    let mut fetches = JoinSet::new();
    for number in 0..20 {
        let (pool, address) = (pool.clone(), parent.address);
        fetches.spawn(async move { fetch(&pool, address, false, number).await });
    }
    fetches.join_all().await;
    let figures = parent.counters.figures();
    assert_eq!(figures.accepted, 20);
    // As above.
    assert!(figures.pieces >= 19 && figures.failures == 0, "{figures:?}");
    pool.stop(None);
}

#[tokio::test]
async fn a_dead_address_is_told_to_everybody_who_waits() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let board = Board::default();
    let pool = pool(&board).await;
    for ours in [true, false] {
        let mut asking = JoinSet::new();
        for _ in 0..6 {
            let pool = pool.clone();
            asking.spawn(async move { lease(&pool, address, ours).await });
        }
        for answer in asking.join_all().await {
            assert!(matches!(*answer.unwrap_err(), LaneError::Dial { .. }));
        }
    }
    pool.stop(None);
}

#[tokio::test]
async fn an_asker_that_went_away_takes_no_lane_of_another() {
    let (parent, board) = (parent().await, Board::default());
    let pool = pool(&board).await;
    let (gone, _) = tokio::sync::oneshot::channel();
    let (address, ours) = (parent.address, false);
    pool.cast(ConnectionsMsg::Lease { address, ours, reply: gone.into() }).unwrap();
    fetch(&pool, address, ours, 0).await;
    assert_eq!(parent.counters.figures().pieces, 1);
    pool.stop(None);
}

/// Lets time pass for everybody.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn what_nobody_uses_is_retired_and_what_somebody_uses_is_not() {
    let (parent, board) = (parent().await, Board::default());
    let pool = pool(&board).await;
    let kept = lease(&pool, parent.address, true).await.unwrap();
    let mut seats = board.changes();
    pass(IDLE + Duration::from_secs(1)).await;
    fetch(&pool, parent.address, true, 0).await;
    assert_eq!(*seats.borrow_and_update(), 2, "a connection whose lane is lent stays");
    assert_eq!(parent.counters.figures().accepted, 1);
    drop(kept);
    for _ in 0..3 {
        // One interval finds the lane unused, the next nobody asking.
        pass(IDLE + Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(SOON, seats.wait_for(|seats| *seats == 1)).await.unwrap().unwrap();
    // And whoever asks again is served by a new one.
    fetch(&pool, parent.address, true, 1).await;
    assert_eq!(parent.counters.figures().accepted, 2);
    pool.stop(None);
}

#[tokio::test]
async fn a_connection_is_retired_a_minute_after_its_last_use_whenever_that_was() {
    let (parent, board) = (parent().await, Board::default());
    let pool = pool(&board).await;
    drop(lease(&pool, parent.address, true).await.unwrap());
    let mut seats = board.changes();
    pass(IDLE - Duration::from_secs(10)).await;
    fetch(&pool, parent.address, true, 0).await;
    // The first look finds it used a moment ago, the next comes when that is long enough ago.
    for seconds in [11, 20, 20, 5, 5] {
        assert_eq!(*seats.borrow_and_update(), 2);
        pass(Duration::from_secs(seconds)).await;
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(SOON, seats.wait_for(|seats| *seats == 1)).await.unwrap().unwrap();
    pool.stop(None);
}

/// What the actor at `path` shows.
fn shown(board: &Board, path: &str) -> String {
    let all = board.snapshot();
    all.iter().find(|seat| seat.path.starts_with(path)).map_or_else(String::new, |seat| seat.state.clone())
}

#[tokio::test]
async fn a_lane_that_its_parent_closes_is_let_go_at_once() {
    let (listener, board) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Board::default());
    let pool = pool(&board).await;
    let address = listener.local_addr().unwrap();
    for round in 0..2 {
        drop(lease(&pool, address, true).await.unwrap());
        assert_eq!(shown(&board, "daemon/connections/tcp"), "1 lane, 1 request, 0 dialing");
        // As a parent that stops: it says that nothing more comes, and waits for the child to end the connection.
        let (mut accepted, _) = listener.accept().await.unwrap();
        accepted.shutdown().await.unwrap();
        let ended = tokio::time::timeout(SOON, accepted.read(&mut [0])).await;
        assert_eq!(ended.expect("the child notices").unwrap(), 0, "round {round}");
    }
    assert_eq!(shown(&board, "daemon/connections"), "1 address, 0 channels");
    pool.stop(None);
}

#[tokio::test]
async fn a_lane_whose_answer_nobody_wants_is_let_go_at_once() {
    let (listener, board) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Board::default());
    let pool = pool(&board).await;
    let lent = lease(&pool, listener.local_addr().unwrap(), true).await.unwrap();
    let span = PieceSpan { number: 0, offset: 0, length: 1 };
    let ticket = lent.request(Kind::Standard, &TaskId::parse(&"a".repeat(64)).unwrap(), span).unwrap();
    drop(lent);
    let (mut accepted, _) = listener.accept().await.unwrap();
    let mut request = [0; 74];
    accepted.read_exact(&mut request).await.unwrap();
    drop(ticket);
    let ended = tokio::time::timeout(SOON, accepted.read(&mut request)).await;
    assert_eq!(ended.expect("the child hangs up").unwrap(), 0);
    pool.stop(None);
}

#[tokio::test]
async fn channels_are_kept_by_address() {
    let board = Board::default();
    let pool = pool(&board).await;
    for port in (1..=300).chain(1..=300) {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let asked = ask(&pool, "connections", SOON, |reply| ConnectionsMsg::Channel { address, reply });
        drop(asked.await.unwrap());
    }
    assert_eq!(board.snapshot()[0].state, "0 addresses, 256 channels");
    pool.stop(None);
}
