//! Imports.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use damselfly_benches::process::{Cost, ran};
use damselfly_benches::stats::median;
use damselfly_benches::{BenchError, io, parts};
use damselfly_core::Algorithm;

use super::{Cache, cpu_of, in_turn};
use crate::bench::say;

impl Cache<'_> {
    pub(super) fn import_by_stream(&self) -> Result<(), BenchError> {
        let mut ratios = Vec::new();
        for round in 0..self.rounds {
            let (source, output) = (self.source()?, self.output());
            let ours = || {
                self.settle()?;
                self.import_once(&source, "stream", "sha256")
            };
            let alone = || {
                self.settle()?;
                let steps = self.steps(&source, &output)?;
                let crc = parts::digest(Algorithm::Crc32, self.size)?;
                let id = parts::digest(Algorithm::Sha256, self.size)?;
                let flush = parts::flush_file(&output)?;
                self.discard(&output)?;
                Ok((steps, crc, id, flush))
            };
            let (ours, (steps, crc, id, flush)) = in_turn(round, ours, alone)?;
            let [read, socket, write] = steps;
            say(&format!(
                "round {round}: import by stream cpu {:.2} s (wall {:.3} s); alone: read {:.2}, socket {:.2}, write \
                 {:.2}, crc32 {:.2}, sha256 {:.2}; not counted: flush {:.2}",
                ours.cpu, ours.wall, read.cpu, socket.cpu, write.cpu, crc.cpu, id.cpu, flush.cpu
            ));
            ratios.push(ours.cpu / cpu_of(&[read, socket, write, crc, id]));
        }
        say(&format!("import-stream: cpu {:.2} of its steps' alone (goal: at most 1.5)", median(&ratios)));
        Ok(())
    }

    /// The import is on the device when it ends; cp's file is not, so what that would take is told beside it.
    pub(super) fn import_with_blake3(&self) -> Result<(), BenchError> {
        let b3sum = self.has_b3sum()?;
        let (mut ratios, mut flushed) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let (source, output) = (self.source()?, self.output());
            let ours = || {
                self.settle()?;
                self.import_once(&source, "fd", "blake3")
            };
            let theirs = || {
                self.settle()?;
                let cp = self.cp(&source, &output)?;
                let sum = if b3sum {
                    ran(Command::new(&self.args.b3sum).arg(&output))?.0
                } else {
                    parts::digest_file(Algorithm::Blake3, &output)?
                };
                let flush = parts::flush_file(&output)?;
                self.discard(&output)?;
                Ok((cp.wall, sum.wall, flush.wall))
            };
            let (ours, (cp, sum, flush)) = in_turn(round, ours, theirs)?;
            say(&format!(
                "round {round}: import by descriptor {:.3} s; cp {cp:.3} s, b3sum {sum:.3} s, flush {flush:.3} s",
                ours.wall
            ));
            ratios.push(ours.wall / (cp + sum));
            flushed.push(ours.wall / (cp + sum + flush));
        }
        let with = if b3sum { "b3sum" } else { "BLAKE3 IN ONE THREAD, there is no b3sum" };
        say(&format!(
            "import-blake3: {:.2} of cp and {with} (goal: below 1), {:.2} of these with a flush",
            median(&ratios),
            median(&flushed)
        ));
        Ok(())
    }

    pub(super) fn import_with_sha256(&self) -> Result<(), BenchError> {
        let mut ratios = Vec::new();
        for round in 0..self.rounds {
            let source = self.source()?;
            let ours = || {
                self.settle()?;
                self.import_once(&source, "fd", "sha256")
            };
            let sum = || {
                self.settle()?;
                ran(Command::new("sha256sum").arg(&source))
            };
            let (ours, (sum, _)) = in_turn(round, ours, sum)?;
            say(&format!(
                "round {round}: import by descriptor {:.3} s, sha256sum {:.3} s",
                ours.wall, sum.wall
            ));
            ratios.push(ours.wall / sum.wall);
        }
        say(&format!("import-sha256: {:.2} of sha256sum's time (goal: at most 1.1)", median(&ratios)));
        Ok(())
    }

    /// An import of which nothing stays.
    fn import_once(&self, source: &Path, transfer: &str, content_id: &str) -> Result<Cost, BenchError> {
        let task = self.import(source, transfer, content_id)?;
        self.forget(&task.id)?;
        Ok(task.cost)
    }

    fn has_b3sum(&self) -> Result<bool, BenchError> {
        match Command::new(&self.args.b3sum).arg("--version").output() {
            Ok(output) => Ok(output.status.success()),
            Err(why) if why.kind() == ErrorKind::NotFound => Ok(false),
            Err(why) => Err(io("start b3sum")(why)),
        }
    }
}
