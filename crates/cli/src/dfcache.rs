//! dfcache: content that users put into the swarm themselves, and get out of it on any host.

pub mod args;
pub mod config;
mod export;
mod import;
mod known;
mod receipt;
pub mod settings;
mod source;
mod spelling;
mod upload;

use std::io::{self, IsTerminal as _, Write as _};

use damselfly_core::TaskId;
use serde_json::{Value, json};

use self::args::{Args, Command};
use self::config::File;
use self::settings::Settings;
use crate::client::print_json;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Sink};
use crate::memory;

/// Runs dfcache. Needs a multi-threaded runtime.
pub async fn run(args: Args) -> Exit {
    memory::keep_what_is_freed();
    match attempt(&args).await {
        Ok(text) => {
            // A reader that went away has seen what it wanted.
            let _printed = io::stdout().lock().write_all(text.as_bytes());
            Exit::Success
        }
        Err(failure) => {
            let failure = failure.titled(args.command.failure_title());
            if args.json {
                print_json(&failure.json(), stdout_is_content(&args.command));
            } else {
                failure.report().print(stdout_is_taken(&args.command));
            }
            failure.exit
        }
    }
}

/// Whether stdout carries content.
fn stdout_is_content(command: &Command) -> bool {
    matches!(command, Command::Export(export) if export.output.as_os_str() == "-")
}

/// Whether stdout carries content, or the id for a program that asked for it.
fn stdout_is_taken(command: &Command) -> bool {
    stdout_is_content(command) || (matches!(command, Command::Import(_)) && !io::stdout().is_terminal())
}

/// Does what was asked and returns what is left to print.
async fn attempt(args: &Args) -> Result<String, Failure> {
    let title = args.command.failure_title();
    let failed = |why: &dyn std::fmt::Display| Failure::new(title, Exit::Failure, why);
    if let Some(level) = args.command.console() {
        // Stdout is for content, ids and what was asked to be shown.
        let plain =
            matches!(&args.command, Command::Export(_)) && !stdout_is_content(&args.command) && !args.json;
        logging::init(if plain { Sink::Stdout } else { Sink::Stderr }, level).map_err(|why| failed(&why))?;
    }
    let (file, warnings) =
        File::load(args.config.as_deref(), |name| std::env::var_os(name)).map_err(|why| failed(&why))?;
    for warning in warnings.iter().filter(|_| !args.json) {
        // Nobody is left to tell when stderr is closed.
        let _printed = writeln!(io::stderr().lock(), "dfcache: {warning}");
    }
    if matches!(args.command, Command::Config) {
        let lines = settings::lines(&file).map_err(|why| failed(&why))?;
        return Ok(if args.json { config_json(&lines) } else { settings::render(&lines) });
    }
    let invalid = |why: &dyn std::fmt::Display| Failure::new("Validating Failed!", Exit::Failure, why);
    let settings = Settings::new(&args.matches, &file).map_err(|why| invalid(&why))?;
    args.command.id().map(TaskId::parse).transpose().map_err(|why| invalid(&why))?;
    if let Command::Import(import) = &args.command {
        return import::run(import, &settings, args.json).await.map(|()| String::new());
    }
    if let Command::Export(export) = &args.command {
        return export::run(export, &settings, args.json).await.map(|()| String::new());
    }
    let channel = settings.connect().await?.channel;
    match &args.command {
        Command::Stat(stat) => known::stat(channel, title, &stat.id, args.json).await,
        Command::Ls(ls) if ls.cluster => known::list_cluster(channel, title, args.json).await,
        Command::Ls(_) => known::list(channel, title, args.json).await,
        Command::Rm(rm) => known::remove(channel, title, &rm.id, args.json).await,
        // Done above.
        Command::Import(_) | Command::Export(_) | Command::Config => Ok(String::new()),
    }
}

fn config_json(lines: &[settings::Line]) -> String {
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| {
            json!({ "command": line.command, "option": line.option, "value": line.value, "from": line.origin })
        })
        .collect();
    format!("{}\n", Value::from(lines))
}
