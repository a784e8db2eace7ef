//! The connections of the origin. By hand, because content must be counted when it is written and broken off in the
//! middle, which an HTTP library would not let us.

use std::fmt::Write as _;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};

use damselfly_core::RangeSpec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Behaviour, Counts, Gate, Seen, Shared, Site};
use crate::{Pattern, pace};

/// Content bytes written at a time.
const STEP: usize = 64 << 10;
/// Longest request head taken.
const MAX_HEAD: usize = 64 << 10;

/// Accepts until `stop`, which ends the connections too; they are gone when this returns.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // A client that went away before it was accepted.
                Err(_) => continue,
            },
        };
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        connections.spawn(async move {
            shared.total.send_modify(|total| {
                total.connections += 1;
                total.open += 1;
            });
            tokio::select! {
                () = stop.cancelled() => {}
                // However a connection ends, the counts tell.
                _ = converse(stream, &shared) => {}
            }
            shared.total.send_modify(|total| total.open -= 1);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn converse(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while let Some(request) = read_head(&mut stream, &mut buffer).await? {
        if Exchange::new(shared, request).answer(&mut stream).await?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The next request's head, or `None` where the client has no more. Bodies are not expected.
async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Seen>> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if buffer.len() > MAX_HEAD || stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head: Vec<u8> = buffer.drain(..end).collect();
    let text = String::from_utf8_lossy(&head);
    let mut lines = text.trim_end().split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let method = first.next().unwrap_or_default();
    Ok(Some(Seen { method, target: first.next().unwrap_or_default(), headers, status: 0 }))
}

/// One request and its answer.
struct Exchange<'a> {
    shared: &'a Shared,
    request: Seen,
    /// `None` where the path names no content.
    content: Option<(Arc<Site>, Pattern)>,
}

/// A response head in the making, and the content behind it.
struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    /// First byte and number of bytes.
    body: Option<(u64, u64)>,
    chunked: bool,
}

impl Response {
    fn bare(status: u16) -> Self {
        let headers = vec![("Content-Length".to_owned(), "0".to_owned())];
        Self { status, headers, body: None, chunked: false }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

impl<'a> Exchange<'a> {
    fn new(shared: &'a Shared, request: Seen) -> Self {
        let content =
            pattern_of(&request.target).map(|(path, pattern)| (shared.site(path, pattern.seed), pattern));
        Self { shared, request, content }
    }

    fn count(&self, change: impl Fn(&mut Counts)) {
        if let Some((site, _)) = &self.content {
            site.counts.send_modify(&change);
        }
        self.shared.total.send_modify(&change);
    }

    /// Breaks where the connection must not be used again.
    async fn answer(mut self, stream: &mut TcpStream) -> io::Result<ControlFlow<()>> {
        let not_get = u64::from(self.request.method != "GET");
        self.count(|counts| {
            counts.requests += 1;
            counts.not_get += not_get;
        });
        let Some((site, pattern)) = self.content.clone() else {
            return self.send(stream, Response::bare(404), None).await;
        };
        let behaviour = site.behaviour.borrow().clone();
        if behaviour.gate_head
            && let Some((_, gate)) = &behaviour.gate
        {
            hold(stream, gate).await?;
        }
        // What holds after the gate decides: tests change their mind while a response is held.
        let behaviour = site.behaviour.borrow().clone();
        let counts = *site.counts.borrow();
        if behaviour.die_after.is_some_and(|limit| counts.body_bytes >= limit) {
            self.log(0);
            return Ok(ControlFlow::Break(()));
        }
        let pattern = Pattern {
            seed: behaviour.seed.unwrap_or(pattern.seed),
            length: behaviour.content_length.unwrap_or(pattern.length),
        };
        let response = decide(&self.request, &behaviour, counts.requests, pattern);
        self.send(stream, response, Some((&site, pattern))).await
    }

    async fn send(
        &mut self,
        stream: &mut TcpStream,
        response: Response,
        content: Option<(&Site, Pattern)>,
    ) -> io::Result<ControlFlow<()>> {
        if !(200..300).contains(&response.status) {
            self.count(|counts| counts.refused += 1);
        }
        self.log(response.status);
        let mut head = format!("HTTP/1.1 {} {}\r\n", response.status, reason(response.status));
        for (name, value) in &response.headers {
            // Writing to a string does not fail.
            _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await?;
        match (response.body, content) {
            (Some((first, length)), Some((site, pattern))) if self.request.method == "GET" => {
                self.send_body(stream, site, pattern, first, length, response.chunked).await
            }
            _ => Ok(ControlFlow::Continue(())),
        }
    }

    async fn send_body(
        &self,
        stream: &mut TcpStream,
        site: &Site,
        pattern: Pattern,
        first: u64,
        length: u64,
        chunked: bool,
    ) -> io::Result<ControlFlow<()>> {
        let mut buffer = vec![0; STEP];
        let mut sent = 0;
        while sent < length {
            let behaviour = site.behaviour.borrow().clone();
            let mut room = length - sent;
            if let Some((after, gate)) = &behaviour.gate {
                if sent >= *after {
                    hold(stream, gate).await?;
                } else {
                    room = room.min(after - sent);
                }
            }
            let dead = behaviour.die_after.map(|limit| limit.saturating_sub(site.counts.borrow().body_bytes));
            let cut = behaviour.cut_after.map(|limit| limit.saturating_sub(sent));
            if let Some(left) = dead.into_iter().chain(cut).min() {
                if left == 0 {
                    return Ok(ControlFlow::Break(()));
                }
                room = room.min(left);
            }
            let step = pace::step(behaviour.rate, STEP).min(usize::try_from(room).unwrap_or(STEP));
            if let Some(rate) = behaviour.rate {
                site.pace.pass(step, rate).await;
            }
            pattern.fill(first + sent, &mut buffer[..step]);
            if chunked {
                stream.write_all(format!("{step:x}\r\n").as_bytes()).await?;
            }
            self.write_counted(stream, &buffer[..step]).await?;
            if chunked {
                stream.write_all(b"\r\n").await?;
            }
            sent += step as u64;
        }
        if chunked {
            stream.write_all(b"0\r\n\r\n").await?;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Counts each write by itself: of a connection that breaks, what was written before counts.
    async fn write_counted(&self, stream: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = stream.write(bytes).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.count(|counts| counts.body_bytes += written as u64);
            bytes = &bytes[written..];
        }
        Ok(())
    }

    fn log(&self, status: u16) {
        let seen = Seen { status, ..self.request.clone() };
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    }
}

/// Waits for the gate, or fails once the client goes away.
async fn hold(stream: &TcpStream, gate: &Gate) -> io::Result<()> {
    let gone = async {
        match stream.peek(&mut [0]).await {
            Ok(0) => io::Error::from(io::ErrorKind::ConnectionAborted),
            // The next request is here already: whether more follows cannot be seen.
            Ok(_) => std::future::pending().await,
            Err(error) => error,
        }
    };
    tokio::select! {
        () = gate.pass() => Ok(()),
        error = gone => Err(error),
    }
}

/// The path that names the content, and the content.
fn pattern_of(target: &str) -> Option<(&str, Pattern)> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let length = path.strip_prefix("/blob/")?.split('/').next()?.parse().ok()?;
    let seed = query.split('&').find_map(|pair| pair.strip_prefix("seed="));
    Some((path, Pattern::new(seed.map_or(Ok(0), str::parse).ok()?, length)))
}

/// The answer to the `nth` request of a path.
fn decide(request: &Seen, behaviour: &Behaviour, nth: u64, pattern: Pattern) -> Response {
    if behaviour.presigned && request.method != "GET" {
        return Response::bare(403);
    }
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Response::bare(405);
    }
    if let Some(trouble) = behaviour.trouble.as_ref().filter(|trouble| nth <= trouble.requests) {
        let response = Response::bare(trouble.status);
        return match trouble.retry_after {
            Some(after) => response.with("Retry-After", after.as_secs().to_string()),
            None => response,
        };
    }
    if let Some((name, value)) = &behaviour.require
        && request.header(name) != Some(value)
    {
        return Response::bare(401).with("WWW-Authenticate", "Bearer");
    }
    if let Some(status) = behaviour.status {
        return Response::bare(status);
    }
    if let Some(location) = &behaviour.redirect {
        return Response::bare(307).with("Location", location);
    }
    let range = request.header("range").filter(|_| behaviour.ranges);
    let mut response = match range.and_then(|range| RangeSpec::parse_header(range).ok()) {
        None if behaviour.length => Response {
            status: 200,
            headers: vec![("Content-Length".to_owned(), pattern.length.to_string())],
            body: Some((0, pattern.length)),
            chunked: false,
        },
        None => Response {
            status: 200,
            headers: vec![("Transfer-Encoding".to_owned(), "chunked".to_owned())],
            body: Some((0, pattern.length)),
            chunked: true,
        },
        Some(range) => match range.resolve(pattern.length) {
            Ok(range) => {
                let total = if behaviour.length { pattern.length.to_string() } else { "*".to_owned() };
                let content_range = format!("bytes {}-{}/{total}", range.start, range.end() - 1);
                Response {
                    status: 206,
                    headers: vec![("Content-Length".to_owned(), range.length.to_string())],
                    body: Some((range.start, range.length)),
                    chunked: false,
                }
                .with("Content-Range", content_range)
            }
            Err(_) => Response::bare(416).with("Content-Range", format!("bytes */{}", pattern.length)),
        },
    };
    let optional = [("ETag", &behaviour.etag), ("Last-Modified", &behaviour.last_modified)];
    for (name, value) in optional {
        if let Some(value) = value {
            response = response.with(name, value);
        }
    }
    if behaviour.ranges {
        response = response.with("Accept-Ranges", "bytes");
    }
    for (name, value) in &behaviour.headers {
        response = response.with(name, value);
    }
    response.with("Content-Type", "application/octet-stream")
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        307 => "Temporary Redirect",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        503 => "Service Unavailable",
        _ => "Because",
    }
}
