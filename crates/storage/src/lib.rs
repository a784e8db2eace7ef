//! Where content lives: the disk tier.
//!
//! One [`Store`] owns `<storage.dir>/damselfly-v1/`. It holds one [`TaskContent`] per task: a content file, a sidecar
//! that says which pieces of it are held, and the bitmap that everybody else reads. There is no database: the sidecar
//! is the truth, and the directory is the index.
//!
//! The life of a piece: [`TaskContent::reserve`] admits it, [`TaskContent::slot`] lends its extent to exactly one
//! writer, [`PieceSlot::commit`] writes the sidecar record and then publishes it, [`TaskContent::piece`] hands it out
//! together with a guard that keeps the collector away.
//!
//! Everything that touches the disk blocks; callers mark it so (`tokio::task::block_in_place`). Plain questions
//! ([`TaskContent::pieces`], [`TaskContent::has`], [`TaskContent::meta`]) never do.

mod clock;
mod copy;
mod error;
mod flusher;
mod layout;
mod ledger;
mod meta;
mod output;
mod policy;
mod sidecar;
mod store;
mod system;
mod task;
mod tombstone;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use clock::{BootId, Moment};
pub use error::{Shortage, StoreError};
pub use meta::{Facts, ImportId, Meta, NewTask, UploadName};
pub use output::{Output, OutputPolicy, OutputWay};
pub use store::{Collected, Deleted, Import, Imported, NewImport, Options, Store, Usage};
pub use task::{Committed, PieceRef, PieceSlot, Pin, TaskContent, UnitWriter};
pub use tombstone::{Reach, Tombstone};
