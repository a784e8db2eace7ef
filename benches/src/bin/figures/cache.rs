//! Imports and exports of dfcache on one host.

mod export;
mod import;
mod streams;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::{Args, ValueEnum};
use damselfly_benches::lab::Host;
use damselfly_benches::process::{Cost, cpu, prefault, ran, warm};
use damselfly_benches::{BenchError, io, parts};
use serde_json::Value;

use super::bench::{Bench, random};

/// The directory of everything here, below the bench's.
const DIR: &str = "cache";

#[derive(Clone, Args)]
pub(crate) struct CacheArgs {
    /// What to measure [default: everything].
    rows: Vec<Row>,
    /// MiB of content.
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// A directory of another file system, to export to.
    #[arg(long, default_value = "/dev/shm")]
    elsewhere: PathBuf,
    /// The program that an import with BLAKE3 is compared with; without it, one thread of this program.
    #[arg(long, default_value = "b3sum")]
    b3sum: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Row {
    /// Export by stream: CPU against its steps alone.
    ExportStream,
    /// Export by stream, to a file and to /dev/null: wall against Dragonfly's way.
    ExportDragonfly,
    /// Export by descriptor to another file system: speed against cp.
    ExportElsewhere,
    /// Import by stream: CPU against its steps alone.
    ImportStream,
    /// Import by descriptor, id by BLAKE3: wall against cp and b3sum.
    ImportBlake3,
    /// Import by descriptor, id by SHA-256: wall against sha256sum.
    ImportSha256,
    /// Eight imports, then eight exports at once by stream: memory and descriptors.
    Streams,
}

/// One daemon with its files, and what is measured with them.
struct Cache<'a> {
    args: &'a CacheArgs,
    rounds: usize,
    /// Bytes of content.
    size: u64,
    /// Where everything is: the daemon's home, content, outputs.
    dir: PathBuf,
    host: Host,
}

/// Content as the daemon has it.
struct Imported {
    id: String,
    cost: Cost,
}

impl Bench {
    pub(super) async fn cache(&self, args: &CacheArgs) -> Result<(), BenchError> {
        let rows = if args.rows.is_empty() { Row::value_variants() } else { args.rows.as_slice() };
        for row in rows {
            let dir = self.fresh(DIR)?;
            let host = self.host(&format!("{DIR}/home"), None).await?;
            let cache = Cache { args, rounds: self.rounds, size: args.size << 20, dir, host };
            match row {
                Row::ExportStream => cache.export_by_stream()?,
                Row::ExportDragonfly => cache.export_against_dragonfly().await?,
                Row::ExportElsewhere => cache.export_elsewhere()?,
                Row::ImportStream => cache.import_by_stream()?,
                Row::ImportBlake3 => cache.import_with_blake3()?,
                Row::ImportSha256 => cache.import_with_sha256()?,
                Row::Streams => cache.streams().await?,
            }
        }
        self.remove(DIR)
    }
}

impl Cache<'_> {
    /// Content that the daemon has not seen.
    fn source(&self) -> Result<PathBuf, BenchError> {
        let path = self.dir.join("source");
        random(&path, self.size)?;
        Ok(path)
    }

    /// A path that nothing is at.
    fn output(&self) -> PathBuf {
        self.dir.join("output")
    }

    /// Before something is timed: nothing waits to be written, memory was touched, all content is in the page cache.
    fn settle(&self) -> Result<(), BenchError> {
        rustix::fs::sync();
        prefault(6 * self.size)?;
        warm(&self.dir)
    }

    fn import(&self, source: &Path, transfer: &str, content_id: &str) -> Result<Imported, BenchError> {
        let mut command = self.import_command(source, transfer, content_id);
        let (cost, receipt) = self.with_daemon(&mut command, transfer)?;
        Ok(Imported { id: id(&receipt)?, cost })
    }

    fn import_command(&self, source: &Path, transfer: &str, content_id: &str) -> Command {
        let mut command = self.host.dfcache("import");
        command.arg(source).args(["--transfer", transfer, "--content-id", content_id]);
        // There is no other host to keep copies.
        command.args(["--persistent-replica-count", "1"]);
        command
    }

    /// Exports to a file that is removed afterwards.
    fn export(&self, id: &str, output: &Path, transfer: &str) -> Result<Cost, BenchError> {
        let mut command = self.host.dfcache("export");
        command.arg(id).arg("-O").arg(output).args(["--transfer", transfer]);
        let (cost, _) = self.with_daemon(&mut command, transfer)?;
        self.discard(output)?;
        Ok(cost)
    }

    /// Exports to /dev/null.
    fn export_to_null(&self, id: &str) -> Result<Cost, BenchError> {
        self.with_daemon(&mut self.export_to_null_command(id), "stream").map(|(cost, _)| cost)
    }

    fn export_to_null_command(&self, id: &str) -> Command {
        let mut command = self.host.dfcache("export");
        command.args([id, "-O", "-", "--transfer", "stream"]).stdout(Stdio::null());
        command
    }

    fn forget(&self, id: &str) -> Result<(), BenchError> {
        ran(self.host.dfcache("rm").arg(id)).map(drop)
    }

    /// Runs a dfcache that must take the wanted way; what it costs together with the daemon, and its receipt.
    fn with_daemon(&self, command: &mut Command, transfer: &str) -> Result<(Cost, Value), BenchError> {
        let before = cpu(self.host.pid())?;
        let (cost, output) = ran(command)?;
        let cost = Cost { cpu: cost.cpu + cpu(self.host.pid())? - before, ..cost };
        Ok((cost, receipt(&output, transfer)?))
    }

    /// A copy by cp, which stays.
    fn cp(&self, source: &Path, target: &Path) -> Result<Cost, BenchError> {
        ran(Command::new("cp").arg(source).arg(target)).map(|(cost, _)| cost)
    }

    fn discard(&self, path: &Path) -> Result<(), BenchError> {
        fs::remove_file(path).map_err(io("clean up"))
    }

    /// What reading the content, moving it through a socket and writing it take alone, one after the other; the written
    /// file stays.
    fn steps(&self, source: &Path, target: &Path) -> Result<[Cost; 3], BenchError> {
        Ok([
            parts::read_file(source)?,
            parts::through_a_socket(self.size)?,
            parts::write_file(target, self.size)?,
        ])
    }
}

/// How it went, if it went as wanted.
fn receipt(output: &Output, transfer: &str) -> Result<Value, BenchError> {
    // Where stdout is for content, it is on stderr.
    let text = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
    let said = || String::from_utf8_lossy(text).into_owned();
    let receipt: Value =
        serde_json::from_slice(text).map_err(|why| BenchError::Failed(format!("{why} in: {}", said())))?;
    if receipt["transfer"] != transfer {
        return Err(BenchError::Failed(format!("not done by {transfer}: {}", said())));
    }
    Ok(receipt)
}

/// The id of what was imported.
fn id(receipt: &Value) -> Result<String, BenchError> {
    let missing = || BenchError::Failed(format!("no task id in {receipt}"));
    receipt["task_id"].as_str().map(str::to_owned).ok_or_else(missing)
}

/// Both sides of a ratio, in an order that changes from round to round.
fn in_turn<A, B>(
    round: usize,
    ours: impl FnOnce() -> Result<A, BenchError>,
    theirs: impl FnOnce() -> Result<B, BenchError>,
) -> Result<(A, B), BenchError> {
    if round.is_multiple_of(2) {
        let ours = ours()?;
        return Ok((ours, theirs()?));
    }
    let theirs = theirs()?;
    Ok((ours()?, theirs))
}

/// CPU seconds of all of them.
fn cpu_of(costs: &[Cost]) -> f64 {
    costs.iter().map(|cost| cost.cpu).sum()
}
