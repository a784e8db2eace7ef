use super::*;
use crate::testing::{self, empty, hold, key};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_can_be_followed_by_another_on_the_same_home() {
    let (home, daemon) = testing::daemon("").await;
    let config = Config::clone(&daemon.engine().config);
    let marker = config.storage.dir.join("damselfly-v1/clean");
    let content = empty(&daemon.engine().store, &key('a'), 2, None);
    hold(&content, 0);
    daemon.kill().await;
    assert!(!marker.try_exists().unwrap(), "nobody vouches for what a dead daemon has written");
    let next = Daemon::start(config, DaemonOptions::default()).await.expect("nobody has the store");
    let found = next.engine().store.get(&key('a')).expect("what was stored before the end is there");
    assert!(found.has(0) && !found.has(1));
    hold(&found, 1);
    assert!(content.invalidate(0).is_err(), "the dead one's content changes no more");
    next.shutdown(Departure::ForGood, Duration::from_secs(1)).await;
    assert!(marker.try_exists().unwrap(), "this one ended in order");
    drop(home);
}
