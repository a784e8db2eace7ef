//! dfctl demo: the README's first command.

use rustix::process::Signal;
use tokio::io::BufReader;

use crate::node::{command, ended, names, next_line, run, signal};

const DFCTL: &str = env!("CARGO_BIN_EXE_dfctl");

#[tokio::test(flavor = "multi_thread")]
async fn it_checks_every_copy_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let mut demo = command(DFCTL, &["demo", "--size", "33MiB", "--hosts", "3"], home.path());
    // A proxy of the user's must not be asked for what is on this machine.
    demo.env("TMPDIR", home.path()).env("http_proxy", "http://127.0.0.1:1");
    let told = run(demo).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(told.stdout.matches("  yes\n").count(), 3, "{}", told.stdout);
    assert!(told.stdout.contains("the origin sent 33.0 MiB (1.00 times the content)"), "{}", told.stdout);
    assert!(names(home.path()).is_empty(), "{:?}", names(home.path()));

    let mut demo = command(DFCTL, &["demo", "--size", "1", "--hosts", "2", "--json", "--keep"], home.path());
    demo.env("TMPDIR", home.path());
    let told = run(demo).await;
    assert_eq!((told.code, told.stderr.as_str()), (Some(0), ""), "{told:?}");
    let json: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!((json["ok"].clone(), json["origin_bytes"].clone()), (true.into(), 1.into()));
    assert!(std::path::Path::new(json["kept"].as_str().unwrap()).join("host-2/copy.bin").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_leaves_nothing_either() {
    let home = tempfile::tempdir().unwrap();
    let mut demo = command(DFCTL, &["demo", "--size", "1GiB", "--hosts", "2"], home.path());
    let mut demo = demo.env("TMPDIR", home.path()).spawn().unwrap();
    let mut stderr = BufReader::new(demo.stderr.take().unwrap());
    let line = next_line(&mut stderr).await;
    assert!(line.contains("host-1"), "{line}");
    signal(&demo, Signal::INT);
    let told = ended(demo).await;
    assert_eq!(told.code, Some(130), "{told:?}");
    assert!(told.stdout.starts_with("Demo Failed!\n"), "{told:?}");
    assert!(names(home.path()).is_empty(), "{:?}", names(home.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let told = run(command(DFCTL, &["demo", "--size", "1EiB"], home.path())).await;
    assert_eq!(told.code, Some(6), "{told:?}");
    assert!(told.stdout.contains("4 hosts need") && told.stdout.contains("set TMPDIR"), "{told:?}");
    assert_eq!(run(command(DFCTL, &["demo", "--hosts", "0"], home.path())).await.code, Some(2));
}
