//! dfdaemon and dfscheduler from start to end.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};

/// Starts a server with its files in `home` and waits for the line that says it serves.
async fn serving(
    program: &str,
    arguments: &[&str],
    home: &tempfile::TempDir,
) -> (Child, BufReader<ChildStderr>, String) {
    let mut command = Command::new(program);
    command.args(arguments).env("HOME", home.path()).env("XDG_STATE_HOME", home.path()).kill_on_drop(true);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).await.unwrap();
    assert!(line.contains(": serving on "), "{line:?}");
    (child, stderr, line)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().unwrap().cast_signed()).unwrap(), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_serves_logs_and_ends_in_order() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap();
    let (mut child, _stderr, line) = serving(env!("CARGO_BIN_EXE_dfdaemon"), &["--home", path], &home).await;
    assert!(line.contains(&format!("{path}/dfdaemon.sock")), "{line}");

    let socket = format!("{path}/dfdaemon.sock");
    let status =
        Command::new(env!("CARGO_BIN_EXE_dfctl")).args(["status", "-e", &socket]).output().await.unwrap();
    assert_eq!(status.status.code(), Some(0), "{status:?}");
    let text = String::from_utf8_lossy(&status.stdout);
    assert!(text.contains("No tasks.") && text.contains("daemon"), "{text}");
    let list =
        Command::new(env!("CARGO_BIN_EXE_dfctl")).args(["task", "ls", "-e", &socket]).output().await.unwrap();
    assert_eq!(list.status.code(), Some(0), "{list:?}");

    for (number, expected) in [(Signal::INT, 0), (Signal::QUIT, 0)] {
        signal(&child, number);
        assert_eq!(child.wait().await.unwrap().code(), Some(expected));
        (child, ..) = serving(env!("CARGO_BIN_EXE_dfdaemon"), &["--home", path], &home).await;
    }
    let log = std::fs::read_to_string(home.path().join("logs/dfdaemon.log")).unwrap();
    assert!(log.contains("dfdaemon starts") && log.contains("SIGINT") && log.contains("SIGQUIT"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_one_store_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap();
    let (_child, _stderr, _) = serving(env!("CARGO_BIN_EXE_dfdaemon"), &["--home", path], &home).await;
    let second = Command::new(env!("CARGO_BIN_EXE_dfdaemon")).args(["--home", path]).output().await.unwrap();
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.starts_with("dfdaemon: ") && text.contains("stop that daemon"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_serves_and_ends_in_order() {
    let home = tempfile::tempdir().unwrap();
    let logs = home.path().join("logs");
    let arguments = ["--listen", "127.0.0.1:0", "--log-dir", logs.to_str().unwrap()];
    let (mut child, _stderr, line) = serving(env!("CARGO_BIN_EXE_dfscheduler"), &arguments, &home).await;
    let address = line.trim().rsplit(' ').next().unwrap().to_owned();

    let taken = ["--listen", &address, "--log-dir", logs.to_str().unwrap()];
    let second = Command::new(env!("CARGO_BIN_EXE_dfscheduler")).args(taken).output().await.unwrap();
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    assert!(
        String::from_utf8_lossy(&second.stderr).contains(&format!("cannot listen on {address}")),
        "{second:?}"
    );

    signal(&child, Signal::TERM);
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    let log = std::fs::read_to_string(logs.join("dfscheduler.log")).unwrap();
    assert!(log.contains("dfscheduler serves") && log.contains("SIGTERM"), "{log}");
}
