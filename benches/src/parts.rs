//! What the steps of an import or an export take alone, each in steps of 1 MiB and out of one warm buffer.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use damselfly_core::{Algorithm, Hasher};

use crate::process::{Cost, measured};
use crate::{BenchError, io};

const STEP: u64 = 1 << 20;

/// Not of zeros: nobody has written to the pages of those, and one stands for all.
fn buffer(length: u64) -> Vec<u8> {
    vec![1; usize::try_from(length.min(STEP)).unwrap_or(0)]
}

/// Calls `step` with as much of a buffer as there is to do, until `length` is done.
fn in_steps(
    length: u64,
    mut step: impl FnMut(&mut [u8]) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let mut buffer = buffer(length);
    let mut left = length;
    while left > 0 {
        let now = left.min(STEP);
        step(&mut buffer[..usize::try_from(now).unwrap_or(usize::MAX)])?;
        left -= now;
    }
    Ok(())
}

/// Reads a file.
///
/// # Errors
/// When it cannot be read.
pub fn read_file(source: &Path) -> Result<Cost, BenchError> {
    measured(|| {
        let mut file = File::open(source).map_err(io("open a file"))?;
        let length = file.metadata().map_err(io("look at a file"))?.len();
        in_steps(length, |bytes| file.read_exact(bytes).map_err(io("read a file")))
    })
}

/// Moves `length` bytes from one thread to another through a pair of unix sockets.
///
/// # Errors
/// When the sockets fail.
pub fn through_a_socket(length: u64) -> Result<Cost, BenchError> {
    let (mut out, mut socket) = UnixStream::pair().map_err(io("make sockets"))?;
    measured(move || {
        let sender =
            std::thread::spawn(move || in_steps(length, |bytes| out.write_all(bytes).map_err(io("send"))));
        let received = in_steps(length, |bytes| socket.read_exact(bytes).map_err(io("receive")));
        // A sender whose receiver failed must not wait for it.
        drop(socket);
        let sent = sender.join().map_err(|_| BenchError::Failed("a thread panicked".to_owned()))?;
        received.and(sent)
    })
}

/// Writes `length` bytes to a new file.
///
/// # Errors
/// When it is there, or cannot be written.
pub fn write_file(target: &Path, length: u64) -> Result<Cost, BenchError> {
    measured(|| {
        let mut file = File::create_new(target).map_err(io("make a file"))?;
        in_steps(length, |bytes| file.write_all(bytes).map_err(io("write a file")))
    })
}

/// Flushes a file to its device.
///
/// # Errors
/// When that fails.
pub fn flush_file(target: &Path) -> Result<Cost, BenchError> {
    measured(|| File::open(target).map_err(io("open a file"))?.sync_all().map_err(io("flush a file")))
}

/// Computes a digest of `length` bytes.
///
/// # Errors
/// None; it is one step of several.
pub fn digest(algorithm: Algorithm, length: u64) -> Result<Cost, BenchError> {
    measured(|| {
        let mut hasher = Hasher::new(algorithm);
        in_steps(length, |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        std::hint::black_box(hasher.finish());
        Ok(())
    })
}

/// Computes a digest of a file with one thread.
///
/// # Errors
/// When it cannot be read.
pub fn digest_file(algorithm: Algorithm, source: &Path) -> Result<Cost, BenchError> {
    measured(|| {
        let mut file = File::open(source).map_err(io("open a file"))?;
        let length = file.metadata().map_err(io("look at a file"))?.len();
        let mut hasher = Hasher::new(algorithm);
        in_steps(length, |bytes| {
            file.read_exact(bytes).map_err(io("read a file"))?;
            hasher.update(bytes);
            Ok(())
        })?;
        std::hint::black_box(hasher.finish());
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    /// Two whole steps and a part of one.
    const LENGTH: u64 = 2 * STEP + 5;

    #[test]
    fn the_steps_make_up_the_length() {
        let mut steps = Vec::new();
        in_steps(LENGTH, |bytes| {
            steps.push(bytes.len() as u64);
            Ok(())
        })
        .unwrap();
        assert_eq!(steps, [STEP, STEP, 5]);
    }

    #[test]
    fn a_file_is_written_once_and_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(read_file(&path).is_err());
        write_file(&path, LENGTH).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![1; usize::try_from(LENGTH).unwrap()]);
        read_file(&path).unwrap();
        digest_file(Algorithm::Blake3, &path).unwrap();
        write_file(&path, LENGTH).unwrap_err();
    }

    #[test]
    fn more_than_a_socket_holds_comes_through() {
        let cost = through_a_socket(LENGTH).unwrap();
        assert!(cost.cpu > 0.0 && cost.wall > 0.0, "{cost:?}");
    }
}
