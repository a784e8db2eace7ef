use std::os::unix::fs::PermissionsExt;

use std::path::Path;

use damselfly_transport::local::Caller;
use tonic::Code;

use super::*;
use crate::engine::Engine;
use crate::local::Asking;
use crate::request::{self, Way};
use crate::testing::{daemon, empty, hold, key};

/// An output at `path` that need not be a hard link.
async fn open(
    engine: &Engine,
    caller: &Arc<Caller>,
    path: &Path,
    overwrite: bool,
) -> Result<PathOutput, Status> {
    let asking = Asking::plain(Arc::clone(caller));
    let way = Way { overwrite, force_hard_link: false };
    match request::output(engine, &asking, Some(&path.display().to_string()), way).await? {
        Some(Output::Path(output)) => Ok(output),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_appear_complete_or_not_at_all() {
    let (home, daemon) = daemon("").await;
    let engine = daemon.engine();
    let content = empty(&engine.store, &key('a'), 4, None);
    let caller = Arc::new(Caller::this_process());
    let open = async |name: &str, overwrite| {
        open(engine, &caller, &home.path().join("out").join(name), overwrite).await
    };
    let out = home.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let target = open("file", false).await.unwrap();
    // Not everything is held: nothing appears.
    assert!(target.publish(&content, None).await.is_err());
    assert!(std::fs::read_dir(&out).unwrap().next().is_none());
    for number in 0..4 {
        hold(&content, number);
    }
    assert_eq!(target.publish(&content, None).await.unwrap(), OutputWay::HardLink);
    assert_eq!(std::fs::read(out.join("file")).unwrap(), [0, 1, 2, 3]);
    let taken = open("file", false).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);

    let range = ByteRange { start: 1, length: 2 };
    let part = open("part", false).await.unwrap();
    assert_eq!(part.publish(&content, Some(range)).await.unwrap(), OutputWay::Copy);
    assert_eq!(std::fs::read(out.join("part")).unwrap(), [1, 2]);
    // Somebody was faster.
    let late = part.publish(&content, Some(range)).await.unwrap_err();
    assert_eq!(late.code(), Code::AlreadyExists);
    let forced = PathOutput { force_hard_link: true, ..open("linked", false).await.unwrap() };
    assert_eq!(forced.publish(&content, Some(range)).await.unwrap_err().code(), Code::FailedPrecondition);
    let copied = PathOutput { same_uid: false, ..open("copied", false).await.unwrap() };
    copied.publish(&content, None).await.unwrap();
    assert_eq!(std::fs::read(out.join("copied")).unwrap(), [0, 1, 2, 3]);
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_every_kind_obey_the_callers_umask() {
    let (home, daemon) = daemon("").await;
    let engine = daemon.engine();
    let content = empty(&engine.store, &key('a'), 4, None);
    (0..4).for_each(|number| hold(&content, number));
    let mut caller = Caller::this_process();
    caller.umask = 0o077;
    let caller = Arc::new(caller);
    let part = Some(ByteRange { start: 1, length: 2 });
    for (name, same_uid, range) in [("link", true, None), ("copy", false, None), ("part", true, part)] {
        let path = home.path().join(name);
        let target = open(engine, &caller, &path, false).await.unwrap();
        PathOutput { same_uid, ..target }.publish(&content, range).await.unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_vanished_is_an_error_with_a_name() {
    let (home, daemon) = daemon("").await;
    let engine = daemon.engine();
    let content = empty(&engine.store, &key('a'), 1, None);
    hold(&content, 0);
    let out = home.path().join("out");
    let caller = Arc::new(Caller::this_process());
    for same_uid in [true, false] {
        std::fs::create_dir(&out).unwrap();
        let target = open(engine, &caller, &out.join("file"), false).await.unwrap();
        std::fs::remove_dir(&out).unwrap();
        let lost = PathOutput { same_uid, ..target }.publish(&content, None).await.unwrap_err();
        assert_ne!(lost.code(), Code::Ok);
        assert!(lost.message().contains("No such file or directory"), "{lost}");
    }
    daemon.kill().await;
}
