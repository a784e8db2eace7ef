//! Where a daemon keeps its files when nobody says otherwise.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The places of one daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// Holds `dfdaemon.yaml` and `dynconfig.yaml`.
    pub config: PathBuf,
    /// The store.
    pub storage: PathBuf,
    /// The unix socket.
    pub socket: PathBuf,
    /// Log files.
    pub logs: PathBuf,
    /// The socket's directory lies where others may write too, so it must be made with mode 0700, and one that is
    /// there already must be ours with that mode.
    pub private_socket_dir: bool,
}

/// Why no place can be found.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DirectoryError {
    /// Nothing says where the user's files live.
    #[error(
        "no home directory: set HOME to an absolute path, or name a directory for everything with --home"
    )]
    NoHome,
    /// `--home` is no absolute path.
    #[error("--home is {0:?}: expected an absolute path")]
    RelativeHome(PathBuf),
}

const SOCKET: &str = "dfdaemon.sock";
const SYSTEM_CONFIG: &str = "/etc/dragonfly";

impl Directories {
    /// The places for a process of `uid`, whose environment `env` looks up, with `--home` as given.
    ///
    /// Variables that are empty or relative count as absent, as the XDG base directory specification asks.
    ///
    /// # Errors
    /// When `home` is relative, or when a user other than root has neither it nor a `HOME`.
    pub fn decide(
        uid: u32,
        env: impl Fn(&str) -> Option<OsString>,
        home: Option<&Path>,
    ) -> Result<Self, DirectoryError> {
        if let Some(home) = home {
            if !home.is_absolute() {
                return Err(DirectoryError::RelativeHome(home.to_owned()));
            }
            return Ok(Self {
                config: home.to_owned(),
                storage: home.join("store"),
                socket: home.join(SOCKET),
                logs: home.join("logs"),
                private_socket_dir: false,
            });
        }
        if uid == 0 {
            return Ok(Self {
                config: SYSTEM_CONFIG.into(),
                storage: "/var/lib/dragonfly".into(),
                socket: system_socket(),
                logs: "/var/log/dragonfly/dfdaemon".into(),
                private_socket_dir: false,
            });
        }
        let base =
            |name: &str, below_home: &str| user_base(&env, name, below_home).ok_or(DirectoryError::NoHome);
        let (socket, private_socket_dir) = user_socket(uid, &env);
        Ok(Self {
            config: base("XDG_CONFIG_HOME", ".config")?,
            storage: base("XDG_DATA_HOME", ".local/share")?,
            socket,
            logs: base("XDG_STATE_HOME", ".local/state")?.join("dfdaemon"),
            private_socket_dir,
        })
    }
}

/// Where a client's configuration may lie, in order: the user's directory, then the system's.
#[must_use]
pub fn client_configs(env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    user_base(&env, "XDG_CONFIG_HOME", ".config").into_iter().chain([SYSTEM_CONFIG.into()]).collect()
}

/// The sockets a client of `uid` tries, in order, when no endpoint is named: the user's own daemon, then the system's.
#[must_use]
pub fn client_sockets(uid: u32, env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    if uid == 0 { vec![system_socket()] } else { vec![user_socket(uid, &env).0, system_socket()] }
}

fn system_socket() -> PathBuf {
    "/var/run/dragonfly/dfdaemon.sock".into()
}

fn user_socket(uid: u32, env: &impl Fn(&str) -> Option<OsString>) -> (PathBuf, bool) {
    match absolute(env, "XDG_RUNTIME_DIR") {
        Some(runtime) => (runtime.join("dragonfly").join(SOCKET), false),
        None => {
            let temporary = absolute(env, "TMPDIR").unwrap_or_else(|| "/tmp".into());
            (temporary.join(format!("dragonfly-{uid}")).join(SOCKET), true)
        }
    }
}

/// Our directory below what the variable `name` says, or below `below_home` in the user's home.
fn user_base(env: &impl Fn(&str) -> Option<OsString>, name: &str, below_home: &str) -> Option<PathBuf> {
    let base = absolute(env, name).or_else(|| absolute(env, "HOME").map(|home| home.join(below_home)));
    base.map(|base| base.join("dragonfly"))
}

fn absolute(env: &impl Fn(&str) -> Option<OsString>, name: &str) -> Option<PathBuf> {
    env(name).map(PathBuf::from).filter(|path| path.is_absolute())
}
