//! Keeps a driver running for every scheduler of the set, and the set up to date.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tracing::{error, warn};

use super::shared::Shared;
use crate::dynconfig::Found;
use crate::member::{Backoff, Member, drive};

/// Looking the schedulers up failed: the next try comes after 1 s, then later, at most after the refresh interval.
const LOOKUP_RETRY: Duration = Duration::from_secs(1);
/// What panicked is started again after this.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// Runs until the daemon left.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut drivers =
        Drivers { shared: Arc::clone(&shared), set: JoinSet::new(), by_address: HashMap::new() };
    let mut refresher = JoinSet::new();
    refresher.spawn(refresh(Arc::clone(&shared)));
    loop {
        tokio::select! {
            () = shared.membership.notified() => drivers.reconcile(),
            Some(ended) = drivers.set.join_next_with_id() => drivers.ended(ended),
            Some(ended) = refresher.join_next() => if let Err(panic) = ended {
                error!(%panic, "looking schedulers up failed badly; starting it again");
                let shared = Arc::clone(&shared);
                refresher.spawn(async move {
                    tokio::time::sleep(AFTER_PANIC).await;
                    refresh(shared).await;
                });
            },
            _ = shared.departure() => break,
        }
    }
    refresher.abort_all();
    while drivers.set.join_next().await.is_some() {}
    shared.left.send_replace(true);
}

struct Drivers {
    shared: Arc<Shared>,
    set: JoinSet<()>,
    by_address: HashMap<SocketAddr, (Id, AbortHandle, Arc<Member>)>,
}

impl Drivers {
    /// Starts drivers for schedulers that came, and ends those of schedulers that went.
    fn reconcile(&mut self) {
        let wanted = self.shared.wanted();
        self.by_address.retain(|address, (_, driver, _)| {
            let keep = wanted.contains_key(address);
            if !keep {
                driver.abort();
            }
            keep
        });
        for (address, name) in wanted {
            if self.by_address.contains_key(&address) {
                continue;
            }
            match Member::new(address, &name, self.shared.tls.as_ref()) {
                Ok(member) => self.start(Arc::new(member), Duration::ZERO),
                Err(error) => warn!(scheduler = %address, %error, "scheduler left out"),
            }
        }
        let members: BTreeMap<_, _> =
            self.by_address.iter().map(|(address, (_, _, member))| (*address, Arc::clone(member))).collect();
        self.shared.set_members(members);
    }

    fn start(&mut self, member: Arc<Member>, after: Duration) {
        let (shared, driven) = (Arc::clone(&self.shared), Arc::clone(&member));
        let driver = self.set.spawn(async move {
            tokio::time::sleep(after).await;
            drive(shared, driven).await;
        });
        self.by_address.insert(member.address, (driver.id(), driver, member));
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let Err(panic) = ended else { return };
        let driver = self.by_address.values().find(|(id, ..)| *id == panic.id());
        if let Some((_, _, member)) = driver {
            let member = Arc::clone(member);
            error!(scheduler = %member.address, %panic, "dialogue with scheduler failed badly; starting it again");
            self.shared.not_healthy(&member, "the dialogue with it panicked".to_owned());
            self.start(member, AFTER_PANIC);
        }
    }
}

/// Looks the schedulers up, now and at every refresh interval.
async fn refresh(shared: Arc<Shared>) {
    let options = &shared.options;
    let mut backoff = Backoff::new(LOOKUP_RETRY.min(options.refresh_interval), options.refresh_interval);
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
                backoff = Backoff::new(LOOKUP_RETRY.min(options.refresh_interval), options.refresh_interval);
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
