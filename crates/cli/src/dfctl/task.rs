//! `dfctl task`: what Dragonfly's dfctl does with tasks. Works with its daemons too.

use damselfly_api::common::v2::Task;
use damselfly_api::damselfly::v1::TaskRef;
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_api::dfdaemon::v2::{
    DeleteTaskRequest, ListLocalTasksRequest, StatLocalTaskRequest, StatLocalTaskResponse, StatTaskRequest,
};
use damselfly_transport::local::PoolChannel;
use serde_json::{Value, json};

use super::choose;
use crate::client::call;
use crate::failure::Failure;
use crate::{table, units};

const LIST: &str = "Listing Tasks Failed!";
const REMOVE: &str = "Removing Task Failed!";
const STAT: &str = "Stating Failed!";
/// Ids of this length are whole: no list is needed to know which task is meant.
const WHOLE_ID: usize = damselfly_core::TaskId::WIRE_LENGTH;
const HEADER: [&str; 7] =
    ["ID", "PIECE LENGTH", "CONTENT LENGTH", "CREATED", "FINISHED", "FAILED", "UPDATED"];

pub(super) async fn list(channel: PoolChannel, json: bool) -> Result<String, Failure> {
    let tasks = local_tasks(&channel, LIST).await?;
    if json {
        return Ok(format!("{}\n", Value::from(tasks.iter().map(local_json).collect::<Vec<_>>())));
    }
    Ok(table::render(&HEADER, &tasks.iter().map(row).collect::<Vec<_>>()))
}

pub(super) async fn remove(channel: PoolChannel, name: &str) -> Result<String, Failure> {
    let id = resolve(&channel, name, REMOVE).await?;
    let request = DeleteTaskRequest { task_id: id, remote_ip: None };
    let mut client = DfdaemonDownloadClient::new(channel);
    client.delete_task(call(request)).await.map_err(|status| Failure::of_call(REMOVE, &status))?;
    Ok("Task Removed!\n".to_owned())
}

pub(super) async fn stat(channel: PoolChannel, name: &str, json: bool) -> Result<String, Failure> {
    let id = resolve(&channel, name, STAT).await?;
    let mut client = DfdaemonDownloadClient::new(channel);
    let request = StatLocalTaskRequest { task_id: id.clone(), remote_ip: None };
    let local = client.stat_local_task(call(request)).await;
    let request = StatTaskRequest { task_id: id, remote_ip: None };
    let swarm = client.stat_task(call(request)).await;
    let (local, swarm) = match (local, swarm) {
        // The scheduler knows tasks that are not here, and may know nothing of one that is.
        (Err(missing), Err(_)) => return Err(Failure::of_call(STAT, &missing)),
        (local, swarm) => {
            (local.ok().map(|local| local.into_inner()), swarm.ok().map(|swarm| swarm.into_inner()))
        }
    };
    if json {
        let value =
            json!({ "local": local.as_ref().map(local_json), "swarm": swarm.as_ref().map(swarm_json) });
        return Ok(format!("{value}\n"));
    }
    let local = match &local {
        Some(local) => table::render(&HEADER, &[row(local)]),
        None => "Not on this host.\n".to_owned(),
    };
    Ok(local + &swarm.as_ref().map(swarm_text).unwrap_or_default())
}

async fn local_tasks(
    channel: &PoolChannel,
    title: &'static str,
) -> Result<Vec<StatLocalTaskResponse>, Failure> {
    let mut client = DfdaemonDownloadClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let listed = client.list_local_tasks(call(ListLocalTasksRequest { remote_ip: None })).await;
    listed.map(|listed| listed.into_inner().tasks).map_err(|status| Failure::of_call(title, &status))
}

async fn resolve(channel: &PoolChannel, name: &str, title: &'static str) -> Result<String, Failure> {
    if name.len() >= WHOLE_ID {
        return Ok(name.to_owned());
    }
    let tasks = local_tasks(channel, title).await?;
    let tasks = tasks.into_iter().map(|task| TaskRef { id: task.task_id, ..TaskRef::default() }).collect();
    Ok(choose(tasks, name, title)?.id)
}

fn row(task: &StatLocalTaskResponse) -> Vec<String> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), units::bytes);
    vec![
        task.task_id.clone(),
        size(task.piece_length),
        size(task.content_length),
        units::moment(task.created_at.as_ref()),
        units::moment(task.finished_at.as_ref()),
        units::moment(task.failed_at.as_ref()),
        units::moment(task.updated_at.as_ref()),
    ]
}

fn swarm_text(task: &Task) -> String {
    let row = vec![
        task.state.clone(),
        task.peer_count.to_string(),
        task.has_available_peer.to_string(),
        task.piece_count.to_string(),
        damselfly_core::redact::url(&task.url),
    ];
    format!("\n{}", table::render(&["SWARM STATE", "PEERS", "AVAILABLE", "PIECES", "URL"], &[row]))
}

fn local_json(task: &StatLocalTaskResponse) -> Value {
    json!({
        "id": task.task_id,
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

fn swarm_json(task: &Task) -> Value {
    json!({
        "state": task.state,
        "peer_count": task.peer_count,
        "has_available_peer": task.has_available_peer,
        "piece_count": task.piece_count,
        "content_length": task.content_length,
        "url": damselfly_core::redact::url(&task.url),
    })
}
