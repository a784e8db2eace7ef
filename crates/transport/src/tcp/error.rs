//! What goes wrong between a child and its parent.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use damselfly_core::{Class, PieceSpan};
use thiserror::Error;

use crate::vortex::{CodecError, ErrorCode};

/// Why a lane takes no request.
#[derive(Debug, Error)]
pub enum LaneError {
    /// No connection came about.
    #[error("cannot connect to {peer}: {source}")]
    Dial {
        /// The parent.
        peer: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// No connection came about in time.
    #[error("cannot connect to {peer}: no answer within {after:?}")]
    DialTimeout {
        /// The parent.
        peer: SocketAddr,
        /// The deadline.
        after: Duration,
    },
    /// The connection is closed, or what travels on it can no longer be told apart; dial another.
    #[error("connection to {peer} is no longer usable: {why}")]
    Broken {
        /// The parent.
        peer: SocketAddr,
        /// What happened to it.
        why: String,
    },
    /// As many requests are unanswered as the lane takes; use another lane, or wait for an answer.
    #[error("connection to {peer} has {in_flight} requests in flight already")]
    Busy {
        /// The parent.
        peer: SocketAddr,
        /// How many.
        in_flight: usize,
    },
    /// The request cannot be written in this protocol.
    #[error(transparent)]
    Request(#[from] CodecError),
}

impl LaneError {
    /// What it means for the attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            LaneError::Request(_) => Class::OtherSource,
            _ => Class::Retry,
        }
    }
}

/// What a failed fetch says about the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FetchKind {
    /// It does not have the piece.
    Missing,
    /// It sent something else than what was asked for: ban it.
    Wrong,
    /// The connection broke or the parent failed; it may work next time.
    Retry,
    /// It was too slow.
    Timeout,
}

/// Why a piece did not come.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The parent answered with an error.
    #[error("parent {peer} refused piece {piece}: {code:?}: {message}")]
    Refused {
        /// The parent.
        peer: SocketAddr,
        /// The piece.
        piece: u32,
        /// The parent's code.
        code: ErrorCode,
        /// The parent's words.
        message: String,
    },
    /// The parent cuts the content differently, or answered for another piece.
    #[error(
        "parent {peer} answered with piece {number} of {length} bytes at {offset} where piece {} of {} bytes at {} was due",
        .expected.number, .expected.length, .expected.offset
    )]
    Mismatch {
        /// The parent.
        peer: SocketAddr,
        /// What was asked for.
        expected: PieceSpan,
        /// The answer's piece number.
        number: u32,
        /// The answer's offset.
        offset: u64,
        /// The answer's length.
        length: u64,
    },
    /// The parent does not speak the protocol.
    #[error("parent {peer} sent a malformed answer for piece {piece}: {why}")]
    Malformed {
        /// The parent.
        peer: SocketAddr,
        /// The piece.
        piece: u32,
        /// What is wrong with it.
        why: String,
    },
    /// The connection ended before the piece did, or an earlier answer on it went wrong.
    #[error("connection to {peer} broke with {missing} bytes of piece {piece} to come: {why}")]
    Broken {
        /// The parent.
        peer: SocketAddr,
        /// The piece.
        piece: u32,
        /// Bytes not received.
        missing: u64,
        /// What happened.
        why: String,
    },
    /// Nothing came within a deadline.
    #[error("parent {peer} sent nothing of piece {piece} for {after:?} while {waiting_for} was due")]
    Timeout {
        /// The parent.
        peer: SocketAddr,
        /// The piece.
        piece: u32,
        /// The deadline.
        after: Duration,
        /// What was waited for.
        waiting_for: &'static str,
    },
}

impl FetchError {
    /// What it says about the parent.
    #[must_use]
    pub fn kind(&self) -> FetchKind {
        match self {
            FetchError::Refused { code: ErrorCode::NotFound, .. } => FetchKind::Missing,
            FetchError::Refused { .. } | FetchError::Broken { .. } => FetchKind::Retry,
            FetchError::Mismatch { .. } | FetchError::Malformed { .. } => FetchKind::Wrong,
            FetchError::Timeout { .. } => FetchKind::Timeout,
        }
    }

    /// What it means for the attempt.
    #[must_use]
    pub fn class(&self) -> Class {
        match self.kind() {
            FetchKind::Missing | FetchKind::Wrong => Class::OtherSource,
            FetchKind::Retry | FetchKind::Timeout => Class::Retry,
        }
    }
}
