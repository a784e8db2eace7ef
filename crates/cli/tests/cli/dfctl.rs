//! What dfctl shows and orders.

use damselfly_api::common::v2::{Host, Task};
use damselfly_api::damselfly::v1::{ActorStatus, HostStatus, StatusResponse, TaskKind, TaskRef, TaskStatus};
use damselfly_api::dfdaemon::v2::StatLocalTaskResponse;

use crate::fake::{Fake, Script, TASK_ID};

fn local() -> StatLocalTaskResponse {
    StatLocalTaskResponse {
        task_id: TASK_ID.to_owned(),
        piece_length: Some(4 << 20),
        content_length: Some(65 << 20),
        created_at: Some(prost_types::Timestamp { seconds: 1_795_183_267, nanos: 0 }),
        ..Default::default()
    }
}

fn status() -> StatusResponse {
    StatusResponse {
        host: Some(HostStatus {
            host: Some(Host { id: "10.0.0.1-h".to_owned(), ..Host::default() }),
            ..HostStatus::default()
        }),
        tasks: vec![TaskStatus {
            task: Some(TaskRef { kind: TaskKind::Cache.into(), id: TASK_ID.to_owned() }),
            state: "running".to_owned(),
            ..TaskStatus::default()
        }],
        actors: vec![ActorStatus { path: "daemon/tasks".to_owned(), state: "1 live".to_owned() }],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn task_ls_prints_dragonflys_table() {
    let fake = Fake::start(Script { tasks: vec![local()], ..Script::default() });
    let ended = fake.dfctl(&["task", "ls"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut lines = ended.stdout.lines();
    let header: Vec<_> =
        lines.next().unwrap().split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!(header, ["ID", "PIECE LENGTH", "CONTENT LENGTH", "CREATED", "FINISHED", "FAILED", "UPDATED"]);
    let row: Vec<_> =
        lines.next().unwrap().split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!(row, [TASK_ID, "4.0 MiB", "65.0 MiB", "2026-11-20 14:01:07", "-", "-", "-"]);

    let ended = fake.dfctl(&["task", "ls", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(json[0]["content_length"], 65 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn task_rm_takes_the_beginning_of_an_id() {
    let fake = Fake::start(Script { tasks: vec![local()], ..Script::default() });
    let ended = fake.dfctl(&["task", "rm", "0123"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "Task Removed!\n"), "{ended:?}");
    assert_eq!(*fake.script.orders.lock().unwrap(), [format!("delete {TASK_ID}")]);

    let ended = fake.dfctl(&["task", "rm", "f"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.starts_with("Removing Task Failed!\n"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn task_stat_joins_what_host_and_scheduler_know() {
    let swarm = Task { state: "Succeeded".to_owned(), peer_count: 3, ..Task::default() };
    let fake = Fake::start(Script { tasks: vec![local()], swarm: Some(swarm), ..Script::default() });
    let ended = fake.dfctl(&["task", "stat", "01"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("65.0 MiB") && ended.stdout.contains("Succeeded"), "{ended:?}");
    let ended = fake.dfctl(&["task", "stat", "01", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (json["local"]["id"].clone(), json["swarm"]["peer_count"].clone()),
        (TASK_ID.into(), 3.into())
    );

    let ended = Fake::start(Script::default()).dfctl(&["task", "stat", TASK_ID]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("Stating Failed!") && ended.stdout.contains("no such task"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_host_tasks_and_tree() {
    let fake = Fake::start(Script { status: Some(status()), ..Script::default() });
    let ended = fake.dfctl(&["status"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in ["Host      10.0.0.1-h", " 0123456789ab   running", "daemon\n└─ tasks · 1 live\n"] {
        assert!(ended.stdout.contains(part), "{part:?} is not in:\n{}", ended.stdout);
    }
    let ended = fake.dfctl(&["status", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(json["tasks"][0]["kind"], "cache-task");
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_reach_the_daemon() {
    let fake = Fake::start(Script { status: Some(status()), ..Script::default() });
    for (arguments, said) in [
        (&["pause", "012"][..], format!("paused {TASK_ID}\n")),
        (&["resume", "012"], format!("resumed {TASK_ID}\n")),
        (&["cancel", "012"], format!("cancelled {TASK_ID}\n")),
        (&["limit", "012", "10MiB/s"], format!("limited {TASK_ID} to 10.0 MiB/s\n")),
        (&["limit", "012", "none"], format!("no limit for {TASK_ID}\n")),
    ] {
        let ended = fake.dfctl(arguments).await;
        assert_eq!((ended.code, ended.stdout), (Some(0), said));
    }
    let expected =
        ["pause", "resume", "cancel", "limit", "limit"].iter().zip(["", "", "", " 10485760", " 0"]);
    let expected: Vec<_> = expected.map(|(order, rest)| format!("{order} {TASK_ID}{rest}")).collect();
    assert_eq!(*fake.script.orders.lock().unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_for_what_does_not_run_say_from_when_they_hold() {
    let mut idle = status();
    idle.tasks[0].state = "partial".to_owned();
    let fake = Fake::start(Script { status: Some(idle), ..Script::default() });
    for (arguments, said) in [
        (&["pause", "012"][..], format!("paused {TASK_ID}; its next download waits until dfctl resume\n")),
        (
            &["limit", "012", "10MiB/s"],
            format!("limited {TASK_ID} to 10.0 MiB/s from its next download on\n"),
        ),
    ] {
        let ended = fake.dfctl(arguments).await;
        assert_eq!((ended.code, ended.stdout), (Some(0), said));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_of_dragonflys_is_told_apart() {
    let ended = Fake::start(Script::default()).dfctl(&["pause", "0"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.starts_with("Pausing Task Failed!\n"), "{ended:?}");
    assert!(ended.stdout.contains("it needs Damselfly's dfdaemon"), "{ended:?}");
}
