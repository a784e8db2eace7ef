use std::time::Duration;

use damselfly_core::download::LostClient;

use super::*;
use crate::kit::Faults;
use crate::testing::{daemon, daemon_with, empty, hold, key};

const SOON: Duration = Duration::from_secs(20);

fn wish(headers: &[(&str, &str)]) -> Box<Wish> {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    // Nobody answers there.
    let url = url::Url::parse("http://127.0.0.1:1/x").unwrap();
    Box::new(Wish {
        range: RangeSpec::Whole,
        may_use_origin: true,
        deadline: None,
        request: Some(Arc::new(OriginRequest { url, headers, piece_length: None })),
        download: Arc::default(),
    })
}

async fn join(engine: &Arc<Engine>, content: &Arc<TaskContent>) -> Result<Membership, JoinError> {
    engine.tasks.ask(ASK, |reply| TasksMsg::Join(Arc::clone(content), wish(&[]), reply)).await.unwrap()
}

async fn until(member: &mut Membership, wanted: impl Fn(&ProgressEvent) -> bool) {
    let found = async {
        loop {
            if wanted(&member.events.next().await) {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, found).await.unwrap();
}

/// Returns once the registry answers and knows of no task.
async fn idle(engine: &Engine) {
    let idle = async {
        while engine.tasks.ask(ASK, TasksMsg::Count).await != Ok(0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, idle).await.unwrap();
    assert!(engine.live.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_joins_an_ending_run_is_served_by_another() {
    let (_home, daemon) = daemon("").await;
    let (engine, key) = (daemon.engine(), key('a'));
    let content = empty(&engine.store, &key, 2, None);
    hold(&content, 0);
    hold(&content, 1);
    // Everything is held, so every run ends the moment it has begun: most of these meet one that is ending.
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (engine, content) = (Arc::clone(engine), Arc::clone(&content));
        clients.spawn(async move {
            let mut member = join(&engine, &content).await.unwrap();
            let me = member.client;
            until(&mut member, |event| matches!(event, ProgressEvent::Ready(client, _) if *client == me))
                .await;
            member.peer_id.to_string()
        });
    }
    let names = clients.join_all().await;
    let different: std::collections::HashSet<_> = names.iter().collect();
    assert_eq!(different.len(), names.len(), "every download has a name of its own");
    idle(engine).await;
    // Nothing pins it any more.
    engine.store.delete(&key).unwrap();
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_crashes_is_started_again_once() {
    let faults = Faults::armable();
    let (_home, daemon) = daemon_with("", faults.clone()).await;
    let (engine, key) = (daemon.engine(), key('a'));
    let content = empty(&engine.store, &key, 2, None);
    hold(&content, 0);
    hold(&content, 1);
    faults.arm("task-supervisor", 1);
    let mut member = join(engine, &content).await.unwrap();
    until(&mut member, |event| matches!(event, ProgressEvent::Ready(..))).await;
    drop(member);
    faults.arm("task-supervisor", 2);
    let mut member = join(engine, &content).await.unwrap();
    until(&mut member, |event| *event == ProgressEvent::Crashed).await;
    drop(member);
    idle(engine).await;
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_registry_leaves_nobody_waiting() {
    let faults = Faults::armable();
    let (_home, daemon) = daemon_with("", faults.clone()).await;
    let (engine, key) = (daemon.engine(), key('a'));
    let content = empty(&engine.store, &key, 2, None);
    content.set_paused(true).unwrap();
    let member = join(engine, &content).await.unwrap();
    let over = engine.live.until_over(&key).unwrap();
    faults.arm("tasks", 1);
    engine.tasks.cast(TasksMsg::Leave(key.clone(), ClientId(0)));
    tokio::time::timeout(SOON, over.cancelled()).await.unwrap();
    drop(member);
    idle(engine).await;
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_task_cannot_be_joined_and_leaves_nothing_behind() {
    let (_home, daemon) = daemon("").await;
    let (engine, key) = (daemon.engine(), key('a'));
    let content = empty(&engine.store, &key, 2, None);
    engine.store.delete(&key).unwrap();
    assert_eq!(join(engine, &content).await.unwrap_err(), JoinError::Gone);
    assert!(engine.live.is_empty());
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_begins_with_its_tasks_limit_and_leaves_its_sources() {
    let (_home, daemon) = daemon("").await;
    let (engine, key) = (daemon.engine(), key('a'));
    let content = empty(&engine.store, &key, 2, None);
    hold(&content, 0);
    content.set_paused(true).unwrap();
    engine.known.set_limit(&key, Some(7));
    let mut member = join(engine, &content).await.unwrap();
    let shown = async {
        loop {
            match engine.live.view(&key).filter(|view| view.clients == 1) {
                Some(view) => return view,
                None => tokio::task::yield_now().await,
            }
        }
    };
    assert_eq!(tokio::time::timeout(SOON, shown).await.unwrap().limit, Some(7));
    assert_eq!(engine.known.sources(&key), None, "nothing has ended yet");
    engine.tasks.cast(TasksMsg::Control(
        key.clone(),
        Control::Cancel,
        tokio::sync::oneshot::channel().0.into(),
    ));
    let me = member.client;
    until(&mut member, |event| *event == ProgressEvent::Failed(me, LostClient::Cancelled)).await;
    drop(member);
    idle(engine).await;
    assert_eq!(engine.known.sources(&key), Some(Sources { origin: 0, peers: 0, local: 1 }));
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_pause_limit_and_cancel_what_runs() {
    let (_home, daemon) = daemon("").await;
    let (engine, key) = (daemon.engine(), key('a'));
    let content = empty(&engine.store, &key, 2, None);
    content.set_paused(true).unwrap();
    let mut member = join(engine, &content).await.unwrap();
    let control = async |control| {
        engine.tasks.ask(ASK, |reply| TasksMsg::Control(key.clone(), control, reply)).await.unwrap()
    };
    assert!(control(Control::Limit(Some(7))).await);
    assert!(control(Control::Cancel).await);
    let me = member.client;
    until(&mut member, |event| *event == ProgressEvent::Failed(me, LostClient::Cancelled)).await;
    drop(member);
    idle(engine).await;
    assert!(!control(Control::Cancel).await);
    daemon.kill().await;
}
