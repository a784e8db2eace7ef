//! Where content comes from first: HTTP(S) origins.
//!
//! [`Origin`] sends GET requests and nothing else, because presigned URLs are signed for one method. It interprets the
//! answer (is this the range that was asked for, how long is the content, which version of it), hands the body on as
//! it arrives, and says of every failure what it means for the download ([`ErrorKind`]). It repeats nothing by itself:
//! whoever drives the download decides when to try again.
//!
//! Secrets live in request headers and in URLs. Neither appears in a `Debug` output, an error text or a log line.

mod answer;
mod error;
mod headers;
mod options;
mod origin;
mod request;
mod response;
mod tls;

pub use error::{ErrorKind, SourceError};
pub use headers::ContentRange;
pub use options::{Options, Proxies};
pub use origin::Origin;
pub use request::Request;
pub use response::Response;

/// The URL schemes that can be fetched, as error texts list them.
pub const SCHEMES: &str = "http, https";
