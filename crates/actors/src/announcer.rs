//! HostAnnouncer and Hold: this host in the eyes of its schedulers.
//!
//! The HostAnnouncer looks the schedulers up and announces the host to them; a Hold keeps up with one of them. What they
//! say and when is `scheduler-client`'s, and what they know stays in its `Cluster`: here each is supervised, so that a
//! panic costs one dialogue, which then begins anew.

use std::net::SocketAddr;
use std::sync::Arc;

use damselfly_scheduler_client::Cluster;
use ractor::Actor;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::kit::{Address, Child, Faults, Group, GroupArgs, GroupMsg, Roster, Seat, ServiceArgs};

/// The HostAnnouncer and the group of the Holds.
pub(crate) fn children(engine: &Arc<Engine>, stop: &CancellationToken) -> [Child; 2] {
    let group = Address::new("holds");
    [holds(engine, group.clone(), stop), Child::service(announcer(engine, group, stop))]
}

fn announcer(engine: &Arc<Engine>, group: Address<GroupMsg>, stop: &CancellationToken) -> ServiceArgs {
    let cluster = Arc::clone(&engine.cluster);
    ServiceArgs {
        name: "host-announcer",
        path: "daemon/host-announcer".to_owned(),
        board: engine.board.clone(),
        faults: engine.faults.clone(),
        stop: stop.clone(),
        run: ServiceArgs::run_seated(move |stop, seat| {
            let (cluster, group) = (Arc::clone(&cluster), group.clone());
            async move {
                let announcing = cluster.announce(|| {
                    seat.show(format!("{} schedulers", cluster.members().len()));
                    // One for each change of the list, which changes at a human pace.
                    group.cast(GroupMsg::Reconcile);
                });
                tokio::select! {
                    () = announcing => {}
                    () = stop.cancelled() => {}
                }
                Ok(())
            }
        }),
    }
}

/// The group of the Holds: one for each scheduler, as the HostAnnouncer finds them.
fn holds(engine: &Arc<Engine>, address: Address<GroupMsg>, stop: &CancellationToken) -> Child {
    let (engine, stop) = (Arc::clone(engine), stop.clone());
    Child::new("holds", move |parent| {
        let (listed, ending) = (Arc::clone(&engine), stop.clone());
        let args = GroupArgs {
            path: "daemon/holds".to_owned(),
            children: Vec::new(),
            roster: Roster::new(move || {
                let members = listed.cluster.members().into_iter();
                members.map(|scheduler| hold(&listed, scheduler, &ending)).collect()
            }),
            board: engine.board.clone(),
            faults: Faults::default(),
            stop: stop.clone(),
        };
        let address = address.clone();
        async move {
            let (group, _) = Actor::spawn_linked(None, Group, args, parent).await?;
            address.set(group.clone());
            // Schedulers that were found before there was anybody to be told.
            group.cast(GroupMsg::Reconcile).map_err(|why| ractor::SpawnErr::StartupFailed(why.into()))?;
            Ok(group.get_cell())
        }
    })
}

fn hold(engine: &Arc<Engine>, scheduler: SocketAddr, stop: &CancellationToken) -> Child {
    let cluster = Arc::clone(&engine.cluster);
    let args = ServiceArgs {
        name: "hold",
        path: format!("daemon/holds/{scheduler}"),
        board: engine.board.clone(),
        faults: engine.faults.clone(),
        stop: stop.clone(),
        run: ServiceArgs::run_seated(move |stop, seat| {
            let cluster = Arc::clone(&cluster);
            async move {
                tokio::select! {
                    () = keep_up(&cluster, scheduler, &seat) => {}
                    () = stop.cancelled() => {}
                }
                Ok(())
            }
        }),
    };
    Child::named_service(scheduler.to_string(), args)
}

/// Holds on to a scheduler, and shows how it stands.
async fn keep_up(cluster: &Cluster, scheduler: SocketAddr, seat: &Seat) {
    let mut changes = cluster.changes();
    let mut hold = std::pin::pin!(cluster.hold(scheduler));
    loop {
        seat.show(standing(cluster, scheduler));
        tokio::select! {
            () = &mut hold => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

fn standing(cluster: &Cluster, scheduler: SocketAddr) -> String {
    match cluster.schedulers().into_iter().find(|info| info.address == scheduler) {
        Some(info) if info.healthy && info.ours => "holding".to_owned(),
        Some(info) if info.healthy => "announced; this scheduler knows no Hold".to_owned(),
        Some(info) => info.error.unwrap_or_else(|| "greeting".to_owned()),
        None => "leaving".to_owned(),
    }
}
