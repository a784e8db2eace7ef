//! A scripted HTTP/1.1 server: every test says, byte for byte, what is answered.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use damselfly_source::{Options, Origin, Proxies, Request, Response, SourceError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use url::Url;

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    /// Which request of the server's life, from 0.
    pub(crate) index: usize,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Bytes to send, and what to do with the connection then.
#[derive(Clone)]
pub(crate) struct Reply {
    bytes: Vec<u8>,
    then: Then,
}

#[derive(Clone, Copy)]
pub(crate) enum Then {
    Keep,
    Close,
    /// Send nothing more, until the client goes away.
    Hang,
}

impl Reply {
    /// `head` is the status line's end and the headers, one per line, without the length.
    pub(crate) fn new(head: &str, body: &[u8]) -> Self {
        Self::raw(&format!("{head}\nContent-Length: {}", body.len()), body)
    }

    /// As `new`, the length left to `head`.
    pub(crate) fn raw(head: &str, body: &[u8]) -> Self {
        let mut bytes = format!("HTTP/1.1 {}\r\n\r\n", head.replace('\n', "\r\n")).into_bytes();
        bytes.extend_from_slice(body);
        Self { bytes, then: Then::Keep }
    }

    pub(crate) fn then(mut self, then: Then) -> Self {
        self.then = then;
        self
    }
}

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    heads: Arc<Mutex<Vec<Head>>>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) async fn start(handler: impl Fn(&Head) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (heads, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (handler, log, count) = (Arc::new(handler), Arc::clone(&heads), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(converse(stream, Arc::clone(&handler), Arc::clone(&log)));
            }
        });
        Self { addr, heads, connections }
    }

    pub(crate) fn url(&self, target: &str) -> Url {
        format!("http://{}{target}", self.addr).parse().unwrap()
    }

    pub(crate) fn heads(&self) -> Vec<Head> {
        self.heads.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn converse<S, H>(mut stream: S, handler: Arc<H>, log: Arc<Mutex<Vec<Head>>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(&Head) -> Reply,
{
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read_buf(&mut buffer).await {
                Ok(count) if count > 0 => {}
                _ => return,
            }
        };
        let text = String::from_utf8(buffer.drain(..end).collect()).unwrap();
        let mut lines = text.trim_end().split("\r\n");
        let mut first = lines.next().unwrap().split(' ');
        let headers = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let head = {
            let mut log = log.lock().unwrap();
            let head = Head {
                method: first.next().unwrap().to_owned(),
                target: first.next().unwrap().to_owned(),
                headers,
                index: log.len(),
            };
            log.push(head.clone());
            head
        };
        let reply = handler(&head);
        if stream.write_all(&reply.bytes).await.is_err() {
            return;
        }
        match reply.then {
            Then::Keep => {}
            Then::Close => return,
            Then::Hang => {
                drop(stream.read_to_end(&mut Vec::new()).await);
                return;
            }
        }
    }
}

/// Deadlines short enough to be met on purpose.
pub(crate) fn options() -> Options {
    Options {
        proxies: Proxies::Direct,
        head_timeout: Duration::from_secs(20),
        stall_timeout: Duration::from_secs(20),
        ..Options::default()
    }
}

pub(crate) fn origin() -> Origin {
    Origin::new(options()).unwrap()
}

/// Bytes that no shift leaves alike.
pub(crate) fn content(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

pub(crate) async fn read(response: &mut Response) -> Result<Vec<u8>, SourceError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The error of a request that must fail before its body.
pub(crate) async fn refusal(origin: &Origin, request: &Request<'_>) -> SourceError {
    match origin.get(request).await {
        Ok(response) => panic!("expected an error, got {response:?}"),
        Err(error) => error,
    }
}
