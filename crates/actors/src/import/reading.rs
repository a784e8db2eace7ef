//! Reading a caller's file, on a thread of its own: a file system may take for ever to answer, and while it does only
//! its caller waits.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;
use std::sync::mpsc as blocking;

use damselfly_transport::local::{ActError, Caller, Life, as_caller_for_long, with_handed_over};
use thiserror::Error;
use tokio::sync::mpsc;
use tonic::Status;

use super::STALLED;
use crate::output::{not_acted, show};
use crate::patience;

/// Bytes read at a time.
const STEP: usize = 1 << 20;
/// Buffers of one import: one is filled while another is written.
const BUFFERS: usize = 4;

/// Why a file could not be read to its end.
#[derive(Debug, Error)]
enum ReadError {
    #[error("cannot read {name}: {why}")]
    Io { name: String, why: io::Error },
    #[error("{0} changed while it was being imported; import it again when it is at rest")]
    Changed(String),
    #[error("{name} gave nothing for {} s: its file system does not answer", STALLED.as_secs())]
    Stalled { name: String },
    #[error(transparent)]
    Act(#[from] ActError),
}

impl From<ReadError> for Status {
    fn from(why: ReadError) -> Self {
        match &why {
            ReadError::Changed(_) => Self::aborted(why.to_string()),
            ReadError::Io { .. } => Self::internal(why.to_string()),
            ReadError::Stalled { .. } => Self::deadline_exceeded(why.to_string()),
            ReadError::Act(act) => not_acted(act),
        }
    }
}

/// A file that a caller may read.
#[derive(Clone, Debug)]
pub(crate) struct FileSource {
    file: Arc<File>,
    name: String,
    caller: Arc<Caller>,
    handed_over: bool,
}

/// Bytes of a file. Their buffer goes back to be filled again.
pub(super) struct Chunk {
    buffer: Vec<u8>,
    filled: usize,
    home: blocking::Sender<Vec<u8>>,
}

impl Chunk {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // Nobody fills it once the file has been read.
        drop(self.home.send(std::mem::take(&mut self.buffer)));
    }
}

/// A file being read.
pub(super) struct Reading {
    name: String,
    chunks: mpsc::Receiver<Result<Chunk, ReadError>>,
}

impl Reading {
    /// The next bytes; `None` at the end of a file that stayed as it was.
    pub(super) async fn next(&mut self) -> Result<Option<Chunk>, Status> {
        let what = format!("for {} to be read", self.name);
        match patience::wait(STALLED, "an import", &what, self.chunks.recv()).await {
            Some(next) => Ok(next.transpose()?),
            None => Err(ReadError::Stalled { name: self.name.clone() }.into()),
        }
    }
}

impl FileSource {
    /// `name` is for messages. Of a file that was `handed_over` the offset tells its client how much has been read.
    pub(crate) fn new(file: File, name: String, caller: &Arc<Caller>, handed_over: bool) -> Self {
        Self { file: Arc::new(file), name, caller: Arc::clone(caller), handed_over }
    }

    /// Bytes of the file.
    ///
    /// # Errors
    /// What its file system says.
    pub(crate) async fn length(&self) -> Result<u64, Status> {
        let (file, name) = (Arc::clone(&self.file), self.name.clone());
        let length = self
            .act(move |_| file.metadata().map(|meta| meta.len()).map_err(|why| ReadError::Io { name, why }));
        Ok(length.await.map_err(ReadError::from).flatten()?)
    }

    /// Reads from byte `from` to the end.
    pub(super) fn read(self, from: u64) -> Reading {
        let (to, chunks) = mpsc::channel(BUFFERS);
        let name = self.name.clone();
        tokio::spawn(async move {
            let (source, telling) = (self.clone(), to.clone());
            let read = self.act(move |life| source.pour(from, life, &to).err()).await;
            if let Some(why) = read.map_err(ReadError::from).unwrap_or_else(Some) {
                // Whoever does not listen any more does not need it.
                drop(telling.send(Err(why)).await);
            }
        });
        Reading { name, chunks }
    }

    async fn act<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Life) -> T + Send + 'static,
    ) -> Result<T, ActError> {
        if self.handed_over {
            with_handed_over(&self.caller, act).await
        } else {
            as_caller_for_long(&self.caller, act).await
        }
    }

    fn pour(
        &self,
        from: u64,
        life: &Life,
        to: &mpsc::Sender<Result<Chunk, ReadError>>,
    ) -> Result<(), ReadError> {
        let failed = |why| ReadError::Io { name: self.name.clone(), why };
        let before = version(&self.file).map_err(failed)?;
        let (home, spare) = blocking::channel();
        let mut at = from;
        for turn in 0.. {
            let mut buffer = match spare.try_recv() {
                Ok(buffer) => buffer,
                Err(_) if turn < BUFFERS => vec![0; STEP],
                // Comes when what it holds is written; this thread has a sender itself, so it cannot fail.
                Err(_) => spare.recv().unwrap_or_default(),
            };
            let filled = match self.file.read_at(&mut buffer, at) {
                Ok(filled) => filled,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => 0,
                Err(why) => return Err(failed(why)),
            };
            if filled == 0 {
                break;
            }
            at += filled as u64;
            life.beat();
            if self.handed_over {
                show(&self.file, at);
            }
            if to.blocking_send(Ok(Chunk { buffer, filled, home: home.clone() })).is_err() {
                return Ok(());
            }
        }
        if version(&self.file).map_err(failed)? == before {
            Ok(())
        } else {
            Err(ReadError::Changed(self.name.clone()))
        }
    }
}

/// What tells whether a file was changed: size, modification and change time.
fn version(file: &File) -> io::Result<[i64; 5]> {
    let meta = file.metadata()?;
    let size = i64::try_from(meta.len()).unwrap_or(i64::MAX);
    Ok([size, meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()])
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn source(file: &File, handed_over: bool) -> FileSource {
        let caller = Arc::new(Caller::this_process());
        FileSource::new(file.try_clone().unwrap(), "f".to_owned(), &caller, handed_over)
    }

    async fn all(reading: &mut Reading) -> Result<Vec<u8>, Status> {
        let mut content = Vec::new();
        while let Some(chunk) = reading.next().await? {
            content.extend_from_slice(chunk.bytes());
        }
        Ok(content)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_comes_whole_from_anywhere_and_shows_how_far_it_is() {
        use std::io::Seek as _;
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..6 * STEP + 5).map(|at| u8::try_from(at % 251).unwrap()).collect();
        file.write_all(&content).unwrap();
        assert_eq!(source(&file, true).length().await.unwrap(), content.len() as u64);
        assert_eq!(all(&mut source(&file, false).read(0)).await.unwrap(), content);
        file.rewind().unwrap();
        let rest = all(&mut source(&file, true).read(STEP as u64 + 1)).await.unwrap();
        assert_eq!(rest, content[STEP + 1..]);
        assert_eq!(file.stream_position().unwrap(), content.len() as u64);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_changes_meanwhile_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 16 * STEP]).unwrap();
        let mut reading = source(&file, false).read(0);
        let first = reading.next().await.unwrap().unwrap();
        // All buffers but this one are full, and the reader waits: it is in the middle.
        file.write_all(b"more").unwrap();
        drop(first);
        let refused = all(&mut reading).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Aborted);
        assert!(refused.message().contains("f changed while"), "{refused}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_read_says_so() {
        let home = tempfile::tempdir().unwrap();
        let file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(home.path().join("f"));
        let refused = all(&mut source(&file.unwrap(), false).read(0)).await.unwrap_err();
        assert!(refused.message().starts_with("cannot read f: "), "{refused}");
    }
}
