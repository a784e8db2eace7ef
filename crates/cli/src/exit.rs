//! Exit codes of every program (`docs/exit-codes.md`). They are stable: a number never changes its meaning.

use std::process::ExitCode;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// What was asked for is done.
    Success,
    /// It failed in a way that has no code of its own.
    Failure,
    /// The command line is wrong (clap uses this number too).
    Usage,
    /// No daemon could be reached, or the connection to it broke.
    NoDaemon,
    /// The origin refused or failed the request.
    Origin,
    /// The content is not what `--digest` promised.
    Digest,
    /// The daemon or the output has no room for the content.
    NoSpace,
    /// `--timeout` ended first.
    Timeout,
    /// SIGINT ended it.
    Interrupted,
    /// SIGTERM ended it.
    Terminated,
}

impl Exit {
    /// Every way to end, in order of the codes.
    pub const ALL: [Exit; 10] = [
        Exit::Success,
        Exit::Failure,
        Exit::Usage,
        Exit::NoDaemon,
        Exit::Origin,
        Exit::Digest,
        Exit::NoSpace,
        Exit::Timeout,
        Exit::Interrupted,
        Exit::Terminated,
    ];

    /// The number the shell sees.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::NoDaemon => 3,
            Exit::Origin => 4,
            Exit::Digest => 5,
            Exit::NoSpace => 6,
            Exit::Timeout => 7,
            // 128 and the signal's number, as shells report it.
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones() {
        let document = include_str!("../../../docs/exit-codes.md");
        let codes: Vec<u8> = Exit::ALL.into_iter().map(Exit::code).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 130, 143]);
        for code in codes {
            assert!(document.contains(&format!("| {code} |")), "docs/exit-codes.md does not name {code}");
        }
    }
}
