//! What needs root, a second uid and a second mount namespace (`cargo xtask test-privileged`).
//!
//! Other users are played by this test program itself, started again as somebody else with `ROLE` set.
#![cfg(feature = "privileged")]

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use damselfly_transport::local::{
    ActError, BindOptions, Caller, Connection, Listener, PathAccess, PathError, as_caller,
};

const UID: u32 = 12_345;
const GID: u32 = 23_456;
const GROUP: u32 = 34_567;

/// A directory everybody can enter, with a copy of this program that everybody can run.
struct Stage {
    dir: tempfile::TempDir,
    program: PathBuf,
}

fn stage() -> Stage {
    assert_eq!(rustix::process::geteuid().as_raw(), 0, "run these tests as root");
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("ours");
    let program = dir.path().join("program");
    // Copied by another process: a descriptor of ours open for writing would be inherited by whatever another test
    // starts at this moment, and the program could not be run ("text file busy").
    let copied = Command::new("cp").arg(std::env::current_exe().expect("known")).arg(&program).status();
    assert!(copied.expect("cp runs").success(), "no room for the program");
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("ours");
    Stage { dir, program }
}

impl Stage {
    fn bind(&self) -> Listener {
        Listener::bind(BindOptions::new(self.dir.path().join("d.sock"))).expect("free")
    }

    /// This program's `role` test, begun by `before`.
    fn role(&self, before: &[&str], role: &str) -> Command {
        let mut words: Vec<&std::ffi::OsStr> = before.iter().map(std::ffi::OsStr::new).collect();
        words.push(self.program.as_os_str());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["--exact", "role", "--nocapture"]);
        command.env("ROLE", role).env("SOCKET", self.dir.path().join("d.sock"));
        command.current_dir("/").stdout(Stdio::null());
        command
    }
}

struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.kill().expect("our child");
        self.0.wait().expect("our child");
    }
}

/// Starts `command`, which connects, and says who it was.
async fn who(listener: &mut Listener, mut command: Command) -> Arc<Caller> {
    let _guest = Guest(command.spawn().expect("runs"));
    let accepted = tokio::time::timeout(std::time::Duration::from_secs(20), listener.accept()).await;
    match accepted.expect("the guest connects") {
        Connection::Grpc(stream) => stream.caller().clone(),
        other => panic!("{other:?}"),
    }
}

/// What the program does when it is somebody else; nothing when it is run as a test.
#[test]
fn role() {
    let Ok(role) = std::env::var("ROLE") else { return };
    let mut socket = PathBuf::from(std::env::var("SOCKET").expect("set by the stage"));
    match role.as_str() {
        "chroot" => {
            rustix::process::chroot(socket.parent().expect("has one")).expect("root may");
            socket = PathBuf::from("/d.sock");
        }
        "thread" => {
            rustix::thread::set_thread_res_uid(None, rustix::process::Uid::from_raw(UID), None)
                .expect("root may");
        }
        "powerless" => return powerless(),
        _ => {}
    }
    let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("listening");
    stream.write_all(b"PRI ").expect("open");
    // Lives until it is looked at: the listener's end closes, or this process is killed.
    let _end = stream.read(&mut [0]);
}

#[tokio::test]
async fn callers_are_known_by_credentials_groups_and_view() {
    let stage = stage();
    let mut listener = stage.bind();

    let caller = who(&mut listener, stage.role(&[], "plain")).await;
    assert!(caller.native && caller.uid == 0);

    let mut other = stage.role(&[], "plain");
    other.uid(UID).gid(GID);
    let caller = who(&mut listener, other).await;
    assert!(caller.native, "{caller:?}");
    assert_eq!((caller.uid, caller.gid, caller.groups.as_slice()), (UID, GID, &[][..]));

    let groups = format!("--groups={GROUP},{}", GROUP + 1);
    let ids = [format!("--reuid={UID}"), format!("--regid={GID}")];
    let caller = who(&mut listener, stage.role(&["setpriv", &ids[0], &ids[1], &groups], "plain")).await;
    assert!(caller.native, "{caller:?}");
    assert_eq!(caller.groups, [GROUP, GROUP + 1]);

    let caller = who(&mut listener, stage.role(&["unshare", "--mount"], "plain")).await;
    assert_eq!(caller.uid, 0);
    assert!(!caller.native, "another mount namespace: {caller:?}");

    let caller = who(&mut listener, stage.role(&[], "chroot")).await;
    assert_eq!(caller.uid, 0);
    assert!(!caller.native, "another root: {caller:?}");

    let caller = who(&mut listener, stage.role(&[], "thread")).await;
    assert!(!caller.native, "the socket's uid is not the process's: {caller:?}");

    // Nobody's uid is foreign even where everything else agrees.
    let mut nobody = stage.role(&[], "plain");
    nobody.uid(65_534).gid(65_534);
    assert!(!who(&mut listener, nobody).await.native);

    // Mapped to root in a user namespace of its own: still the uid it was, and none of that namespace's powers.
    let words = ["setpriv", &ids[0], &ids[1], "--clear-groups", "unshare", "--user", "--map-root-user"];
    let caller = who(&mut listener, stage.role(&words, "plain")).await;
    assert_eq!(caller.uid, UID);
    let caller = Caller::clone(&caller);
    let secret = stage.dir.path().join("secret");
    std::fs::write(&secret, "secret").expect("ours");
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("ours");
    let opened = as_caller(&caller, move || std::fs::File::open(secret)).await.expect("root may act");
    assert_eq!(opened.expect_err("not readable").kind(), std::io::ErrorKind::PermissionDenied);
}

fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
    let mut caller = Caller::foreign(uid, gid);
    caller.native = true;
    caller.groups = groups.to_vec();
    caller
}

fn access(caller: Caller) -> PathAccess {
    PathAccess::new(Arc::new(caller), Arc::from([]))
}

fn directory(parent: &Path, name: &str, mode: u32, owner: (u32, u32)) -> PathBuf {
    let path = parent.join(name);
    std::fs::create_dir(&path).expect("ours");
    std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
    chown(&path, Some(owner.0), Some(owner.1)).expect("root may");
    path
}

fn refused(error: &PathError) -> bool {
    let denied = |source: &std::io::Error| source.kind() == std::io::ErrorKind::PermissionDenied;
    matches!(error, PathError::Refused { source, .. } if denied(source))
}

#[tokio::test]
async fn outputs_are_made_with_the_callers_rights_only() {
    let stage = stage();
    let dir = stage.dir.path();
    let user = access(caller(UID, GID, &[]));

    let private = directory(dir, "private", 0o700, (0, 0));
    let error = user.open_output(&private.join("sub/x")).await.expect_err("not searchable");
    assert!(refused(&error), "{error}");
    assert!(error.to_string().contains("12345"), "{error}");

    // Openable, but not writable: the temporary file is the proof.
    let readable = directory(dir, "readable", 0o755, (0, 0));
    let target = user.open_output(&readable.join("x")).await.expect("may be looked at");
    let error = target.create_temp().await.expect_err("may not be written");
    assert!(refused(&error), "{error}");

    let own = directory(dir, "own", 0o700, (UID, GID));
    let target = user.open_output(&own.join("x")).await.expect("the caller's own");
    target.create_temp().await.expect("the caller's own").commit(false).await.expect("free");
    let meta = own.join("x").metadata().expect("there");
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (UID, GID, 0o644));

    let mut private_by_umask = caller(UID, GID, &[]);
    private_by_umask.umask = 0o077;
    let target = access(private_by_umask).open_output(&own.join("y")).await.expect("the caller's own");
    target.create_temp().await.expect("the caller's own").commit(false).await.expect("free");
    assert_eq!(own.join("y").metadata().expect("there").mode() & 0o777, 0o600);

    // By group, and only for its members.
    let shared = directory(dir, "shared", 0o2770, (0, GROUP));
    assert!(refused(&user.open_output(&shared.join("sub/x")).await.expect_err("no member")));
    let member = access(caller(UID, GID, &[GROUP]));
    let target = member.open_output(&shared.join("x")).await.expect("a member");
    target.create_temp().await.expect("a member").commit(false).await.expect("free");

    // A sticky directory: another's file stays, even though root could replace it.
    let sticky = directory(dir, "sticky", 0o1777, (0, 0));
    std::fs::write(sticky.join("x"), "root's").expect("ours");
    let target = user.open_output(&sticky.join("x")).await.expect("everybody may");
    let error = target.create_temp().await.expect("everybody may").commit(true).await.expect_err("sticky");
    assert!(
        matches!(&error, PathError::Refused { source, .. } if source.raw_os_error() == Some(1)),
        "{error}"
    );
    assert_eq!(std::fs::read(sticky.join("x")).expect("there"), b"root's");
}

#[tokio::test]
async fn inputs_are_opened_with_the_callers_rights_only() {
    let stage = stage();
    let path = stage.dir.path().join("in");
    std::fs::write(&path, "secret").expect("ours");
    std::fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("ours");
    chown(&path, Some(0), Some(GROUP)).expect("root may");
    assert!(refused(&access(caller(UID, GID, &[])).open_input(&path).await.expect_err("no member")));
    access(caller(UID, GID, &[GROUP])).open_input(&path).await.expect("a member");
    // Root that gave up its power over files, in the same user namespace, has no more than its uid.
    let other = stage.dir.path().join("other");
    std::fs::write(&other, "secret").expect("ours");
    std::fs::set_permissions(&other, Permissions::from_mode(0o600)).expect("ours");
    chown(&other, Some(UID), Some(GID)).expect("root may");
    assert!(refused(&access(caller(0, 0, &[])).open_input(&other).await.expect_err("powerless")));
    access(Caller::this_process()).open_input(&other).await.expect("root in full");
}

#[tokio::test]
async fn only_the_throw_away_thread_changes() {
    let _stage = stage();
    let other = caller(UID, GID, &[GROUP]);
    let ids = as_caller(&other, || {
        let effective = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let power = rustix::thread::capabilities(None).expect("readable").effective;
        (effective, rustix::process::getuid().as_raw(), rustix::process::getgroups(), power)
    });
    let (effective, real, groups, power) = ids.await.expect("root may act");
    assert_eq!(effective, (UID, GID));
    assert_eq!(real, 0, "the caller must not be able to signal the thread");
    assert_eq!(groups.expect("readable").iter().map(|gid| gid.as_raw()).collect::<Vec<_>>(), [GROUP]);
    assert!(power.is_empty());
    assert_eq!(rustix::process::geteuid().as_raw(), 0);
    for _ in 0..20 {
        let here = tokio::task::spawn_blocking(|| rustix::process::geteuid().as_raw()).await;
        assert_eq!(here.expect("no panic"), 0);
    }
}

/// Run as [`UID`]: a daemon without capabilities.
fn powerless() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let own = Caller::this_process();
        assert_eq!(own.uid, UID);
        as_caller(&own, || ()).await.expect("its own uid");
        for stranger in [caller(0, 0, &[]), caller(UID + 1, GID, &[])] {
            let error = as_caller(&stranger, || ()).await.expect_err("may not");
            assert!(matches!(error, ActError::NotPermitted { own: UID, .. }), "{error}");
            assert!(error.to_string().contains("--transfer-from-dfdaemon"), "{error}");
        }
    });
}

#[test]
fn a_daemon_without_power_serves_its_own_uid_only() {
    let stage = stage();
    let mut command = stage.role(&[], "powerless");
    command.uid(UID).gid(GID);
    assert!(command.status().expect("runs").success());
}

/// A daemon that is not root but has every capability (as a service with ambient ones) must shed them too.
#[test]
fn capabilities_do_not_survive_a_change_between_ordinary_uids() {
    let stage = stage();
    let secret = stage.dir.path().join("secret");
    std::fs::write(&secret, "secret").expect("ours");
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("ours");
    let worker = std::thread::spawn(move || {
        // This thread plays that daemon: keep what is permitted across the change of uid, then raise it again.
        rustix::thread::set_keep_capabilities(true).expect("may");
        let uid = rustix::process::Uid::from_raw(UID);
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may");
        let mut sets = rustix::thread::capabilities(None).expect("readable");
        sets.effective = sets.permitted;
        rustix::thread::set_capabilities(None, sets).expect("permitted");
        assert!(std::fs::File::open(&secret).is_ok(), "with the capability anything can be read");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let other = caller(UID + 1, GID, &[]);
        let opened = runtime.block_on(as_caller(&other, move || std::fs::File::open(secret)));
        opened.expect("with CAP_SETUID").expect_err("not the other's").kind()
    });
    assert_eq!(worker.join().expect("no panic"), std::io::ErrorKind::PermissionDenied);
}
