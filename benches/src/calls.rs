//! Many small downloads from one process over one connection to a daemon's socket.

use std::path::{Path, PathBuf};

use damselfly_api::common::v2::{Download, TaskType};
use damselfly_api::dfdaemon::v2::DownloadTaskRequest;
use damselfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use damselfly_transport::local::connect;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::BenchError;

/// Downloads every (URL, output) with at most `in_flight` calls at a time; returns the seconds they took together.
///
/// # Errors
/// When one of them fails.
pub async fn download_all(
    socket: &Path,
    wanted: Vec<(String, PathBuf)>,
    in_flight: usize,
) -> Result<f64, BenchError> {
    let channel = connect(socket).await.map_err(|why| BenchError::Failed(why.to_string()))?;
    let client = DfdaemonDownloadClient::new(channel);
    let began = Instant::now();
    futures_util::stream::iter(wanted)
        .map(|(url, output)| download(client.clone(), url, output))
        .buffer_unordered(in_flight)
        .try_collect::<()>()
        .await?;
    Ok(began.elapsed().as_secs_f64())
}

/// As Dragonfly's tools ask: the daemon writes the file, and the end of the stream without an error means that it is there.
async fn download(
    mut client: DfdaemonDownloadClient<Channel>,
    url: String,
    output: PathBuf,
) -> Result<(), BenchError> {
    let download = Download {
        url: url.clone(),
        r#type: TaskType::Standard.into(),
        output_path: Some(output.to_string_lossy().into_owned()),
        ..Download::default()
    };
    let failed = |why: tonic::Status| BenchError::Failed(format!("{url}: {why}"));
    let request = DownloadTaskRequest { download: Some(download) };
    let mut story = client.download_task(request).await.map_err(failed)?.into_inner();
    while story.message().await.map_err(failed)?.is_some() {}
    Ok(())
}
