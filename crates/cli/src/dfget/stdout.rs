//! Content to stdout.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;

use crate::exit::Exit;
use crate::failure::Failure;

/// The descriptor itself: std's own stdout would copy every chunk and cut it at newlines.
#[derive(Debug)]
pub(super) struct Stdout(std::fs::File);

impl Stdout {
    pub(super) fn open() -> Result<Self, Failure> {
        let descriptor = io::stdout().as_fd().try_clone_to_owned().map_err(|why| failed(&why))?;
        Ok(Self(descriptor.into()))
    }

    /// Blocking.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).map_err(|why| failed(&why))
    }
}

fn failed(why: &io::Error) -> Failure {
    let exit = if why.kind() == io::ErrorKind::StorageFull { Exit::NoSpace } else { Exit::Failure };
    Failure::new(super::daemon::TITLE, exit, format!("cannot write to stdout: {why}"))
}
