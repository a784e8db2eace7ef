//! Uploads whose stream broke, kept for their client to go on with.
//!
//! They hold what they wrote, room on the disk included, so they are few and wait for a while only. They live as long as
//! the daemon: what it had of them is gone when it starts anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::Status;

use super::Importer;
use crate::engine::Engine;

/// Uploads kept at a time.
const MOST: usize = 64;
/// How long each waits for its client.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Whose upload, and how its client calls it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) uid: u32,
    pub(super) upload: String,
}

struct Resting {
    importer: Importer,
    /// Tells one that was taken and put back from the one before.
    turn: u64,
}

#[derive(Default)]
struct State {
    turns: u64,
    all: HashMap<Name, Resting>,
}

/// The uploads of one daemon.
#[derive(Default)]
pub(crate) struct Uploads(Mutex<State>);

impl std::fmt::Debug for Uploads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uploads").field("resting", &self.0.lock().all.len()).finish_non_exhaustive()
    }
}

impl Uploads {
    /// Bytes from the start of the content that are written; 0 for an upload that is not kept.
    pub(crate) fn verified(&self, uid: u32, upload: &str) -> u64 {
        let name = Name { uid, upload: upload.to_owned() };
        self.0.lock().all.get(&name).map_or(0, |resting| resting.importer.written())
    }

    /// Takes an upload out, to go on with it.
    pub(super) fn take(&self, name: &Name) -> Option<Importer> {
        self.0.lock().all.remove(name).map(|resting| resting.importer)
    }

    /// Keeps an upload until its client comes back or its time is over. One that finds no place comes back.
    pub(super) fn keep(engine: &Arc<Engine>, name: Name, importer: Importer) -> Option<Importer> {
        let turn = {
            let mut state = engine.imports.0.lock();
            if state.all.len() >= MOST || state.all.contains_key(&name) {
                return Some(importer);
            }
            state.turns += 1;
            let turn = state.turns;
            state.all.insert(name.clone(), Resting { importer, turn });
            turn
        };
        let engine = Arc::downgrade(engine);
        // Ends at the deadline; a daemon that stops does not wait for it.
        tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            let Some(engine) = engine.upgrade() else { return };
            let late = {
                let mut state = engine.imports.0.lock();
                let same = state.all.get(&name).is_some_and(|resting| resting.turn == turn);
                if same { state.all.remove(&name) } else { None }
            };
            if let Some(late) = late {
                let why = "its client did not come back to go on with the upload";
                drop(late.importer.fail(Status::cancelled(why)).await);
            }
        });
        None
    }

    /// Lets go of everything.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut self.0.lock().all);
        drop(all);
    }
}
