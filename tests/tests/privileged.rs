//! What needs root (`cargo xtask test-privileged`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![cfg(feature = "privileged")]

use std::path::{Path, PathBuf};
use std::process::Command;

use damselfly_tests::OriginServer;
use damselfly_tests::swarm::{Host, Setup};
use tonic::Code;

/// A file system of its own, so small that it fills up.
struct Small(PathBuf);

impl Small {
    fn mount(dir: &Path) -> Self {
        let size = "size=24m,mode=0755";
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(dir).status();
        assert!(mounted.unwrap().success(), "cannot mount; run these tests as root");
        Self(dir.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a daemon of a failed test may still be there.
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_with_numbers_and_harms_nothing_else() {
    let dir = tempfile::TempDir::new().unwrap();
    let _disk = Small::mount(dir.path());
    let origin = OriginServer::start().await.unwrap();
    let setup = Setup { name: "small".to_owned(), ..Setup::default() };
    let mut host = Host::start(dir.path(), setup).await.unwrap();
    let small = origin.blob(5 << 20, 1);
    host.get(&small.url, "small").await.unwrap();
    let big = origin.blob(40 << 20, 2);
    let status = host.get(&big.url, "big").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains(|char: char| char.is_ascii_digit()), "{status:?}");
    assert!(!host.path("big").try_exists().unwrap());

    // Somebody else takes what is left: no room for the output beside the store, or for the store itself.
    std::fs::write(host.path("ballast"), vec![1; 17 << 20]).unwrap();
    let late = origin.blob(4 << 20, 3);
    let status = host.get(&late.url, "late").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(!host.path("late").try_exists().unwrap());
    std::fs::remove_file(host.path("ballast")).unwrap();
    host.get(&late.url, "late").await.unwrap();
    for (blob, name) in [(&small, "small"), (&late, "late")] {
        blob.pattern.check_file(host.path(name)).unwrap();
    }
    host.stop().await;
}
