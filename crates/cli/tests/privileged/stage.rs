//! A daemon of root's, and callers who are somebody or somewhere else.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use damselfly_tests::Pattern;

/// A user who is nobody special.
pub(crate) const UID: u32 = 12_345;
pub(crate) const GID: u32 = 23_456;
/// A group that some users are in.
pub(crate) const GROUP: u32 = 34_567;
/// Enough to be handed over: what fits one message is sent in one.
pub(crate) const LENGTH: u64 = (4 << 20) + 17;
pub(crate) const MODES: [&str; 4] = ["fd", "stream", "path", "auto"];

/// A running daemon, and a directory that everybody can enter.
pub(crate) struct Stage {
    daemon: Child,
    dir: tempfile::TempDir,
    program: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.daemon.kill().expect("our child");
        self.daemon.wait().expect("our child");
    }
}

/// Who calls: the words that a program of his begins with.
#[derive(Clone, Debug)]
pub(crate) struct Who(Vec<String>);

impl Who {
    /// The daemon's own user.
    pub(crate) fn root() -> Self {
        Self(Vec::new())
    }

    /// A user, in `groups` besides his own.
    pub(crate) fn user(uid: u32, groups: &[u32]) -> Self {
        let groups: Vec<_> = groups.iter().map(ToString::to_string).collect();
        let groups = if groups.is_empty() {
            "--clear-groups".to_owned()
        } else {
            format!("--groups={}", groups.join(","))
        };
        Self::of(&["setpriv", &format!("--reuid={uid}"), &format!("--regid={GID}"), &groups, "--"])
    }

    /// Root without any power of his.
    pub(crate) fn powerless() -> Self {
        Self::of(&["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"])
    }

    /// This one in a mount namespace where `preparation` was run first, by root.
    pub(crate) fn after(self, preparation: &str) -> Self {
        self.within(&format!("{preparation} && exec \"$@\""))
    }

    /// As [`Self::after`]; then `check` must be true there.
    pub(crate) fn between(self, preparation: &str, check: &str) -> Self {
        self.within(&format!("{preparation} && \"$@\" && {check}"))
    }

    fn within(self, script: &str) -> Self {
        Self([Self::of(&["unshare", "--mount", "sh", "-e", "-c", script, "sh"]).0, self.0].concat())
    }

    /// This one with another HOME.
    pub(crate) fn with_home(self, home: &Path) -> Self {
        let home = format!("HOME={}", home.display());
        Self([self.0, Self::of(&["env", "-u", "XDG_CONFIG_HOME", &home]).0].concat())
    }

    /// This one as root of a user namespace of his own.
    pub(crate) fn with_users_of_his_own(self) -> Self {
        Self([self.0, Self::of(&["unshare", "--user", "--map-root-user"]).0].concat())
    }

    fn of(words: &[&str]) -> Self {
        Self(words.iter().map(|&word| word.to_owned()).collect())
    }

    fn command(&self, program: &Path) -> Command {
        let mut words = self.0.iter().map(OsStr::new).chain([program.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or(program.as_os_str()));
        command.args(words);
        command
    }
}

/// Puts dfcache where everybody can run it: what is built may lie where only its builder can go.
fn share(program: &Path) {
    let built = env!("CARGO_BIN_EXE_dfcache");
    if fs::hard_link(built, program).is_err() {
        // By another process: a descriptor of ours open for writing would be inherited by whatever another test starts
        // at this moment, and the program could not be run ("text file busy").
        let copied = Command::new("cp").arg(built).arg(program).status();
        assert!(copied.expect("cp runs").success(), "no room for the program");
    }
}

/// What a program said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// Everything: the report of a failure comes on one or the other.
    pub(crate) fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Stage {
    /// A daemon that serves the paths of callers in other namespaces beneath `roots` of its directory.
    pub(crate) fn start(roots: &[&str]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "run these tests as root");
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        for path in [dir.path(), &home] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        let program = dir.path().join("dfcache");
        share(&program);
        let roots: String =
            roots.iter().map(|root| format!("      - {}\n", dir.path().join(root).display())).collect();
        let roots =
            if roots.is_empty() { roots } else { format!("download:\n  server:\n    pathRoots:\n{roots}") };
        fs::write(
            home.join("dfdaemon.yaml"),
            format!("gc:\n  policy:\n    distHighThresholdPercent: 99\n{roots}"),
        )
        .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dfdaemon"));
        command.args([OsStr::new("--home"), home.as_os_str()]).env_clear().env("HOME", &home);
        let mut daemon = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        assert!(first.contains(": serving on "), "{first}");
        // Nothing waits for a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { daemon, dir, program }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of `uid` with `mode`, in its directory's place `name`.
    pub(crate) fn file(
        &self,
        name: &str,
        seed: u64,
        (uid, gid, mode): (u32, u32, u32),
    ) -> (PathBuf, Pattern) {
        let (path, content) = (self.path(name), Pattern::new(seed, LENGTH));
        fs::write(&path, content.to_vec()).unwrap();
        chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (path, content)
    }

    /// A directory of `uid`.
    pub(crate) fn directory(&self, name: &str, uid: u32, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        chown(&path, Some(uid), Some(if uid == 0 { 0 } else { GID })).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    /// dfcache as `who`.
    pub(crate) fn dfcache(&self, who: &Who, arguments: &[&str]) -> Said {
        let mut command = who.command(&self.program);
        command.args(arguments).arg("-e").arg(self.path("home/dfdaemon.sock"));
        command.env("HOME", "/").stdin(Stdio::null()).output().unwrap().into()
    }

    pub(crate) fn import(&self, who: &Who, path: &Path, flags: &[&str]) -> Said {
        self.dfcache(who, &[&["import", path.to_str().unwrap()], flags].concat())
    }

    pub(crate) fn export(&self, who: &Who, id: &str, path: &Path, flags: &[&str]) -> Said {
        self.dfcache(who, &[&["export", id, "-O", path.to_str().unwrap()], flags].concat())
    }

    /// An import that must succeed. Returns the id and the way that was taken.
    pub(crate) fn imported(&self, who: &Who, path: &Path, flags: &[&str]) -> (String, String) {
        let said = self.import(who, path, &[&["--json"], flags].concat());
        assert_eq!(said.code, Some(0), "{who:?} {flags:?}: {said:?}");
        let receipt: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
        let text = |key: &str| receipt[key].as_str().unwrap().to_owned();
        (text("task_id"), text("transfer"))
    }
}
