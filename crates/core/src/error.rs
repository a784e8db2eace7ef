//! What an error means for the machine that has to go on.

/// The one thing the task engine needs to know of a failure, whatever its text says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The same source may well succeed a moment later (a broken connection, a busy origin).
    Retry,
    /// This source will not do; another may (wrong bytes, piece unknown, geometry differs).
    OtherSource,
    /// No source can help: the request, the disk or the origin's answer rules success out.
    Fatal,
}
