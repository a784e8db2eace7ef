//! `cargo xtask test-privileged`: tests that need root, because they act as other users and in other mount and network
//! namespaces.
//!
//! Such tests are compiled with the feature `privileged` of their package only, so that nobody runs or skips them by
//! accident. Their test target is called `privileged`, or requires the feature in the manifest.

use std::io;

use thiserror::Error;

use crate::metadata::{Metadata, MetadataError, Package, cargo};

/// The feature, and the name of a test target that is empty without it.
const FEATURE: &str = "privileged";

/// Why privileged tests did not run or not pass.
#[derive(Debug, Error)]
pub(crate) enum PrivilegedError {
    /// Not root.
    #[error(
        "these tests act as other users and in other mount and network namespaces, so they need root, and you are uid {0}; run `sudo -E env \"PATH=$PATH\" cargo xtask test-privileged`, or let a container or CI run it"
    )]
    NotRoot(u32),
    /// The workspace's packages are not to be had.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A package has the feature and nothing to run with it.
    #[error(
        "{0} has the feature `privileged` but no test target of that name, nor one that requires it, so nothing would be tested"
    )]
    NoTarget(String),
    /// No package has the feature.
    #[error("no package has the feature `privileged`, so nothing would be tested")]
    Nothing,
    /// Cargo does not start.
    #[error("cannot run cargo")]
    Start(#[source] io::Error),
    /// A test failed, or did not build.
    #[error("privileged tests of {0} failed")]
    Failed(String),
}

/// Runs them all.
///
/// # Errors
/// When not root, when there is nothing to run, and when a test fails.
pub(crate) fn run() -> Result<(), PrivilegedError> {
    let uid = rustix::process::geteuid();
    if !uid.is_root() {
        return Err(PrivilegedError::NotRoot(uid.as_raw()));
    }
    for arguments in plan(Metadata::load()?.members())? {
        println!("cargo {}", arguments.join(" "));
        let status = cargo().args(&arguments).status().map_err(PrivilegedError::Start)?;
        if !status.success() {
            return Err(PrivilegedError::Failed(arguments[2].clone()));
        }
    }
    Ok(())
}

/// What to call cargo with: once for each package with privileged tests.
fn plan<'a>(members: impl Iterator<Item = &'a Package>) -> Result<Vec<Vec<String>>, PrivilegedError> {
    let mut runs = Vec::new();
    for package in members.filter(|package| package.features.contains_key(FEATURE)) {
        let mut arguments: Vec<String> =
            ["test", "-p", &package.name, "--features", FEATURE].map(str::to_owned).into();
        let without_targets = arguments.len();
        for target in &package.targets {
            let requires = target.required_features.iter().any(|feature| feature == FEATURE);
            if (requires || target.name == FEATURE) && target.kind.iter().any(|kind| kind == "test") {
                arguments.extend(["--test".to_owned(), target.name.clone()]);
            }
        }
        if arguments.len() == without_targets {
            return Err(PrivilegedError::NoTarget(package.name.clone()));
        }
        runs.push(arguments);
    }
    if runs.is_empty() { Err(PrivilegedError::Nothing) } else { Ok(runs) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Target;

    fn package(name: &str, feature: bool, targets: &[(&str, &str, bool)]) -> Package {
        let target = |(name, kind, requires): &(&str, &str, bool)| Target {
            name: (*name).to_owned(),
            kind: vec![(*kind).to_owned()],
            required_features: if *requires { vec![FEATURE.to_owned()] } else { Vec::new() },
        };
        Package {
            name: name.to_owned(),
            features: feature.then(|| (FEATURE.to_owned(), Vec::new())).into_iter().collect(),
            targets: targets.iter().map(target).collect(),
            ..Package::default()
        }
    }

    #[test]
    fn exactly_the_privileged_targets_run() {
        let transport = package(
            "damselfly-transport",
            true,
            &[
                ("damselfly_transport", "lib", false),
                ("lane", "test", false),
                ("privileged", "test", false),
                ("callers", "test", true),
            ],
        );
        let core = package("damselfly-core", false, &[("ids", "test", false)]);
        let runs = plan([&transport, &core].into_iter()).unwrap();
        let lines: Vec<String> = runs.iter().map(|arguments| arguments.join(" ")).collect();
        assert_eq!(
            lines,
            ["test -p damselfly-transport --features privileged --test privileged --test callers"]
        );
    }

    #[test]
    fn nothing_to_run_is_an_error() {
        assert!(matches!(plan([].into_iter()), Err(PrivilegedError::Nothing)));
        let empty = package("a", true, &[("ids", "test", false), ("a", "lib", true)]);
        assert!(matches!(plan([&empty].into_iter()), Err(PrivilegedError::NoTarget(name)) if name == "a"));
    }
}
