//! Real daemons as processes, each in a home of its own, and the tools that talk to them.

use std::borrow::BorrowMut;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};

use crate::fake::Ended;

/// No test waits longer than this for a process.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server.
pub(crate) struct Server {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// What it said when it served.
    pub(crate) line: String,
}

/// A program in an environment of its own: nothing of the machine's daemons, proxies or locales.
pub(crate) fn command(program: &str, arguments: &[&str], home: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("HOME", home).env("XDG_STATE_HOME", home).env("TZ", "UTC");
    // Where a measured program writes what of it has run.
    if let Some(profile) = std::env::var_os("LLVM_PROFILE_FILE") {
        command.env("LLVM_PROFILE_FILE", profile);
    }
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a program to its end.
pub(crate) async fn run(mut command: impl BorrowMut<Command>) -> Ended {
    tokio::time::timeout(PATIENCE, command.borrow_mut().output())
        .await
        .expect("the program ends")
        .unwrap()
        .into()
}

/// What a program that was started said until its end.
pub(crate) async fn ended(child: Child) -> Ended {
    tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("the program ends").unwrap().into()
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().unwrap().cast_signed()).unwrap(), signal).unwrap();
}

impl Server {
    /// Starts a server with its files in `home` and waits for the line that says it serves.
    pub(crate) async fn start(program: &str, arguments: &[&str], home: &Path) -> Self {
        let mut child = command(program, arguments, home).stdout(Stdio::null()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let line = next_line(&mut stderr).await;
        assert!(line.contains(": serving on "), "{line:?}");
        Self { child, stderr, line }
    }

    /// What it says next.
    pub(crate) async fn next_line(&mut self) -> String {
        next_line(&mut self.stderr).await
    }

    pub(crate) fn signal(&self, number: Signal) {
        signal(&self.child, number);
    }

    /// Has the kernel end it at once, as `kill -9` would, when one of its files is to grow past `length` bytes.
    pub(crate) fn dies_at(&self, length: u64) {
        let process = Pid::from_raw(self.child.id().unwrap().cast_signed());
        for (resource, most) in [(Resource::Core, 0), (Resource::Fsize, length)] {
            prlimit(process, resource, Rlimit { current: Some(most), maximum: Some(most) }).unwrap();
        }
    }

    /// Waits for its end.
    pub(crate) async fn ends(mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the server ends").unwrap()
    }
}

/// The next line of a program's stderr.
pub(crate) async fn next_line(stderr: &mut BufReader<ChildStderr>) -> String {
    let mut line = String::new();
    let reading = stderr.read_line(&mut line);
    tokio::time::timeout(PATIENCE, reading).await.expect("the program says something").unwrap();
    line
}

/// A dfdaemon and its home.
pub(crate) struct Node {
    pub(crate) server: Server,
    pub(crate) home: PathBuf,
}

impl Node {
    /// Starts a daemon whose home is `home`, with default ports unless `flags` say otherwise.
    pub(crate) async fn start(home: &Path, flags: &[&str]) -> Self {
        std::fs::create_dir_all(home.join("out")).unwrap();
        // Else a machine whose disk is nearly full would evict what a test counts on.
        std::fs::write(home.join("dfdaemon.yaml"), "gc:\n  policy:\n    distHighThresholdPercent: 99\n")
            .unwrap();
        let arguments = [&["--home", home.to_str().unwrap()], flags].concat();
        let server = Server::start(env!("CARGO_BIN_EXE_dfdaemon"), &arguments, home).await;
        Self { server, home: home.to_owned() }
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) async fn kill(self) {
        self.server.signal(Signal::KILL);
        self.server.ends().await;
    }

    pub(crate) fn output(&self, name: &str) -> PathBuf {
        self.home.join("out").join(name)
    }

    /// Whatever is in the outputs' directory.
    pub(crate) fn outputs(&self) -> Vec<String> {
        names(&self.home.join("out"))
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let socket = self.home.join("dfdaemon.sock");
        let arguments = [arguments, &["-e", socket.to_str().unwrap()]].concat();
        command(program, &arguments, &self.home)
    }

    /// dfget of `url` to the output `name`, not started.
    pub(crate) fn getting(&self, url: &str, name: &str, flags: &[&str]) -> Command {
        let output = self.output(name);
        let arguments = [&[url, "-O", output.to_str().unwrap()], flags].concat();
        self.command(env!("CARGO_BIN_EXE_dfget"), &arguments)
    }

    /// Runs dfget of `url` to the output `name`.
    pub(crate) async fn get(&self, url: &str, name: &str, flags: &[&str]) -> Ended {
        run(self.getting(url, name, flags)).await
    }

    /// Runs dfget, which must succeed, and returns its JSON.
    pub(crate) async fn got(&self, url: &str, name: &str) -> Value {
        let ended = self.get(url, name, &["--json"]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    }

    /// dfcache, not started.
    pub(crate) fn cache_command(&self, arguments: &[&str]) -> Command {
        self.command(env!("CARGO_BIN_EXE_dfcache"), arguments)
    }

    /// Runs dfcache.
    pub(crate) async fn dfcache(&self, arguments: &[&str]) -> Ended {
        run(self.cache_command(arguments)).await
    }

    /// What dfcache, which must succeed, writes to stdout.
    pub(crate) async fn dfcache_bytes(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.cache_command(arguments).output();
        let output = tokio::time::timeout(PATIENCE, output).await.expect("the program ends").unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    /// Runs dfctl.
    pub(crate) async fn dfctl(&self, arguments: &[&str]) -> Ended {
        run(self.command(env!("CARGO_BIN_EXE_dfctl"), arguments)).await
    }

    /// Runs dfctl, which must succeed, and returns its JSON.
    pub(crate) async fn told(&self, arguments: &[&str]) -> Value {
        let ended = self.dfctl(&[arguments, &["--json"]].concat()).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    }

    /// Where the scheduler listens that the daemon uses.
    pub(crate) async fn scheduler(&self) -> String {
        let status = self.told(&["status"]).await;
        status["host"]["schedulers"][0]["address"].as_str().unwrap().to_owned()
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}
