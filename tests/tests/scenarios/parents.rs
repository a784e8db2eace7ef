//! Parents that lie, stall, break off and die.

use damselfly_tests::OriginServer;
use damselfly_tests::origin::Blob;
use damselfly_tests::proxy::Strike;
use damselfly_tests::swarm::{FakeParent, Host, Swarm, TestScheduler, Vice, download, task_of, to_file};

use crate::PIECE;

/// Whether the running task of `host` has banned a parent; none is banned without wrong content.
struct Scene {
    origin: OriginServer,
    scheduler: TestScheduler,
    swarm: Swarm,
    blob: Blob,
    parent: FakeParent,
}

impl Scene {
    /// A cold host, an origin, and one parent with a vice that claims to hold everything.
    async fn new(pieces: u64, seed: u64, vice: Vice) -> Self {
        let origin = OriginServer::start().await.unwrap();
        let scheduler = TestScheduler::start().unwrap();
        let swarm = Swarm::join(1, &[scheduler.addr()], "").await.unwrap();
        let blob = origin.blob(pieces * PIECE - 5, seed);
        let task = task_of(&download(&blob.url));
        let parent = FakeParent::start(scheduler.addr(), &task, blob.pattern, vice).await.unwrap();
        Self { origin, scheduler, swarm, blob, parent }
    }

    fn host(&self) -> &Host {
        &self.swarm.hosts[0]
    }

    /// The download completes with the right bytes, although the parent was asked.
    async fn completes(&mut self) {
        let path = self.host().path("out");
        let told = self.host().download(to_file(&self.blob.url, &path)).await.unwrap();
        self.blob.pattern.check_file(&path).unwrap();
        assert!(self.parent.asked() > 0, "the parent was never tried");
        let receipt = self.host().receipt(&told).await.unwrap();
        assert_eq!(receipt.origin_bytes + receipt.peer_bytes, self.blob.pattern.length);
        self.swarm.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_without_vice_serves_everything() {
    let mut scene = Scene::new(3, 1, Vice::None).await;
    scene.completes().await;
    assert_eq!(scene.origin.counts(&scene.blob).body_bytes, 0);
}

/// Nothing of a parent that lies is kept, and it is asked no more than what was under way when it was found out.
async fn lies(vice: Vice, seed: u64) {
    let mut scene = Scene::new(24, seed, vice).await;
    scene.completes().await;
    let asked = scene.parent.asked();
    assert!(asked <= 17, "asked for {asked} pieces although the first was wrong");
    assert_eq!(scene.origin.counts(&scene.blob).body_bytes, scene.blob.pattern.length);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_found_out() {
    lies(Vice::WrongByte, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_that_are_too_short_are_found_out() {
    lies(Vice::Short, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_that_are_too_long_are_found_out() {
    lies(Vice::Long, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_at_the_wrong_place_are_found_out() {
    lies(Vice::Shifted, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_on_the_way_is_found_out() {
    let mut scene = Scene::new(2, 6, Vice::Struck(Strike::Flip(PIECE / 2))).await;
    scene.completes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_silent_is_left() {
    let mut scene = Scene::new(3, 7, Vice::Silent).await;
    scene.completes().await;
    assert_eq!(scene.origin.counts(&scene.blob).body_bytes, scene.blob.pattern.length);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_has_nothing_after_all_is_left() {
    let mut scene = Scene::new(3, 8, Vice::Absent).await;
    scene.completes().await;
    assert_eq!(scene.origin.counts(&scene.blob).body_bytes, scene.blob.pattern.length);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_tells_of_pieces_and_denies_them_is_left() {
    let mut scene = Scene::new(3, 14, Vice::Boastful).await;
    scene.completes().await;
    assert_eq!(scene.origin.counts(&scene.blob).body_bytes, scene.blob.pattern.length);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_stops_in_the_middle_of_a_piece_is_left() {
    let mut scene = Scene::new(3, 9, Vice::Struck(Strike::Swallow(PIECE / 2))).await;
    scene.completes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_reset_in_the_middle_of_a_piece_cost_the_attempt() {
    let mut scene = Scene::new(3, 10, Vice::Struck(Strike::Reset(PIECE / 2))).await;
    scene.completes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_in_the_middle_of_a_piece_cost_the_attempt() {
    let mut scene = Scene::new(3, 11, Vice::Struck(Strike::Truncate(PIECE / 2))).await;
    scene.completes().await;
}

/// A lie whose digest agrees is found out where the scheduler's ledger knows the piece.
#[tokio::test(flavor = "multi_thread")]
async fn a_false_witness_is_found_out_by_the_ledger() {
    let origin = OriginServer::start().await.unwrap();
    let scheduler = TestScheduler::start().unwrap();
    let mut swarm = Swarm::join(2, &[scheduler.addr()], "").await.unwrap();
    let blob = origin.blob(4 * PIECE, 12);
    let task = task_of(&download(&blob.url));
    // The ledger comes from a host that leaves.
    swarm.hosts[0].get(&blob.url, "out").await.unwrap();
    let parent = FakeParent::start(scheduler.addr(), &task, blob.pattern, Vice::FalseWitness).await.unwrap();
    swarm.hosts[0].stop().await;
    let told = swarm.hosts[1].get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(swarm.hosts[1].path("out")).unwrap();
    assert!(parent.asked() > 0, "the parent was never tried");
    let receipt = swarm.hosts[1].receipt(&told).await.unwrap();
    assert_eq!((receipt.origin_bytes, receipt.peer_bytes), (blob.pattern.length, 0));
    swarm.hosts[1].stop().await;
}

/// Nobody vouches for what it sends: not the ledger, which knows nothing yet, and not itself.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_without_a_digest_are_not_kept() {
    let mut scene = Scene::new(3, 16, Vice::MuteWrongByte).await;
    scene.completes().await;
    assert_eq!(scene.origin.counts(&scene.blob).body_bytes, scene.blob.pattern.length);
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_without_a_digest_are_confirmed_by_a_second_parent() {
    let mut scene = Scene::new(2, 17, Vice::Mute).await;
    let task = task_of(&download(&scene.blob.url));
    let scheduler = scene.scheduler.addr();
    let second = FakeParent::start(scheduler, &task, scene.blob.pattern, Vice::Mute).await.unwrap();
    let path = scene.host().path("out");
    let mut download = to_file(&scene.blob.url, &path);
    download.disable_back_to_source = true;
    scene.host().download(download).await.unwrap();
    scene.blob.pattern.check_file(&path).unwrap();
    // A piece that is slow on a loaded machine may be asked for once more.
    let asked = (scene.parent.asked(), second.asked());
    assert!(asked.0 >= 2 && asked.1 >= 2, "every piece came from both: {asked:?}");
    scene.swarm.stop().await;
}

/// SyncPieces that contradicts the geometry bans its parent before anything is fetched from it.
#[tokio::test(flavor = "multi_thread")]
async fn news_of_pieces_that_cannot_be_are_found_out() {
    let origin = OriginServer::start().await.unwrap();
    let scheduler = TestScheduler::start().unwrap();
    let mut swarm = Swarm::join(1, &[scheduler.addr()], "").await.unwrap();
    let blob = origin.blob(4 * PIECE, 13);
    let task = task_of(&download(&blob.url));
    // One that holds a part is followed by SyncPieces.
    let mut held = damselfly_core::PieceSet::new(4);
    held.insert_range(0..2);
    let parent =
        FakeParent::holding(scheduler.addr(), &task, blob.pattern, held, Vice::WrongNews).await.unwrap();
    swarm.hosts[0].get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(swarm.hosts[0].path("out")).unwrap();
    assert_eq!(parent.asked(), 0);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_killed_in_the_middle_of_a_piece_is_replaced() {
    let origin = OriginServer::start().await.unwrap();
    let scheduler = TestScheduler::start().unwrap();
    let yaml = "upload:\n  bandwidthLimit: 20MiB\n";
    let mut swarm = Swarm::join(2, &[scheduler.addr()], yaml).await.unwrap();
    let blob = origin.blob(6 * PIECE, 14);
    swarm.hosts[0].get(&blob.url, "out").await.unwrap();
    let path = swarm.hosts[1].path("out");
    let mut call = swarm.hosts[1].open(to_file(&blob.url, &path)).await.unwrap();
    call.pieces(1).await.unwrap();
    swarm.hosts[0].kill().await;
    let told = call.finish().await.unwrap();
    blob.pattern.check_file(&path).unwrap();
    let receipt = swarm.hosts[1].receipt(&told).await.unwrap();
    assert!(receipt.peer_bytes >= PIECE && receipt.origin_bytes >= PIECE, "{receipt:?}");
    swarm.hosts[1].stop().await;
}

/// What is corrupted on a parent's disk after it was verified: the child's check is the guard.
#[tokio::test(flavor = "multi_thread")]
async fn content_that_rots_on_a_parents_disk_is_not_passed_on() {
    use std::os::unix::fs::FileExt as _;
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let blob = origin.blob(2 * PIECE, 15);
    swarm.hosts[0].download(download(&blob.url)).await.unwrap();
    let task = task_of(&download(&blob.url));
    let data = find(&swarm.hosts[0].path(""), &format!("{task}.data")).unwrap();
    std::fs::OpenOptions::new().write(true).open(data).unwrap().write_all_at(b"rot", 7).unwrap();
    swarm.hosts[1].get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(swarm.hosts[1].path("out")).unwrap();
    swarm.stop().await;
}

fn find(dir: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find_map(|path| if path.is_dir() { find(&path, name) } else { path.ends_with(name).then_some(path) })
}
