//! The cluster's futures one by one: what dropping one costs, and what running it anew brings back.

use std::time::Duration;

use damselfly_api::damselfly::v1::{Holding, hold_request};
use damselfly_scheduler_client::{Cluster, ClusterOptions, Departure, Source};
use tokio::sync::Notify;

use crate::fake::{Fake, Me, PATIENCE, Seen, options, until};
use crate::{said, task};

fn announced(seen: Seen) -> Option<()> {
    matches!(seen, Seen::Announced(_)).then_some(())
}

/// A cluster that knows its members, with nothing running.
async fn looked_up(options: ClusterOptions) -> Cluster {
    let (cluster, _orders) = Cluster::new(options).unwrap();
    tokio::select! {
        () = cluster.announce(|| {}) => panic!("nobody left"),
        () = until(&cluster, "a scheduler is known", |cluster| !cluster.members().is_empty()) => {}
    }
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_is_dropped_is_noticed_and_the_next_tells_everything_again() {
    let mut fake = Fake::start(true).await;
    let me = Me::new();
    me.held.lock().push(Holding { id: "aaaaa".to_owned(), ..Holding::default() });
    let cluster = looked_up(options(&me, &[fake.address])).await;
    let mut former = None;
    for _ in 0..2 {
        tokio::select! {
            () = cluster.hold(fake.address) => panic!("nobody left"),
            () = async {
                cluster.ready().await;
                let list = |seen| match said(seen) {
                    Some(hold_request::Request::Holdings(holdings)) => Some(holdings),
                    _ => None,
                };
                let list = fake.wait_for("the full list", list).await;
                assert!(list.last && list.holdings.len() == 1);
                let now = cluster.pick(&task(1)).unwrap();
                assert_ne!(former.replace(now.clone()), Some(now), "peers register anew");
            } => {}
        }
        assert!(cluster.pick(&task(1)).is_none(), "nobody keeps up with it");
        let error = cluster.schedulers()[0].error.clone().unwrap();
        assert!(error.contains("cut off"), "{error}");
    }
    // Nothing is left that would have to be told.
    let leaving = cluster.leave(Departure::ForGood, Duration::MAX);
    tokio::time::timeout(PATIENCE, leaving).await.unwrap();
    cluster.hold(fake.address).await;
    assert!(cluster.members().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_announced_by_every_new_announcer_and_at_every_interval() {
    for (interval, times) in [(Duration::from_secs(300), 1), (Duration::from_millis(20), 10)] {
        let mut fake = Fake::start(true).await;
        let me = Me::new();
        let options = ClusterOptions { announce_interval: interval, ..options(&me, &[fake.address]) };
        let cluster = looked_up(options).await;
        let address = fake.address;
        let told = async {
            cluster.ready().await;
            fake.wait_for("the greeting", announced).await;
            let again = async {
                for _ in 0..times {
                    fake.wait_for("an announcement", announced).await;
                }
            };
            tokio::select! {
                () = cluster.announce(|| {}) => panic!("nobody left"),
                () = again => {}
            }
        };
        tokio::select! {
            () = cluster.hold(address) => panic!("nobody left"),
            () = told => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_ends_when_its_scheduler_is_no_member_any_more() {
    // One of ours would stay on the list for as long as its own ring names it.
    let (first, second) = (Fake::start(false).await, Fake::start(false).await);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dynconfig.yaml");
    let list = |fakes: &[&Fake]| {
        let addrs: Vec<String> = fakes.iter().map(|fake| format!("\"{}\"", fake.address)).collect();
        std::fs::write(&file, format!("scheduler: {{addrs: [{}]}}", addrs.join(", "))).unwrap();
    };
    list(&[&first, &second]);
    let me = Me::new();
    let cluster = looked_up(ClusterOptions { source: Source::File(file.clone()), ..options(&me, &[]) }).await;
    assert_eq!(cluster.members().len(), 2);
    let changed = Notify::new();
    let shrink = async {
        until(&cluster, "both are healthy", |cluster| cluster.healthy().len() == 2).await;
        list(&[&first]);
        cluster.refresh();
        while cluster.members().len() > 1 {
            changed.notified().await;
        }
        std::future::pending::<()>().await;
    };
    let ended = async {
        tokio::select! {
            () = cluster.hold(second.address) => {}
            () = cluster.hold(first.address) => panic!("still a member"),
            () = cluster.announce(|| changed.notify_one()) => panic!("nobody left"),
            () = shrink => {}
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(cluster.members(), [first.address]);
}
