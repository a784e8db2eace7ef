//! A cluster of fake schedulers on loopback.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

mod fake;
mod futures;
mod manager;
mod tls;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use damselfly_api::damselfly::v1::{
    Drop as DropOrder, HoldResponse, Holding, Replicate, Tombstone, Welcome, hold_request, hold_response,
};
use damselfly_api::scheduler::v2::AnnouncePeerRequest;
use damselfly_core::{Kind, PeerId, TaskId};
use damselfly_scheduler_client::{Command, Departure};
use fake::{Fake, Me, PATIENCE, Script, Seen, options, run, script, start, until};
use tokio::net::TcpListener;

fn task(n: u32) -> TaskId {
    TaskId::parse(&format!("{:05x}{}", n.wrapping_mul(40_503) & 0xf_ffff, "0".repeat(59))).unwrap()
}

fn said(seen: Seen) -> Option<hold_request::Request> {
    match seen {
        Seen::Said(request) => Some(*request),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_ours_is_greeted_told_and_held() {
    let mut fake = Fake::start(true).await;
    let me = Me::new();
    me.held.lock().push(Holding { id: "aaaaa".to_owned(), ..Holding::default() });
    me.buried.lock().push(Tombstone { id: "bbbbb".to_owned(), ..Tombstone::default() });
    let (cluster, _orders) = start(&me, &[fake.address]).await;

    let announced = fake
        .wait_for("AnnounceHost", |seen| match seen {
            Seen::Announced(request) => Some(request),
            _ => None,
        })
        .await;
    assert_eq!(announced.interval.unwrap().seconds, 300);
    assert_eq!(announced.host.unwrap().incarnation, Some(77));
    let hold_request::Request::Hello(hello) = fake.wait_for("hello", said).await else { panic!("not hello") };
    assert_eq!((hello.incarnation, hello.version.as_str()), (77, "test"));
    let (mut list, mut stones, mut beats) = (None, None, 0);
    while list.is_none() || stones.is_none() || beats < 2 {
        match fake.wait_for("the list, tombstones and beats", said).await {
            hold_request::Request::Holdings(holdings) => list = Some(holdings),
            hold_request::Request::Tombstones(tombstones) => stones = Some(tombstones),
            hold_request::Request::Beat(beat) => {
                beats += 1;
                assert_eq!(beat.seq, beats);
            }
            other => panic!("{other:?}"),
        }
    }
    let list = list.unwrap();
    assert!(list.last && list.holdings.len() == 1);
    assert_eq!(list.holdings[0].crcs, [5], "the first list carries CRCs");
    assert_eq!(stones.unwrap().tombstones[0].id, "bbbbb");

    me.change(|held| held[0].bitmap = vec![1]);
    let changed = fake
        .wait_for("the change", |seen| match said(seen) {
            Some(hold_request::Request::Holdings(holdings)) => Some(holdings),
            _ => None,
        })
        .await;
    assert!(!changed.last);
    assert_eq!(changed.holdings[0].bitmap, [1]);
    assert!(changed.holdings[0].crcs.is_empty(), "changes do not");

    let handle = cluster.pick(&task(1)).unwrap();
    assert!(handle.ours());
    assert_eq!(handle.address(), fake.address);
    assert_eq!(handle.list_hosts(None).await.unwrap()[0].id, "somebody");
    handle.delete_task("me", &task(1)).await.unwrap();
    let unknown = handle.stat_task("me", &task(1)).await.unwrap_err();
    assert!(unknown.to_string().contains("task unknown"), "{unknown}");
    let unbuilt = handle.stat_peer("me", &task(1), &PeerId::from("peer")).await.unwrap_err();
    assert_eq!(unbuilt.code(), Some(tonic::Code::Unimplemented));
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_delivered_and_answered() {
    let mut fake = Fake::start(true).await;
    let me = Me::new();
    let (_cluster, mut orders) = start(&me, &[fake.address]).await;
    fake.wait_for("hello", said).await;
    let id = task(3).to_string();
    let order = |response| Some(HoldResponse { response: Some(response) });
    let drop = DropOrder { order: 5, kind: 2, id: id.clone(), generation: 9 };
    fake.orders.send_replace(order(hold_response::Response::Drop(drop)));
    let received = tokio::time::timeout(PATIENCE, orders.recv()).await.unwrap().unwrap();
    assert_eq!(received.scheduler, fake.address);
    let Command::Drop { task: key, generation: 9 } = &received.command else { panic!("{received:?}") };
    assert_eq!((key.kind, key.id.clone()), (Kind::PersistentCache, task(3)));
    received.done(Err("busy".to_owned())).await;
    let done = |seen| match said(seen) {
        Some(hold_request::Request::Done(done)) => Some((done.order, done.error)),
        _ => None,
    };
    assert_eq!(fake.wait_for("the answer", done).await, (5, Some("busy".to_owned())));

    let replicate = Replicate { order: 6, kind: 2, id, parents: vec![] };
    fake.orders.send_replace(order(hold_response::Response::Replicate(replicate)));
    tokio::time::timeout(PATIENCE, orders.recv()).await.unwrap().unwrap().done(Ok(())).await;
    assert_eq!(fake.wait_for("the answer", done).await, (6, None));

    let malformed = Replicate { order: 7, kind: 2, id: "../x".to_owned(), parents: vec![] };
    fake.orders.send_replace(order(hold_response::Response::Replicate(malformed)));
    let (order_id, error) = fake.wait_for("the answer", done).await;
    assert_eq!(order_id, 7);
    assert!(error.unwrap().contains("malformed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_dragonflys_is_used_without_hold() {
    let mut fake = Fake::start(false).await;
    let me = Me::new();
    let (cluster, _orders) = start(&me, &[fake.address]).await;
    let handle = cluster.pick(&task(1)).unwrap();
    assert!(!handle.ours());
    assert!(cluster.schedulers()[0].healthy && !cluster.schedulers()[0].ours);

    cluster.leave(Departure::Restarting { back_within: Duration::from_secs(9) }, PATIENCE).await;
    assert!(cluster.pick(&task(1)).is_none());
    let mut announced = 0;
    let deleted = fake
        .wait_for("DeleteHost", |seen| match seen {
            Seen::Announced(_) => {
                announced += 1;
                None
            }
            Seen::Deleted(host) => Some(host),
            _ => None,
        })
        .await;
    assert_eq!((deleted.as_str(), announced), ("me", 1), "announced once, without a retry storm");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_says_whether_the_host_comes_back() {
    for (departure, restarting) in
        [(Departure::ForGood, false), (Departure::Restarting { back_within: Duration::from_secs(30) }, true)]
    {
        let mut fake = Fake::start(true).await;
        let me = Me::new();
        let (cluster, _orders) = start(&me, &[fake.address]).await;
        cluster.leave(departure, PATIENCE).await;
        let leaving = fake
            .wait_for("leaving", |seen| match said(seen) {
                Some(hold_request::Request::Leaving(leaving)) => Some(leaving),
                _ => None,
            })
            .await;
        assert_eq!(leaving.restarting, restarting);
        assert_eq!(leaving.back_within.map(|back| back.seconds), restarting.then_some(30));
        fake.wait_for("the end of Hold", |seen| matches!(seen, Seen::HoldEnded).then_some(())).await;
        let deleted = std::iter::from_fn(|| fake.seen.try_recv().ok()).any(|s| matches!(s, Seen::Deleted(_)));
        assert_eq!(deleted, !restarting);
        assert!(cluster.healthy().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_dies_and_returns_is_told_everything_again() {
    let mut fake = Fake::start(true).await;
    let me = Me::new();
    me.held.lock().push(Holding { id: "aaaaa".to_owned(), ..Holding::default() });
    let (cluster, _orders) = start(&me, &[fake.address]).await;
    fake.wait_for("hello", said).await;
    let before = cluster.pick(&task(1)).unwrap();
    let address = fake.kill().await;
    until(&cluster, "the death is noticed", |cluster| cluster.pick(&task(1)).is_none()).await;
    assert!(cluster.schedulers()[0].error.is_some());

    let mut fake = Fake::start_at(address, script(2)).await;
    until(&cluster, "it is back", |cluster| cluster.pick(&task(1)).is_some()).await;
    let after = cluster.pick(&task(1)).unwrap();
    assert_eq!(before.address(), after.address());
    assert_ne!(before, after, "a new session, so that peers register anew");
    let list = fake
        .wait_for("the full list", |seen| match said(seen) {
            Some(hold_request::Request::Holdings(holdings)) => Some(holdings),
            _ => None,
        })
        .await;
    assert!(list.last && list.holdings.len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_at_start_is_waited_for() {
    let vacant = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = vacant.local_addr().unwrap();
    drop(vacant);
    let me = Me::new();
    let (cluster, _orders) = run(options(&me, &[address]));
    until(&cluster, "the scheduler is known", |cluster| !cluster.schedulers().is_empty()).await;
    assert!(cluster.pick(&task(1)).is_none());
    let _fake = Fake::start_at(address, script(1)).await;
    tokio::time::timeout(PATIENCE, cluster.ready()).await.unwrap();
    assert!(cluster.pick(&task(1)).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_a_dead_member_go_to_the_next_and_come_back() {
    let mut fakes = Vec::new();
    for _ in 0..3 {
        fakes.push(Fake::start(true).await);
    }
    let addresses: Vec<SocketAddr> = fakes.iter().map(|fake| fake.address).collect();
    let me = Me::new();
    let (cluster, _orders) = start(&me, &addresses).await;
    until(&cluster, "all are healthy", |cluster| cluster.healthy().len() == 3).await;
    let owner = |n: u32| cluster.pick(&task(n)).map(|handle| handle.address());
    let before: Vec<_> = (0..300).map(owner).collect();

    let dead = fakes.remove(1).kill().await;
    until(&cluster, "one is dead", |cluster| cluster.healthy().len() == 2).await;
    for (n, before) in (0..).zip(&before) {
        let now = owner(n);
        assert!(now.is_some() && now != Some(dead));
        if *before != Some(dead) {
            assert_eq!(now, *before, "only the dead member's tasks move");
        }
    }
    let _back = Fake::start_at(dead, script(2)).await;
    until(&cluster, "it is back", |cluster| cluster.healthy().len() == 3).await;
    assert!((0..300).map(owner).eq(before), "everything is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stated_ring_brings_members_in_and_a_second_name_is_no_second_member() {
    let other = Fake::start(true).await;
    let other_address = other.address;
    // States an address of its own that is not the one it is reached by, and names the other member.
    let first = Fake::start_at("127.0.0.1:0".parse().unwrap(), |address| Script {
        ours: true,
        welcome: Welcome {
            epoch: 4,
            address: format!("127.0.0.2:{}", address.port()),
            ring: vec![format!("127.0.0.2:{}", address.port()), other_address.to_string()],
        },
    })
    .await;
    let me = Me::new();
    let (cluster, _orders) = start(&me, &[first.address]).await;
    until(&cluster, "both are healthy", |cluster| cluster.healthy().len() == 2).await;
    let members: HashSet<SocketAddr> = cluster.schedulers().iter().map(|info| info.address).collect();
    assert_eq!(members, HashSet::from([first.address, other_address]));
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_talk_over_their_stream() {
    let fake = Fake::start(false).await;
    let me = Me::new();
    let (cluster, _orders) = start(&me, &[fake.address]).await;
    let handle = cluster.pick(&task(1)).unwrap();
    let message =
        |peer: &str| AnnouncePeerRequest { peer_id: peer.to_owned(), ..AnnouncePeerRequest::default() };

    let mut stream = handle.announce_peer(message("one")).await.unwrap();
    assert!(stream.rx.next().await.unwrap().is_some());
    stream.tx.send(message("one")).await.unwrap();
    assert!(stream.rx.next().await.unwrap().is_some());
    drop(stream.tx);
    assert!(stream.rx.next().await.unwrap().is_none(), "a proper end");

    let refused = handle.announce_peer(message("refused")).await.unwrap_err();
    assert_eq!(refused.code(), Some(tonic::Code::PermissionDenied));
    assert_eq!(refused.class(), damselfly_core::Class::OtherSource);

    let mut stream = handle.announce_peer(message("three")).await.unwrap();
    for _ in 0..2 {
        stream.tx.send(message("three")).await.unwrap();
    }
    drop(stream.tx);
    let error = loop {
        match stream.rx.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no error"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("three messages"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_at_once_find_room() {
    let fake = Fake::start(false).await;
    let me = Me::new();
    let (cluster, _orders) = start(&me, &[fake.address]).await;
    let handle = cluster.pick(&task(1)).unwrap();
    let mut streams = Vec::new();
    for n in 0..400 {
        let first = AnnouncePeerRequest { peer_id: n.to_string(), ..AnnouncePeerRequest::default() };
        streams.push(handle.announce_peer(first).await.unwrap());
    }
    for stream in &mut streams {
        assert!(stream.rx.next().await.unwrap().is_some());
    }
}
