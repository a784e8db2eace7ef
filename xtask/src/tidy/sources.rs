//! Rules for single files.

use std::path::Path;

/// The most lines a source file of a crate has before its tests.
const MOST_LINES: usize = 500;
/// Generated code, which nobody reads.
const GENERATED: &str = "crates/api/src/gen";

/// What nothing here contains, and why. Split, so that this file does not contain it either.
const BANNED: [(&str, &str); 3] = [
    (concat!("to", "do!"), "finish it or leave it out"),
    (concat!("unimple", "mented!"), "finish it or leave it out"),
    (concat!("#[ign", "ore"), "a test runs, or is a privileged one (CONTRIBUTING.md)"),
];

/// Folders of machines on which this was written.
const MACHINES: [&str; 2] = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];

/// Everything wrong with the file at `path` below `root`, a line each.
pub(super) fn check(path: &Path, text: &str, root: &Path) -> Vec<String> {
    let mut findings = Vec::new();
    let mut find = |line: usize, what: String| findings.push(format!("{}:{line}: {what}", path.display()));
    let own = root.canonicalize().ok().filter(|root| root.components().count() > 2);
    let own = own.map(|root| format!("{}/", root.display()));
    for (number, line) in (1..).zip(text.lines()) {
        for machine in MACHINES.into_iter().chain(own.as_deref()) {
            if names_path(line, machine) {
                find(number, format!("{machine} is a path of one machine"));
            }
        }
    }
    if path.extension().is_none_or(|extension| extension != "rs") || path.starts_with(GENERATED) {
        return findings;
    }
    let code = (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with("//"));
    for (number, line) in code {
        for (word, instead) in BANNED {
            if line.contains(word) {
                find(number, format!("{word}: {instead}"));
            }
        }
    }
    let lines = lines_before_tests(text);
    if path.starts_with("crates") && !is_test(path) && lines > MOST_LINES {
        find(
            MOST_LINES,
            format!("{lines} lines before the tests, more than {MOST_LINES}: split it by subject"),
        );
    }
    findings
}

/// Whether `line` names the absolute path `folder`, not one that merely ends in it.
fn names_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|before| !before.is_alphanumeric() && !"._-*}~/".contains(before))
    })
}

/// Whether the whole file is tests.
fn is_test(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs")
        || path.components().any(|component| component.as_os_str() == "tests")
}

/// Lines up to the test module, if there is one.
fn lines_before_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let starts_tests = |at: &usize| {
        lines[*at] == "#[cfg(test)]"
            && lines[*at + 1..]
                .iter()
                .find(|line| !line.starts_with("#["))
                .is_some_and(|line| line.starts_with("mod "))
    };
    (0..lines.len()).find(starts_tests).unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        check(Path::new(path), text, Path::new("/nowhere/at/all"))
    }

    #[test]
    fn what_is_unfinished_or_skipped_is_found() {
        for (word, _) in BANNED {
            let text = format!("fn f() {{\n    {word}()\n}}\n");
            assert_eq!(findings("crates/core/src/a.rs", &text).len(), 1, "{word}");
            assert_eq!(findings("tests/tests/a.rs", &text).len(), 1, "{word}");
            assert!(findings("crates/core/src/a.rs", &format!("// no {word} here")).is_empty());
            assert!(findings("crates/api/src/gen/a.rs", &text).is_empty());
            assert!(findings("README.md", &text).is_empty());
        }
    }

    #[test]
    fn long_files_are_found() {
        let most = "\n".repeat(MOST_LINES);
        let more = "\n".repeat(MOST_LINES + 1);
        assert!(findings("crates/core/src/a.rs", &most).is_empty());
        assert!(
            findings("crates/core/src/a.rs", &more)[0].starts_with("crates/core/src/a.rs:500: 501 lines")
        );
        for not_counted in [
            "crates/core/src/a/tests.rs",
            "crates/core/tests/a.rs",
            "crates/api/src/gen/a.rs",
            "tests/src/a.rs",
        ] {
            assert!(findings(not_counted, &more).is_empty(), "{not_counted}");
        }
    }

    #[test]
    fn tests_do_not_count() {
        assert_eq!(lines_before_tests("a\n#[cfg(test)]\nmod tests {\n}\n"), 1);
        assert_eq!(lines_before_tests("a\n#[cfg(test)]\n#[allow(x)]\nmod tests;\n"), 1);
        assert_eq!(lines_before_tests("a\n#[cfg(test)]\nuse b;\nc\n"), 4);
        assert_eq!(lines_before_tests("a\n    #[cfg(test)]\n"), 2);
    }

    #[test]
    fn paths_of_machines_are_found() {
        for machine in MACHINES {
            assert_eq!(findings("docs/a.md", &format!("see\n`{machine}main`")).len(), 1);
            assert_eq!(findings("a.bin.txt", &format!("{machine}main")).len(), 1);
            assert!(findings("docs/a.md", &format!("frame{machine} target/*{machine}")).is_empty());
        }
        let root = tempfile::tempdir().unwrap();
        let named = root.path().canonicalize().unwrap().join("README.md");
        let text = format!("open {}", named.display());
        assert_eq!(check(Path::new("a.md"), &text, root.path()).len(), 1);
    }
}
