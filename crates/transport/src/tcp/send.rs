//! Content into a socket, the cheapest way.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use damselfly_core::Content;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::block_in_place;

use super::ServerOptions;
use crate::Buffer;

/// The most one sendfile call moves, so that no blocking call takes long.
const SENDFILE_MAX: usize = 1 << 20;
/// What is charged and moved at a time while a limit is set.
const LIMITED_STEP: u64 = 256 << 10;
/// What is moved at a time without one; between two steps other tasks get their turn.
const STEP: u64 = 4 << 20;

/// How a file's bytes get into a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendPath {
    /// The kernel moves pages from the file to the socket. The default: a network card takes the pages as they are,
    /// and even on loopback, where the receiver copies from cold memory instead of the sender, both ends together
    /// took 0.73 CPU seconds per GiB this way and 0.78 the other (medians of five, one lane, warm page cache).
    #[default]
    Sendfile,
    /// Read into a pooled buffer and write; sendfile while the pool has none left, so that nobody waits for one.
    Buffered,
}

/// One connection's way out.
#[derive(Debug)]
pub(super) struct Outlet<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) options: &'a ServerOptions,
}

impl Outlet<'_> {
    /// Sends `head`, and says whether more follows at once, so that both share packets.
    pub(super) async fn head(&self, head: &[u8], more: bool) -> io::Result<()> {
        let flags = if more { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
        let mut rest = head;
        while !rest.is_empty() {
            match self.stream.try_io(Interest::WRITABLE, || Ok(rustix::net::send(self.stream, rest, flags)?))
            {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(error) => self.wait(error).await?,
            }
        }
        Ok(())
    }

    /// Sends all of `content`, charged against the limit step by step.
    pub(super) async fn content(&self, content: &Content) -> io::Result<()> {
        let total = content.len();
        let mut sent = 0;
        while sent < total {
            let step = if self.options.limit.rate().is_some() { LIMITED_STEP } else { STEP };
            let step = step.min(total - sent);
            self.options.limit.acquire(step).await;
            match content {
                Content::Bytes(bytes) => self.bytes(bytes, sent, step).await?,
                Content::File { file, offset, .. } => self.file(file, offset + sent, step).await?,
            }
            sent += step;
        }
        Ok(())
    }

    async fn bytes(&self, bytes: &Bytes, from: u64, count: u64) -> io::Result<()> {
        let range = usize::try_from(from).ok().zip(usize::try_from(from + count).ok());
        let mut rest = range.and_then(|(from, to)| bytes.get(from..to)).unwrap_or_default();
        while !rest.is_empty() {
            match self.stream.try_write(rest) {
                Ok(sent) => {
                    self.count(sent);
                    rest = &rest[sent..];
                }
                Err(error) => self.wait(error).await?,
            }
        }
        Ok(())
    }

    async fn file(&self, file: &Arc<File>, from: u64, count: u64) -> io::Result<()> {
        let buffer = match self.options.send {
            SendPath::Sendfile => None,
            SendPath::Buffered => self.options.pool.try_acquire(),
        };
        let mut source = FileSource { file, at: from, end: from + count, buffer, loaded: 0..0 };
        while source.at < source.end {
            let before = source.at;
            let result = block_in_place(|| source.pump(self.stream));
            self.count(usize::try_from(source.at - before).unwrap_or_default());
            if let Err(error) = result {
                self.wait(error).await?;
            }
        }
        Ok(())
    }

    fn count(&self, sent: usize) {
        self.options.counters.bytes.fetch_add(sent as u64, Ordering::Relaxed);
    }

    /// Waits until the socket takes bytes again, if that is what `error` asks for.
    async fn wait(&self, error: io::Error) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::WouldBlock => writable(self.stream, self.options.stall).await,
            io::ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        }
    }
}

async fn writable(stream: &TcpStream, stall: Duration) -> io::Result<()> {
    match tokio::time::timeout(stall, stream.writable()).await {
        Ok(ready) => ready,
        Err(_) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("the child took no byte for {stall:?}")))
        }
    }
}

/// A stretch of a file on its way out.
struct FileSource<'a> {
    file: &'a File,
    /// The next byte to send.
    at: u64,
    end: u64,
    buffer: Option<Buffer>,
    /// What of the buffer is still to be sent; its first byte is the one at `at`.
    loaded: std::ops::Range<usize>,
}

impl FileSource<'_> {
    /// Sends until the end, or until the socket takes no more. Blocks while the file is read.
    fn pump(&mut self, stream: &TcpStream) -> io::Result<()> {
        while self.at < self.end {
            let sent = if self.buffer.is_some() { self.buffered(stream)? } else { self.sendfile(stream)? };
            self.at += sent as u64;
        }
        Ok(())
    }

    fn remaining(&self, most: usize) -> usize {
        usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(most)
    }

    fn sendfile(&mut self, stream: &TcpStream) -> io::Result<usize> {
        let count = self.remaining(SENDFILE_MAX);
        let mut offset = self.at;
        let send = || Ok(rustix::fs::sendfile(stream, self.file, Some(&mut offset), count)?);
        match stream.try_io(Interest::WRITABLE, send)? {
            0 => Err(self.truncated()),
            sent => Ok(sent),
        }
    }

    fn buffered(&mut self, stream: &TcpStream) -> io::Result<usize> {
        if self.loaded.is_empty() {
            let most = self.buffer.as_ref().map_or(0, |buffer| buffer.len());
            let count = self.remaining(most);
            let buffer = self.buffer.as_deref_mut().unwrap_or_default();
            let read = rustix::io::pread(self.file, &mut buffer[..count], self.at)?;
            if read == 0 {
                return Err(self.truncated());
            }
            self.loaded = 0..read;
        }
        let buffer = self.buffer.as_deref().unwrap_or_default();
        let sent = stream.try_write(&buffer[self.loaded.clone()])?;
        self.loaded.start += sent;
        Ok(sent)
    }

    fn truncated(&self) -> io::Error {
        let missing = self.end - self.at;
        io::Error::new(io::ErrorKind::UnexpectedEof, format!("the content file ends {missing} bytes early"))
    }
}
