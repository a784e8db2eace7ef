//! What `-V` prints.

/// The release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The short hash of the commit; releases set `DAMSELFLY_COMMIT` when they compile.
pub const COMMIT: &str = match option_env!("DAMSELFLY_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

const DATE: &str = match option_env!("DAMSELFLY_COMMIT_DATE") {
    Some(date) => date,
    None => "unknown",
};

/// `<version> (<short hash>, <commit date>)`; clap puts the program's name before it.
#[must_use]
pub fn long() -> &'static str {
    use std::sync::OnceLock;
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| format!("{VERSION} ({COMMIT}, {DATE})"))
}
