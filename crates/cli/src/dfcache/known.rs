//! What is known of imported content: `stat`, `ls` and `rm`.

use std::time::Duration;

use damselfly_api::common::v2::PersistentCacheTask;
use damselfly_api::damselfly::v1::local_client::LocalClient;
use damselfly_api::damselfly::v1::{ListPersistentCacheTasksRequest, Replica};
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_api::dfdaemon::v2::{
    DeletePersistentCacheTaskRequest, ListLocalPersistentCacheTasksRequest,
    StatLocalPersistentCacheTaskResponse, StatPersistentCacheTaskRequest,
};
use damselfly_transport::local::PoolChannel;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::client::call;
use crate::failure::Failure;
use crate::{table, units};

const STAT: [&str; 8] = [
    "ID",
    "STATE",
    "CONTENT LENGTH",
    "PIECE LENGTH",
    "PERSISTENT REPLICA COUNT",
    "TTL",
    "CREATED",
    "UPDATED",
];
const CLUSTER: [&str; 7] = ["ID", "STATE", "CONTENT LENGTH", "REPLICAS", "ON", "TTL", "CREATED"];
const LIST: [&str; 9] =
    ["ID", "PERSISTENT", "TTL", "PIECE LENGTH", "CONTENT LENGTH", "CREATED", "FINISHED", "FAILED", "UPDATED"];

/// A refusal that concerns the task called `id`, with what helps.
pub(super) fn refused(title: &'static str, id: &str, status: &Status) -> Failure {
    let mut failure = Failure::of_call(title, status);
    let help = match status.code() {
        // Our daemon says so itself.
        Code::NotFound if !status.message().contains("never imported") => format!(
            "; nothing is known of {id}: it was never imported in this cluster, its ttl has expired, or it was removed"
        ),
        Code::FailedPrecondition if status.message().contains("redis") => {
            "; Dragonfly's scheduler keeps imported content only when it has a Redis".to_owned()
        }
        Code::Unavailable if failure.exit == crate::exit::Exit::Failure => {
            format!("; dfcache stat {id} shows which hosts have a copy, one of them must be reachable")
        }
        _ => String::new(),
    };
    failure.message.push_str(&help);
    failure
}

pub(super) async fn stat(
    channel: PoolChannel,
    title: &'static str,
    id: &str,
    json: bool,
) -> Result<String, Failure> {
    let request = StatPersistentCacheTaskRequest { task_id: id.to_owned(), remote_ip: None };
    let mut client = DfdaemonDownloadClient::new(channel);
    let answer = client.stat_persistent_cache_task(call(request)).await;
    let task = answer.map_err(|status| refused(title, id, &status))?.into_inner();
    Ok(if json { format!("{}\n", stat_json(&task)) } else { stat_text(&task) })
}

pub(super) async fn list(channel: PoolChannel, title: &'static str, json: bool) -> Result<String, Failure> {
    let mut client = DfdaemonDownloadClient::new(channel).max_decoding_message_size(usize::MAX);
    let request = ListLocalPersistentCacheTasksRequest { remote_ip: None };
    let answer = client.list_local_persistent_cache_tasks(call(request)).await;
    let tasks = answer.map_err(|status| Failure::of_call(title, &status))?.into_inner().tasks;
    if json {
        return Ok(format!("{}\n", Value::from(tasks.iter().map(local_json).collect::<Vec<_>>())));
    }
    Ok(table::render(&LIST, &tasks.iter().map(local_row).collect::<Vec<_>>()))
}

pub(super) async fn list_cluster(
    channel: PoolChannel,
    title: &'static str,
    json: bool,
) -> Result<String, Failure> {
    let failed = |status: Status| {
        let mut failure = Failure::of_call(title, &status);
        if status.code() == Code::Unimplemented {
            failure.message.push_str("; leave --cluster out for what this host has");
        }
        failure
    };
    let request = call(ListPersistentCacheTasksRequest {});
    let answer = LocalClient::new(channel).list_persistent_cache_tasks(request).await;
    let mut stream = answer.map_err(failed)?.into_inner();
    let mut tasks = Vec::new();
    while let Some(task) = stream.message().await.map_err(failed)? {
        tasks.push(task);
    }
    tasks.sort_by(|one, other| {
        let age = |task: &PersistentCacheTask| task.created_at.as_ref().map(|at| (at.seconds, at.nanos));
        (age(one), &one.id).cmp(&(age(other), &other.id))
    });
    if json {
        return Ok(format!("{}\n", Value::from(tasks.iter().map(stat_json).collect::<Vec<_>>())));
    }
    Ok(table::render(&CLUSTER, &tasks.iter().map(cluster_row).collect::<Vec<_>>()))
}

fn cluster_row(task: &PersistentCacheTask) -> Vec<String> {
    let hosts = task.replicas.iter().filter(|replica| replica.persistent && replica.complete);
    let names: Vec<_> = hosts.map(name).collect();
    vec![
        task.id.clone(),
        task.state.clone(),
        units::bytes(task.content_length),
        health(task).map_or_else(|| "-".to_owned(), |(_, health)| health),
        if names.is_empty() { "-".to_owned() } else { names.join(", ") },
        ttl_text(task.ttl.as_ref()),
        units::moment(task.created_at.as_ref()),
    ]
}

fn name(replica: &Replica) -> &str {
    if replica.hostname.is_empty() { &replica.host_id } else { &replica.hostname }
}

pub(super) async fn remove(
    channel: PoolChannel,
    title: &'static str,
    id: &str,
    json: bool,
) -> Result<String, Failure> {
    let request = DeletePersistentCacheTaskRequest { task_id: id.to_owned(), remote_ip: None };
    let answer = LocalClient::new(channel).delete_persistent_cache_task(call(request)).await;
    answer.map_err(|status| {
        let mut failure = refused(title, id, &status);
        if status.code() == Code::Unimplemented {
            failure.message = format!(
                "this daemon cannot remove imported content ({}): it needs Damselfly's dfdaemon of this version; the content goes when \
                 its ttl ends",
                status.message()
            );
        }
        failure
    })?;
    Ok(if json {
        format!("{}\n", json!({ "ok": true, "task_id": id }))
    } else {
        "Task Removed!\n".to_owned()
    })
}

fn ttl(ttl: Option<&prost_types::Duration>) -> Option<Duration> {
    ttl.and_then(|ttl| Duration::try_from(*ttl).ok())
}

fn ttl_text(given: Option<&prost_types::Duration>) -> String {
    let whole = |ttl: Duration| humantime::format_duration(Duration::from_secs(ttl.as_secs())).to_string();
    ttl(given).map_or_else(|| "-".to_owned(), whole)
}

/// How the copies stand against what is wanted; `None` when the scheduler tells nothing of copies.
fn health(task: &PersistentCacheTask) -> Option<(&'static str, String)> {
    if task.replicas.is_empty() {
        return None;
    }
    let usable = |replica: &&Replica| replica.alive && replica.complete;
    let wanted = task.persistent_replica_count;
    let there = task.replicas.iter().filter(usable).filter(|replica| replica.persistent).count();
    Some(match there as u64 {
        0 if !task.replicas.iter().any(|replica| usable(&replica)) => {
            ("lost", "lost: no host with a complete copy can be reached".to_owned())
        }
        there if there < wanted => ("degraded", format!("degraded {there} of {wanted}")),
        there => ("healthy", format!("healthy {there} of {wanted}")),
    })
}

fn stat_text(task: &PersistentCacheTask) -> String {
    let row = vec![
        task.id.clone(),
        task.state.clone(),
        units::bytes(task.content_length),
        units::bytes(task.piece_length),
        task.persistent_replica_count.to_string(),
        ttl_text(task.ttl.as_ref()),
        units::moment(task.created_at.as_ref()),
        units::moment(task.updated_at.as_ref()),
    ];
    let mut text = table::render(&STAT, &[row]);
    if let Some((_, health)) = health(task) {
        text.push_str(&format!("\nReplicas: {health}\n"));
        let rows: Vec<_> = task.replicas.iter().map(replica_row).collect();
        text.push_str(&table::render(&["HOST", "IP", "COPY"], &rows));
    }
    if task.schedulers == 1 {
        text.push_str("\nThe only scheduler that knows it: with its loss the repair of replicas ends.\n");
    }
    text
}

fn replica_row(replica: &Replica) -> Vec<String> {
    let mut copy = vec![if replica.persistent { "replica" } else { "evictable" }];
    copy.extend((!replica.complete).then_some("incomplete"));
    copy.extend((!replica.alive).then_some("not reachable"));
    vec![name(replica).to_owned(), replica.ip.clone(), copy.join(", ")]
}

fn stat_json(task: &PersistentCacheTask) -> Value {
    json!({
        "id": task.id,
        "state": task.state,
        "content_length": task.content_length,
        "piece_length": task.piece_length,
        "piece_count": task.piece_count,
        "persistent_replica_count": task.persistent_replica_count,
        "current_persistent_replica_count": task.current_persistent_replica_count,
        "current_replica_count": task.current_replica_count,
        "tag": task.tag,
        "application": task.application,
        "ttl_seconds": ttl(task.ttl.as_ref()).map(|ttl| ttl.as_secs()),
        "created_at": task.created_at.as_ref().map(|at| at.seconds),
        "updated_at": task.updated_at.as_ref().map(|at| at.seconds),
        "health": health(task).map(|(health, _)| health),
        "schedulers": (task.schedulers > 0).then_some(task.schedulers),
        "replicas": task.replicas.iter().map(|replica| json!({
            "host_id": replica.host_id,
            "hostname": replica.hostname,
            "ip": replica.ip,
            "persistent": replica.persistent,
            "complete": replica.complete,
            "alive": replica.alive,
        })).collect::<Vec<_>>(),
    })
}

fn local_row(task: &StatLocalPersistentCacheTaskResponse) -> Vec<String> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), units::bytes);
    vec![
        task.task_id.clone(),
        task.persistent.to_string(),
        ttl_text(task.ttl.as_ref()),
        size(task.piece_length),
        size(task.content_length),
        units::moment(task.created_at.as_ref()),
        units::moment(task.finished_at.as_ref()),
        units::moment(task.failed_at.as_ref()),
        units::moment(task.updated_at.as_ref()),
    ]
}

fn local_json(task: &StatLocalPersistentCacheTaskResponse) -> Value {
    json!({
        "id": task.task_id,
        "persistent": task.persistent,
        "ttl_seconds": ttl(task.ttl.as_ref()).map(|ttl| ttl.as_secs()),
        "piece_length": task.piece_length,
        "content_length": task.content_length,
        "uploading_count": task.uploading_count,
        "uploaded_count": task.uploaded_count,
        "created_at": task.created_at.as_ref().map(|at| at.seconds),
        "updated_at": task.updated_at.as_ref().map(|at| at.seconds),
        "finished_at": task.finished_at.as_ref().map(|at| at.seconds),
        "failed_at": task.failed_at.as_ref().map(|at| at.seconds),
    })
}
