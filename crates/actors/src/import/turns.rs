//! Who writes an upload: one client at a time, and the next takes over.
//!
//! A client that runs its import again may come before the daemon has noticed that the former stream is dead. And one that is
//! not dead yields too: the latest is the one that somebody waits for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use damselfly_storage::UploadName;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::engine::Engine;

/// How long the former writer of an upload may take to end.
const YIELDING: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Default)]
struct Writing {
    yields: CancellationToken,
    over: CancellationToken,
}

/// The uploads of one daemon that are being written.
#[derive(Debug, Default)]
pub(crate) struct Uploads(Mutex<HashMap<UploadName, Writing>>);

/// The right to write an upload. It ends when dropped: whoever writes must have ended before.
pub(super) struct Turn {
    engine: Arc<Engine>,
    name: UploadName,
    writing: Writing,
}

impl Turn {
    /// Has whoever writes the upload end, and waits for that.
    ///
    /// # Errors
    /// ABORTED when it does not: it is complete, and being flushed.
    pub(super) async fn take(engine: &Arc<Engine>, name: UploadName) -> Result<Self, Status> {
        let waiting = async {
            loop {
                let before = {
                    let mut all = engine.imports.0.lock();
                    match all.get(&name) {
                        Some(before) => before.clone(),
                        None => {
                            let writing = Writing::default();
                            all.insert(name.clone(), writing.clone());
                            return writing;
                        }
                    }
                };
                before.yields.cancel();
                before.over.cancelled().await;
            }
        };
        let writing = tokio::time::timeout(YIELDING, waiting).await.map_err(|_| {
            Status::aborted("the import is being completed for another client; run it again a little later")
        })?;
        Ok(Self { engine: Arc::clone(engine), name, writing })
    }

    /// Cancelled when another client wants to write.
    pub(super) fn yields(&self) -> CancellationToken {
        self.writing.yields.clone()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.engine.imports.0.lock().remove(&self.name);
        self.writing.over.cancel();
    }
}
