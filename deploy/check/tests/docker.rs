//! The image: built by the toolchain that we need, and with every program.

use std::fs;

use damselfly_deploy_check::deploy;
use damselfly_deploy_check::program::Program;

fn read(path: &str) -> String {
    fs::read_to_string(deploy().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// The rest of the one line of the Dockerfile that begins so.
fn after<'a>(dockerfile: &'a str, beginning: &str) -> &'a str {
    let rests: Vec<_> = dockerfile.lines().filter_map(|line| line.strip_prefix(beginning)).collect();
    let [rest] = rests[..] else { panic!("{beginning:?}: {rests:?}") };
    rest
}

#[test]
fn the_toolchain_is_the_one_we_need() {
    let (dockerfile, workspace) = (read("docker/Dockerfile"), read("../Cargo.toml"));
    let needed = after(&workspace, "rust-version = ").trim_matches('"');
    let (version, _) = after(&dockerfile, "FROM rust:").split_once('-').expect("a variant");
    assert_eq!(version, needed);
}

#[test]
fn every_program_is_in_the_image() {
    let dockerfile = read("docker/Dockerfile");
    let installed: Vec<_> =
        dockerfile.split_whitespace().filter_map(|word| word.strip_prefix("target/release/")).collect();
    for program in fs::read_dir(deploy().join("../crates/cli/src/bin")).unwrap() {
        let name = program.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(installed.contains(&&*name), "{name} is not in {installed:?}");
    }
}

#[test]
fn the_daemon_takes_what_the_image_runs_by_itself() {
    let line: Vec<String> = serde_json::from_str(after(&read("docker/Dockerfile"), "CMD ")).unwrap();
    assert!(matches!(Program::read(&line, &[]), Ok(Program::Daemon(_))), "{line:?}");
}
