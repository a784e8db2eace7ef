//! Content to stdout.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::reading::Sink;

/// What a failure is called until its program gives it another title.
const TITLE: &str = "Downloading Failed!";

/// The descriptor itself: std's own stdout would copy every chunk and cut it at newlines.
#[derive(Debug)]
pub(crate) struct Stdout(std::fs::File);

impl Stdout {
    pub(crate) fn open() -> Result<Self, Failure> {
        let descriptor = io::stdout().as_fd().try_clone_to_owned().map_err(|why| failed(&why))?;
        Ok(Self(descriptor.into()))
    }
}

impl Sink for Stdout {
    fn begin(&mut self, _length: Option<u64>) -> Result<(), Failure> {
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).map_err(|why| failed(&why))
    }
}

fn failed(why: &io::Error) -> Failure {
    let exit = if why.kind() == io::ErrorKind::StorageFull { Exit::NoSpace } else { Exit::Failure };
    Failure::new(TITLE, exit, format!("cannot write to stdout: {why}"))
}
