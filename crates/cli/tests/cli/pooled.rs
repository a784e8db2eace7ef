//! The connections of a run: how many there are, and what becomes of it when the daemon goes.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Child;

use crate::cached::{Cached, Write, task};
use crate::fake::{Ended, Fake, Script, TASK_ID};

const MIB: usize = 1 << 20;

/// An import that has brought 2 MiB to a daemon that takes no more, and its content.
async fn stalled() -> (Fake, Child, Vec<u8>) {
    let cache = Cached::writing([Write::Stall(2 * MIB), Write::Take]);
    let fake = Fake::start(Script { cache, ..Script::default() });
    let content: Vec<u8> = (0..5 * MIB).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let path = fake.home.path().join("model.bin");
    fs::write(&path, &content).unwrap();
    let mut command = fake.dfcache_command(&["import", path.to_str().unwrap(), "--stream-mode"]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let has_come = || {
        let uploads = fake.script.cache.uploads.lock().unwrap();
        uploads.values().any(|content| content.len() >= 2 * MIB)
    };
    let coming = async {
        while !has_come() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), coming).await.unwrap();
    (fake, child, content)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_goes_on_at_a_daemon_that_was_restarted() {
    let (mut fake, child, content) = stalled().await;
    fake.stop().await;
    fake.start_again();
    let ended: Ended = child.wait_with_output().await.unwrap().into();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), &*format!("{TASK_ID}\n")), "{ended:?}");
    assert!(ended.stderr.contains("going on at 2.0 MiB"), "{ended:?}");
    assert!(fake.script.cache.upload() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stays_away_is_named_with_its_socket() {
    let (mut fake, child, _) = stalled().await;
    fake.stop().await;
    let ended: Ended = child.wait_with_output().await.unwrap().into();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(3), ""), "{ended:?}");
    let expected = format!(
        "the connection to the daemon broke: cannot connect to the daemon at {}: No such file or directory \
         (os error 2) (4 tries); check that dfdaemon runs",
        fake.socket.display()
    );
    assert!(ended.stderr.contains(&expected), "{ended:?}");
    assert!(ended.stderr.contains("it goes on where this one ended"), "{ended:?}");
    assert_eq!(ended.stderr.matches("dfcache: the connection to the daemon broke").count(), 1, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_level_debug_a_run_ends_with_its_connections() {
    let cache = Cached { task: Some(task(9)), ..Cached::default() };
    let fake = Fake::start(Script { cache, ..Script::default() });
    let ended = fake.dfcache(&["stat", TASK_ID, "--console", "--log-level", "debug"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let last = ended.stderr.lines().last().unwrap();
    let socket = format!("socket={}", fake.socket.display());
    for part in ["connections to the daemon closed", &socket, "opened=1", "reused=0", "refused=0"] {
        assert!(last.contains(part), "{part}: {ended:?}");
    }
}
