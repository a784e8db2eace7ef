//! Chores of this repository. `cargo xtask` lists them.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program of the repository talks on its terminal"
)]

mod codegen;
mod coverage;
mod metadata;
mod privileged;
mod tidy;

use std::error::Error;
use std::process::ExitCode;

/// One chore: its name on the command line, what it does, and how.
struct Verb {
    name: &'static str,
    help: &'static str,
    run: fn() -> Result<(), Box<dyn Error>>,
}

const VERBS: &[Verb] = &[
    Verb { name: "codegen", help: "generate crates/api/src/gen from proto/", run: || Ok(codegen::run()?) },
    Verb {
        name: "tidy",
        help: "check the rules that compiler and clippy do not know",
        run: || Ok(tidy::run()?),
    },
    Verb {
        name: "test-privileged",
        help: "run the tests that need root (needs root)",
        run: || Ok(privileged::run()?),
    },
    Verb {
        name: "coverage",
        help: "measure line coverage of each crate (needs cargo-tarpaulin)",
        run: || Ok(coverage::run()?),
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match parse(&arguments) {
        Ok(None) => {
            print!("{}", usage());
            ExitCode::SUCCESS
        }
        Ok(Some(verb)) => match (verb.run)() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("xtask {}: {}", verb.name, with_causes(error.as_ref()));
                ExitCode::FAILURE
            }
        },
        Err(why) => {
            eprint!("xtask: {why}\n{}", usage());
            ExitCode::from(2)
        }
    }
}

/// The verb that `arguments` name, or `None` when they ask for help.
fn parse(arguments: &[String]) -> Result<Option<&'static Verb>, String> {
    match arguments {
        [] => Ok(None),
        [help] if matches!(help.as_str(), "help" | "-h" | "--help") => Ok(None),
        [name] => match VERBS.iter().find(|verb| verb.name == name) {
            Some(verb) => Ok(Some(verb)),
            None => Err(format!("unknown verb {name:?}")),
        },
        [name, ..] => Err(format!("{name:?} takes no arguments")),
    }
}

fn usage() -> String {
    let mut text = String::from("usage: cargo xtask VERB\n");
    for verb in VERBS {
        text.push_str(&format!("  {:<16}{}\n", verb.name, verb.help));
    }
    text
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn verbs_are_found_and_others_refused() {
        assert!(parse(&[]).unwrap().is_none());
        assert!(parse(&words("--help")).unwrap().is_none());
        assert_eq!(parse(&words("codegen")).unwrap().unwrap().name, "codegen");
        assert!(parse(&words("codgen")).err().unwrap().contains("codgen"));
        assert!(parse(&words("codegen now")).is_err());
    }

    #[test]
    fn usage_names_every_verb() {
        for verb in VERBS {
            assert!(usage().contains(verb.name));
        }
    }
}
