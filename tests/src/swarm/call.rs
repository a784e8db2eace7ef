//! A download in progress: its messages are the events that a test waits for.

use damselfly_api::dfdaemon::v2::DownloadTaskResponse;
use damselfly_api::dfdaemon::v2::download_task_response::Response;
use tokio::time;
use tonic::{Status, Streaming};

use super::{PATIENCE, Told};

/// A call of DownloadTask that has not ended. Dropping it is what a client does that goes away.
#[derive(Debug)]
pub struct Call {
    stream: Streaming<DownloadTaskResponse>,
    /// What it told so far.
    pub told: Told,
}

impl Call {
    pub(super) fn new(stream: Streaming<DownloadTaskResponse>) -> Self {
        Self { stream, told: Told::default() }
    }

    /// Takes the next message; false at the end.
    ///
    /// # Errors
    /// As the daemon ends the call; DEADLINE_EXCEEDED when nothing comes for [`PATIENCE`].
    pub async fn next(&mut self) -> Result<bool, Status> {
        let late =
            |_| Status::deadline_exceeded(format!("the test lost its patience; so far: {}", self.told));
        let message = time::timeout(PATIENCE, self.stream.message()).await.map_err(late)??;
        let Some(message) = message else { return Ok(false) };
        (self.told.task_id, self.told.peer_id) = (message.task_id, message.peer_id);
        match message.response {
            Some(Response::DownloadTaskStartedResponse(started)) => self.told.started = Some(started),
            Some(Response::DownloadPieceFinishedResponse(finished)) => {
                self.told.pieces.extend(finished.piece)
            }
            None => {}
        }
        Ok(true)
    }

    /// Waits until the download knows the content's length.
    ///
    /// # Errors
    /// As [`Call::next`]; ABORTED when the call ends first.
    pub async fn started(&mut self) -> Result<(), Status> {
        self.until(|told| told.started.is_some()).await
    }

    /// Waits until `count` pieces are verified.
    ///
    /// # Errors
    /// As [`Call::started`].
    pub async fn pieces(&mut self, count: usize) -> Result<(), Status> {
        self.until(|told| told.pieces.len() >= count).await
    }

    async fn until(&mut self, is_so: impl Fn(&Told) -> bool) -> Result<(), Status> {
        while !is_so(&self.told) {
            if !self.next().await? {
                return Err(Status::aborted(format!("the call ended early: {}", self.told)));
            }
        }
        Ok(())
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// As [`Call::next`].
    pub async fn finish(mut self) -> Result<Told, Status> {
        while self.next().await? {}
        Ok(self.told)
    }
}
