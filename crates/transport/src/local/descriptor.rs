//! Handing an open file over to the daemon (`docs/wire.md`, "Local plane").
//!
//! The client connects, says the magic and its token, and waits for the daemon to agree; only then comes the
//! descriptor, with one byte: a plain read of what comes before it would lose it. The daemon looks at what it got, and
//! answers again.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

use super::{DESCRIPTOR_MAGIC, LocalStream, PathError, Token, access};

/// How long the other side may take for the whole dialogue, which moves no content.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than one descriptor is refused; so many are taken in to be closed and counted.
const MOST: usize = 4;
/// Longest reason of a refusal, bytes.
const REASON: usize = 1024;

/// Which way bytes will go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The daemon reads the client's file.
    FromClient,
    /// The daemon writes the client's file.
    ToClient,
}

/// Why a descriptor is not taken.
#[derive(Debug, Error)]
pub enum DescriptorError {
    /// The connection broke, or nothing came in time.
    #[error("the connection for the file's descriptor broke: {0}")]
    Io(#[from] io::Error),
    /// None, or several.
    #[error("{0} descriptors came instead of one")]
    Count(usize),
    /// It cannot be used this way.
    #[error("the file is open {is}, and must be open {must}")]
    Mode {
        /// How it is open.
        is: &'static str,
        /// How it must be.
        must: &'static str,
    },
    /// It is no regular file.
    #[error("the descriptor {0}")]
    NotAFile(PathError),
    /// The daemon said no.
    #[error("the daemon does not take the file's descriptor: {0}")]
    Refused(String),
}

impl LocalStream {
    /// The token of a descriptor connection.
    ///
    /// # Errors
    /// When it does not come within 10 s.
    pub async fn token(&mut self) -> Result<Token, DescriptorError> {
        let mut first = [0; 4 + size_of::<Token>()];
        in_time(self.read_exact(&mut first)).await?;
        let mut token = [0; size_of::<Token>()];
        token.copy_from_slice(&first[4..]);
        Ok(Token(token))
    }

    /// Agrees, or refuses with a reason.
    ///
    /// # Errors
    /// When the client does not take it within 10 s.
    pub async fn answer(&mut self, answer: Result<(), String>) -> Result<(), DescriptorError> {
        let bytes = match answer {
            Ok(()) => vec![0],
            Err(reason) => {
                let reason = &reason.as_bytes()[..reason.len().min(REASON)];
                // REASON fits.
                let length = u16::try_from(reason.len()).unwrap_or_default();
                [&[1], length.to_be_bytes().as_slice(), reason].concat()
            }
        };
        Ok(in_time(self.write_all(&bytes)).await?)
    }

    /// The client's descriptor: of one regular file, open for `direction`.
    ///
    /// # Errors
    /// When something else comes, or nothing within 10 s.
    pub async fn descriptor(&mut self, direction: Direction) -> Result<File, DescriptorError> {
        let stream = self.stream();
        let mut came = in_time(stream.async_io(Interest::READABLE, || receive(stream))).await?;
        let (1, Some(file)) = (came.len(), came.pop()) else {
            return Err(DescriptorError::Count(came.len()));
        };
        check(&file, direction)?;
        Ok(file.into())
    }
}

async fn in_time<T>(io: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, io).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn receive(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let came = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let came: Vec<_> = came.flatten().collect();
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("more descriptors came than there is room for"));
    }
    Ok(came)
}

fn check(file: &OwnedFd, direction: Direction) -> Result<(), DescriptorError> {
    let flags = rustix::fs::fcntl_getfl(file).map_err(io::Error::from)?;
    let mode = |is, must| Err(DescriptorError::Mode { is, must });
    let access = flags & OFlags::RWMODE;
    if flags.contains(OFlags::PATH) {
        return mode("for its path only", "for reading or writing");
    }
    if direction == Direction::FromClient && access == OFlags::WRONLY {
        return mode("for writing only", "for reading");
    }
    if direction == Direction::ToClient && access == OFlags::RDONLY {
        return mode("for reading only", "for writing");
    }
    if direction == Direction::ToClient && flags.contains(OFlags::APPEND) {
        return mode("for appending", "without O_APPEND");
    }
    access::check(file, Path::new("that came")).map_err(DescriptorError::NotAFile)
}

/// Hands an open file over to the daemon at `socket`, under a token of its `Local/OpenDescriptor`.
///
/// # Errors
/// When the daemon refuses, or does not answer within 10 s.
pub async fn hand_over(socket: &Path, token: &Token, file: impl AsFd) -> Result<(), DescriptorError> {
    in_time(async { Ok(dialogue(socket, token, file).await) }).await?
}

async fn dialogue(socket: &Path, token: &Token, file: impl AsFd) -> Result<(), DescriptorError> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(&[DESCRIPTOR_MAGIC.as_slice(), &token.0].concat()).await?;
    agreed(&mut stream).await?;
    let file = file.as_fd();
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = [file];
        if !control.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::Error::other("no room for one descriptor"));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::sendmsg(&stream, &[IoSlice::new(&[0])], &mut control, flags)?)
    };
    stream.async_io(Interest::WRITABLE, send).await?;
    agreed(&mut stream).await
}

async fn agreed(stream: &mut UnixStream) -> Result<(), DescriptorError> {
    if stream.read_u8().await? == 0 {
        return Ok(());
    }
    let length = usize::from(stream.read_u16().await?).min(REASON);
    let mut reason = vec![0; length];
    stream.read_exact(&mut reason).await?;
    Err(DescriptorError::Refused(String::from_utf8_lossy(&reason).into_owned()))
}
