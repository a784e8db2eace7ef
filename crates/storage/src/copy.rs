//! Copying between descriptors without holding much of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::copy_file_range;
use rustix::io::Errno;

use crate::sidecar::file::read_up_to;

/// The most that one system call moves.
pub(crate) const STEP: usize = 1 << 20;
/// The buffer for what the kernel cannot copy by itself.
pub(crate) const BUFFER: usize = 256 << 10;

/// Copies `length` bytes, within the kernel where it can. `progress` hears
/// after every step how many bytes that makes.
///
/// # Errors
/// `UnexpectedEof` when `from` ends early, else the system's.
pub(crate) fn copy_range(
    from: &File,
    from_offset: u64,
    to: &File,
    to_offset: u64,
    length: u64,
    progress: &dyn Fn(u64),
) -> io::Result<()> {
    let (mut input, mut output) = (from_offset, to_offset);
    let end = from_offset + length;
    while input < end {
        let step = usize::try_from(end - input).unwrap_or(STEP).min(STEP);
        match copy_file_range(from, Some(&mut input), to, Some(&mut output), step) {
            // Some file systems answer 0 for what they cannot do; a file that really ended is found out by reading.
            Ok(0) => {
                return by_buffer(from, (input, end), to, output, &|moved| {
                    progress(input - from_offset + moved)
                });
            }
            Ok(_) => progress(input - from_offset),
            Err(Errno::INTR) => {}
            Err(
                Errno::XDEV
                | Errno::INVAL
                | Errno::NOSYS
                | Errno::OPNOTSUPP
                | Errno::PERM
                | Errno::BADF
                | Errno::IO,
            ) => {
                return by_buffer(from, (input, end), to, output, &|moved| {
                    progress(input - from_offset + moved)
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn by_buffer(
    from: &File,
    (start, end): (u64, u64),
    to: &File,
    mut output: u64,
    progress: &dyn Fn(u64),
) -> io::Result<()> {
    let (mut input, length) = (start, end - start);
    let mut buffer = vec![0; BUFFER.min(usize::try_from(length).unwrap_or(BUFFER))];
    while input < end {
        let step = usize::try_from(end - input).unwrap_or(BUFFER).min(buffer.len());
        let read = read_up_to(from, &mut buffer[..step], input)?;
        if read < step {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all_at(&buffer[..step], output)?;
        input += step as u64;
        output += step as u64;
        progress(input - start);
    }
    Ok(())
}

/// Feeds `length` bytes of `file` to `take`, a buffer at a time.
///
/// # Errors
/// `UnexpectedEof` when the file ends early, else the system's.
pub(crate) fn read_through(
    file: &File,
    offset: u64,
    length: u64,
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER.min(usize::try_from(length).unwrap_or(BUFFER))];
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let step = usize::try_from(end - at).unwrap_or(BUFFER).min(buffer.len());
        let read = read_up_to(file, &mut buffer[..step], at)?;
        if read < step {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        take(&buffer[..step]);
        at += step as u64;
    }
    Ok(())
}
