//! dfctl: what a daemon is doing, and steering it.

pub mod args;
pub mod demo;
mod status;
mod task;
mod tree;

use std::io::{self, Write as _};

use damselfly_api::damselfly::v1::local_client::LocalClient;
use damselfly_api::damselfly::v1::{CancelRequest, LimitRequest, PauseRequest, ResumeRequest, TaskRef};
use damselfly_transport::local::PoolChannel;
use tonic::{Code, Status};

use self::args::{Args, Command, TaskCommand};
use crate::client::call;
use crate::endpoint;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Sink};
use crate::units;

/// Runs dfctl. The demonstration needs a multi-threaded runtime.
pub async fn run(args: Args) -> Exit {
    match attempt(&args).await {
        Ok(text) => {
            // A reader that went away has seen what it wanted.
            let _printed = io::stdout().lock().write_all(text.as_bytes());
            Exit::Success
        }
        Err(failure) if args.command.json() => {
            let _printed = writeln!(io::stdout().lock(), "{}", failure.json());
            failure.exit
        }
        Err(failure) => {
            failure.report().print(false);
            failure.exit
        }
    }
}

/// The runtime does not start.
pub fn broken(why: &io::Error) -> Exit {
    let failure = Failure::new("Starting Failed!", Exit::Failure, why);
    failure.report().print(false);
    failure.exit
}

/// Does what was asked and returns what to print.
async fn attempt(args: &Args) -> Result<String, Failure> {
    let title = args.command.failure_title();
    let sink = if args.console { Sink::Stderr } else { Sink::Nothing };
    logging::init(sink, args.log_level).map_err(|why| Failure::new(title, Exit::Failure, why))?;
    if let Command::Demo(demo) = &args.command {
        return demo::run(demo).await;
    }
    let daemon = endpoint::connect(args.endpoint.as_deref()).await?;
    let channel = daemon.channel;
    match &args.command {
        Command::Status(shown) => status::run(channel, shown.json).await,
        Command::Task(TaskCommand::Ls(shown)) => task::list(channel, shown.json).await,
        Command::Task(TaskCommand::Rm(named)) => task::remove(channel, &named.task).await,
        Command::Task(TaskCommand::Stat { task, shown }) => task::stat(channel, task, shown.json).await,
        Command::Pause(named) => {
            let (task, idle) = status::resolve(&channel, &named.task, title).await?;
            let id = task.id.clone();
            let mut client = LocalClient::new(channel);
            client
                .pause(call(PauseRequest { task: Some(task) }))
                .await
                .map_err(|why| refused(title, &why))?;
            let waits = if idle { "; its next download waits until dfctl resume" } else { "" };
            Ok(format!("paused {id}{waits}\n"))
        }
        Command::Resume(named) => {
            let (task, _) = status::resolve(&channel, &named.task, title).await?;
            let id = task.id.clone();
            let mut client = LocalClient::new(channel);
            client
                .resume(call(ResumeRequest { task: Some(task) }))
                .await
                .map_err(|why| refused(title, &why))?;
            Ok(format!("resumed {id}\n"))
        }
        Command::Cancel(named) => {
            let (task, _) = status::resolve(&channel, &named.task, title).await?;
            let id = task.id.clone();
            let mut client = LocalClient::new(channel);
            client
                .cancel(call(CancelRequest { task: Some(task) }))
                .await
                .map_err(|why| refused(title, &why))?;
            Ok(format!("cancelled {id}\n"))
        }
        Command::Limit { task, rate } => limit(channel, task, *rate, title).await,
        // It has no daemon to ask.
        Command::Demo(_) => Ok(String::new()),
    }
}

async fn limit(channel: PoolChannel, task: &str, rate: u64, title: &'static str) -> Result<String, Failure> {
    let (task, idle) = status::resolve(&channel, task, title).await?;
    let id = task.id.clone();
    let request = LimitRequest { task: Some(task), bytes_per_second: rate };
    LocalClient::new(channel).limit(call(request)).await.map_err(|why| refused(title, &why))?;
    Ok(match rate {
        0 => format!("no limit for {id}\n"),
        rate => {
            let from = if idle { " from its next download on" } else { "" };
            format!("limited {id} to {}/s{from}\n", units::bytes(rate))
        }
    })
}

/// A refusal by a daemon. Dragonfly's does not know the service that steers tasks.
fn refused(title: &'static str, status: &Status) -> Failure {
    let mut failure = Failure::of_call(title, status);
    if status.code() == Code::Unimplemented {
        failure.message = format!(
            "this daemon does not know the call ({}): it needs Damselfly's dfdaemon of this version",
            status.message()
        );
    }
    failure
}

/// The one of `tasks` whose id is or begins with `name`.
fn choose(tasks: Vec<TaskRef>, name: &str, title: &'static str) -> Result<TaskRef, Failure> {
    const SHOWN: usize = 5;
    let failed = |text: String| Failure::new(title, Exit::Failure, text);
    let mut found: Vec<TaskRef> = tasks.into_iter().filter(|task| task.id.starts_with(name)).collect();
    if let Some(exact) = found.iter().position(|task| task.id == name) {
        found.swap(0, exact);
        found.retain(|task| task.id == name);
    }
    match found.len() {
        0 => {
            Err(failed(format!("no task on this host has an id that begins with {name}; see dfctl task ls")))
        }
        1 => Ok(found.swap_remove(0)),
        many => {
            let ids: Vec<&str> = found.iter().take(SHOWN).map(|task| task.id.as_str()).collect();
            Err(failed(format!(
                "{many} tasks have ids that begin with {name}: {}; give more digits",
                ids.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks(ids: &[&str]) -> Vec<TaskRef> {
        ids.iter().map(|id| TaskRef { kind: 0, id: (*id).to_owned() }).collect()
    }

    #[test]
    fn a_unique_prefix_names_a_task() {
        let found = |name| choose(tasks(&["abc1", "abc2", "ab", "f00"]), name, "t");
        assert_eq!(found("f").unwrap().id, "f00");
        assert_eq!(found("abc2").unwrap().id, "abc2");
        // A whole id wins over the longer ones it begins.
        assert_eq!(found("ab").unwrap().id, "ab");
        let many = found("abc").unwrap_err().message;
        assert!(many.starts_with("2 tasks") && many.contains("abc1, abc2"), "{many}");
        assert!(found("0").unwrap_err().message.contains("no task on this host"));
    }
}
