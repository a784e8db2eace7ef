//! What `cargo metadata` says about the workspace, as far as the chores here ask.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use thiserror::Error;

/// Why the workspace cannot be looked at.
#[derive(Debug, Error)]
pub(crate) enum MetadataError {
    /// A program does not start.
    #[error("cannot run {0}")]
    Start(&'static str, #[source] io::Error),
    /// A program failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// Which.
        program: &'static str,
        /// Its words.
        said: String,
    },
    /// Cargo's answer is not what is documented.
    #[error("cargo metadata answered what this program does not understand")]
    Format(#[from] serde_json::Error),
}

/// The workspace and everything it depends on, on this machine's platform.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Metadata {
    /// Every package of the graph.
    pub(crate) packages: Vec<Package>,
    /// Ids of our own packages.
    pub(crate) workspace_members: Vec<String>,
    /// Who depends on whom.
    pub(crate) resolve: Resolve,
}

/// A package, ours or not.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    #[serde(default)]
    pub(crate) dependencies: Vec<Dependency>,
    #[serde(default)]
    pub(crate) features: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    pub(crate) targets: Vec<Target>,
}

/// A line of a manifest's dependencies.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `dev`, `build` or nothing.
    pub(crate) kind: Option<String>,
}

/// What a package builds.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kind: Vec<String>,
    #[serde(default, rename = "required-features")]
    pub(crate) required_features: Vec<String>,
}

/// The resolved graph.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Resolve {
    pub(crate) nodes: Vec<Node>,
}

/// A package in the graph.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) deps: Vec<Edge>,
}

/// A dependency in the graph.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Edge {
    pub(crate) pkg: String,
    pub(crate) dep_kinds: Vec<EdgeKind>,
}

/// For what it is needed.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct EdgeKind {
    pub(crate) kind: Option<String>,
}

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Cargo, the same that runs this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

impl Metadata {
    /// Asks cargo.
    ///
    /// # Errors
    /// When cargo or rustc fails, usually because the manifests are broken.
    pub(crate) fn load() -> Result<Self, MetadataError> {
        let host = said("rustc", Command::new("rustc").args(["--print", "host-tuple"]))?;
        let mut cargo = cargo();
        cargo.args(["metadata", "--format-version", "1", "--filter-platform", host.trim()]);
        Ok(serde_json::from_str(&said("cargo metadata", &mut cargo)?)?)
    }

    /// Our own packages.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }

    /// The package called `name` and every package it is built from, without what only its tests and build scripts
    /// need. Features are those of the whole workspace, so there may be a few too many.
    pub(crate) fn built_from(&self, name: &str) -> BTreeSet<&str> {
        let edges: BTreeMap<&str, &[Edge]> =
            self.resolve.nodes.iter().map(|node| (node.id.as_str(), node.deps.as_slice())).collect();
        let mut waiting: Vec<&str> =
            self.packages.iter().filter(|package| package.name == name).map(|p| p.id.as_str()).collect();
        let mut found = BTreeSet::new();
        while let Some(id) = waiting.pop() {
            if found.insert(id) {
                let edges = edges.get(id).copied().unwrap_or_default();
                let normal =
                    edges.iter().filter(|edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none()));
                waiting.extend(normal.map(|edge| edge.pkg.as_str()));
            }
        }
        found
    }
}

fn said(program: &'static str, command: &mut Command) -> Result<String, MetadataError> {
    let output = command.output().map_err(|error| MetadataError::Start(program, error))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(MetadataError::Failed { program, said })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_normal_dependencies_are_built_from() {
        let json = r#"{
            "packages": [
                {"id": "a 1", "name": "a", "manifest_path": "/a"}, {"id": "b 1", "name": "b", "manifest_path": "/b"},
                {"id": "c 1", "name": "c", "manifest_path": "/c"}, {"id": "d 1", "name": "d", "manifest_path": "/d"}
            ],
            "workspace_members": ["a 1"],
            "resolve": {"nodes": [
                {"id": "a 1", "deps": [
                    {"pkg": "b 1", "dep_kinds": [{"kind": "dev"}, {"kind": null}]},
                    {"pkg": "d 1", "dep_kinds": [{"kind": "dev"}]}
                ]},
                {"id": "b 1", "deps": [{"pkg": "c 1", "dep_kinds": [{"kind": null}]}]},
                {"id": "c 1", "deps": [{"pkg": "d 1", "dep_kinds": [{"kind": "build"}]}]},
                {"id": "d 1", "deps": []}
            ]}
        }"#;
        let metadata: Metadata = serde_json::from_str(json).unwrap();
        assert_eq!(metadata.built_from("a").into_iter().collect::<Vec<_>>(), ["a 1", "b 1", "c 1"]);
        assert_eq!(metadata.members().map(|package| package.name.as_str()).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let error = said("cargo", cargo().arg("--no-such-flag")).unwrap_err().to_string();
        assert!(error.contains("--no-such-flag"), "{error}");
    }
}
