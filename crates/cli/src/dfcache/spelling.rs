//! What the daemon is to call a path: the same, or what its host calls it (`--path-mapping`).

use std::io;
use std::path::{Path, PathBuf};

use damselfly_core::PathMapping;
use thiserror::Error;

use super::args::TransferMode;
use super::settings::{Origin, Setting, Settings};

/// A path cannot be spelt as the daemon's host does.
#[derive(Debug, Error)]
pub(super) enum SpellingError {
    #[error("{path} lies in none of the directories that {given} maps; map one above it, or leave it out")]
    Unmatched { path: String, given: String },
    #[error("cannot find out where {path} lies: {why}")]
    Resolve { path: String, why: io::Error },
}

/// A path for the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spelling {
    /// Its name there.
    pub(super) path: PathBuf,
    /// Where it is here, when it was mapped: links resolved.
    pub(super) mapped: Option<PathBuf>,
}

/// Spells the absolute path of a file to be read.
pub(super) fn of_input(path: &Path, settings: &Settings) -> Result<Spelling, SpellingError> {
    spell(path, settings, |path| path.canonicalize())
}

/// Spells the absolute path of a file to be written: its directory is there, itself may not be.
pub(super) fn of_output(path: &Path, settings: &Settings) -> Result<Spelling, SpellingError> {
    spell(path, settings, |path| {
        let directory = path.parent().unwrap_or(path).canonicalize()?;
        Ok(path.file_name().map_or(directory.clone(), |name| directory.join(name)))
    })
}

fn spell(
    path: &Path,
    settings: &Settings,
    resolve: impl FnOnce(&Path) -> io::Result<PathBuf>,
) -> Result<Spelling, SpellingError> {
    let Setting { value: mapping, origin } = &settings.path_mapping;
    let unmapped = || Spelling { path: path.to_owned(), mapped: None };
    if mapping.is_empty() {
        return Ok(unmapped());
    }
    // A link of the container leads elsewhere on its host, or nowhere.
    let resolved =
        resolve(path).map_err(|why| SpellingError::Resolve { path: path.display().to_string(), why })?;
    match mapping.to_host(&resolved) {
        Some(path) => Ok(Spelling { path, mapped: Some(resolved) }),
        // What a file says for every path need not fit this one, unless the daemon must open it.
        None if !origin.is_of_this_run() && settings.transfer.value != TransferMode::Path => Ok(unmapped()),
        None => Err(SpellingError::Unmatched {
            path: resolved.display().to_string(),
            given: given(origin, mapping),
        }),
    }
}

fn given(origin: &Origin, mapping: &PathMapping) -> String {
    match origin {
        Origin::File(place) => format!("client.pathMapping {mapping} ({place})"),
        origin => format!("{origin} {mapping}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::dfcache::args::Args;
    use crate::dfcache::config::File;

    fn settings(line: &[&str], file: &str) -> Settings {
        let args = Args::parse_from_os([&["dfcache", "import", "f"], line].concat()).unwrap();
        let file = File::parse(Path::new("/c/dfcache.yaml"), file).unwrap().0;
        Settings::new(&args.matches, &file).unwrap()
    }

    #[test]
    fn links_are_resolved_here_before_a_path_is_mapped() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        let (data, etc) = (home.join("data"), home.join("etc"));
        std::fs::create_dir_all(data.join("deep")).unwrap();
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(data.join("deep/f"), "").unwrap();
        std::fs::write(etc.join("f"), "").unwrap();
        symlink("deep", data.join("relative")).unwrap();
        symlink(data.join("deep"), etc.join("absolute")).unwrap();
        symlink("../etc", data.join("out")).unwrap();
        let mapping = format!("{}:/mnt/models/", data.display());
        let settings = settings(&["--path-mapping", &mapping], "");
        let path = |at: &str| of_input(&home.join(at), &settings).map(|spelling| spelling.path);
        let there = Path::new("/mnt/models/deep/f");
        for at in ["data/deep/f", "data/relative/f", "etc/absolute/f", "data/relative/../deep/f"] {
            assert_eq!(path(at).unwrap(), there, "{at}");
        }
        for at in ["data/out/f", "etc/f", "data/../etc/f"] {
            let why = path(at).unwrap_err().to_string();
            let resolved = etc.join("f").display().to_string();
            assert!(
                why.starts_with(&resolved) && why.contains(&format!("--path-mapping {}", data.display())),
                "{why}"
            );
        }
        assert!(matches!(path("data/none"), Err(SpellingError::Resolve { .. })));
        let output = |at: &str| of_output(&home.join(at), &settings);
        let new = output("etc/absolute/new").unwrap();
        assert_eq!(
            (new.path.as_path(), new.mapped),
            (Path::new("/mnt/models/deep/new"), Some(data.join("deep/new")))
        );
        assert!(matches!(output("data/out/new"), Err(SpellingError::Unmatched { .. })));
    }

    #[test]
    fn a_mapping_for_every_path_need_not_fit_each() {
        let file = "client:\n  pathMapping: /none:/h\n";
        let root = Path::new("/");
        let any = of_input(root, &settings(&[], file)).unwrap();
        assert_eq!(any, Spelling { path: root.to_owned(), mapped: None });
        let why = of_input(root, &settings(&["--transfer", "path"], file)).unwrap_err().to_string();
        assert!(why.contains("client.pathMapping /none:/h (/c/dfcache.yaml:2:16)"), "{why}");
        let why = of_input(root, &settings(&["--path-mapping", "/none:/h"], "")).unwrap_err().to_string();
        assert!(why.contains("--path-mapping /none:/h"), "{why}");
    }
}
