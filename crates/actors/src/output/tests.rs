use std::os::unix::fs::PermissionsExt;

use damselfly_api::common::v2::Download;
use damselfly_transport::local::Caller;
use tonic::Code;

use super::*;
use crate::request;
use crate::testing::{daemon, empty, hold, key};

#[tokio::test(flavor = "multi_thread")]
async fn outputs_appear_complete_or_not_at_all() {
    let (home, daemon) = daemon("").await;
    let engine = daemon.engine();
    let content = empty(&engine.store, &key('a'), 4, None);
    let caller = Arc::new(Caller::this_process());
    let open = async |name: &str, overwrite| {
        let path = home.path().join("out").join(name).display().to_string();
        let download = Download { output_path: Some(path), overwrite, ..Download::default() };
        request::output(engine, &caller, &download).await
    };
    let out = home.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let target = open("file", false).await.unwrap().unwrap();
    // Not everything is held: nothing appears.
    assert!(target.publish(&content, None).await.is_err());
    assert!(std::fs::read_dir(&out).unwrap().next().is_none());
    for number in 0..4 {
        hold(&content, number);
    }
    assert!(!target.publish(&content, None).await.unwrap().is_empty());
    assert_eq!(std::fs::read(out.join("file")).unwrap(), [0, 1, 2, 3]);
    let taken = open("file", false).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);

    let range = ByteRange { start: 1, length: 2 };
    let part = open("part", false).await.unwrap().unwrap();
    assert_eq!(part.publish(&content, Some(range)).await.unwrap(), "copy");
    assert_eq!(std::fs::read(out.join("part")).unwrap(), [1, 2]);
    // Somebody was faster.
    let late = part.publish(&content, Some(range)).await.unwrap_err();
    assert_eq!(late.code(), Code::AlreadyExists);
    let forced = Output { force_hard_link: true, ..open("linked", false).await.unwrap().unwrap() };
    assert_eq!(forced.publish(&content, Some(range)).await.unwrap_err().code(), Code::FailedPrecondition);
    let copied = Output { same_uid: false, ..open("copied", false).await.unwrap().unwrap() };
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
        let download = Download { output_path: Some(path.display().to_string()), ..Download::default() };
        let target = request::output(engine, &caller, &download).await.unwrap().unwrap();
        Output { same_uid, ..target }.publish(&content, range).await.unwrap();
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
        let path = out.join("file").display().to_string();
        let download = Download { output_path: Some(path), ..Download::default() };
        let target = request::output(engine, &caller, &download).await.unwrap().unwrap();
        std::fs::remove_dir(&out).unwrap();
        let lost = Output { same_uid, ..target }.publish(&content, None).await.unwrap_err();
        assert_ne!(lost.code(), Code::Ok);
        assert!(lost.message().contains("No such file or directory"), "{lost}");
    }
    daemon.kill().await;
}
