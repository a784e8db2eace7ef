//! What is imported: a file whose length is known, or whatever a pipe brings.

use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use damselfly_core::{Algorithm, Hasher};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// Bytes of one message.
pub(super) const CHUNK: usize = 1 << 20;
/// What a pipe usually holds, and so gives at once.
const PIPE: usize = 64 << 10;

/// Why nothing can be read, or not all.
#[derive(Debug, Error)]
pub(super) enum SourceError {
    #[error("cannot {action} {path}: {why}")]
    Io { action: &'static str, path: String, why: io::Error },
    #[error("{path} is {what}: import takes a file, a pipe, or - for stdin")]
    NoFile { path: String, what: &'static str },
    #[error(
        "{path} changed while it was read; nothing was imported: run the command again when nobody writes to it"
    )]
    Changed { path: String },
}

/// How a file looked: what it is imported as stands only while it stays so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    device: u64,
    inode: u64,
    pub(super) length: u64,
    modified: (i64, i64),
}

impl From<&Metadata> for Look {
    fn from(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        }
    }
}

/// What is imported.
#[derive(Debug)]
pub(super) struct Source {
    /// For people: the path as given, or `stdin`.
    pub(super) name: String,
    file: File,
    /// Absolute; `None` for a pipe, and for stdin.
    path: Option<PathBuf>,
    /// How a regular file looked; `None` for a pipe.
    look: Option<Look>,
}

impl Source {
    /// Opens `path`; `-` is stdin. A fifo is opened when its writer is there: blocking.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let name = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
        let failed = |action| {
            let path = name.clone();
            move |why| SourceError::Io { action, path, why }
        };
        if path == Path::new("-") {
            let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(failed("read"))?;
            let mut file = File::from(stdin);
            let found = file.metadata().map_err(failed("look at"))?;
            // Of a file that somebody has begun to read the rest is wanted, as of a pipe.
            let is_whole = found.is_file() && file.stream_position().is_ok_and(|at| at == 0);
            return Ok(Self { name, file, path: None, look: is_whole.then(|| Look::from(&found)) });
        }
        let file = File::open(path).map_err(failed("open"))?;
        let found = file.metadata().map_err(failed("look at"))?;
        let kind = found.file_type();
        if kind.is_dir() {
            return Err(SourceError::NoFile { path: name, what: "a directory" });
        }
        if kind.is_block_device() {
            return Err(SourceError::NoFile { path: name, what: "a block device" });
        }
        if !kind.is_file() {
            return Ok(Self { name, file, path: None, look: None });
        }
        let absolute = std::path::absolute(path).map_err(failed("find"))?;
        Ok(Self { name, file, path: Some(absolute), look: Some(Look::from(&found)) })
    }

    /// The same, in a thread of its own: the writer of a fifo may never come.
    pub(super) async fn open_when_ready(path: PathBuf) -> Result<Self, SourceError> {
        let name = path.display().to_string();
        let failed = |why| SourceError::Io { action: "open", path: name.clone(), why };
        let (to, from) = oneshot::channel();
        let thread = std::thread::Builder::new().name("dfcache-open".to_owned());
        let opened = thread.spawn(move || {
            // Whoever does not listen any more does not need it.
            let _told = to.send(Self::open(&path));
        });
        opened.map_err(failed)?;
        from.await.map_err(|why| failed(io::Error::other(why)))?
    }

    /// Where a regular file lies, absolute; `None` for a pipe, and for stdin.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What is open.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Bytes of a regular file; `None` for a pipe.
    pub(super) fn length(&self) -> Option<u64> {
        self.look.as_ref().map(|look| look.length)
    }

    /// A name that this file, as it is, has in every run that imports it on the same `terms`; empty for a pipe.
    pub(super) fn upload_id(&self, terms: &[&str]) -> String {
        let Some(look) = &self.look else { return String::new() };
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        add(self.path.as_deref().map_or(b"-", |path| path.as_os_str().as_encoded_bytes()));
        for number in [look.device, look.inode, look.length] {
            add(&number.to_be_bytes());
        }
        for number in [look.modified.0, look.modified.1] {
            add(&number.to_be_bytes());
        }
        for term in terms {
            add(term.as_bytes());
        }
        let text = hasher.finish().to_string();
        text.rsplit(':').next().unwrap_or_default().to_owned()
    }

    /// Whether the file is still as it was opened.
    pub(super) fn check(&self) -> Result<(), SourceError> {
        let Some(look) = &self.look else { return Ok(()) };
        let found = self.file.metadata().map_err(|why| self.failed("look at", why))?;
        if Look::from(&found) == *look { Ok(()) } else { Err(self.changed()) }
    }

    fn failed(&self, action: &'static str, why: io::Error) -> SourceError {
        SourceError::Io { action, path: self.name.clone(), why }
    }

    fn changed(&self) -> SourceError {
        SourceError::Changed { path: self.name.clone() }
    }

    /// Reads from `offset` on, in a thread of its own that holds at most `ahead` chunks nobody has taken yet. The
    /// channel closes after the last chunk, or after an error.
    ///
    /// A thread, because a read of a pipe may never end, and neither a runtime nor a program should wait for it.
    pub(super) fn read(
        &self,
        offset: u64,
        ahead: usize,
    ) -> Result<mpsc::Receiver<Result<Bytes, SourceError>>, SourceError> {
        let file = self.file.try_clone().map_err(|why| self.failed("read", why))?;
        let copy = Self { name: self.name.clone(), file, path: self.path.clone(), look: self.look };
        let (to, from) = mpsc::channel(ahead.max(1));
        let thread = std::thread::Builder::new().name("dfcache-read".to_owned());
        thread.spawn(move || copy.pour(offset, &to)).map_err(|why| self.failed("read", why))?;
        Ok(from)
    }

    fn pour(mut self, offset: u64, to: &mpsc::Sender<Result<Bytes, SourceError>>) {
        if let Err(why) = self.pour_all(offset, to) {
            // Whoever does not listen any more does not need it.
            let _told = to.blocking_send(Err(why));
        }
    }

    fn pour_all(
        &mut self,
        offset: u64,
        to: &mpsc::Sender<Result<Bytes, SourceError>>,
    ) -> Result<(), SourceError> {
        let length = self.length();
        let mut at = offset;
        let mut buffer = BytesMut::new();
        loop {
            let chunk = self.chunk(at, &mut buffer)?;
            if chunk.is_empty() {
                break;
            }
            at += chunk.len() as u64;
            if length.is_some_and(|length| at > length) {
                return Err(self.changed());
            }
            if to.blocking_send(Ok(chunk)).is_err() {
                return Ok(());
            }
        }
        if length.is_some_and(|length| at != length) { Err(self.changed()) } else { self.check() }
    }

    /// The bytes at `at`, where it is a file: another thread may still be reading for a stream that broke. A whole
    /// chunk unless nothing comes after it, or a pipe has no more at the moment; empty at the end. `buffer` is what
    /// the last chunk left over.
    fn chunk(&mut self, at: u64, buffer: &mut BytesMut) -> Result<Bytes, SourceError> {
        if buffer.len() < PIPE {
            *buffer = BytesMut::zeroed(CHUNK);
        }
        let mut filled = 0;
        while filled < buffer.len() {
            let read = match self.look {
                Some(_) => self.file.read_at(&mut buffer[filled..], at + filled as u64),
                None => self.file.read(&mut buffer[filled..]),
            };
            match read {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
                Err(why) => return Err(self.failed("read", why)),
            }
            // What a slow producer has said is passed on.
            if self.look.is_none() {
                break;
            }
        }
        Ok(buffer.split_to(filled).freeze())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    async fn all(source: &Source, offset: u64) -> Result<Vec<u8>, SourceError> {
        let mut chunks = source.read(offset, 2).unwrap();
        let mut content = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            content.extend_from_slice(&chunk?);
        }
        Ok(content)
    }

    #[tokio::test]
    async fn files_are_read_from_anywhere() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("f");
        let content: Vec<u8> = (0..3 * CHUNK + 7).map(|at| u8::try_from(at % 251).unwrap()).collect();
        std::fs::write(&path, &content).unwrap();
        let source = Source::open(&path).unwrap();
        assert_eq!((source.length(), source.path()), (Some(content.len() as u64), Some(path.as_path())));
        assert_eq!(all(&source, 0).await.unwrap(), content);
        assert_eq!(all(&source, CHUNK as u64 + 3).await.unwrap(), content[CHUNK + 3..]);
        assert_eq!(all(&source, content.len() as u64).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_file_that_changes_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("f");
        std::fs::write(&path, "0123456789").unwrap();
        let source = Source::open(&path).unwrap();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
        assert!(matches!(all(&source, 0).await, Err(SourceError::Changed { .. })));
        let source = Source::open(&path).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(3).unwrap();
        assert!(matches!(all(&source, 0).await, Err(SourceError::Changed { .. })));
    }

    #[test]
    fn an_upload_is_named_after_the_file_and_the_terms() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("f");
        std::fs::write(&path, "x").unwrap();
        let id = |terms: &[&str]| Source::open(&path).unwrap().upload_id(terms);
        let first = id(&["a", "b"]);
        assert_eq!(first.len(), 64, "{first}");
        assert_eq!(first, id(&["a", "b"]));
        assert_ne!(first, id(&["ab", ""]));
        std::fs::write(&path, "longer").unwrap();
        assert_ne!(first, id(&["a", "b"]));
        assert!(matches!(Source::open(home.path()), Err(SourceError::NoFile { what: "a directory", .. })));
        assert!(matches!(Source::open(&home.path().join("g")), Err(SourceError::Io { action: "open", .. })));
        assert_eq!(Source::open(Path::new("/dev/null")).unwrap().upload_id(&[]), "");
    }
}
