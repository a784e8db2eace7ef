//! Opening what a caller names, with the caller's own rights.
//!
//! Nothing here looks at mode bits first and opens later: a path is opened as the caller or not at all, and what is
//! written is written under a temporary name that the caller made in the very directory, and that is renamed as the
//! caller. Paths are resolved without magic links, and procfs and its like are refused: there `/proc/self` would be the
//! daemon.

mod output;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::{ActError, Caller, Seen, as_caller};

pub use output::{OutputTarget, TempOutput};

/// File systems whose files are the kernel's: reading or writing one does something, with the rights of who does it.
/// procfs, sysfs, cgroup 1 and 2, debugfs, tracefs, securityfs, bpf, configfs, selinuxfs.
const KERNELS_OWN: [u64; 10] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x6265_6570,
    0xf97c_ff8c,
];

/// Why a path is not opened.
#[derive(Debug, Error)]
pub enum PathError {
    /// The caller sees other files than the daemon.
    #[error(
        "the daemon does not see {0} as you do (another mount namespace or root): hand it over \
         (--transfer fd) or stream it (--transfer-from-dfdaemon), or list a directory above it in download.server.pathRoots"
    )]
    Foreign(PathBuf),
    /// Not absolute, or without a file name.
    #[error("{path} is not a usable path: {why}")]
    Malformed {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The kernel refused the caller.
    #[error("cannot {what} {path} as uid {uid}: {source}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// In whose name.
        uid: u32,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Something that is not a file, or no file to be read like this.
    #[error("{path} is {what}; only regular files are read and written")]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The caller said which file it means, and this is another one.
    #[error(
        "the daemon sees another {what} at {path} than you do: hand it over (--transfer fd) or stream it \
         (--transfer-from-dfdaemon), or say with --path-mapping what the daemon calls it"
    )]
    Elsewhere {
        /// The file, or the directory of an output.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// Something is there already.
    #[error("output path {0} exists already; remove it or allow overwriting (--overwrite)")]
    Exists(PathBuf),
    /// A kernel before 5.6, or a filter against openat2.
    #[error(
        "this kernel has no openat2, so the daemon opens no paths: stream it instead (--transfer-from-dfdaemon)"
    )]
    Unsupported,
    /// The daemon cannot act for this caller.
    #[error(transparent)]
    Act(#[from] ActError),
}

/// What a caller may name: everything where its view is ours, otherwise what lies beneath the configured roots.
#[derive(Clone, Debug)]
pub struct PathAccess {
    caller: Arc<Caller>,
    roots: Arc<[PathBuf]>,
    seen: Option<Seen>,
}

/// Where a path is opened from.
enum Base {
    /// The daemon's root.
    Root,
    /// A configured root, and the path relative to it: no way leads out.
    Beneath(PathBuf, PathBuf),
}

impl PathAccess {
    /// `roots` are `download.server.pathRoots`.
    #[must_use]
    pub fn new(caller: Arc<Caller>, roots: Arc<[PathBuf]>) -> Self {
        Self { caller, roots, seen: None }
    }

    /// Opens only what the caller sees so: an input itself, or the directory of an output.
    #[must_use]
    pub fn only(self, seen: Option<Seen>) -> Self {
        Self { seen, ..self }
    }

    /// In whose name.
    #[must_use]
    pub fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// Opens a regular file for reading, as the caller.
    ///
    /// # Errors
    /// See [`PathError`].
    pub async fn open_input(&self, path: &Path) -> Result<std::fs::File, PathError> {
        let base = self.base(path)?;
        let (caller, path, seen) = (self.caller.clone(), path.to_owned(), self.seen);
        let opened = as_caller(&self.caller, move || {
            // Non-blocking, so that a FIFO does not hold the thread; regular files do not care.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let file = base.open(&path, flags, "open", &caller)?;
            check(&file, &path)?;
            same(&file, seen, "file", &path)?;
            Ok(std::fs::File::from(file))
        });
        opened.await?
    }

    /// Opens the directory of a file to be written, as the caller. Whether the caller may write there shows when
    /// [`OutputTarget::create_temp`] does.
    ///
    /// # Errors
    /// See [`PathError`].
    pub async fn open_output(&self, path: &Path) -> Result<OutputTarget, PathError> {
        let malformed = |why| PathError::Malformed { path: path.to_owned(), why };
        let name = match path.components().next_back() {
            Some(Component::Normal(name)) if !path.as_os_str().as_encoded_bytes().ends_with(b"/") => name,
            _ => return Err(malformed("it names no file")),
        };
        let name: OsString = name.to_owned();
        let parent = path.parent().unwrap_or(Path::new("/"));
        let base = self.base(parent)?;
        let (caller, directory, seen) = (self.caller.clone(), parent.to_owned(), self.seen);
        let opened = as_caller(&self.caller, move || {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = base.open(&directory, flags, "open the directory", &caller)?;
            refuse_kernels_own(&dir, &directory)?;
            same(&dir, seen, "directory", &directory)?;
            Ok::<_, PathError>(dir)
        });
        let dir = opened.await??;
        Ok(OutputTarget::new(dir, name, path.to_owned(), self.caller.clone()))
    }

    fn base(&self, path: &Path) -> Result<Base, PathError> {
        if !path.is_absolute() {
            return Err(PathError::Malformed { path: path.to_owned(), why: "it is not absolute" });
        }
        if self.caller.native {
            return Ok(Base::Root);
        }
        let longest = self.roots.iter().filter_map(|root| Some((root, path.strip_prefix(root).ok()?)));
        match longest.max_by_key(|(root, _)| root.components().count()) {
            Some((root, rest)) => Ok(Base::Beneath(root.clone(), rest.to_owned())),
            None => Err(PathError::Foreign(path.to_owned())),
        }
    }
}

impl Base {
    fn open(
        &self,
        path: &Path,
        flags: OFlags,
        what: &'static str,
        caller: &Caller,
    ) -> Result<OwnedFd, PathError> {
        let mut resolve = ResolveFlags::NO_MAGICLINKS;
        let opened = match self {
            Base::Root => rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve),
            Base::Beneath(root, rest) => {
                resolve |= ResolveFlags::BENEATH;
                let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
                let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::open(root, directory, Mode::empty())
                    .and_then(|root| rustix::fs::openat2(root, rest, flags, Mode::empty(), resolve))
            }
        };
        opened.map_err(|errno| match errno {
            Errno::NOSYS => PathError::Unsupported,
            errno => {
                PathError::Refused { what, path: path.to_owned(), uid: caller.uid, source: errno.into() }
            }
        })
    }
}

fn refuse_kernels_own(file: &OwnedFd, path: &Path) -> Result<(), PathError> {
    // Some have the top bit of 32, which the type may sign-extend.
    let magic = |stat: rustix::fs::StatFs| u64::from_ne_bytes(stat.f_type.to_ne_bytes()) & 0xffff_ffff;
    if rustix::fs::fstatfs(file).is_ok_and(|stat| KERNELS_OWN.contains(&magic(stat))) {
        return Err(PathError::NotAFile {
            path: path.to_owned(),
            what: "one of the kernel's own (procfs, sysfs)",
        });
    }
    Ok(())
}

fn same(file: &OwnedFd, seen: Option<Seen>, what: &'static str, path: &Path) -> Result<(), PathError> {
    match seen {
        Some(seen) if Seen::of(file).ok() != Some(seen) => {
            Err(PathError::Elsewhere { what, path: path.to_owned() })
        }
        _ => Ok(()),
    }
}

pub(super) fn check(file: &OwnedFd, path: &Path) -> Result<(), PathError> {
    refuse_kernels_own(file, path)?;
    let not_a_file = |what| PathError::NotAFile { path: path.to_owned(), what };
    let Ok(stat) = rustix::fs::fstat(file) else {
        return Err(not_a_file("unreadable"));
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(not_a_file("a directory")),
        FileType::Fifo => Err(not_a_file("a FIFO")),
        FileType::CharacterDevice | FileType::BlockDevice => Err(not_a_file("a device")),
        _ => Err(not_a_file("a special file")),
    }
}
