//! A daemon that says what the test tells it to say.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use damselfly_api::common::v2::{Download, Piece, Task, TrafficType};
use damselfly_api::damselfly::v1::{
    CancelRequest, GetReceiptRequest, LimitRequest, PauseRequest, ReadTaskRequest, Receipt, ResumeRequest,
    StatusRequest, StatusResponse,
};
use damselfly_api::dfdaemon::v2::download_task_response::Response as Said;
use damselfly_api::dfdaemon::v2::{
    DeleteTaskRequest, DownloadPieceFinishedResponse, DownloadTaskRequest, DownloadTaskResponse,
    DownloadTaskStartedResponse, ListLocalTasksRequest, ListLocalTasksResponse,
    ReadPersistentCacheTaskResponse, StatLocalTaskRequest, StatLocalTaskResponse, StatTaskRequest,
};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::cached::{self, Cached};

pub(crate) const TASK_ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// What one call of DownloadTask does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Say(Box<DownloadTaskResponse>),
    /// Write these bytes to the request's output path.
    WriteOutput(Vec<u8>),
    /// End with an error.
    Fail(Status),
    /// Never go on.
    Hang,
}

/// What the daemon says.
#[derive(Default)]
pub(crate) struct Script {
    /// The answers to DownloadTask, one per call.
    pub(crate) downloads: Mutex<VecDeque<Vec<Step>>>,
    /// Whether its answers carry our mark.
    pub(crate) ours: bool,
    /// The answer to ReadTask; `None` is a daemon of Dragonfly's.
    pub(crate) read: Option<(Vec<ReadPersistentCacheTaskResponse>, Option<Status>)>,
    pub(crate) receipt: Option<Receipt>,
    pub(crate) tasks: Vec<StatLocalTaskResponse>,
    pub(crate) swarm: Option<Task>,
    /// The answer to Status; `None` is a daemon of Dragonfly's.
    pub(crate) status: Option<StatusResponse>,
    /// What it does with persistent cache tasks.
    pub(crate) cache: Cached,
    /// The downloads that were asked for.
    pub(crate) asked: Mutex<Vec<Download>>,
    /// Every other call that changes something, with its task.
    pub(crate) orders: Mutex<Vec<String>>,
}

/// A running fake, its socket and a directory for outputs.
pub(crate) struct Fake {
    pub(crate) script: Arc<Script>,
    pub(crate) home: tempfile::TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) server: tokio::task::JoinHandle<()>,
}

impl Fake {
    pub(crate) fn start(script: Script) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("out")).unwrap();
        let socket = home.path().join("d.sock");
        let script = Arc::new(script);
        let server = Self::serve(&socket, script.clone());
        Self { script, home, socket, server }
    }

    fn serve(socket: &Path, shared: Arc<Script>) -> tokio::task::JoinHandle<()> {
        let listener = UnixListener::bind(socket).unwrap();
        tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let script = shared.clone();
                connections.spawn(async move {
                    let cut = Arc::new(Notify::new());
                    let cuts = cut.clone();
                    let service =
                        tower::service_fn(move |request| answer(script.clone(), cuts.clone(), request));
                    let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
                    let service = TowerToHyperService::new(service);
                    tokio::select! {
                        _ended = builder.serve_connection(TokioIo::new(stream), service) => {}
                        () = cut.notified() => {}
                    }
                });
            }
        })
    }

    /// Ends: its connections break, and its socket is gone.
    pub(crate) async fn stop(&mut self) {
        self.server.abort();
        assert!((&mut self.server).await.unwrap_err().is_cancelled());
        std::fs::remove_file(&self.socket).unwrap();
    }

    /// Starts again at the same path, with what it knew.
    pub(crate) fn start_again(&mut self) {
        self.server = Self::serve(&self.socket, self.script.clone());
    }

    /// A fake that answers one download with `steps`.
    pub(crate) fn downloading(steps: Vec<Step>) -> Self {
        Self::start(Script { downloads: Mutex::new([steps].into()), ..Script::default() })
    }

    /// The path of an output.
    pub(crate) fn output(&self, name: &str) -> PathBuf {
        self.home.path().join("out").join(name)
    }

    /// Whatever is in the outputs' directory.
    pub(crate) fn outputs(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.home.path().join("out")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// A program that talks to this fake.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).arg("-e").arg(&self.socket).env("TZ", "UTC").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs dfget.
    pub(crate) async fn dfget(&self, arguments: &[&str]) -> Ended {
        self.command(env!("CARGO_BIN_EXE_dfget"), arguments).output().await.unwrap().into()
    }

    /// Runs dfget to the output `f`.
    pub(crate) async fn dfget_to_file(&self, arguments: &[&str]) -> Ended {
        let output = self.output("f");
        self.dfget(&[&["http://origin/f", "-O", output.to_str().unwrap()], arguments].concat()).await
    }

    /// Runs dfcache, without anybody's configuration file.
    pub(crate) async fn dfcache(&self, arguments: &[&str]) -> Ended {
        self.dfcache_command(arguments).output().await.unwrap().into()
    }

    /// dfcache, without anybody's configuration file.
    pub(crate) fn dfcache_command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_dfcache"), arguments);
        command.env("XDG_CONFIG_HOME", self.home.path());
        command
    }

    /// Runs dfctl.
    pub(crate) async fn dfctl(&self, arguments: &[&str]) -> Ended {
        self.command(env!("CARGO_BIN_EXE_dfctl"), arguments).output().await.unwrap().into()
    }
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The start of a download of `content` in pieces of `piece_length`.
pub(crate) fn started(content: &[u8], piece_length: usize) -> Step {
    let pieces =
        pieces(content, piece_length).into_iter().map(|piece| Piece { content: None, ..piece }).collect();
    let started =
        DownloadTaskStartedResponse { content_length: content.len() as u64, pieces, ..Default::default() };
    say(Said::DownloadTaskStartedResponse(started))
}

/// A piece report.
pub(crate) fn piece(piece: Piece) -> Step {
    say(Said::DownloadPieceFinishedResponse(DownloadPieceFinishedResponse { piece: Some(piece) }))
}

fn say(response: Said) -> Step {
    Step::Say(Box::new(DownloadTaskResponse {
        host_id: "10.0.0.1-h".to_owned(),
        task_id: TASK_ID.to_owned(),
        peer_id: "10.0.0.1-h-p".to_owned(),
        response: Some(response),
    }))
}

/// Every piece with content and digest; the first from the origin, the others from a peer.
pub(crate) fn pieces(content: &[u8], piece_length: usize) -> Vec<Piece> {
    let chunks = (0u32..).zip(content.chunks(piece_length));
    chunks
        .map(|(number, chunk)| {
            let mut piece = Piece {
                number,
                offset: u64::from(number) * piece_length as u64,
                length: chunk.len() as u64,
                digest: damselfly_core::Crc::of(chunk).to_string(),
                content: Some(Bytes::copy_from_slice(chunk)),
                ..Piece::default()
            };
            if number == 0 {
                piece.set_traffic_type(TrafficType::BackToSource);
            } else {
                piece.set_traffic_type(TrafficType::RemotePeer);
                piece.parent_id = Some("10.0.0.2-h-q".to_owned());
            }
            piece
        })
        .collect()
}

/// What a whole download of `content` through the socket looks like, the last piece first.
pub(crate) fn whole(content: &[u8], piece_length: usize) -> Vec<Step> {
    let mut steps = vec![started(content, piece_length)];
    steps.extend(pieces(content, piece_length).into_iter().rev().map(piece));
    steps
}

pub(crate) type Answered = Result<http::Response<tonic::body::Body>, Infallible>;
pub(crate) type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

async fn answer(script: Arc<Script>, cut: Arc<Notify>, request: http::Request<Incoming>) -> Answered {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/dfdaemon.v2.DfdaemonDownload/DownloadTask" => {
            stream(request, |asked: DownloadTaskRequest| download(&script, asked)).await
        }
        "/dfdaemon.v2.DfdaemonDownload/ListLocalTasks" => {
            let tasks = script.tasks.clone();
            unary(request, |_: ListLocalTasksRequest| Ok(ListLocalTasksResponse { tasks })).await
        }
        "/dfdaemon.v2.DfdaemonDownload/StatLocalTask" => {
            unary(request, |asked: StatLocalTaskRequest| {
                let found = script.tasks.iter().find(|task| task.task_id == asked.task_id);
                found.cloned().ok_or_else(|| Status::not_found("no such task"))
            })
            .await
        }
        "/dfdaemon.v2.DfdaemonDownload/StatTask" => {
            unary(request, |_: StatTaskRequest| {
                script.swarm.clone().ok_or_else(|| Status::internal("no scheduler"))
            })
            .await
        }
        "/dfdaemon.v2.DfdaemonDownload/DeleteTask" => {
            unary(request, |asked: DeleteTaskRequest| order(&script, format!("delete {}", asked.task_id)))
                .await
        }
        "/damselfly.v1.Local/GetReceipt" => {
            unary(request, |_: GetReceiptRequest| {
                script.receipt.clone().ok_or_else(|| Status::unimplemented(""))
            })
            .await
        }
        "/damselfly.v1.Local/ReadTask" => {
            stream(request, |asked: ReadTaskRequest| {
                script.asked.lock().unwrap().extend(asked.download);
                let (messages, end) = script.read.clone().ok_or_else(|| Status::unimplemented(""))?;
                let all: Vec<_> = messages.into_iter().map(Ok).chain(end.map(Err)).collect();
                Ok(Response::new(Box::pin(tokio_stream::iter(all)) as Boxed<_>))
            })
            .await
        }
        "/damselfly.v1.Local/Status" => {
            stream(request, |_: StatusRequest| {
                let status = script.status.clone().ok_or_else(|| Status::unimplemented(""))?;
                Ok(Response::new(Box::pin(tokio_stream::once(Ok(status))) as Boxed<_>))
            })
            .await
        }
        "/damselfly.v1.Local/Pause" => {
            unary(request, |asked: PauseRequest| order(&script, format!("pause {}", asked.task.unwrap().id)))
                .await
        }
        "/damselfly.v1.Local/Resume" => {
            unary(request, |asked: ResumeRequest| {
                order(&script, format!("resume {}", asked.task.unwrap().id))
            })
            .await
        }
        "/damselfly.v1.Local/Cancel" => {
            unary(request, |asked: CancelRequest| {
                order(&script, format!("cancel {}", asked.task.unwrap().id))
            })
            .await
        }
        "/damselfly.v1.Local/Limit" => {
            unary(request, |asked: LimitRequest| {
                order(&script, format!("limit {} {}", asked.task.unwrap().id, asked.bytes_per_second))
            })
            .await
        }
        _ => cached::answer(script, cut, request).await,
    }
}

fn order(script: &Script, text: String) -> Result<(), Status> {
    script.orders.lock().unwrap().push(text);
    Ok(())
}

fn download(
    script: &Script,
    asked: DownloadTaskRequest,
) -> Result<Response<Boxed<DownloadTaskResponse>>, Status> {
    let asked = asked.download.unwrap();
    let steps =
        script.downloads.lock().unwrap().pop_front().ok_or_else(|| Status::internal("asked too often"))?;
    if let [Step::Fail(status)] = &steps[..] {
        script.asked.lock().unwrap().push(asked);
        return Err(status.clone());
    }
    let (said, heard) = tokio::sync::mpsc::channel(1);
    let output = asked.output_path.clone();
    script.asked.lock().unwrap().push(asked);
    tokio::spawn(async move {
        for step in steps {
            match step {
                Step::Say(message) => {
                    if said.send(Ok(*message)).await.is_err() {
                        return;
                    }
                }
                Step::WriteOutput(content) => std::fs::write(output.as_deref().unwrap(), content).unwrap(),
                Step::Fail(status) => drop(said.send(Err(status)).await),
                Step::Hang => said.closed().await,
            }
        }
    });
    let stream = tokio_stream::wrappers::ReceiverStream::new(heard);
    let mut response = Response::new(Box::pin(stream) as Boxed<_>);
    if script.ours {
        response.metadata_mut().insert("x-damselfly", tonic::metadata::MetadataValue::from_static("1"));
    }
    Ok(response)
}

pub(crate) async fn unary<Asked, Told>(
    request: http::Request<Incoming>,
    tell: impl FnOnce(Asked) -> Result<Told, Status>,
) -> Answered
where
    Asked: prost::Message + Default + 'static,
    Told: prost::Message + Default + 'static,
{
    let mut tell = Some(tell);
    let service = tower::service_fn(|request: Request<Asked>| {
        let told = tell.take().map(|tell| tell(request.into_inner()).map(Response::new));
        std::future::ready(told.unwrap_or_else(|| Err(Status::internal("asked twice"))))
    });
    Ok(tonic::server::Grpc::new(ProstCodec::<Told, Asked>::default()).unary(service, request).await)
}

pub(crate) async fn stream<Asked, Told>(
    request: http::Request<Incoming>,
    tell: impl FnOnce(Asked) -> Result<Response<Boxed<Told>>, Status>,
) -> Answered
where
    Asked: prost::Message + Default + 'static,
    Told: prost::Message + Default + 'static,
{
    let mut tell = Some(tell);
    let service = tower::service_fn(|request: Request<Asked>| {
        let told = tell.take().map(|tell| tell(request.into_inner()));
        std::future::ready(told.unwrap_or_else(|| Err(Status::internal("asked twice"))))
    });
    Ok(tonic::server::Grpc::new(ProstCodec::<Told, Asked>::default())
        .server_streaming(service, request)
        .await)
}
