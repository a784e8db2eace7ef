//! dfctl's command line.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::logging::Level;
use crate::{units, version};

/// Looks at a daemon and steers its tasks.
#[derive(Clone, Debug, Parser)]
#[command(name = "dfctl", version = version::long(), max_term_width = 110)]
#[command(
    after_help = "TASK is a task's id, or the beginning of one that no other task on this host shares."
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// The daemon's socket [default: the user's, else /var/run/dragonfly/dfdaemon.sock]
    #[arg(short, long, global = true, value_name = "SOCKET")]
    pub endpoint: Option<PathBuf>,

    /// What to log with --console
    #[arg(short, long, global = true, env = "DFCTL_LOG_LEVEL", default_value = "info")]
    pub log_level: Level,

    /// Log to stderr
    #[arg(long, global = true, env = "DFCTL_CONSOLE", value_parser = clap::builder::BoolishValueParser::new())]
    pub console: bool,
}

/// What dfctl does.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show the host, its tasks with progress and sources, and the live supervision tree
    Status(Shown),
    /// Stop fetching a task and keep what it has; its downloads wait, also across a restart of the daemon
    Pause(Task),
    /// Go on with a paused task
    Resume(Task),
    /// Stop fetching a task and fail its downloads; what it has stays
    Cancel(Task),
    /// Limit how fast a task is fetched, now and by later downloads until the daemon restarts
    Limit {
        /// The task's id or its beginning
        task: String,
        /// Bytes per second, such as 10MiB; 0 or none lifts the limit
        #[arg(value_parser = units::parse_rate)]
        rate: u64,
    },
    /// The tasks on this host
    #[command(subcommand)]
    Task(TaskCommand),
    /// Watch a swarm on this machine: an origin, a scheduler and some daemons distribute a generated file
    Demo(Demo),
}

/// How the demonstration runs. It needs no daemon and leaves nothing behind.
#[derive(Clone, Debug, ClapArgs)]
pub struct Demo {
    /// Bytes of the generated file
    #[arg(long, default_value = "256MiB", value_name = "SIZE", value_parser = units::parse_size)]
    pub size: ByteSize,

    /// Daemons
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub hosts: u8,

    /// Keep the daemons' files and say where they are
    #[arg(long)]
    pub keep: bool,

    /// How to show it.
    #[command(flatten)]
    pub shown: Shown,
}

/// What dfctl does with tasks on this host.
#[derive(Clone, Debug, Subcommand)]
pub enum TaskCommand {
    /// List them
    Ls(Shown),
    /// Remove one here and at the scheduler
    Rm(Task),
    /// Show one, with what the scheduler knows of it
    Stat {
        /// The task's id or its beginning
        task: String,
        /// How to show it.
        #[command(flatten)]
        shown: Shown,
    },
}

/// A task by name.
#[derive(Clone, Debug, ClapArgs)]
pub struct Task {
    /// The task's id or its beginning
    pub task: String,
}

/// How something is shown.
#[derive(Clone, Debug, ClapArgs)]
pub struct Shown {
    /// Print one JSON object for programs
    #[arg(long)]
    pub json: bool,
}

impl Command {
    /// Whether the answer is for programs.
    #[must_use]
    pub fn json(&self) -> bool {
        match self {
            Command::Status(shown)
            | Command::Task(TaskCommand::Ls(shown) | TaskCommand::Stat { shown, .. })
            | Command::Demo(Demo { shown, .. }) => shown.json,
            _ => false,
        }
    }

    /// A failure's first line, in Dragonfly's words where it has the command.
    #[must_use]
    pub fn failure_title(&self) -> &'static str {
        match self {
            Command::Status(_) => "Reading Status Failed!",
            Command::Pause(_) => "Pausing Task Failed!",
            Command::Resume(_) => "Resuming Task Failed!",
            Command::Cancel(_) => "Cancelling Task Failed!",
            Command::Limit { .. } => "Limiting Task Failed!",
            Command::Task(TaskCommand::Ls(_)) => "Listing Tasks Failed!",
            Command::Task(TaskCommand::Rm(_)) => "Removing Task Failed!",
            Command::Task(TaskCommand::Stat { .. }) => "Stating Failed!",
            Command::Demo(_) => "Demo Failed!",
        }
    }
}
