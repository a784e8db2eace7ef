//! A daemon in a directory of its own, and content in its store.

use std::path::Path;
use std::sync::Arc;

use damselfly_core::{Crc, Geometry, Kind, PieceSet, TaskId, TaskKey};
use damselfly_storage::{Facts, NewTask, Store, TaskContent};
use tempfile::TempDir;

use crate::config::{Config, Directories, Overrides, PortOverrides};
use crate::daemon::{Daemon, DaemonOptions};
use crate::kit::Faults;

/// A daemon on loopback with every port free, its own scheduler, and `yaml` for its configuration.
pub(crate) async fn daemon(yaml: &str) -> (TempDir, Daemon) {
    daemon_with(yaml, Faults::default()).await
}

/// The same, with panics to be armed.
pub(crate) async fn daemon_with(yaml: &str, faults: Faults) -> (TempDir, Daemon) {
    let home = tempfile::tempdir().unwrap();
    let config = config(yaml, home.path(), Overrides::default());
    let daemon = Daemon::start(config, DaemonOptions { faults }).await.unwrap();
    (home, daemon)
}

/// `yaml` for a daemon in `home` on loopback with every port free, and what else `overrides` say.
pub(crate) fn config(yaml: &str, home: &Path, overrides: Overrides) -> Config {
    let free = Some(0);
    let overrides = Overrides {
        home: Some(home.to_owned()),
        listen: Some([127, 0, 0, 1].into()),
        ports: PortOverrides {
            grpc: free,
            metrics: free,
            health: free,
            stats: free,
            tcp: free,
            quic: free,
            scheduler: free,
        },
        ..overrides
    };
    let directories = Directories::decide(0, |_| None, Some(home)).unwrap();
    // A capacity of its own: how full the machine's disk is must not decide what the collector takes.
    let yaml = format!("gc: {{policy: {{diskThreshold: 10GiB}}}}\n{yaml}");
    Config::parse(&yaml, Path::new("dfdaemon.yaml"), &overrides, directories).unwrap().config
}

/// The key of a standard task whose id is `digit` 64 times.
pub(crate) fn key(digit: char) -> TaskKey {
    TaskKey { kind: Kind::Standard, id: TaskId::parse(&digit.to_string().repeat(64)).unwrap() }
}

/// A task of `count` pieces of one byte each, none of them held.
pub(crate) fn empty(store: &Arc<Store>, key: &TaskKey, count: u32, owner: Option<u32>) -> Arc<TaskContent> {
    let new = NewTask { owner_uid: owner, url_redacted: "http://origin/x".to_owned(), ..NewTask::default() };
    let content = store.get_or_create(key, new).unwrap();
    let geometry = Some(Geometry::new(count.into(), 1).unwrap());
    content.set_facts(Facts { geometry, ..Facts::default() }).unwrap();
    content.reserve(&PieceSet::full(count)).unwrap();
    content
}

/// Stores one piece of such a task.
pub(crate) fn hold(content: &Arc<TaskContent>, number: u32) {
    let byte = [u8::try_from(number % 251).unwrap()];
    let mut slot = content.slot(number).unwrap();
    slot.write_at(0, &byte).unwrap();
    slot.commit(Crc(crc32fast::hash(&byte))).unwrap();
}
