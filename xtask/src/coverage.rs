//! `cargo xtask coverage`: line coverage of each crate by all tests of the workspace, generated code and tests left out.
//!
//! One run of cargo-tarpaulin for all, because the tests of whole systems cover several crates at once.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::metadata::{cargo, root};

/// The least covered share of a crate's lines, in percent.
const LEAST: u64 = 85;
/// Generated code.
const GENERATED: &str = "crates/api/src/gen";
/// Build output and report. Instrumented code must not mix with the rest, nor make cargo rebuild it.
const FOLDER: &str = "target/coverage";
/// Seconds after which a test program counts as hanging.
const TIMEOUT: &str = "900";

/// Why coverage is unknown or too low.
#[derive(Debug, Error)]
pub(crate) enum CoverageError {
    /// Cargo does not start.
    #[error("cannot run cargo")]
    Start(#[source] io::Error),
    /// No tarpaulin.
    #[error("cargo-tarpaulin is missing: cargo install --locked cargo-tarpaulin")]
    Missing,
    /// Tarpaulin failed.
    #[error("cargo-tarpaulin failed: a test failed under it, or it could not build (see above)")]
    Failed,
    /// The report cannot be read.
    #[error("cannot read {path}")]
    Report {
        /// The report's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The report is not what tarpaulin writes.
    #[error("the report of cargo-tarpaulin is not what this program understands")]
    Format(#[from] serde_json::Error),
    /// Nothing was measured.
    #[error("the report names no file of crates/, so nothing was measured")]
    Nothing,
    /// Too few lines of a crate run in tests.
    #[error("line coverage below {LEAST} %: {}", .0.join(", "))]
    Low(Vec<String>),
}

#[derive(Deserialize)]
struct Report {
    files: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    /// Components of the absolute path.
    path: Vec<String>,
    covered: u64,
    coverable: u64,
}

/// Lines that ran in a test, and lines that could.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lines {
    covered: u64,
    coverable: u64,
}

impl Lines {
    fn is_enough(self) -> bool {
        self.covered * 100 >= self.coverable * LEAST
    }

    /// Percent with one decimal, rounded down, so that what is too low never looks like enough.
    fn percent(self) -> String {
        let tenths = (self.covered * 1000).checked_div(self.coverable).unwrap_or(1000);
        format!("{}.{} %", tenths / 10, tenths % 10)
    }
}

/// Measures and prints the coverage of each crate.
///
/// # Errors
/// When a test fails, and when a crate has too little.
pub(crate) fn run() -> Result<(), CoverageError> {
    let root = root();
    let mut tarpaulin = cargo();
    tarpaulin.args(["tarpaulin", "--version"]).stdout(std::process::Stdio::null());
    if !tarpaulin.status().map_err(CoverageError::Start)?.success() {
        return Err(CoverageError::Missing);
    }
    let status = cargo().args(arguments()).status().map_err(CoverageError::Start)?;
    sweep(&root);
    if !status.success() {
        return Err(CoverageError::Failed);
    }
    let path = root.join(FOLDER).join("tarpaulin-report.json");
    let report = std::fs::read(&path).map_err(|source| CoverageError::Report { path, source })?;
    let report: Report = serde_json::from_slice(&report)?;
    let root = root.canonicalize().map_err(|source| CoverageError::Report { path: root, source })?;
    let crates = by_crate(&report, &root);
    print!("{}", table(&crates));
    verdict(&crates)
}

fn arguments() -> Vec<&'static str> {
    let mut arguments = vec!["tarpaulin", "--engine", "llvm", "--workspace", "--exclude", "xtask"];
    arguments.extend(["--skip-clean", "--target-dir", FOLDER, "--out", "json", "--output-dir", FOLDER]);
    arguments.extend(["--exclude-files", "crates/api/src/gen/*", "target/*", "tests/*", "fuzz/*"]);
    arguments.extend(["--timeout", TIMEOUT, "--color", "never", "--avoid-cfg-tarpaulin"]);
    // The programs are run by tests as processes of their own.
    arguments.push("--follow-exec");
    // Counters need no debug information, which would be most of what is built.
    arguments.push("--rustflags=-Cdebuginfo=0");
    // The privileged tests count too, where they can run.
    if rustix::process::geteuid().is_root() {
        arguments.push("--all-features");
    }
    arguments
}

/// Removes the counters of programs that tests ran without the environment that says where to put them. They are not
/// counted, and git ignores them, so what cannot be removed does no harm.
fn sweep(root: &Path) {
    let folders = std::fs::read_dir(root.join("crates")).into_iter().flatten().flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten().flatten());
    for file in files.filter(|file| file.path().extension().is_some_and(|extension| extension == "profraw")) {
        drop(std::fs::remove_file(file.path()));
    }
}

fn by_crate(report: &Report, root: &Path) -> BTreeMap<String, Lines> {
    let mut crates: BTreeMap<String, Lines> = BTreeMap::new();
    for file in &report.files {
        let path: PathBuf = file.path.iter().collect();
        let Ok(path) = path.strip_prefix(root) else { continue };
        let names: Vec<_> = path.iter().map(|name| name.to_string_lossy()).collect();
        let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        let ["crates", folder, "src", rest @ ..] = names.as_slice() else { continue };
        if path.starts_with(GENERATED) || rest.iter().any(|name| ["tests", "tests.rs"].contains(name)) {
            continue;
        }
        let lines = crates.entry((*folder).to_owned()).or_default();
        lines.covered += file.covered;
        lines.coverable += file.coverable;
    }
    crates
}

fn table(crates: &BTreeMap<String, Lines>) -> String {
    let mut text = String::from("line coverage, generated code and tests left out\n");
    for (name, lines) in crates {
        let of = format!("{} of {}", lines.covered, lines.coverable);
        text.push_str(&format!("  {name:<20}{:>9}  {of}\n", lines.percent()));
    }
    text
}

fn verdict(crates: &BTreeMap<String, Lines>) -> Result<(), CoverageError> {
    if crates.values().all(|lines| lines.coverable == 0) {
        return Err(CoverageError::Nothing);
    }
    let low: Vec<String> = crates
        .iter()
        .filter(|(_, lines)| !lines.is_enough())
        .map(|(name, lines)| format!("{name} {}", lines.percent()))
        .collect();
    if low.is_empty() { Ok(()) } else { Err(CoverageError::Low(low)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(files: &[(&str, u64, u64)]) -> Report {
        let files = files.iter().map(|(path, covered, coverable)| File {
            path: Path::new(path).iter().map(|name| name.to_string_lossy().into_owned()).collect(),
            covered: *covered,
            coverable: *coverable,
        });
        Report { files: files.collect() }
    }

    #[test]
    fn files_count_for_their_crate() {
        let report = report(&[
            ("/repository/crates/core/src/id.rs", 8, 10),
            ("/repository/crates/core/src/a/b.rs", 1, 10),
            ("/repository/crates/core/src/a/tests.rs", 0, 1000),
            ("/repository/crates/core/tests/ids.rs", 0, 1000),
            ("/repository/crates/api/src/gen/common.v2.rs", 0, 1000),
            ("/repository/crates/api/src/lib.rs", 0, 0),
            ("/repository/xtask/src/main.rs", 0, 1000),
            ("/elsewhere/crates/core/src/id.rs", 0, 1000),
        ]);
        let crates = by_crate(&report, Path::new("/repository"));
        let expected =
            [("api".to_owned(), Lines::default()), ("core".to_owned(), Lines { covered: 9, coverable: 20 })];
        assert_eq!(crates, BTreeMap::from(expected));
        assert!(table(&crates).contains("core                   45.0 %  9 of 20"), "{}", table(&crates));
    }

    #[test]
    fn stray_counters_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("crates/core");
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["default_1_2.profraw", "Cargo.toml"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        sweep(root.path());
        let left: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left, ["Cargo.toml"]);
    }

    #[test]
    fn too_little_is_named() {
        let crates = |covered| BTreeMap::from([("core".to_owned(), Lines { covered, coverable: 1000 })]);
        assert!(verdict(&crates(850)).is_ok());
        let error = verdict(&crates(849)).unwrap_err().to_string();
        assert_eq!(error, "line coverage below 85 %: core 84.9 %");
        assert!(matches!(verdict(&BTreeMap::new()), Err(CoverageError::Nothing)));
    }
}
