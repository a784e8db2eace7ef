//! Where content goes, looked at before anything is transferred.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::exit::Exit;
use crate::failure::Failure;

/// Where the content goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To stdout, in order.
    Stdout,
    /// To a file.
    File(FileOutput),
}

/// An output file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOutput {
    /// Its absolute path.
    pub path: PathBuf,
    /// Whether what is there may be replaced.
    pub overwrite: bool,
    /// Whether something was there at the start.
    pub existed: bool,
}

/// Why nothing can be written there.
#[derive(Debug, Error)]
pub enum InvalidOutput {
    /// The output's directory.
    #[error("the directory {path} of the output does not exist or is no directory; make it first")]
    Parent {
        /// The directory.
        path: String,
    },
    /// The output is there.
    #[error("output path {path} is already exist; use --overwrite to replace it, or another path")]
    Exists {
        /// The output.
        path: String,
    },
    /// The output is there and cannot be replaced.
    #[error("output path {path} is {what}; name a regular file, or use -O - for stdout")]
    NoFile {
        /// The output.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// The output cannot be looked at.
    #[error("cannot look at {path}: {why}")]
    Look {
        /// The path.
        path: String,
        /// Why.
        why: io::Error,
    },
}

impl From<InvalidOutput> for Failure {
    fn from(invalid: InvalidOutput) -> Self {
        Failure::new("Validating Failed!", Exit::Failure, invalid)
    }
}

impl Output {
    /// Looks whether the content can go to `output`; `-` is stdout.
    ///
    /// # Errors
    /// When something is there that may not be replaced, or the directory is not there.
    pub fn find(output: &Path, overwrite: bool) -> Result<Self, InvalidOutput> {
        if output == Path::new("-") {
            return Ok(Output::Stdout);
        }
        let given = output.display().to_string();
        let look = |path: &Path, why| InvalidOutput::Look { path: path.display().to_string(), why };
        let path = std::path::absolute(output).map_err(|why| look(output, why))?;
        let parent = path
            .parent()
            .ok_or_else(|| InvalidOutput::NoFile { path: given.clone(), what: "a directory" })?;
        match std::fs::metadata(parent) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(InvalidOutput::Parent { path: parent.display().to_string() }),
            Err(why) if matches!(why.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(InvalidOutput::Parent { path: parent.display().to_string() });
            }
            Err(why) => return Err(look(parent, why)),
        }
        // A dangling link is there too: whatever it points to would be made.
        let existed = match std::fs::symlink_metadata(&path) {
            Ok(_) => true,
            Err(why) if why.kind() == io::ErrorKind::NotFound => false,
            Err(why) => return Err(look(&path, why)),
        };
        if existed {
            let found = std::fs::metadata(&path).map(|found| found.file_type());
            match found {
                Ok(found) if found.is_dir() => {
                    return Err(InvalidOutput::NoFile { path: given, what: "a directory" });
                }
                _ if !overwrite => return Err(InvalidOutput::Exists { path: given }),
                Ok(found) if !found.is_file() => {
                    return Err(InvalidOutput::NoFile { path: given, what: "a device, a pipe or a socket" });
                }
                _ => {}
            }
        }
        Ok(Output::File(FileOutput { path, overwrite, existed }))
    }
}

/// Removes what a foreign daemon left at an output that was not there before. Ours leaves nothing itself.
pub(crate) struct Leftover<'a> {
    output: &'a FileOutput,
    /// Whether there is something to remove.
    armed: bool,
}

impl<'a> Leftover<'a> {
    /// Nothing is to be removed yet.
    pub(crate) fn new(output: &'a FileOutput) -> Self {
        Self { output, armed: false }
    }

    /// A daemon is at work on it from now on.
    pub(crate) fn answered(&mut self, is_ours: bool) {
        self.armed = !is_ours && !self.output.existed;
    }

    /// What is there is to stay.
    pub(crate) fn keep(&mut self) {
        self.armed = false;
    }
}

impl Drop for Leftover<'_> {
    fn drop(&mut self) {
        if self.armed {
            // Nothing there is what is wanted.
            let _removed = std::fs::remove_file(&self.output.path);
        }
    }
}
