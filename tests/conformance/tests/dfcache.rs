//! Dragonfly's dfcache, made of their crate, at our daemon.

use std::path::{Path, PathBuf};

use damselfly_conformance::cache::{Exported, check_task, export, import, stat, told};
use damselfly_conformance::{TASK, channel, programs};
use damselfly_core::Algorithm;
use damselfly_tests::Pattern;
use damselfly_tests::swarm::{Host, Swarm};
use dragonfly_api::common::v2::PersistentCacheTask;
use dragonfly_api::dfdaemon::v2::{
    DownloadPersistentCacheTaskRequest, ListLocalPersistentCacheTasksRequest,
    StatLocalPersistentCacheTaskRequest, StatLocalPersistentCacheTaskResponse,
    UploadPersistentCacheTaskRequest,
};
use dragonfly_api::scheduler::v2::DeletePersistentCacheTaskRequest;
use dragonfly_api::scheduler::v2::scheduler_client::SchedulerClient;
use prost_wkt_types::Duration as Span;
use tonic::{Code, Status};

const PIECE: u64 = 4 << 20;
/// SHA-256 over `This is a test file`, `tag1`, `app1`, `4194304` and `PERSISTENT_CACHE`.
const LABELLED: &str = "06149eed9221a4feaccc75a4797330b6f01df4288d9cc0953df5b8123300e1ab";

async fn put(host: &Host, name: &str, content: Pattern) -> PathBuf {
    let path = host.path(name);
    tokio::fs::write(&path, content.to_vec()).await.unwrap();
    path
}

async fn upload(
    host: &Host,
    request: UploadPersistentCacheTaskRequest,
) -> Result<PersistentCacheTask, Status> {
    programs(host).await.upload_persistent_cache_task(request).await.map(tonic::Response::into_inner)
}

async fn download(host: &Host, request: DownloadPersistentCacheTaskRequest) -> Result<Exported, Status> {
    told(programs(host).await.download_persistent_cache_task(request).await?.into_inner()).await
}

async fn local(host: &Host, task: &str) -> Result<StatLocalPersistentCacheTaskResponse, Status> {
    let request = StatLocalPersistentCacheTaskRequest { task_id: task.to_owned(), remote_ip: None };
    programs(host).await.stat_local_persistent_cache_task(request).await.map(tonic::Response::into_inner)
}

async fn listed(host: &Host) -> Vec<StatLocalPersistentCacheTaskResponse> {
    let request = ListLocalPersistentCacheTasksRequest::default();
    programs(host).await.list_local_persistent_cache_tasks(request).await.unwrap().into_inner().tasks
}

/// Nothing but what was put there: a refused or broken export leaves nothing half-written.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

/// Where a test's outputs go, so that what else is in a home does not matter.
fn outputs(host: &Host) -> PathBuf {
    let dir = host.path("outputs");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_imports_it_exports_on_every_host() {
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let [first, second] = &swarm.hosts[..] else { unreachable!() };
    for (seed, length) in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 1].into_iter().enumerate() {
        let content = Pattern::new(seed as u64, length);
        let task = upload(first, import(&put(first, "in", content).await)).await.unwrap();
        check_task(&task, content);
        assert_eq!((task.persistent_replica_count, task.current_persistent_replica_count), (1, 1));
        assert_eq!(task.ttl.unwrap().seconds, 3600);
        for host in [second, first] {
            let out = outputs(host).join("out");
            download(host, export(&task.id, Some(&out))).await.unwrap().check(content, false);
            content.check_file(&out).unwrap();
            std::fs::remove_file(&out).unwrap();
            download(host, export(&task.id, None)).await.unwrap().check(content, true);
            assert_eq!(names(&outputs(host)), [""; 0]);
            let known = programs(host).await.stat_persistent_cache_task(stat(&task.id)).await;
            check_task(&known.unwrap().into_inner(), content);
        }
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_theirs() {
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let text = host.path("text");
    tokio::fs::write(&text, "This is a test file").await.unwrap();
    let empty = put(host, "empty", Pattern::new(0, 0)).await;
    let named = |content: &str| UploadPersistentCacheTaskRequest {
        content_for_calculating_task_id: Some(content.to_owned()),
        ..import(&text)
    };
    let labelled = UploadPersistentCacheTaskRequest {
        tag: Some("tag1".to_owned()),
        application: Some("app1".to_owned()),
        piece_length: Some(PIECE),
        ..import(&text)
    };
    let pairs = [
        (import(&text), "91ae5d9d7ea8763cc482e9999a6d5edac534a6000599777d6a26d1c66d2bab16"),
        (import(&empty), "84af03caf552bfbcb0d654b5158525fc6867b6964bbd43121bf3cb11e55c7831"),
        (named("This is a test file"), TASK),
        (labelled, LABELLED),
    ];
    for (request, id) in pairs {
        let (tag, application) = (request.tag.clone(), request.application.clone());
        let task = upload(host, request).await.unwrap();
        assert_eq!(task.id, id);
        assert_eq!(
            (task.tag.unwrap_or_default(), task.application.unwrap_or_default()),
            (tag.unwrap_or_default(), application.unwrap_or_default())
        );
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_there_stays_unless_told_otherwise() {
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let content = Pattern::new(1, PIECE + 1);
    let task = upload(host, import(&put(host, "in", content).await)).await.unwrap();
    let dir = outputs(host);
    let (there, linked) = (dir.join("there"), dir.join("linked"));
    let link = DownloadPersistentCacheTaskRequest {
        force_hard_link: true,
        overwrite: true,
        ..export(&task.id, Some(&linked))
    };
    download(host, link.clone()).await.unwrap().check(content, false);
    content.check_file(&linked).unwrap();
    // Twice: the same inode is no other output, which it could not be linked to.
    download(host, link).await.unwrap().check(content, false);

    let other = Pattern::new(2, 100);
    tokio::fs::write(&there, other.to_vec()).await.unwrap();
    let plain = export(&task.id, Some(&there));
    let refused = download(host, plain.clone()).await.unwrap_err();
    assert!(refused.code() == Code::AlreadyExists && refused.message().contains("exists"), "{refused:?}");
    other.check_file(&there).unwrap();
    let over = DownloadPersistentCacheTaskRequest { overwrite: true, ..plain };
    download(host, over).await.unwrap().check(content, false);
    content.check_file(&there).unwrap();
    assert_eq!(names(&dir), ["linked", "there"]);

    // No name of the store's file can be given to it there.
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let link = DownloadPersistentCacheTaskRequest {
        force_hard_link: true,
        ..export(&task.id, Some(&elsewhere.path().join("out")))
    };
    let refused = download(host, link).await.unwrap_err();
    assert!(refused.message().contains("hard"), "{refused:?}");
    assert_eq!(names(elsewhere.path()), [""; 0]);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_is_checked_before_anything_appears() {
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let content = Pattern::new(1, 2 * PIECE + 3);
    let task = upload(&swarm.hosts[0], import(&put(&swarm.hosts[0], "in", content).await)).await.unwrap();
    for host in &swarm.hosts {
        let out = outputs(host).join("out");
        let expecting = |digest: &str| DownloadPersistentCacheTaskRequest {
            digest: Some(digest.to_owned()),
            ..export(&task.id, Some(&out))
        };
        let wrong = expecting(&Pattern::new(2, content.length).digest(Algorithm::Sha256));
        let refused = download(host, wrong).await.unwrap_err();
        assert_eq!(refused.code(), Code::Internal);
        assert!(refused.message().starts_with("digest mismatch expected: sha256:"), "{refused:?}");
        let malformed = download(host, expecting("sha256:abc")).await.unwrap_err();
        assert_eq!(malformed.code(), Code::InvalidArgument, "{malformed:?}");
        assert_eq!(names(&outputs(host)), [""; 0]);
        for algorithm in [Algorithm::Sha256, Algorithm::Md5, Algorithm::Crc32] {
            download(host, expecting(&content.digest(algorithm))).await.unwrap().check(content, false);
            content.check_file(&out).unwrap();
            std::fs::remove_file(&out).unwrap();
        }
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_sees_what_is_here_and_what_was_deleted() {
    let mut swarm = Swarm::start(2, "").await.unwrap();
    let [first, second] = &swarm.hosts[..] else { unreachable!() };
    let unknown = |host| async move {
        let there = programs(host).await.stat_persistent_cache_task(stat(TASK)).await.unwrap_err();
        let out = outputs(host).join("out");
        let exported = download(host, export(TASK, Some(&out))).await.unwrap_err();
        for why in [there, local(host, TASK).await.unwrap_err(), exported] {
            assert!(why.code() == Code::NotFound && why.message().contains(TASK), "{why:?}");
        }
        assert!(listed(host).await.is_empty() && names(&outputs(host)).is_empty());
    };
    unknown(first).await;

    let content = Pattern::new(1, PIECE + 7);
    let path = put(first, "in", content).await;
    let named = UploadPersistentCacheTaskRequest {
        content_for_calculating_task_id: Some("This is a test file".to_owned()),
        ..import(&path)
    };
    upload(first, named.clone()).await.unwrap();
    let here = local(first, TASK).await.unwrap();
    assert_eq!((here.task_id.as_str(), here.persistent), (TASK, true));
    assert_eq!((here.content_length, here.piece_length), (Some(content.length), Some(PIECE)));
    assert!(here.created_at.is_some() && here.updated_at.is_some() && here.finished_at.is_some());
    assert!(here.failed_at.is_none() && here.ttl.is_some_and(|ttl| (1..=3600).contains(&ttl.seconds)));
    assert_eq!(listed(first).await, [here]);
    // Known to the cluster is not here.
    check_task(
        &programs(second).await.stat_persistent_cache_task(stat(TASK)).await.unwrap().into_inner(),
        content,
    );
    assert_eq!(local(second, TASK).await.unwrap_err().code(), Code::NotFound);
    assert!(listed(second).await.is_empty());
    download(second, export(TASK, None)).await.unwrap().check(content, true);
    assert!(!local(second, TASK).await.unwrap().persistent, "an export makes no replica");

    // Dragonfly's dfcache has no command for it; its scheduler has the call.
    let mut scheduler = SchedulerClient::new(channel(first.scheduler()).await);
    let host_id = first.daemon().engine().identity.host_id.to_string();
    let delete = DeletePersistentCacheTaskRequest { host_id, task_id: TASK.to_owned() };
    scheduler.delete_persistent_cache_task(delete.clone()).await.unwrap();
    for host in [first, second] {
        host.keeps(TASK, false).await.unwrap();
        unknown(host).await;
    }
    let again = scheduler.delete_persistent_cache_task(delete).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    check_task(&upload(first, named).await.unwrap(), content);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_that_make_no_sense_are_refused_and_leave_nothing() {
    let mut swarm = Swarm::start(1, "").await.unwrap();
    let host = &swarm.hosts[0];
    let path = put(host, "in", Pattern::new(1, 10)).await;
    let directory = outputs(host);
    let good = || import(&path);
    let ttl = |seconds| UploadPersistentCacheTaskRequest { ttl: Some(Span { seconds, nanos: 0 }), ..good() };
    let none = UploadPersistentCacheTaskRequest { persistent_replica_count: 0, ..good() };
    let small = UploadPersistentCacheTaskRequest { piece_length: Some(PIECE - 1), ..good() };
    let large = UploadPersistentCacheTaskRequest { piece_length: Some((64 << 20) + 1), ..good() };
    let invalid = [
        (none, "persistent_replica_count"),
        (small, "piece_length"),
        (large, "piece_length"),
        (ttl(0), "ttl"),
        (ttl(299), "ttl"),
        (ttl(604_801), "ttl"),
        (ttl(-1), "ttl"),
        (UploadPersistentCacheTaskRequest { ttl: None, ..good() }, "ttl"),
        (import(Path::new("in")), "in"),
        (import(Path::new("")), "path"),
        (import(&directory), "outputs"),
    ];
    for (request, says) in invalid {
        let why = upload(host, request).await.unwrap_err();
        assert!(why.code() == Code::InvalidArgument && why.message().contains(says), "{says}: {why:?}");
    }
    let why = upload(host, import(&host.path("absent"))).await.unwrap_err();
    assert!(why.message().contains("absent"), "{why:?}");
    assert!(listed(host).await.is_empty());

    // The bounds themselves are within.
    for request in [ttl(300), ttl(604_800)] {
        upload(host, request).await.unwrap();
    }
    let other = put(host, "other", Pattern::new(2, 10)).await;
    let named = |path: &Path| UploadPersistentCacheTaskRequest {
        content_for_calculating_task_id: Some("a model".to_owned()),
        ..import(path)
    };
    upload(host, named(&path)).await.unwrap();
    let taken = upload(host, named(&other)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken:?}");
    swarm.stop().await;
}
