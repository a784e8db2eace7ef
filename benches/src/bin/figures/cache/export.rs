//! Exports.

use std::os::linux::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use damselfly_benches::process::{Running, timed, until};
use damselfly_benches::stats::median;
use damselfly_benches::{BenchError, io};

use super::{Cache, cpu_of, in_turn};
use crate::bench::say;

/// Until the emulated daemon listens.
const PATIENCE: Duration = Duration::from_secs(20);

impl Cache<'_> {
    pub(super) fn export_by_stream(&self) -> Result<(), BenchError> {
        let mut ratios = Vec::new();
        for round in 0..self.rounds {
            let (source, output) = (self.source()?, self.output());
            let task = self.import(&source, "fd", "sha256")?;
            let ours = || {
                self.settle()?;
                self.export(&task.id, &output, "stream")
            };
            let alone = || {
                self.settle()?;
                let steps = self.steps(&source, &output)?;
                self.discard(&output)?;
                Ok(steps)
            };
            let (ours, alone) = in_turn(round, ours, alone)?;
            let [read, socket, write] = alone;
            say(&format!(
                "round {round}: export by stream cpu {:.2} s (wall {:.3} s); alone: read {:.2}, socket {:.2}, \
                 write {:.2}",
                ours.cpu, ours.wall, read.cpu, socket.cpu, write.cpu
            ));
            ratios.push(ours.cpu / cpu_of(&alone));
            self.forget(&task.id)?;
        }
        say(&format!("export-stream: cpu {:.2} of its steps' alone (goal: at most 1.5)", median(&ratios)));
        Ok(())
    }

    pub(super) async fn export_against_dragonfly(&self) -> Result<(), BenchError> {
        let (mut to_file, mut to_null) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let (source, output) = (self.source()?, self.output());
            let task = self.import(&source, "fd", "sha256")?;
            let socket = self.dir.join("dragonfly.sock");
            let daemon = Running::start(this_program("dragonfly-serve")?.arg(&socket).arg(&source))?;
            until(PATIENCE, async || tokio::net::UnixStream::connect(&socket).await.is_ok()).await?;
            let theirs = |output: &Path| {
                self.settle()?;
                timed(this_program("dragonfly-receive")?.arg(&socket).arg(output))
            };
            let (file, their_file) = in_turn(
                round,
                || {
                    self.settle()?;
                    self.export(&task.id, &output, "stream")
                },
                || {
                    let cost = theirs(&output)?;
                    self.discard(&output)?;
                    Ok(cost)
                },
            )?;
            let (null, their_null) = in_turn(
                round,
                || {
                    self.settle()?;
                    self.export_to_null(&task.id)
                },
                || theirs(Path::new("/dev/null")),
            )?;
            say(&format!(
                "round {round}: export by stream to a file {:.3} s (Dragonfly's way {:.3} s), to /dev/null {:.3} s \
                 (Dragonfly's way {:.3} s)",
                file.wall, their_file.wall, null.wall, their_null.wall
            ));
            to_file.push(their_file.wall / file.wall);
            to_null.push(their_null.wall / null.wall);
            drop(daemon);
            self.discard(&socket)?;
            self.forget(&task.id)?;
        }
        say(&format!(
            "export-dragonfly: {:.2} times as fast to a file (goal: at least 2.5), {:.2} times to /dev/null (goal: at \
             least 5)",
            median(&to_file),
            median(&to_null)
        ));
        Ok(())
    }

    pub(super) fn export_elsewhere(&self) -> Result<(), BenchError> {
        let elsewhere =
            tempfile::tempdir_in(&self.args.elsewhere).map_err(io("make a directory elsewhere"))?;
        let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.st_dev());
        let here = device(&self.dir).map_err(io("look at the directory"))?;
        if device(elsewhere.path()).map_err(io("look at the directory elsewhere"))? == here {
            return Err(BenchError::Failed("--elsewhere is on the same file system".to_owned()));
        }
        let output = elsewhere.path().join("output");
        let mut ratios = Vec::new();
        for round in 0..self.rounds {
            let source = self.source()?;
            let task = self.import(&source, "fd", "sha256")?;
            let ours = || {
                self.settle()?;
                self.export(&task.id, &output, "fd")
            };
            let cp = || {
                self.settle()?;
                let cost = self.cp(&source, &output)?;
                self.discard(&output)?;
                Ok(cost)
            };
            let (ours, cp) = in_turn(round, ours, cp)?;
            say(&format!("round {round}: export by descriptor {:.3} s, cp {:.3} s", ours.wall, cp.wall));
            ratios.push(cp.wall / ours.wall);
            self.forget(&task.id)?;
        }
        say(&format!("export-elsewhere: {:.2} of cp's speed (goal: at least 0.9)", median(&ratios)));
        Ok(())
    }
}

/// This program once more, as something else.
fn this_program(verb: &str) -> Result<Command, BenchError> {
    let mut command = Command::new(std::env::current_exe().map_err(io("find this program"))?);
    command.arg(verb);
    Ok(command)
}
