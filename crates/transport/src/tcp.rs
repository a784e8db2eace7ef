//! Vortex over TCP: [`Lane`] asks, [`serve`] answers.

mod error;
mod lane;
mod options;
mod send;
mod server;

pub use error::{FetchError, FetchKind, LaneError};
pub use lane::{Lane, PieceBody, Ticket};
pub use options::{Deadlines, DialOptions, ServerOptions, SocketOptions, UploadCounters, UploadFigures};
pub use send::SendPath;
pub use server::{PieceProvider, ProviderError, Served, ServedFuture, serve};
