use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use damselfly_storage::UploadName;
use damselfly_transport::local::Caller;

use super::*;
use crate::testing::daemon;

const UNIT: usize = 4 << 20;

fn wanted(length: usize) -> Wanted {
    let ttl = prost_types::Duration { seconds: 3600, nanos: 0 };
    let started = dfdaemon::WritePersistentCacheTaskStarted {
        persistent_replica_count: 1,
        ttl: Some(ttl),
        content_length: Some(length as u64),
        upload_id: "mine".to_owned(),
        ..Default::default()
    };
    Wanted::of_stream(started, Some(7)).unwrap()
}

fn verified(engine: &Engine) -> u64 {
    engine.store.verified_upload(&UploadName { uid: 7, name: "mine".to_owned() })
}

/// Some bytes, and then the reason why there are no more.
struct Ends(usize, Status);

impl Input for Ends {
    const MODE: Mode = Mode::Stream;

    async fn pour(self, importer: &mut Importer) -> Result<Option<Digest>, Status> {
        importer.write(&vec![1; self.0])?;
        Err(self.1)
    }
}

/// A file that is read by the daemon.
struct Handed(FileSource);

impl Input for Handed {
    const MODE: Mode = Mode::Fd;

    async fn pour(self, importer: &mut Importer) -> Result<Option<Digest>, Status> {
        importer.read(self.0).await.map(|()| None)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_broke_is_kept_and_what_is_wrong_is_not() {
    let (_home, daemon) = daemon("").await;
    let engine = daemon.engine();
    for (code, kept) in [
        (Code::Aborted, true),
        (Code::Cancelled, true),
        (Code::Unknown, true),
        (Code::Internal, true),
        (Code::InvalidArgument, false),
        (Code::ResourceExhausted, false),
    ] {
        let input = Ends(2 * UNIT + 1, Status::new(code, "that is all"));
        let ended = run(engine, wanted(3 * UNIT), input, None).await.unwrap_err();
        assert_eq!((ended.code(), ended.message()), (code, "that is all"));
        assert_eq!(verified(engine), if kept { 2 * UNIT as u64 } else { 0 }, "{code:?}");
    }
    assert!(engine.store.list().is_empty());
    daemon.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_goes_on_with_a_file_that_changed() {
    let (home, daemon) = daemon("").await;
    let engine = daemon.engine();
    let path = home.path().join("file");
    let mut file = File::create_new(&path).unwrap();
    file.write_all(&vec![1; 8 * UNIT]).unwrap();
    let (over, (begun, waiting)) = (Arc::new(AtomicBool::new(false)), std::sync::mpsc::channel());
    let changing = std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            for turn in 1.. {
                file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(turn)).unwrap();
                begun.send(()).unwrap();
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
    });
    waiting.recv().unwrap();
    let caller = Arc::new(Caller::this_process());
    let source = FileSource::new(File::open(&path).unwrap(), "file".to_owned(), &caller, true);
    let changed = run(engine, wanted(8 * UNIT), Handed(source), None).await.unwrap_err();
    over.store(true, Ordering::Relaxed);
    changing.join().unwrap();
    assert!(changed.code() == Code::Aborted && changed.message().contains("changed while"), "{changed:?}");
    assert_eq!(verified(engine), 0);
    daemon.kill().await;
}
