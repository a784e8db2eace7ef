//! Command lines and environment variables, read by the programs' own definitions.

use clap::{CommandFactory as _, Parser as _};
use damselfly_cli::{dfcache, dfdaemon, dfscheduler};
use thiserror::Error;

/// A program of ours with its command line, as it understood it.
#[derive(Clone, Debug)]
pub enum Program {
    /// `dfdaemon`.
    Daemon(Box<dfdaemon::args::Args>),
    /// `dfscheduler`.
    Scheduler(Box<dfscheduler::args::Args>),
    /// `dfcache`.
    Cache(Box<dfcache::args::Args>),
}

/// Why a command is refused.
#[derive(Debug, Error)]
pub enum CommandError {
    /// No program of ours, and none that the image is known to have.
    #[error("{0:?} is no program of ours")]
    Unknown(Option<String>),
    /// The program does not know this variable.
    #[error("{0} is no environment variable of this program")]
    Variable(String),
    /// The program does not take the command line.
    #[error(transparent)]
    Usage(#[from] clap::Error),
}

impl Program {
    /// What `line` runs, the program first, with the `environment` given: a variable counts as the flag it stands for.
    ///
    /// # Errors
    /// When the program does not take it.
    pub fn read(line: &[String], environment: &[(String, String)]) -> Result<Self, CommandError> {
        let mut definition = match line.first().map(|program| program.rsplit('/').next().unwrap_or(program)) {
            Some("dfdaemon") => dfdaemon::args::Args::command(),
            Some("dfscheduler") => dfscheduler::args::Args::command(),
            Some("dfcache") => dfcache::args::Args::command(),
            _ => return Err(CommandError::Unknown(line.first().cloned())),
        };
        definition.build();
        let flags = environment.iter().map(|(name, value)| {
            let stands_for = definition
                .get_arguments()
                .find(|flag| flag.get_env().is_some_and(|variable| variable == name.as_str()));
            let flag = stands_for
                .and_then(clap::Arg::get_long)
                .ok_or_else(|| CommandError::Variable(name.clone()))?;
            Ok(format!("--{flag}={value}"))
        });
        let flags = flags.collect::<Result<Vec<_>, CommandError>>()?;
        let line = line.iter().cloned().chain(flags);
        Ok(match definition.get_name() {
            "dfdaemon" => Self::Daemon(Box::new(dfdaemon::args::Args::try_parse_from(line)?)),
            "dfscheduler" => Self::Scheduler(Box::new(dfscheduler::args::Args::try_parse_from(line)?)),
            _ => Self::Cache(Box::new(dfcache::args::Args::parse_from_os(line)?)),
        })
    }
}
