//! Downloads that are ended from outside.

use std::process::Output;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::fake::{Fake, Step, piece, pieces, started};

const CONTENT: &[u8] = b"0123456789";

/// Starts a download that hangs after its second piece, waits until that is written, and calls `disturb`.
async fn disturbed(steps: Vec<Step>, flags: &[&str], disturb: impl FnOnce(&Fake, u32)) -> (Fake, Output) {
    let fake = Fake::downloading(steps);
    let output = fake.output("f");
    let arguments =
        [&["http://origin/f", "-O", output.to_str().unwrap(), "--console", "-l", "debug"], flags].concat();
    let mut child = fake.command(env!("CARGO_BIN_EXE_dfget"), &arguments).spawn().unwrap();
    let mut log = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut finished = 0;
    while finished < 2 {
        let line = log.next_line().await.unwrap().expect("dfget ended before it was disturbed");
        finished += usize::from(line.contains("piece finished"));
    }
    disturb(&fake, child.id().unwrap());
    let mut rest = Vec::new();
    while let Some(line) = log.next_line().await.unwrap() {
        rest.extend_from_slice(line.as_bytes());
        rest.push(b'\n');
    }
    let mut output = child.wait_with_output().await.unwrap();
    output.stdout = rest;
    (fake, output)
}

fn hanging() -> Vec<Step> {
    let mut steps = vec![started(CONTENT, 4)];
    steps.extend(pieces(CONTENT, 4).into_iter().take(2).map(piece));
    steps.push(Step::Hang);
    steps
}

fn send(signal: Signal) -> impl FnOnce(&Fake, u32) {
    move |fake, pid| {
        assert_eq!(fake.outputs().len(), 1, "the download is under way");
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_leaves_nothing() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let (fake, output) = disturbed(hanging(), &["--transfer-from-dfdaemon"], send(signal)).await;
        assert_eq!(output.status.code(), Some(code));
        assert!(String::from_utf8_lossy(&output.stdout).contains("run the same command again, it resumes"));
        assert!(fake.outputs().is_empty(), "{:?}", fake.outputs());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_removes_what_a_foreign_daemon_linked() {
    let mut steps = hanging();
    steps.insert(1, Step::WriteOutput(vec![0; 10]));
    let (fake, output) = disturbed(steps, &[], send(Signal::INT)).await;
    assert_eq!(output.status.code(), Some(130));
    assert!(fake.outputs().is_empty(), "{:?}", fake.outputs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_ends_with_3() {
    let (fake, output) =
        disturbed(hanging(), &["--transfer-from-dfdaemon"], |fake, _| fake.server.abort()).await;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("the connection to the daemon broke"), "{text}");
    assert!(fake.outputs().is_empty());
}
