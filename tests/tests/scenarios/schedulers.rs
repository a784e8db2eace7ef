//! Schedulers that die, and what daemons do without one.

use damselfly_tests::OriginServer;
use damselfly_tests::origin::Behaviour;
use damselfly_tests::swarm::{Host, Setup, Swarm, TestScheduler, download, task_of, to_file};
use futures_util::future::join_all;

use crate::PIECE;

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_killed_and_restarted_in_the_middle_costs_nobody_the_download() {
    let origin = OriginServer::start().await.unwrap();
    let mut scheduler = TestScheduler::start().unwrap();
    let mut swarm = Swarm::join(3, &[scheduler.addr()], "").await.unwrap();
    let blob = origin.blob(16 * PIECE, 1);
    origin.set(&blob, Behaviour { rate: Some(25 << 20), ..Behaviour::default() });
    let mut calls = Vec::new();
    for host in &swarm.hosts {
        let mut call = host.open(to_file(&blob.url, &host.path("out"))).await.unwrap();
        call.pieces(1).await.unwrap();
        calls.push(call);
    }
    scheduler.restart().await.unwrap();
    for told in join_all(calls.into_iter().map(damselfly_tests::swarm::Call::finish)).await {
        told.unwrap();
    }
    for host in &swarm.hosts {
        blob.pattern.check_file(host.path("out")).unwrap();
    }
    // Nobody knows what the dead scheduler's hosts were about to fetch: leases are restated, and little is fetched twice.
    let sent = origin.counts(&blob).body_bytes;
    assert!(sent <= blob.pattern.length + 8 * PIECE, "{sent} bytes for {}", blob.pattern.length);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_scheduler_has_its_ledger_again_from_those_who_hold_the_pieces() {
    let origin = OriginServer::start().await.unwrap();
    let mut scheduler = TestScheduler::start().unwrap();
    let mut swarm = Swarm::join(2, &[scheduler.addr()], "").await.unwrap();
    let blob = origin.blob(3 * PIECE + 1, 7);
    swarm.hosts[0].download(download(&blob.url)).await.unwrap();
    let id = task_of(&download(&blob.url));
    let asked = |host: &Host| host.daemon().engine().cluster.pick(&id);
    let before: Vec<_> = swarm.hosts.iter().map(asked).collect();
    scheduler.restart().await.unwrap();
    for (host, before) in swarm.hosts.iter().zip(before) {
        let mut changes = host.daemon().engine().cluster.changes();
        while asked(host).is_none() || asked(host) == before {
            changes.changed().await.unwrap();
        }
    }
    // The second host hears of the first one's pieces with their CRCs, or not at all.
    swarm.hosts[1].get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(swarm.hosts[1].path("out")).unwrap();
    assert_eq!(origin.counts(&blob).body_bytes, blob.pattern.length);
    let snapshot = scheduler.snapshot();
    let task = snapshot.tasks.iter().find(|task| task.key.id == id).unwrap();
    assert_eq!((task.ledger, snapshot.counters.origin_pieces), (4, 0));
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_takes_leave_of_its_scheduler() {
    let scheduler = TestScheduler::start().unwrap();
    let mut swarm = Swarm::join(2, &[scheduler.addr()], "").await.unwrap();
    for host in &swarm.hosts {
        host.sees_schedulers(1).await.unwrap();
    }
    swarm.hosts[0].stop().await;
    // One that merely died would be known still, to be awaited.
    let hosts = scheduler.snapshot().hosts;
    assert!(hosts.len() == 1 && hosts[0].held, "{hosts:?}");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_stays_dead_costs_nobody_the_download() {
    let origin = OriginServer::start().await.unwrap();
    let mut scheduler = TestScheduler::start().unwrap();
    let mut swarm = Swarm::join(2, &[scheduler.addr()], "").await.unwrap();
    let blob = origin.blob(8 * PIECE, 2);
    origin.set(&blob, Behaviour { rate: Some(25 << 20), ..Behaviour::default() });
    let mut calls = Vec::new();
    for host in &swarm.hosts {
        let mut call = host.open(to_file(&blob.url, &host.path("out"))).await.unwrap();
        call.pieces(1).await.unwrap();
        calls.push(call);
    }
    scheduler.kill().await;
    for told in join_all(calls.into_iter().map(damselfly_tests::swarm::Call::finish)).await {
        told.unwrap();
    }
    for host in &swarm.hosts {
        blob.pattern.check_file(host.path("out")).unwrap();
    }
    for host in &mut swarm.hosts {
        host.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_holder_killed_in_the_middle_is_replaced() {
    let origin = OriginServer::start().await.unwrap();
    let scheduler = TestScheduler::start().unwrap();
    let mut swarm = Swarm::join(3, &[scheduler.addr()], "").await.unwrap();
    let blob = origin.blob(16 * PIECE, 3);
    origin.set(&blob, Behaviour { rate: Some(25 << 20), ..Behaviour::default() });
    let mut calls = Vec::new();
    for host in &swarm.hosts {
        let mut call = host.open(to_file(&blob.url, &host.path("out"))).await.unwrap();
        call.started().await.unwrap();
        calls.push(call);
    }
    calls[0].pieces(1).await.unwrap();
    drop(calls.remove(0));
    swarm.hosts[0].kill().await;
    for told in join_all(calls.into_iter().map(damselfly_tests::swarm::Call::finish)).await {
        told.unwrap();
    }
    for host in &swarm.hosts[1..] {
        blob.pattern.check_file(host.path("out")).unwrap();
    }
    // The dead host's pieces that nobody had yet, and those in flight, come on top.
    let sent = origin.counts(&blob).body_bytes;
    assert!(sent <= blob.pattern.length + 8 * PIECE, "{sent} bytes for {}", blob.pattern.length);
    for host in &mut swarm.hosts {
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_one_of_three_ring_members_dies_its_tasks_go_on_with_the_next() {
    let origin = OriginServer::start().await.unwrap();
    let mut ring = TestScheduler::ring(3).unwrap();
    let addrs: Vec<_> = ring.iter().map(TestScheduler::addr).collect();
    let mut swarm = Swarm::join(2, &addrs, "").await.unwrap();
    for host in &swarm.hosts {
        host.sees_schedulers(3).await.unwrap();
    }
    let blob = origin.blob(12 * PIECE, 4);
    origin.set(&blob, Behaviour { rate: Some(25 << 20), ..Behaviour::default() });
    let task = task_of(&download(&blob.url));
    let owners: Vec<_> = swarm
        .hosts
        .iter()
        .map(|host| host.daemon().engine().cluster.pick(&task).unwrap().address().to_string())
        .collect();
    assert_eq!(owners[0], owners[1], "every host asks the same member");
    let mut calls = Vec::new();
    for host in &swarm.hosts {
        let mut call = host.open(to_file(&blob.url, &host.path("out"))).await.unwrap();
        call.pieces(1).await.unwrap();
        calls.push(call);
    }
    ring.iter_mut().find(|member| member.addr().to_string() == owners[0]).unwrap().kill().await;
    for told in join_all(calls.into_iter().map(damselfly_tests::swarm::Call::finish)).await {
        told.unwrap();
    }
    for host in &swarm.hosts {
        blob.pattern.check_file(host.path("out")).unwrap();
    }
    let sent = origin.counts(&blob).body_bytes;
    assert!(sent <= blob.pattern.length + 8 * PIECE, "{sent} bytes for {}", blob.pattern.length);
    // A host that comes now finds the content with the next member.
    for host in &swarm.hosts {
        host.sees_schedulers(2).await.unwrap();
    }
    let setup = Setup { join: addrs, ..Setup::default() };
    let late = swarm.add(setup).await.unwrap();
    let told = late.get(&blob.url, "out").await.unwrap();
    assert_eq!(late.receipt(&told).await.unwrap().peer_bytes, blob.pattern.length);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_and_restarted_fetches_again_only_what_was_in_flight() {
    let origin = OriginServer::start().await.unwrap();
    let scheduler = TestScheduler::start().unwrap();
    let mut swarm = Swarm::join(1, &[scheduler.addr()], "").await.unwrap();
    let host = &mut swarm.hosts[0];
    let blob = origin.blob(12 * PIECE, 5);
    origin.set(&blob, Behaviour { rate: Some(25 << 20), ..Behaviour::default() });
    let mut call = host.open(to_file(&blob.url, &host.path("out"))).await.unwrap();
    call.pieces(4).await.unwrap();
    host.kill().await;
    drop(call);
    assert!(!host.path("out").try_exists().unwrap());
    origin.wait_until_total(|counts| counts.open == 0).await.unwrap();
    let before = origin.counts(&blob).body_bytes;
    origin.set(&blob, Behaviour::default());
    host.restart().await.unwrap();
    let task = task_of(&download(&blob.url));
    let held = host.daemon().engine().store.list();
    let held: u32 = held.iter().map(|content| content.pieces().len()).sum();
    assert!(held >= 4, "{held} pieces survived");
    let told = host.get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(host.path("out")).unwrap();
    let again = origin.counts(&blob).body_bytes - before;
    assert_eq!(again, (12 - u64::from(held)) * PIECE, "exactly what was not held is fetched");
    assert_eq!(host.receipt(&told).await.unwrap().local_bytes, u64::from(held) * PIECE);
    assert!(host.stat(&task).await.unwrap().finished_at.is_some());
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_scheduler_a_daemon_goes_to_the_origin_by_itself() {
    let origin = OriginServer::start().await.unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    let mut scheduler = TestScheduler::start().unwrap();
    let nobody = scheduler.addr();
    scheduler.kill().await;
    let setup = Setup { join: vec![nobody], ..Setup::default() };
    let mut host = Host::start(dir.path(), setup).await.unwrap();
    let blob = origin.blob(2 * PIECE, 6);
    host.get(&blob.url, "out").await.unwrap();
    blob.pattern.check_file(host.path("out")).unwrap();
    assert_eq!(origin.counts(&blob).body_bytes, blob.pattern.length);
    host.stop().await;
}
