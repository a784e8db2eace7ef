//! What needs root (`cargo xtask test-privileged`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![cfg(feature = "privileged")]

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use damselfly_benches::netlab::Netlab;
use damselfly_benches::place::Place;
use damselfly_tests::OriginServer;
use damselfly_tests::swarm::{Host, Setup};
use tokio::runtime::Builder;
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

/// Connections from `from` that are open at `port` of `place`, as its kernel counts them.
fn open_connections(place: &Place, port: u16, from: &Place) -> usize {
    let IpAddr::V4(from) = from.address else { panic!("the laboratory's addresses are IPv4") };
    // As the kernel prints them: the address's bytes in the machine's order, the port, and 01 for an open connection.
    let remote = format!(" {:08X}:", u32::from_ne_bytes(from.octets()));
    let local = format!(":{port:04X}{remote}");
    let inside = place.clone();
    let look = std::thread::spawn(move || {
        inside.enter().unwrap();
        std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap()
    });
    let table = look.join().unwrap();
    table.lines().filter(|line| line.contains(&local) && line.split_whitespace().nth(3) == Some("01")).count()
}

/// A near parent's connections are counted in `damselfly-actors`, which needs no other machine for that.
#[tokio::test(flavor = "multi_thread")]
async fn pieces_of_one_far_parent_share_eight_connections() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/netlab/netlab");
    let lab = Netlab::start(&script, 2, &["delay=30".to_owned()]).unwrap();
    let (here, there) = (lab.host(0), lab.host(1));
    let dirs = [(); 2].map(|()| tempfile::TempDir::new().unwrap());
    let setup = Setup { name: "parent".to_owned(), place: Some(here.clone()), ..Setup::default() };
    let mut parent = Host::start(dirs[0].path(), setup).await.unwrap();
    let join = vec![parent.scheduler()];
    let setup = Setup { name: "child".to_owned(), place: Some(there.clone()), join, ..Setup::default() };
    let mut child = Host::start(dirs[1].path(), setup).await.unwrap();

    let place = here.clone();
    let beside = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .on_thread_start(move || place.enter().unwrap())
        .build()
        .unwrap();
    // Nobody but the parent reaches it.
    let origin = beside.spawn(OriginServer::start()).await.unwrap().unwrap();
    let blob = origin.blob(1 << 30, 1);
    parent.get(&blob.url, "held").await.unwrap();
    let told = child.get(&blob.url, "got").await.unwrap();
    let port = parent.daemon().ports().vortex.port();
    let connections = open_connections(&here, port, &there);
    blob.pattern.check_file(child.path("got")).unwrap();
    assert_eq!(told.pieces.len(), 256);
    assert!((5..=8).contains(&connections), "{connections} connections");
    child.stop().await;
    parent.stop().await;
    drop(origin);
    beside.shutdown_background();
}
