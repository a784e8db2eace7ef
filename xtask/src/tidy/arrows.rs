//! Who may depend on whom (ARCHITECTURE.md), and on how much.

use std::path::Path;

use crate::metadata::{Metadata, Package, root};

/// Folders of `crates/`, lowest first. A crate may depend on those in lower rows only.
const LAYERS: [&[&str]; 4] = [
    &["api", "core"],
    &["scheduler", "scheduler-client", "source", "storage", "transport"],
    &["actors"],
    &["cli"],
];
/// What whole-system tests share. It is built from the runtime, so only tests of the programs may use it too.
const TEST_SUPPORT: &str = "damselfly-tests";
/// What the crates' packages are called: this and the folder.
const PREFIX: &str = "damselfly-";
/// The most packages that the programs may be built from, our own included.
const MOST_PACKAGES: usize = 330;
/// What the vocabulary, which has no I/O and no clock, is never built from.
const NOT_IN_CORE: &str = "tokio";

/// Everything wrong with the graph, a sentence each.
pub(super) fn check(metadata: &Metadata) -> Vec<String> {
    let crates = root().join("crates");
    let mut findings = Vec::new();
    for package in metadata.members() {
        findings.extend(arrows(package, metadata, &crates));
    }
    let built_from = metadata.built_from("damselfly-cli").len();
    if built_from > MOST_PACKAGES {
        findings.push(format!(
            "damselfly-cli is built from {built_from} packages, more than {MOST_PACKAGES}: `cargo tree -p damselfly-cli -e normal` shows why"
        ));
    }
    let core = metadata.built_from("damselfly-core");
    if metadata
        .packages
        .iter()
        .any(|package| package.name == NOT_IN_CORE && core.contains(package.id.as_str()))
    {
        findings.push(format!("damselfly-core is built from {NOT_IN_CORE}: it has no I/O and no clock"));
    }
    findings
}

fn layer(package: &str) -> Option<usize> {
    let folder = package.strip_prefix(PREFIX)?;
    LAYERS.iter().position(|layer| layer.contains(&folder))
}

fn arrows(package: &Package, metadata: &Metadata, crates: &Path) -> Vec<String> {
    let same_folder =
        |a: &Path, b: &Path| a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    let in_crates =
        package.manifest_path.ancestors().nth(2).is_some_and(|folder| same_folder(folder, crates));
    let Some(from) = layer(&package.name) else {
        // Tests, benches and chores may use everything.
        let finding = format!("{} is in crates/ but in no layer of xtask/src/tidy/arrows.rs", package.name);
        return in_crates.then_some(finding).into_iter().collect();
    };
    let ours = |name: &str| metadata.members().any(|member| member.name == name);
    let mut findings = Vec::new();
    for dependency in package.dependencies.iter().filter(|dependency| ours(&dependency.name)) {
        let test_only = dependency.kind.as_deref() == Some("dev");
        let support = (dependency.name == TEST_SUPPORT).then_some(LAYERS.len() - 1);
        let downwards =
            layer(&dependency.name).or(support).is_some_and(|to| to < from || (test_only && to == from));
        if !downwards {
            findings.push(format!(
                "{} depends on {}: arrows point only downwards, see xtask/src/tidy/arrows.rs",
                package.name, dependency.name
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{Dependency, Edge, EdgeKind, Node, Resolve};

    fn graph(arrows: &[(&str, &str, Option<&str>)]) -> Metadata {
        let mut names: Vec<&str> = arrows.iter().flat_map(|(from, to, _)| [*from, *to]).collect();
        names.sort_unstable();
        names.dedup();
        let dependencies = |name: &str| {
            let of = arrows.iter().filter(|(from, _, _)| *from == name);
            of.map(|(_, to, kind)| Dependency { name: (*to).to_owned(), kind: kind.map(str::to_owned) })
                .collect()
        };
        let package = |name: &&str| Package {
            id: (*name).to_owned(),
            name: (*name).to_owned(),
            dependencies: dependencies(name),
            ..Package::default()
        };
        let node = |name: &&str| Node {
            id: (*name).to_owned(),
            deps: arrows
                .iter()
                .filter(|(from, _, _)| from == name)
                .map(|(_, to, kind)| Edge {
                    pkg: (*to).to_owned(),
                    dep_kinds: vec![EdgeKind { kind: kind.map(str::to_owned) }],
                })
                .collect(),
        };
        Metadata {
            packages: names.iter().map(package).collect(),
            workspace_members: names
                .iter()
                .filter(|name| name.starts_with(PREFIX))
                .map(|name| (*name).to_owned())
                .collect(),
            resolve: Resolve { nodes: names.iter().map(node).collect() },
        }
    }

    fn findings(arrows: &[(&str, &str, Option<&str>)]) -> usize {
        check(&graph(arrows)).len()
    }

    #[test]
    fn arrows_point_downwards() {
        assert_eq!(findings(&[("damselfly-cli", "damselfly-actors", None)]), 0);
        assert_eq!(findings(&[("damselfly-actors", "damselfly-storage", None)]), 0);
        assert_eq!(findings(&[("damselfly-storage", "damselfly-core", None)]), 0);
        assert_eq!(findings(&[("damselfly-tests", "damselfly-cli", None)]), 0);
        assert_eq!(findings(&[("damselfly-storage", "damselfly-transport", None)]), 1);
        assert_eq!(findings(&[("damselfly-core", "damselfly-api", None)]), 1);
        assert_eq!(findings(&[("damselfly-source", "damselfly-actors", Some("build"))]), 1);
        assert_eq!(findings(&[("damselfly-actors", "damselfly-tests", None)]), 1);
    }

    #[test]
    fn tests_of_a_crate_may_look_sideways_but_not_up() {
        assert_eq!(findings(&[("damselfly-scheduler-client", "damselfly-scheduler", Some("dev"))]), 0);
        assert_eq!(findings(&[("damselfly-scheduler-client", "damselfly-actors", Some("dev"))]), 1);
        assert_eq!(findings(&[("damselfly-cli", TEST_SUPPORT, Some("dev"))]), 0);
        assert_eq!(findings(&[("damselfly-cli", TEST_SUPPORT, None)]), 1);
        assert_eq!(findings(&[("damselfly-transport", TEST_SUPPORT, Some("dev"))]), 1);
    }

    #[test]
    fn a_crate_without_a_layer_is_found() {
        let mut metadata = graph(&[("damselfly-new", "damselfly-core", None)]);
        assert_eq!(check(&metadata), Vec::<String>::new());
        // Its manifest lies in crates/ like that of core.
        let core = root().join("crates/core/Cargo.toml");
        for package in &mut metadata.packages {
            package.manifest_path.clone_from(&core);
        }
        assert!(check(&metadata)[0].contains("damselfly-new"));
    }

    #[test]
    fn the_programs_are_built_from_a_bounded_number_of_packages() {
        let names: Vec<String> = (0..MOST_PACKAGES).map(|n| format!("dependency-{n}")).collect();
        let arrows: Vec<_> = names.iter().map(|name| ("damselfly-cli", name.as_str(), None)).collect();
        assert_eq!(findings(&arrows), 1);
        assert_eq!(findings(&arrows[1..]), 0);
    }

    #[test]
    fn core_is_not_built_from_tokio() {
        assert_eq!(findings(&[("damselfly-core", "middle", None), ("middle", "tokio", None)]), 1);
        assert_eq!(findings(&[("damselfly-core", "middle", Some("dev")), ("middle", "tokio", None)]), 0);
    }
}
