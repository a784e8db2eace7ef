//! The demonstration's origin: an HTTP server on loopback whose content is computed, not stored, and counted.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use damselfly_core::{Algorithm, ByteRange, Hasher, RangeSpec, mix};
use http::{Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

/// Bytes made at a time.
const STEP: usize = 128 << 10;
/// The content never changes; daemons that resume compare this.
const ETAG: &str = "\"damselfly-demo\"";

/// Content that is a function of the offset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Generated {
    /// Bytes.
    pub(super) length: u64,
}

impl Generated {
    /// The bytes of `range`, which must lie within the content.
    fn bytes(range: ByteRange) -> Vec<u8> {
        let skip = (range.start % 8) as usize;
        let mut bytes = Vec::with_capacity(usize::try_from(range.length).unwrap_or(STEP) + 16);
        for word in range.start / 8..range.end().div_ceil(8) {
            bytes.extend_from_slice(&mix(word).to_le_bytes());
        }
        bytes.drain(..skip);
        bytes.truncate(usize::try_from(range.length).unwrap_or(usize::MAX));
        bytes
    }

    /// The whole content's digest. Blocking.
    pub(super) fn digest(self) -> String {
        let mut hasher = Hasher::new(Algorithm::Blake3);
        let mut start = 0;
        while start < self.length {
            let length = (self.length - start).min(STEP as u64);
            hasher.update(&Self::bytes(ByteRange { start, length }));
            start += length;
        }
        hasher.finish().to_string()
    }
}

/// The running origin; it ends when dropped.
#[derive(Debug)]
pub(super) struct Origin {
    address: SocketAddr,
    sent: Arc<AtomicU64>,
    server: AbortHandle,
}

impl Origin {
    /// Serves `content` on a free port.
    pub(super) async fn start(content: Generated) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let sent: Arc<AtomicU64> = Arc::default();
        let server = tokio::spawn(serve(listener, content, sent.clone())).abort_handle();
        Ok(Self { address, sent, server })
    }

    /// Where the content is.
    pub(super) fn url(&self) -> String {
        format!("http://{}/demo.bin", self.address)
    }

    /// Bytes of content that left so far, while it runs.
    pub(super) fn sent(&self) -> Arc<AtomicU64> {
        self.sent.clone()
    }

    /// Bytes of content that have left.
    pub(super) fn total(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, content: Generated, sent: Arc<AtomicU64>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // A client that went away before it was accepted.
                Err(_) => continue,
            },
            Some(_ended) = connections.join_next() => continue,
        };
        let sent = sent.clone();
        let service = hyper::service::service_fn(move |request| {
            std::future::ready(Ok::<_, Infallible>(answer(&request, content, &sent)))
        });
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn answer(request: &Request<Incoming>, content: Generated, sent: &Arc<AtomicU64>) -> Response<Body> {
    let asked = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = asked.map_or(Ok(RangeSpec::Whole), RangeSpec::parse_header);
    let resolved = range.and_then(|range| range.resolve(content.length));
    let mut response = Response::new(Body { left: ByteRange { start: 0, length: 0 }, sent: sent.clone() });
    let range = match resolved {
        Ok(range) => range,
        Err(_) => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            return response;
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, header::HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, header::HeaderValue::from_static(ETAG));
    if asked.is_some() && range.length > 0 {
        let shown = format!("bytes {}-{}/{}", range.start, range.end() - 1, content.length);
        if let Ok(value) = header::HeaderValue::from_str(&shown) {
            headers.insert(header::CONTENT_RANGE, value);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response.body_mut().left = range;
    response
}

/// What is left of an answer.
struct Body {
    left: ByteRange,
    sent: Arc<AtomicU64>,
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let ByteRange { start, length } = self.left;
        if length == 0 {
            return Poll::Ready(None);
        }
        let step = length.min(STEP as u64);
        self.left = ByteRange { start: start + step, length: length - step };
        self.sent.fetch_add(step, Ordering::Relaxed);
        let bytes = Generated::bytes(ByteRange { start, length: step });
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.length == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_gives_the_same_bytes() {
        let whole = Generated::bytes(ByteRange { start: 0, length: 1000 });
        assert_eq!(whole.len(), 1000);
        for (start, length) in [(0, 1), (3, 10), (8, 8), (991, 9), (5, 0)] {
            let part = Generated::bytes(ByteRange { start, length });
            assert_eq!(part, whole[start as usize..(start + length) as usize], "{start}+{length}");
        }
        let mut hasher = Hasher::new(Algorithm::Blake3);
        hasher.update(&whole);
        assert_eq!(Generated { length: 1000 }.digest(), hasher.finish().to_string());
    }
}
