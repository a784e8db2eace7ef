//! The vocabulary of Damselfly and its pure state machines.
//!
//! Everything here is a value or a function of values: no tokio, no sockets, no files opened, no clock read.
//! Time comes in as [`Tick`]. What several crates exchange is defined here once, so that `storage`, `transport`
//! and `source` need not know each other.

pub mod content;
pub mod digest;
pub mod download;
pub mod error;
pub mod geometry;
pub mod id;
pub mod mix;
pub mod path_mapping;
pub mod pieces;
pub mod range;
pub mod redact;
pub mod resource;
pub mod task_id;
pub mod tick;
pub mod ttl;

pub use content::Content;
pub use digest::{Algorithm, Crc, Digest, DigestError, Hasher};
pub use error::Class;
pub use geometry::{Geometry, GeometryError, PieceSpan, piece_length_for};
pub use id::{HostId, IdError, Kind, PeerId, TaskId, TaskKey};
pub use mix::mix;
pub use path_mapping::{MappingError, PathMapping};
pub use pieces::PieceSet;
pub use range::{ByteRange, RangeError, RangeSpec};
pub use tick::Tick;
pub use ttl::PERSISTENT_CACHE_TTL;
