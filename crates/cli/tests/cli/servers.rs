//! dfdaemon and dfscheduler from start to end.

use damselfly_core::{Kind, TaskId};
use damselfly_tests::OriginServer;
use damselfly_transport::vortex::Request;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::node::{Node, Server, command, free_port, run};

const DFDAEMON: &str = env!("CARGO_BIN_EXE_dfdaemon");
const DFSCHEDULER: &str = env!("CARGO_BIN_EXE_dfscheduler");

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_serves_logs_and_ends_in_order() {
    let home = tempfile::tempdir().unwrap();
    for number in [Signal::INT, Signal::QUIT, Signal::TERM] {
        let node = Node::start(home.path(), &[]).await;
        let socket = home.path().join("dfdaemon.sock");
        assert!(node.server.line.contains(socket.to_str().unwrap()), "{}", node.server.line);
        let status = node.dfctl(&["status"]).await;
        assert_eq!(status.code, Some(0), "{status:?}");
        assert!(status.stdout.contains("No tasks.") && status.stdout.contains("daemon"), "{status:?}");
        assert_eq!(node.dfctl(&["task", "ls"]).await.code, Some(0));
        node.server.signal(number);
        assert_eq!(node.server.ends().await.code(), Some(0));
        assert!(!socket.try_exists().unwrap(), "the socket goes with the daemon");
    }
    let log = std::fs::read_to_string(home.path().join("logs/dfdaemon.log")).unwrap();
    for part in ["dfdaemon starts", "SIGINT", "SIGQUIT", "SIGTERM", "stopped"] {
        assert!(log.contains(part), "{part} is not in:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(64 << 20, 5);
    let home = tempfile::tempdir().unwrap();
    let port = free_port();
    let node = Node::start(home.path(), &["--tcp-port", &port.to_string()]).await;
    let id = node.got(&blob.url, "f").await["task_id"].as_str().unwrap().to_owned();
    // A child that asks for everything and reads next to nothing: its uploads are waited for.
    let mut child = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    for piece in 0..16 {
        let request = Request { id: 0, kind: Kind::Standard, task: TaskId::parse(&id).unwrap(), piece };
        child.write_all(&request.encode().unwrap()).await.unwrap();
    }
    child.read_u8().await.unwrap();
    let mut server = node.server;
    server.signal(Signal::TERM);
    assert!(server.next_line().await.contains("SIGTERM, ending in order"));
    server.signal(Signal::INT);
    assert_eq!(server.ends().await.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_one_store_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let _first = Node::start(home.path(), &[]).await;
    let second = run(command(DFDAEMON, &["--home", home.path().to_str().unwrap()], home.path())).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(
        second.stderr.starts_with("dfdaemon: ") && second.stderr.contains("stop that daemon"),
        "{second:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_serves_and_ends_in_order() {
    let home = tempfile::tempdir().unwrap();
    let logs = home.path().join("logs");
    let arguments = ["--listen", "127.0.0.1:0", "--log-dir", logs.to_str().unwrap()];
    let server = Server::start(DFSCHEDULER, &arguments, home.path()).await;
    let address = server.line.trim().rsplit(' ').next().unwrap().to_owned();

    let taken = ["--listen", &address, "--log-dir", logs.to_str().unwrap()];
    let second = run(command(DFSCHEDULER, &taken, home.path())).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains(&format!("cannot listen on {address}")), "{second:?}");

    server.signal(Signal::TERM);
    assert_eq!(server.ends().await.code(), Some(0));
    let log = std::fs::read_to_string(logs.join("dfscheduler.log")).unwrap();
    assert!(log.contains("dfscheduler serves") && log.contains("SIGTERM"), "{log}");
}
