//! Content that a daemon streams in order: checked as it comes, and handed to whoever writes it.

use std::time::Duration;

use damselfly_api::dfdaemon::v2::read_persistent_cache_task_response::Response;
use damselfly_api::dfdaemon::v2::{
    ReadPersistentCacheTaskFinished, ReadPersistentCacheTaskResponse, ReadPersistentCacheTaskStarted,
};
use damselfly_core::{ByteRange, RangeError, RangeSpec};
use damselfly_transport::framed::{FrameReader, Incoming};
use thiserror::Error;
use tonic::Status;

use crate::failure::Failure;
use crate::ticker::Ticker;
use crate::units;

/// Where the content goes. Its calls may block.
pub(crate) trait Sink {
    /// Told once, before any content: how many bytes will come, where that is known.
    fn begin(&mut self, length: Option<u64>) -> Result<(), Failure>;
    /// The next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure>;
}

/// What came.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) started: ReadPersistentCacheTaskStarted,
    pub(crate) finished: ReadPersistentCacheTaskFinished,
    /// Bytes that were written.
    pub(crate) bytes: u64,
}

/// Why not everything came.
#[derive(Debug, Error)]
pub(crate) enum ReadError {
    #[error(
        "the daemon sent a message that is neither a start, content nor an end; its version does not fit"
    )]
    Empty,
    #[error("the daemon sent content before it said what it sends; run the command again")]
    BeforeStart,
    #[error("the daemon began twice; run the command again")]
    StartedTwice,
    #[error("unknown download incomplete: the daemon ended the stream early; run the command again")]
    Early,
    #[error("unknown download incomplete: {came} of {length} bytes came; run the command again")]
    Incomplete { came: u64, length: u64 },
    #[error("nothing came from the daemon for {}; run the command again", units::duration(*.0))]
    Silent(Duration),
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error(transparent)]
    Call(#[from] Status),
    #[error(transparent)]
    Sink(#[from] Failure),
}

/// Reads `stream`, which carries `wanted`, to its end; nothing may come for as long as `idle`.
pub(crate) async fn read(
    mut stream: FrameReader<ReadPersistentCacheTaskResponse>,
    wanted: RangeSpec,
    idle: Duration,
    sink: &mut impl Sink,
    ticker: &mut Ticker,
) -> Result<Content, ReadError> {
    let mut started: Option<(ReadPersistentCacheTaskStarted, Option<ByteRange>)> = None;
    let mut finished = None;
    let mut bytes = 0;
    loop {
        let next = ticker.beside(tokio::time::timeout(idle, stream.next())).await;
        let Some(incoming) = next.map_err(|_elapsed| ReadError::Silent(idle))?? else { break };
        match incoming {
            Incoming::Begin { .. } if started.is_none() => return Err(ReadError::BeforeStart),
            // The chunk's message: its content has come.
            Incoming::Begin { .. } => {}
            Incoming::Content(content) => {
                tokio::task::block_in_place(|| sink.write(&content))?;
                bytes += content.len() as u64;
                ticker.add(content.len() as u64);
            }
            Incoming::Message(message) => match message.response.ok_or(ReadError::Empty)? {
                Response::Started(_) if started.is_some() => return Err(ReadError::StartedTwice),
                Response::Started(start) => {
                    let range = start.content_length.map(|length| wanted.resolve(length)).transpose()?;
                    if let Some(range) = range {
                        ticker.set_total(range.length);
                    }
                    tokio::task::block_in_place(|| sink.begin(range.map(|range| range.length)))?;
                    started = Some((start, range));
                }
                Response::Chunk(_) => {}
                Response::Finished(finish) => finished = Some(finish),
            },
        }
    }
    let (Some((started, range)), Some(finished)) = (started, finished) else { return Err(ReadError::Early) };
    match range {
        Some(range) if range.length != bytes => {
            Err(ReadError::Incomplete { came: bytes, length: range.length })
        }
        _ => Ok(Content { started, finished, bytes }),
    }
}
