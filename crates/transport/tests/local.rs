//! The local socket, as far as one uid can test it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use damselfly_transport::local::{BindOptions, Caller, Connection, Listener, PathAccess, PathError, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

fn listener() -> (tempfile::TempDir, Listener) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut options = BindOptions::new(dir.path().join("d.sock"));
    options.first_bytes = Duration::from_millis(200);
    let listener = Listener::bind(options).expect("free");
    (dir, listener)
}

#[tokio::test]
async fn first_bytes_tell_connections_apart_and_are_read_again() {
    let (_dir, mut listener) = listener();
    let path = listener.path().to_owned();
    let mut grpc = UnixStream::connect(&path).await.expect("listening");
    grpc.write_all(b"PR").await.expect("open");
    let accepted = tokio::spawn(async move { (listener.accept().await, listener) });
    tokio::task::yield_now().await;
    grpc.write_all(b"I * HTTP/2.0").await.expect("open");
    let (connection, mut listener) = accepted.await.expect("no panic");
    let Connection::Grpc(mut stream) = connection else { panic!("{connection:?}") };
    let own = Caller::this_process();
    assert_eq!((stream.caller().uid, stream.caller().pid), (own.uid, own.pid));
    assert!(stream.caller().native);
    let mut bytes = [0; 14];
    // Byte by byte, to cross the seam between what was read before and what was not.
    for byte in &mut bytes {
        *byte = stream.read_u8().await.expect("open");
    }
    assert_eq!(&bytes, b"PRI * HTTP/2.0");
    stream.write_all(b"answer").await.expect("open");
    let mut answer = [0; 6];
    grpc.read_exact(&mut answer).await.expect("open");
    assert_eq!(&answer, b"answer");

    let mut descriptor = UnixStream::connect(&path).await.expect("listening");
    descriptor.write_all(b"DFFDtoken").await.expect("open");
    let connection = listener.accept().await;
    let Connection::Descriptor(mut stream) = connection else { panic!("{connection:?}") };
    let mut said = [0; 9];
    stream.read_exact(&mut said).await.expect("open");
    assert_eq!(&said, b"DFFDtoken");
}

#[tokio::test]
async fn strangers_and_the_silent_are_dropped_without_holding_others_up() {
    let (_dir, mut listener) = listener();
    let path = listener.path().to_owned();
    let mut silent = UnixStream::connect(&path).await.expect("listening");
    let mut http1 = UnixStream::connect(&path).await.expect("listening");
    http1.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("open");
    let mut grpc = UnixStream::connect(&path).await.expect("listening");
    grpc.write_all(b"PRI ").await.expect("open");
    assert!(matches!(listener.accept().await, Connection::Grpc(_)));
    let serving = tokio::spawn(async move { listener.accept().await });
    // A reset or an end, but no byte.
    assert!(!matches!(http1.read(&mut [0; 10]).await, Ok(1..)));
    assert!(!matches!(silent.read(&mut [0; 10]).await, Ok(1..)));
    serving.abort();
}

#[tokio::test]
async fn many_silent_connections_only_delay_a_good_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut options = BindOptions::new(dir.path().join("d.sock"));
    options.first_bytes = Duration::from_millis(50);
    options.max_waiting = 2;
    let mut listener = Listener::bind(options).expect("free");
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(UnixStream::connect(listener.path()).await.expect("listening"));
    }
    let mut grpc = UnixStream::connect(listener.path()).await.expect("listening");
    grpc.write_all(b"PRI ").await.expect("open");
    let accepted = tokio::time::timeout(Duration::from_secs(10), listener.accept()).await;
    assert!(matches!(accepted, Ok(Connection::Grpc(_))));
}

#[tokio::test]
async fn nobody_there_is_said_plainly() {
    let error = connect(Path::new("/nonexistent/d.sock")).await.expect_err("nobody");
    assert_eq!(error.source.kind(), std::io::ErrorKind::NotFound);
    assert!(error.to_string().contains("/nonexistent/d.sock"), "{error}");
}

fn access() -> PathAccess {
    PathAccess::new(Arc::new(Caller::this_process()), Arc::from([]))
}

#[tokio::test]
async fn an_output_appears_complete_or_not_at_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("out.bin");
    let names = || {
        let entries = std::fs::read_dir(dir.path()).expect("readable");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("readable").file_name()).collect();
        names.sort();
        names
    };
    let target = access().open_output(&path).await.expect("ours");
    assert!(!target.is_taken().await.expect("ours"));
    let temp = target.create_temp().await.expect("ours");
    assert!(!path.try_exists().expect("readable"));
    std::os::unix::fs::FileExt::write_all_at(&**temp.file(), b"content", 0).expect("writable");
    temp.commit(false).await.expect("free");
    assert_eq!(std::fs::read(&path).expect("there"), b"content");
    assert_eq!(path.metadata().expect("there").mode() & 0o777, 0o644);
    assert_eq!(names(), ["out.bin"]);

    // Taken: refused, and nothing is left behind. The removal runs on a thread of its own.
    assert!(target.is_taken().await.expect("ours"));
    let temp = target.create_temp().await.expect("ours");
    let error = temp.commit(false).await.expect_err("taken");
    assert!(matches!(error, PathError::Exists(_)), "{error}");
    drop(target.create_temp().await.expect("ours"));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while names().len() > 1 {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", names());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(std::fs::read(&path).expect("there"), b"content");

    let temp = target.create_temp().await.expect("ours");
    temp.commit(true).await.expect("may be overwritten");
    assert_eq!(std::fs::read(&path).expect("there"), b"");
    assert_eq!(names(), ["out.bin"]);
}

#[tokio::test]
async fn only_regular_files_outside_procfs_are_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("in");
    std::fs::write(&file, "input").expect("writable");
    std::os::unix::fs::symlink(&file, dir.path().join("link")).expect("free");
    for path in [&file, &dir.path().join("link")] {
        let opened = access().open_input(path).await.expect("a regular file");
        assert_eq!(opened.metadata().expect("open").len(), 5);
    }
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("free");
    for (path, why) in [
        (fifo.as_path(), "a FIFO"),
        (dir.path(), "a directory"),
        (Path::new("/dev/null"), "a device"),
        (Path::new("/proc/self/status"), "procfs"),
        (Path::new("/proc/self/mem"), "procfs"),
        (Path::new("/proc/self/root/etc/hostname"), "as uid"),
        (Path::new("/dev/stdin"), "as uid"),
        (Path::new("/proc/self/cwd"), "as uid"),
    ] {
        let error = access().open_input(path).await.expect_err("no file to be read");
        assert!(error.to_string().contains(why), "{error}");
    }
    let error = access().open_input(Path::new("in")).await.expect_err("relative");
    assert!(matches!(error, PathError::Malformed { .. }));
    for path in ["/", "/tmp/..", "/tmp/x/", "relative/x"] {
        let error = access().open_output(Path::new(path)).await.expect_err("no file name");
        assert!(matches!(error, PathError::Malformed { .. }), "{path}: {error}");
    }
    let error = access().open_output(Path::new("/proc/self/attr/x")).await.expect_err("procfs");
    assert!(matches!(error, PathError::NotAFile { .. }), "{error}");
    let error = access().open_output(Path::new("/nonexistent/x")).await.expect_err("no directory");
    assert!(error.to_string().contains("No such file"), "{error}");
}

#[tokio::test]
async fn a_foreign_caller_stays_beneath_the_roots() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("root");
    std::fs::create_dir_all(root.join("sub")).expect("free");
    std::fs::write(dir.path().join("secret"), "secret").expect("writable");
    std::fs::write(root.join("sub/in"), "in").expect("writable");
    std::os::unix::fs::symlink("../../secret", root.join("sub/escape")).expect("free");
    std::os::unix::fs::symlink(dir.path(), root.join("absolute")).expect("free");
    std::os::unix::fs::symlink("sub", root.join("inside")).expect("free");
    let mut caller = Caller::this_process();
    caller.native = false;
    let roots: Arc<[PathBuf]> = Arc::from([root.clone(), PathBuf::from("/nonexistent")]);
    let access = PathAccess::new(Arc::new(caller), roots);
    access.open_input(&root.join("sub/in")).await.expect("beneath");
    access.open_input(&root.join("inside/in")).await.expect("a link that stays inside");
    for outside in ["sub/escape", "absolute/secret", "../secret", "sub/../../secret"] {
        let error = access.open_input(&root.join(outside)).await.expect_err("outside");
        assert!(matches!(error, PathError::Refused { .. }), "{outside}: {error}");
    }
    for elsewhere in [dir.path().join("secret"), dir.path().join("root2/x"), PathBuf::from("/etc/passwd")] {
        let error = access.open_input(&elsewhere).await.expect_err("elsewhere");
        assert!(matches!(error, PathError::Foreign(_)), "{error}");
        assert!(
            error.to_string().contains("pathRoots") && error.to_string().contains("--transfer-from-dfdaemon")
        );
    }
    let target = access.open_output(&root.join("out")).await.expect("directly beneath");
    target.create_temp().await.expect("writable").commit(false).await.expect("free");
    assert!(root.join("out").try_exists().expect("readable"));
    let error = access.open_output(&root.join("absolute/out")).await.expect_err("outside");
    assert!(matches!(error, PathError::Refused { .. }), "{error}");
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).expect("ours");
}
