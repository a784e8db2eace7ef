//! Announcing this host: which schedulers there are, and telling them of it from time to time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use super::shared::Shared;
use crate::announce::announce_host;
use crate::dynconfig::Found;
use crate::member::{Backoff, Member};

/// Looking the schedulers up failed: the next try comes after 1 s, then later, at most after the refresh interval.
const LOOKUP_RETRY: Duration = Duration::from_secs(1);

/// Runs until the daemon leaves. What it knows is in `shared`, so that another run goes on where this one ended.
pub(super) async fn run(shared: &Shared, mut changed: impl FnMut()) {
    let follow = async {
        // What an earlier run was told of and did not get to.
        reconcile(shared);
        changed();
        loop {
            shared.membership.notified().await;
            reconcile(shared);
            changed();
        }
    };
    tokio::select! {
        () = follow => {}
        () = look_up(shared) => {}
        () = announce(shared) => {}
        _ = shared.departure() => {}
    }
    changed();
}

/// Makes the members those that there should be.
fn reconcile(shared: &Shared) {
    let wanted = shared.wanted();
    let mut members = shared.members();
    members.retain(|address, member| {
        let keep = wanted.contains_key(address);
        if !keep {
            member.gone.notify_one();
        }
        keep
    });
    for (address, name) in wanted {
        if members.contains_key(&address) {
            continue;
        }
        match Member::new(address, &name, shared.tls.as_ref()) {
            Ok(member) => drop(members.insert(address, Arc::new(member))),
            Err(error) => warn!(scheduler = %address, %error, "scheduler left out"),
        }
    }
    shared.set_members(members);
}

/// Looks the schedulers up, now and at every refresh interval.
async fn look_up(shared: &Shared) {
    let options = &shared.options;
    let fresh = || Backoff::new(LOOKUP_RETRY.min(options.refresh_interval), options.refresh_interval);
    let mut backoff = fresh();
    loop {
        let host = options.host.host();
        let pause = match options.source.find(&host, options.seed, &options.version).await {
            Ok(Found { schedulers, blocks, warnings }) => {
                for warning in warnings {
                    warn!(warning, "schedulers or block list are incomplete");
                }
                if let Some(blocks) = blocks {
                    *shared.blocks.lock() = Arc::new(blocks);
                }
                shared.source(schedulers);
                backoff = fresh();
                options.refresh_interval
            }
            Err(error) => {
                let pause = backoff.next();
                warn!(%error, retry_in = ?pause, "schedulers cannot be looked up; those known stay");
                pause
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.refresh.notified() => {}
        }
    }
}

/// Announces the host to every healthy scheduler at every interval. The first time comes at once: a run before this one
/// may have missed it. One that is not healthy is greeted with an announcement when it is.
async fn announce(shared: &Shared) {
    let interval = shared.options.announce_interval;
    let mut due = tokio::time::interval(interval);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let members = shared.healthy_members();
        if members.is_empty() {
            continue;
        }
        let host = shared.options.host.host();
        let told = members.iter().map(|member| async {
            match announce_host(member, host.clone(), interval).await {
                Ok(()) => {}
                Err(error) if error.doubts_scheduler() => member.doubt.notify_one(),
                Err(error) => {
                    warn!(scheduler = %member.address, %error, "scheduler did not take the announcement");
                }
            }
        });
        join_all(told).await;
    }
}
