//! `dfctl status`: the host, its tasks, its supervision tree.

use std::io::{self, IsTerminal as _};

use damselfly_api::damselfly::v1::local_client::LocalClient;
use damselfly_api::damselfly::v1::{
    ActorStatus, HostStatus, ParentStatus, SchedulerStatus, StatusRequest, TaskKind, TaskRef, TaskStatus,
};
use damselfly_transport::local::PoolChannel;
use serde_json::{Value, json};

use super::{choose, refused, tree};
use crate::client::call;
use crate::failure::Failure;
use crate::{table, units};

/// Digits of an id that a table shows; enough to name the task again.
const SHORT_ID: usize = 12;

/// One snapshot.
#[derive(Debug, Default)]
struct Snapshot {
    host: HostStatus,
    tasks: Vec<TaskStatus>,
    actors: Vec<ActorStatus>,
}

pub(super) async fn run(channel: PoolChannel, json: bool) -> Result<String, Failure> {
    let snapshot = read(&channel, "Reading Status Failed!").await?;
    if json {
        return Ok(format!("{}\n", snapshot.json()));
    }
    let text = snapshot.text();
    Ok(if io::stdout().is_terminal() { paint(&text) } else { text })
}

/// The task on this host that `name` means, and whether it is one that waits for its next download.
pub(super) async fn resolve(
    channel: &PoolChannel,
    name: &str,
    title: &'static str,
) -> Result<(TaskRef, bool), Failure> {
    let tasks = read(channel, title).await?.tasks;
    let task = choose(tasks.iter().filter_map(|status| status.task.clone()).collect(), name, title)?;
    // So the daemon calls what neither runs nor is complete nor paused.
    let idle = tasks.iter().any(|status| status.state == "partial" && status.task.as_ref() == Some(&task));
    Ok((task, idle))
}

async fn read(channel: &PoolChannel, title: &'static str) -> Result<Snapshot, Failure> {
    let failed = |status| refused(title, &status);
    let mut client = LocalClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let mut stream = client.status(call(StatusRequest {})).await.map_err(failed)?.into_inner();
    let mut snapshot = Snapshot::default();
    while let Some(part) = stream.message().await.map_err(failed)? {
        if let Some(host) = part.host {
            snapshot.host = host;
        }
        snapshot.tasks.extend(part.tasks);
        snapshot.actors.extend(part.actors);
    }
    Ok(snapshot)
}

/// Bold labels and column heads, and states of actors that stay in the background.
fn paint(text: &str) -> String {
    const BOLD: &str = "\x1b[1m";
    const DIM: &str = "\x1b[2m";
    const RESET: &str = "\x1b[m";
    let header = TASK_HEADER[0];
    let mut painted = String::with_capacity(text.len() * 2);
    for line in text.lines() {
        let label = LABELS.iter().find(|label| line.starts_with(**label));
        match (label, line.split_once(" · ")) {
            (Some(label), _) => painted.push_str(&format!("{BOLD}{label}{RESET}{}", &line[label.len()..])),
            _ if line.trim_start().starts_with(header) => {
                painted.push_str(&format!("{BOLD}{line}{RESET}"));
            }
            (None, Some((actor, state))) => painted.push_str(&format!("{actor} {DIM}· {state}{RESET}")),
            (None, None) => painted.push_str(line),
        }
        painted.push('\n');
    }
    painted
}

impl Snapshot {
    fn text(&self) -> String {
        let mut text = host_text(&self.host);
        text.push('\n');
        if self.tasks.is_empty() {
            text.push_str("No tasks.\n");
        } else {
            let rows: Vec<_> = self.tasks.iter().map(task_row).collect();
            text.push_str(&table::render(&TASK_HEADER, &rows));
            for task in &self.tasks {
                text.push_str(&task_lines(task));
            }
        }
        if !self.actors.is_empty() {
            text.push_str(&format!("\n{}", tree::draw(&self.actors)));
        }
        text
    }

    fn json(&self) -> Value {
        let actors: Vec<_> =
            self.actors.iter().map(|actor| json!({ "path": actor.path, "state": actor.state })).collect();
        json!({
            "host": host_json(&self.host),
            "tasks": self.tasks.iter().map(task_json).collect::<Vec<_>>(),
            "actors": actors,
        })
    }
}

fn host_text(status: &HostStatus) -> String {
    let host = status.host.clone().unwrap_or_default();
    let storage = status.storage.unwrap_or_default();
    let mut text = format!("Host      {} (dfdaemon {})\n", host.id, status.version);
    text.push_str(&format!("Address   {}:{}\n", host.ip, host.port));
    text.push_str(&format!("Started   {}\n", units::moment(status.started_at.as_ref())));
    text.push_str(&format!(
        "Store     {}: {} used, {} reserved, {} free of {}\n",
        status.storage_dir,
        units::bytes(storage.used),
        units::bytes(storage.reserved),
        units::bytes(storage.free),
        units::bytes(storage.total),
    ));
    text.push_str(&format!(
        "Memory    {} of {}\n",
        units::bytes(status.memory_used),
        units::bytes(status.memory_budget)
    ));
    if status.embedded_scheduler {
        text.push_str("Scheduler runs in this daemon\n");
    }
    for scheduler in &status.schedulers {
        let kind = if scheduler.ours { "Damselfly" } else { "Dragonfly" };
        let health = match (scheduler.healthy, scheduler.error.as_str()) {
            (true, _) => "healthy".to_owned(),
            (false, "") => "unhealthy".to_owned(),
            (false, why) => format!("unhealthy: {why}"),
        };
        text.push_str(&format!("Scheduler {} ({kind}, {health})\n", scheduler.address));
    }
    text
}

/// What the lines about the host begin with.
const LABELS: [&str; 6] = ["Host", "Address", "Started", "Store", "Memory", "Scheduler"];
const TASK_HEADER: [&str; 8] = ["TASK", "STATE", "PROGRESS", "SIZE", "ORIGIN", "PEERS", "LOCAL", "URL"];

fn task_row(task: &TaskStatus) -> Vec<String> {
    let id = task.task.as_ref().map_or("-", |task| task.id.get(..SHORT_ID).unwrap_or(&task.id));
    let progress = match task.piece_count {
        0 if task.content_length == Some(0) => "100%".to_owned(),
        0 => "-".to_owned(),
        count => format!(
            "{}% ({}/{count})",
            u64::from(task.pieces_held) * 100 / u64::from(count),
            task.pieces_held
        ),
    };
    let known = sources_known(task);
    let source = |bytes: u64| match known {
        _ if task.pieces_held == 0 && bytes == 0 => "-".to_owned(),
        true => units::bytes(bytes),
        false => "unknown".to_owned(),
    };
    vec![
        id.to_owned(),
        task.state.clone(),
        progress,
        task.content_length.map_or_else(|| "-".to_owned(), units::bytes),
        source(task.origin_bytes),
        source(task.peer_bytes),
        source(task.local_bytes),
        task.url.clone(),
    ]
}

/// Whether the daemon counted where the task's bytes came from: it does in the run under way and keeps what the last one
/// counted, but not across its restart.
fn sources_known(task: &TaskStatus) -> bool {
    let runs = task.clients > 0 || task.fetches > 0;
    runs || task.pieces_held == 0 || task.origin_bytes + task.peer_bytes + task.local_bytes > 0
}

/// What does not fit the table: why it waits, its limit, its parents.
fn task_lines(task: &TaskStatus) -> String {
    let id = task.task.as_ref().map_or("-", |task| task.id.get(..SHORT_ID).unwrap_or(&task.id));
    let mut facts = Vec::new();
    if task.clients > 0 {
        facts.push(format!("{} waiting", task.clients));
    }
    if task.fetches > 0 {
        facts.push(format!("{} in flight", pieces(task.fetches)));
    }
    if task.uploads > 0 {
        facts.push(format!("{} being sent", pieces(task.uploads)));
    }
    if task.bytes_per_second > 0 {
        facts.push(format!("limited to {}/s", units::bytes(task.bytes_per_second)));
    }
    if task.private {
        facts.push("private".to_owned());
    }
    if !task.note.is_empty() {
        facts.push(task.note.clone());
    }
    let mut text = String::new();
    if !facts.is_empty() {
        text.push_str(&format!("   {id}: {}\n", facts.join(", ")));
    }
    for parent in &task.parents {
        text.push_str(&format!("   {id} ← {}\n", parent_text(parent)));
    }
    text
}

fn parent_text(parent: &ParentStatus) -> String {
    let address = if parent.address.is_empty() { &parent.peer_id } else { &parent.address };
    let mut text = format!("{address}: {}, {}", pieces(parent.pieces), units::bytes(parent.bytes));
    if parent.fetches > 0 {
        text.push_str(&format!(", {} in flight", parent.fetches));
    }
    if parent.banned {
        text.push_str(", banned");
    }
    text
}

fn pieces(count: u32) -> String {
    format!("{count} piece{}", if count == 1 { "" } else { "s" })
}

fn host_json(status: &HostStatus) -> Value {
    let host = status.host.clone().unwrap_or_default();
    let storage = status.storage.unwrap_or_default();
    let scheduler = |scheduler: &SchedulerStatus| {
        json!({
            "address": scheduler.address,
            "ours": scheduler.ours,
            "healthy": scheduler.healthy,
            "error": scheduler.error,
        })
    };
    json!({
        "id": host.id,
        "ip": host.ip,
        "hostname": host.hostname,
        "port": host.port,
        "version": status.version,
        "started_at": status.started_at.as_ref().map(|at| at.seconds),
        "storage_dir": status.storage_dir,
        "storage": {
            "total": storage.total,
            "used": storage.used,
            "free": storage.free,
            "reserved": storage.reserved,
        },
        "memory_used": status.memory_used,
        "memory_budget": status.memory_budget,
        "embedded_scheduler": status.embedded_scheduler,
        "schedulers": status.schedulers.iter().map(scheduler).collect::<Vec<_>>(),
    })
}

fn task_json(task: &TaskStatus) -> Value {
    let parent = |parent: &ParentStatus| {
        json!({
            "peer_id": parent.peer_id,
            "address": parent.address,
            "ours": parent.ours,
            "banned": parent.banned,
            "fetches": parent.fetches,
            "pieces": parent.pieces,
            "bytes": parent.bytes,
        })
    };
    let kind = task.task.as_ref().map(|task| kind_name(task.kind()));
    let known = sources_known(task);
    let source = |bytes: u64| known.then_some(bytes);
    json!({
        "id": task.task.as_ref().map(|task| &task.id),
        "kind": kind,
        "url": task.url,
        "state": task.state,
        "content_length": task.content_length,
        "piece_length": task.piece_length,
        "piece_count": task.piece_count,
        "pieces_held": task.pieces_held,
        "pieces_wanted": task.pieces_wanted,
        "fetches": task.fetches,
        "origin_bytes": source(task.origin_bytes),
        "peer_bytes": source(task.peer_bytes),
        "local_bytes": source(task.local_bytes),
        "clients": task.clients,
        "uploads": task.uploads,
        "bytes_per_second": task.bytes_per_second,
        "generation": task.generation,
        "private": task.private,
        "tag": task.tag,
        "application": task.application,
        "created_at": task.created_at.as_ref().map(|at| at.seconds),
        "updated_at": task.updated_at.as_ref().map(|at| at.seconds),
        "ttl_left": task.ttl_left.as_ref().map(|left| left.seconds),
        "note": task.note,
        "parents": task.parents.iter().map(parent).collect::<Vec<_>>(),
    })
}

fn kind_name(kind: TaskKind) -> &'static str {
    use damselfly_core::Kind;
    match kind {
        TaskKind::Standard => Kind::Standard.name(),
        TaskKind::PersistentCache => Kind::PersistentCache.name(),
        TaskKind::Cache => Kind::Cache.name(),
    }
}

#[cfg(test)]
mod tests {
    use damselfly_api::damselfly::v1::StorageStatus;

    use super::*;

    fn snapshot() -> Snapshot {
        let host = damselfly_api::common::v2::Host {
            id: "10.0.0.1-node".to_owned(),
            ip: "10.0.0.1".to_owned(),
            port: 4000,
            ..Default::default()
        };
        let task = TaskStatus {
            task: Some(TaskRef { kind: 0, id: "0123456789abcdef".to_owned() }),
            url: "http://h/f".to_owned(),
            state: "running".to_owned(),
            content_length: Some(16 << 20),
            piece_length: 4 << 20,
            piece_count: 4,
            pieces_held: 3,
            origin_bytes: 4 << 20,
            peer_bytes: 8 << 20,
            clients: 1,
            bytes_per_second: 1 << 20,
            note: "waiting for the scheduler".to_owned(),
            parents: vec![ParentStatus {
                address: "10.0.0.2:4005".to_owned(),
                pieces: 2,
                bytes: 8 << 20,
                banned: true,
                ..Default::default()
            }],
            ..Default::default()
        };
        Snapshot {
            host: HostStatus {
                host: Some(host),
                version: "0.1.0".to_owned(),
                storage_dir: "/store".to_owned(),
                storage: Some(StorageStatus {
                    total: 100 << 20,
                    used: 12 << 20,
                    free: 88 << 20,
                    reserved: 0,
                }),
                schedulers: vec![SchedulerStatus {
                    address: "10.0.0.9:8002".to_owned(),
                    ours: true,
                    healthy: false,
                    error: "connection refused".to_owned(),
                }],
                ..Default::default()
            },
            tasks: vec![task],
            actors: vec![ActorStatus { path: "daemon".to_owned(), state: "serving".to_owned() }],
        }
    }

    #[test]
    fn text_tells_progress_and_sources() {
        let text = snapshot().text();
        for line in [
            "Host      10.0.0.1-node (dfdaemon 0.1.0)\n",
            "Store     /store: 12.0 MiB used, 0 B reserved, 88.0 MiB free of 100.0 MiB\n",
            "Scheduler 10.0.0.9:8002 (Damselfly, unhealthy: connection refused)\n",
            " 0123456789ab   running   75% (3/4)   16.0 MiB   4.0 MiB   8.0 MiB   0 B     http://h/f\n",
            "   0123456789ab: 1 waiting, limited to 1.0 MiB/s, waiting for the scheduler\n",
            "   0123456789ab ← 10.0.0.2:4005: 2 pieces, 8.0 MiB, banned\n",
            "\ndaemon · serving\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
    }

    #[test]
    fn colours_only_decorate() {
        let text = snapshot().text();
        let mut painted = paint(&text);
        assert!(painted.starts_with("\x1b[1mHost\x1b[m      10.0.0.1-node"), "{painted:?}");
        assert!(painted.ends_with("daemon \x1b[2m· serving\x1b[m\n"), "{painted:?}");
        for code in ["\x1b[1m", "\x1b[2m", "\x1b[m"] {
            painted = painted.replace(code, "");
        }
        assert_eq!(painted, text);
    }

    #[test]
    fn json_has_whole_ids() {
        let json = snapshot().json();
        assert_eq!(json["tasks"][0]["id"], "0123456789abcdef");
        assert_eq!(json["tasks"][0]["kind"], "task");
        assert_eq!(json["tasks"][0]["parents"][0]["banned"], true);
        assert_eq!(json["host"]["storage"]["used"], 12 << 20);
        assert_eq!(json["actors"][0]["path"], "daemon");
    }

    #[test]
    fn an_unknown_length_has_no_percentage() {
        let mut task = TaskStatus { content_length: None, piece_count: 0, ..Default::default() };
        assert_eq!(task_row(&task)[2], "-");
        task.content_length = Some(0);
        assert_eq!(task_row(&task)[2], "100%");
        assert_eq!(task_row(&task)[4..7], ["-", "-", "-"], "nothing was fetched");
    }

    #[test]
    fn sources_of_ended_tasks_are_told_or_said_to_be_unknown() {
        let mut task = TaskStatus { pieces_held: 4, piece_count: 4, peer_bytes: 7, ..Default::default() };
        assert_eq!(task_row(&task)[4..7], ["0 B", "7 B", "0 B"]);
        assert_eq!(task_json(&task)["origin_bytes"], 0);
        task.peer_bytes = 0;
        assert_eq!(task_row(&task)[4..7], ["unknown", "unknown", "unknown"]);
        assert_eq!(task_json(&task)["origin_bytes"], Value::Null);
        task.clients = 1;
        assert_eq!(task_row(&task)[4..7], ["0 B", "0 B", "0 B"], "a run that has just begun");
    }

    #[test]
    fn one_piece_is_no_pieces() {
        let mut task = TaskStatus { fetches: 1, uploads: 2, ..Default::default() };
        task.parents.push(ParentStatus { pieces: 1, ..Default::default() });
        let lines = task_lines(&task);
        assert!(lines.contains(": 1 piece in flight, 2 pieces being sent\n"), "{lines}");
        assert!(lines.contains(": 1 piece, 0 B\n"), "{lines}");
    }
}
