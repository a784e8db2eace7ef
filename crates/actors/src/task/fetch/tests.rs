use std::net::SocketAddr;

use bytes::Bytes;
use damselfly_core::{Content, Kind, TaskId};
use damselfly_transport::TokenBucket;
use damselfly_transport::tcp::{self, PieceProvider, Served, ServedFuture, ServerOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::DropGuard;

use super::*;
use crate::daemon::Daemon;
use crate::testing::{daemon, key};

/// Longer than a parent or an origin sends at once when it is slow.
const LENGTH: u64 = 4 << 20;

/// A parent that has one piece, and says nothing of its digest unless told to.
struct Mute(Bytes, String);

impl PieceProvider for Mute {
    fn piece<'a>(&'a self, _: Kind, _: &'a TaskId, _: u32) -> ServedFuture<'a> {
        let served = Served {
            content: Content::Bytes(self.0.clone()),
            offset: 0,
            digest: self.1.clone(),
            parent_id: String::new(),
            cost: Duration::ZERO,
            created_at: 0,
            guard: Box::new(()),
        };
        Box::pin(std::future::ready(Ok(Some(served))))
    }
}

/// Serves `fill` all over, at most `rate` bytes per second after the first.
async fn parent(fill: u8, digest: bool, rate: Option<u64>) -> (SocketAddr, DropGuard) {
    let bytes = Bytes::from(vec![fill; usize::try_from(LENGTH).unwrap()]);
    let digest = if digest { Crc::of(&bytes).to_string() } else { String::new() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let options = ServerOptions { limit: Arc::new(TokenBucket::new(rate)), ..ServerOptions::default() };
    tokio::spawn(tcp::serve(listener, Arc::new(Mute(bytes, digest)), options, stop.clone()));
    (address, stop.drop_guard())
}

/// Nobody listens to it: the tests look at what an attempt leaves behind.
struct Supervisor;

impl Actor for Supervisor {
    type Msg = TaskMsg;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<TaskMsg>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

/// One run of a task of one piece.
struct Run {
    daemon: Daemon,
    content: Arc<TaskContent>,
    lore: Arc<Lore>,
    supervisor: ActorRef<TaskMsg>,
}

impl Run {
    async fn new(yaml: &str) -> (tempfile::TempDir, Self) {
        let (home, daemon) = daemon(yaml).await;
        let content = daemon.engine().store.get_or_create(&key('a'), Default::default()).unwrap();
        let geometry = Some(damselfly_core::Geometry::derived(LENGTH).unwrap());
        content.set_facts(damselfly_storage::Facts { geometry, ..Default::default() }).unwrap();
        content.reserve(&damselfly_core::PieceSet::full(1)).unwrap();
        let (supervisor, _) = Actor::spawn(None, Supervisor, ()).await.unwrap();
        (home, Self { daemon, content, lore: Arc::default(), supervisor })
    }

    fn span(&self) -> PieceSpan {
        self.content.meta().geometry.unwrap().piece(0).unwrap()
    }

    fn args(&self, job: Job) -> FetchArgs {
        let engine = Arc::clone(self.daemon.engine());
        FetchArgs {
            seat: engine.board.sit("fetch"),
            engine,
            content: Arc::clone(&self.content),
            attempt: AttemptId(1),
            job,
            lore: Arc::clone(&self.lore),
            report: Arc::default(),
            supervisor: self.supervisor.clone(),
            cancel: CancellationToken::new(),
            limit: Arc::new(TokenBucket::unlimited()),
            span: tracing::Span::none(),
        }
    }

    async fn ask_parent(&self, address: SocketAddr, ledger: Option<Crc>) -> Result<(), Failure> {
        let parent = Parent {
            id: "p".into(),
            host: damselfly_core::HostId::new(address.ip(), "p", false),
            grpc: address,
            vortex: Some(address),
            ours: true,
            complete: true,
        };
        let job = Job::Piece { span: self.span(), parent: parent.clone(), crc: ledger, hedge: false };
        peer::fetch(&self.args(job), self.span(), &parent, ledger).await
    }

    async fn end(self) {
        self.supervisor.stop(None);
        self.daemon.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_nobody_vouches_for_counts_once_another_parent_sends_the_same() {
    let (_home, run) = Run::new("").await;
    let (wrong, _a) = parent(1, false, None).await;
    let (right, _b) = parent(2, false, None).await;
    let (too, _c) = parent(2, false, None).await;
    for address in [wrong, wrong, right] {
        let why = run.ask_parent(address, None).await.unwrap_err();
        assert_eq!(why.kind, FailureKind::Missing, "{}", why.message);
        assert!(!run.content.has(0));
    }
    run.ask_parent(too, None).await.unwrap();
    assert!(run.content.has(0));
    run.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_or_the_parents_own_digest_vouches_for_a_copy() {
    let (_home, run) = Run::new("").await;
    let (vouched, _a) = parent(1, true, None).await;
    let (mute, _b) = parent(1, false, None).await;
    let crc = Crc::of(&vec![1; usize::try_from(LENGTH).unwrap()]);
    let why = run.ask_parent(mute, Some(Crc(crc.0 ^ 1))).await.unwrap_err();
    assert_eq!(why.kind, FailureKind::Wrong, "{}", why.message);
    run.ask_parent(mute, Some(crc)).await.unwrap();
    run.content.invalidate(0).unwrap();
    run.ask_parent(vouched, None).await.unwrap();
    run.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_source_loses_its_piece_when_the_configured_time_is_over() {
    let (_home, run) = Run::new("download: {pieceTimeout: 50ms}").await;
    // It never stalls for as long as a lane bears, and would go on for a month.
    let (slow, _a) = parent(1, true, Some(1)).await;
    let why = run.ask_parent(slow, None).await.unwrap_err();
    assert_eq!(why.kind, FailureKind::Retry { after: None });
    assert!(why.message.contains("not complete within 50ms"), "{}", why.message);

    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/x", origin.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (mut stream, _) = origin.accept().await.unwrap();
        let mut request = [0; 4096];
        let _read = stream.read(&mut request).await.unwrap();
        let last = LENGTH - 1;
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-length: {LENGTH}\r\ncontent-range: bytes 0-{last}/{LENGTH}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // Until the other side has had enough.
        let _read = stream.read(&mut request).await;
    });
    let request = Arc::new(OriginRequest { url: url.parse().unwrap(), headers: vec![], piece_length: None });
    let expect = Validator::default();
    let job = Job::OriginPiece {
        span: run.span(),
        request: Arc::clone(&request),
        expect: expect.clone(),
        hedge: false,
    };
    let why = origin::piece(&run.args(job), run.span(), &request, &expect).await.unwrap_err();
    assert_eq!(why.kind, FailureKind::Retry { after: None });
    assert!(why.message.contains("not complete within 100ms"), "twice as long: {}", why.message);
    serving.await.unwrap();
    run.end().await;
}
