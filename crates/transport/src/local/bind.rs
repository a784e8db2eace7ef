//! Making the socket file: a stale one is replaced, a live one never.

use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

/// Where and how to listen.
#[derive(Clone, Debug)]
pub struct BindOptions {
    /// The socket's path.
    pub path: PathBuf,
    /// Who may connect. Containers run as anybody, hence 0666; what a caller may do is decided per call.
    pub mode: u32,
    /// The directory is this user's alone, in a place where others may write: it is made with mode 0700 instead of 0755,
    /// and one that is there already must be like that.
    pub private_directory: bool,
    /// How long a new connection may take to send its first four bytes.
    pub first_bytes: Duration,
    /// How many may be at that; while it is so many, nobody else is accepted.
    pub max_waiting: usize,
}

impl BindOptions {
    /// The defaults for a system's daemon.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            mode: 0o666,
            private_directory: false,
            first_bytes: Duration::from_secs(1),
            max_waiting: 64,
        }
    }
}

/// Why the socket cannot be made.
#[derive(Debug, Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error(
        "another daemon serves {0}; stop it, or give this one another socket (--home, download.server.socketPath)"
    )]
    Live(PathBuf),
    /// Something else has the name.
    #[error("{0} exists and is no socket; remove it or choose another download.server.socketPath")]
    NotASocket(PathBuf),
    /// A directory for one user's socket that is not that user's alone: whoever made it could put another socket there.
    #[error(
        "{0} is not a directory of uid {uid} with mode 0700; remove it, or choose another place for the socket \
         (XDG_RUNTIME_DIR, --home, download.server.socketPath)", uid = rustix::process::geteuid().as_raw()
    )]
    NotPrivate(PathBuf),
    /// The kernel refused.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A socket file and the lock beside it. Dropped, it unlinks the file if it is still its own.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// The socket's inode, kept so that its number cannot be given to a successor's socket.
    inode: File,
    /// `<path>.lock`, held while this lives; the file stays, for removing it would race with the next daemon.
    _lock: File,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let number = |meta: io::Result<Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
        let ours = number(self.inode.metadata())
            .is_some_and(|own| number(self.path.symlink_metadata()) == Some(own));
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Makes directory, lock and socket, and listens.
pub(super) fn bind(
    options: &BindOptions,
) -> Result<(std::os::unix::net::UnixListener, SocketFile), BindError> {
    let path = &options.path;
    let failed = |what| move |source| BindError::Io { what, path: path.clone(), source };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(if options.private_directory { 0o700 } else { 0o755 });
        builder.create(parent).map_err(failed("create the directory of"))?;
        if options.private_directory && !is_private(parent) {
            return Err(BindError::NotPrivate(parent.to_owned()));
        }
    }
    let lock = lock(path)?;
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket(path.clone())),
        Ok(_) if is_live(path).map_err(failed("try to connect to"))? => {
            return Err(BindError::Live(path.clone()));
        }
        Ok(_) => std::fs::remove_file(path).map_err(failed("remove the stale socket"))?,
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed("bind"))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inode =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed("look at")(errno.into()))?;
    let file = SocketFile { path: path.clone(), inode: inode.into(), _lock: lock };
    // Until here the umask decided, which only ever lets fewer connect. By the inode, not by the path: that could lead
    // to another file by now, and the daemon may be root.
    let own = file
        .inode
        .metadata()
        .is_ok_and(|meta| meta.file_type().is_socket() && meta.uid() == rustix::process::geteuid().as_raw());
    if !own {
        return Err(BindError::NotASocket(path.clone()));
    }
    let inode = format!("/proc/self/fd/{}", file.inode.as_raw_fd());
    std::fs::set_permissions(inode, Permissions::from_mode(options.mode))
        .map_err(failed("set the mode of"))?;
    listener.set_nonblocking(true).map_err(failed("listen on"))?;
    Ok((listener, file))
}

/// Whether this is a directory, not a link to one, that only we may look into and change.
fn is_private(directory: &Path) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, Mode::empty()).map(File::from);
    opened.is_ok_and(|directory| {
        directory
            .metadata()
            .is_ok_and(|meta| meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0)
    })
}

/// Two daemons that start at once must not both find the same stale socket and remove each other's new one.
fn lock(path: &Path) -> Result<File, BindError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let failed = |source| BindError::Io { what: "lock", path: PathBuf::from(&name), source };
    // Not through a link: a stranger's could have any file made or held.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(Path::new(&name), flags, Mode::RUSR | Mode::WUSR);
    let file = File::from(file.map_err(|errno| failed(errno.into()))?);
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(BindError::Live(path.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Whether somebody listens. A full backlog is a sign of life too.
fn is_live(path: &Path) -> io::Result<bool> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Ok(true),
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => Ok(false),
        // A socket of another type (dgram, seqpacket), or one we may not connect to: not ours to remove.
        Err(rustix::io::Errno::PROTOTYPE | rustix::io::Errno::ACCESS) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> (tempfile::TempDir, BindOptions) {
        let dir = tempfile::tempdir().expect("a directory");
        let options = BindOptions::new(dir.path().join("run/d.sock"));
        (dir, options)
    }

    #[test]
    fn a_socket_has_the_mode_asked_for_and_goes_with_its_owner() {
        let (_dir, mut options) = options();
        options.mode = 0o640;
        options.private_directory = true;
        let (listener, file) = bind(&options).expect("free");
        let mode = |path: &Path| path.symlink_metadata().expect("exists").mode() & 0o777;
        assert_eq!(mode(&options.path), 0o640);
        assert_eq!(mode(options.path.parent().expect("has one")), 0o700);
        drop((listener, file));
        assert!(!options.path.try_exists().expect("readable"));
    }

    #[test]
    fn a_private_directory_is_nobody_elses() {
        let (dir, mut options) = options();
        options.private_directory = true;
        let parent = options.path.parent().expect("has one").to_owned();
        std::fs::create_dir(&parent).expect("new");
        for (mode, fine) in [(0o755, false), (0o710, false), (0o702, false), (0o700, true)] {
            std::fs::set_permissions(&parent, Permissions::from_mode(mode)).expect("ours");
            match bind(&options) {
                Ok(_) => assert!(fine, "{mode:o}"),
                Err(error) => {
                    assert!(!fine && matches!(error, BindError::NotPrivate(_)), "{mode:o}: {error}")
                }
            }
        }
        // A link to a directory that would do is somebody's choice.
        std::fs::rename(&parent, dir.path().join("elsewhere")).expect("ours");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &parent).expect("free");
        let error = bind(&options).expect_err("a link");
        assert!(error.to_string().contains("is not a directory of uid"), "{error}");
        options.private_directory = false;
        bind(&options).expect("anywhere else links are fine");
    }

    #[test]
    fn a_link_in_the_locks_place_is_not_followed() {
        let (dir, options) = options();
        let parent = options.path.parent().expect("has one");
        std::fs::create_dir(parent).expect("new");
        let target = dir.path().join("target");
        std::os::unix::fs::symlink(&target, parent.join("d.sock.lock")).expect("free");
        let error = bind(&options).expect_err("a link");
        assert!(matches!(error, BindError::Io { what: "lock", .. }), "{error}");
        assert!(!target.try_exists().expect("readable"), "made through the link");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let (_dir, options) = options();
        std::fs::create_dir(options.path.parent().expect("has one")).expect("new");
        // Stale: bound by somebody who is gone.
        drop(std::os::unix::net::UnixListener::bind(&options.path).expect("free"));
        let (listener, file) = bind(&options).expect("stale");
        // Ours is locked and live; a second one gets nowhere.
        assert!(matches!(bind(&options), Err(BindError::Live(_))));
        drop((listener, file));
        // Live, but of a daemon that knows no lock.
        let other = std::os::unix::net::UnixListener::bind(&options.path).expect("free");
        let error = bind(&options).expect_err("live");
        assert!(error.to_string().contains("another daemon serves"), "{error}");
        assert!(options.path.try_exists().expect("readable"));
        drop(other);
        bind(&options).expect("stale again");
    }

    #[test]
    fn a_full_backlog_is_a_sign_of_life() {
        let (_dir, options) = options();
        std::fs::create_dir(options.path.parent().expect("has one")).expect("new");
        let address = SocketAddrUnix::new(&options.path).expect("short");
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
        rustix::net::bind(&socket, &address).expect("free");
        rustix::net::listen(&socket, 0).expect("bound");
        let _first = std::os::unix::net::UnixStream::connect(&options.path).expect("room for one");
        assert!(matches!(bind(&options), Err(BindError::Live(_))));
    }

    #[test]
    fn other_files_stay_where_they_are() {
        let (dir, mut options) = options();
        options.path = dir.path().join("file");
        std::fs::write(&options.path, "precious").expect("writable");
        assert!(matches!(bind(&options), Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read(&options.path).expect("still there"), b"precious");
        std::os::unix::fs::symlink(&options.path, dir.path().join("link")).expect("free");
        options.path = dir.path().join("link");
        assert!(matches!(bind(&options), Err(BindError::NotASocket(_))));
    }

    #[test]
    fn a_successors_socket_is_left_alone() {
        let (_dir, options) = options();
        let (listener, file) = bind(&options).expect("free");
        drop(listener);
        std::fs::remove_file(&options.path).expect("there");
        let _successor = std::os::unix::net::UnixListener::bind(&options.path).expect("free");
        drop(file);
        assert!(options.path.try_exists().expect("readable"));
    }
}
