//! `cargo xtask tidy`: rules of this repository that compiler and clippy do not know. A test here keeps them too.

mod arrows;
mod sources;

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use crate::metadata::{Metadata, MetadataError, root};

/// Why the repository is not tidy, or cannot be looked at.
#[derive(Debug, Error)]
pub(crate) enum TidyError {
    /// The workspace's graph is not to be had.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A file or folder cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Rules are broken: one line for each place.
    #[error("{count} rules broken{list}")]
    Untidy {
        /// How many places.
        count: usize,
        /// The places, each on a line of its own.
        list: String,
    },
}

/// Checks everything.
///
/// # Errors
/// [`TidyError::Untidy`] names every place that breaks a rule.
pub(crate) fn run() -> Result<(), TidyError> {
    let metadata = Metadata::load()?;
    let mut findings = arrows::check(&metadata);
    let root = root();
    for path in files(&root)? {
        let bytes = match std::fs::read(root.join(&path)) {
            Ok(bytes) => bytes,
            // Git also names what was deleted but not committed yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(TidyError::Read { path, source }),
        };
        // What is not text has no lines to complain about.
        if let Ok(text) = String::from_utf8(bytes) {
            findings.extend(sources::check(&path, &text, &root));
        }
    }
    if findings.is_empty() {
        return Ok(());
    }
    let count = findings.len();
    let list = findings.iter().fold(String::new(), |mut list, finding| {
        let _ = write!(list, "\n  {finding}");
        list
    });
    Err(TidyError::Untidy { count, list })
}

/// The repository's files relative to `root`: what git tracks or would track; everything but build output where there
/// is no git.
fn files(root: &Path) -> Result<Vec<PathBuf>, TidyError> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    if let Ok(output) = git.output()
        && output.status.success()
    {
        let names = String::from_utf8_lossy(&output.stdout).into_owned();
        return Ok(names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect());
    }
    let mut files = Vec::new();
    walk(root, Path::new(""), &mut files)?;
    Ok(files)
}

fn walk(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), TidyError> {
    let read = |source| TidyError::Read { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(root.join(folder)).map_err(read)? {
        let entry = entry.map_err(read)?;
        let path = folder.join(entry.file_name());
        let kind = entry.file_type().map_err(read)?;
        if kind.is_file() {
            files.push(path);
        } else if kind.is_dir() && entry.file_name() != "target" && entry.file_name() != ".git" {
            walk(root, &path, files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        if let Err(error) = run() {
            panic!("{error}");
        }
    }

    #[test]
    fn files_are_found_with_and_without_git() {
        let here = Path::new("xtask/src/tidy.rs");
        let tracked = files(&root()).unwrap();
        assert!(tracked.iter().any(|path| path == here));
        assert!(!tracked.iter().any(|path| path.starts_with("target")));

        let folder = tempfile::tempdir().unwrap();
        for name in ["a/b.rs", "target/c.rs", ".git/d"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let mut walked = Vec::new();
        walk(folder.path(), Path::new(""), &mut walked).unwrap();
        assert_eq!(walked, [Path::new("a/b.rs")]);
    }
}
