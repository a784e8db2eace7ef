//! Waiting for a connection to begin: HTTP/2 itself waits for ever, and meanwhile the connection has a place.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// How long a new connection may take to say that it speaks HTTP/2.
const PATIENCE: Duration = Duration::from_secs(10);
/// The preface and the header of the first frame: whoever has sent these is a client.
const ENOUGH: usize = 24 + 9;

/// Comes when a client has begun to talk.
#[derive(Debug)]
pub(super) struct Greeting(oneshot::Receiver<()>);

impl Greeting {
    /// Watches what is read from `stream`.
    pub(super) fn expect<S>(stream: S) -> (Watched<S>, Self) {
        let (begun, greeting) = oneshot::channel();
        (Watched { stream, missing: ENOUGH, begun: Some(begun) }, Self(greeting))
    }

    /// Returns when the time is over and nothing has come; never when it has.
    pub(super) async fn missed(self) {
        if tokio::time::timeout(PATIENCE, self.0).await.is_ok() {
            std::future::pending().await
        }
    }
}

/// A stream whose first bytes are counted.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    missing: usize,
    begun: Option<oneshot::Sender<()>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if self.begun.is_some() {
            self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
            if self.missing == 0
                && let Some(begun) = self.begun.take()
            {
                // Fails when the connection is being closed: then nobody waits any more.
                begun.send(()).unwrap_or_default();
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
