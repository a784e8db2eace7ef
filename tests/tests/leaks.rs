//! After many tasks with random cancels, descriptors, tasks and actors are back at the idle count (promise I6). Its own
//! program, because descriptors are counted for the whole process.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::Path;

use damselfly_tests::OriginServer;
use damselfly_tests::origin::{Behaviour, Blob};
use damselfly_tests::swarm::{Host, Swarm, download, to_file};
use futures_util::{StreamExt as _, stream};

/// Tasks under way at a time.
const AT_ONCE: usize = 8;
/// How many tasks; a release is judged by 1,000.
const TASKS: &str = "DAMSELFLY_LEAK_TASKS";

/// Open descriptors by what they are: files below `store`, sockets, and the rest.
fn descriptors(store: &Path) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::from([("files of the store", 0), ("sockets", 0), ("others", 0)]);
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        // The directory's own descriptor is closed before its link is read.
        let Ok(target) = std::fs::read_link(entry.unwrap().path()) else { continue };
        let kind = match target.to_str() {
            _ if target.starts_with(store) => "files of the store",
            Some(text) if text.starts_with("socket:") => "sockets",
            _ => "others",
        };
        *counts.entry(kind).or_default() += 1;
    }
    counts
}

/// A number that looks random and is the same in every run.
fn dice(of: u64) -> u64 {
    damselfly_tests::Pattern::new(42, u64::MAX).bytes(damselfly_core::ByteRange { start: of * 8, length: 2 })
        [0]
    .into()
}

/// One task of one host: fetched to its end, or left at some moment before.
async fn one(host: &Host, blob: &Blob, number: u64) {
    let path = host.path(&format!("out-{number}"));
    let request = if number.is_multiple_of(3) { download(&blob.url) } else { to_file(&blob.url, &path) };
    match dice(number) % 5 {
        // Gone before it has begun: whether the daemon answered by then is all the same.
        0 => {
            let opening = host.open(request);
            tokio::select! {
                biased;
                opened = opening => drop(opened),
                () = tokio::task::yield_now() => {}
            }
        }
        1 => {
            let mut call = host.open(request).await.unwrap();
            call.started().await.unwrap();
        }
        _ => {
            host.open(request).await.unwrap().finish().await.unwrap();
        }
    }
}

async fn many(swarm: &Swarm, origin: &OriginServer, numbers: std::ops::Range<u64>) {
    let tasks = numbers.map(|number| async move {
        // Every task is asked for by both hosts, one after the other.
        let blob = origin.named_blob(64 + number * 100, number, &format!("task-{number}"));
        if dice(number) % 7 == 3 {
            origin.set(&blob, Behaviour { status: Some(404), ..Behaviour::default() });
            swarm.hosts[0].download(download(&blob.url)).await.unwrap_err();
            return;
        }
        for host in &swarm.hosts {
            one(host, &blob, number).await;
        }
    });
    stream::iter(tasks).buffer_unordered(AT_ONCE).collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_with_random_cancels_leave_nothing_behind() {
    let tasks = std::env::var(TASKS).ok().map_or(1000, |text| text.parse().expect("a number of tasks"));
    let origin = OriginServer::start().await.unwrap();
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let store = swarm.hosts[0].path("").parent().unwrap().to_owned();
    // Connections between the hosts and to the origin are kept for a while: they are part of the idle count.
    many(&swarm, &origin, 0..40).await;
    let mut idle = Vec::new();
    for host in &swarm.hosts {
        idle.push(host.idles().await.unwrap());
    }
    let before = descriptors(&store);
    many(&swarm, &origin, 40..40 + tasks).await;
    for (host, idle) in swarm.hosts.iter().zip(idle) {
        let after = host.idles().await.unwrap();
        assert!(after <= idle, "{after} actors live, {idle} when idle before");
    }
    let after = descriptors(&store);
    println!("descriptors before and after {tasks} tasks: {before:?} {after:?}");
    assert!(after["files of the store"] <= before["files of the store"], "{before:?} {after:?}");
    // Kept connections: a few per address, whatever the number of tasks.
    assert!(after["sockets"] <= before["sockets"] + 2 * AT_ONCE, "{before:?} {after:?}");
    assert!(after["others"] <= before["others"] + 2, "{before:?} {after:?}");
    swarm.stop().await;
}
