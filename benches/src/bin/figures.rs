//! Measures the figures of docs/benchmarks.md that need no emulated network. Build with --release and see --help.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use damselfly_benches::lab::{Host, Origin};
use damselfly_benches::process::{self, anonymous_memory, cpu, prefault, timed};
use damselfly_benches::stats::median;
use damselfly_benches::{BenchError, floor, io};

const GIB: u64 = 1 << 30;
/// Touched before a timed run.
const PREFAULT: u64 = 6 * GIB;

#[derive(Parser)]
#[command(about = "Measures Damselfly against what the machine allows; needs nginx and curl")]
struct Args {
    /// What to measure.
    #[command(subcommand)]
    what: What,
    /// Where files go: one file system for all of them.
    #[arg(long, global = true, default_value = "bench-data")]
    dir: PathBuf,
    /// Where dfdaemon and dfget are; default: beside this program.
    #[arg(long, global = true)]
    programs: Option<PathBuf>,
    /// Rounds; medians are printed.
    #[arg(long, global = true, default_value_t = 5)]
    rounds: usize,
}

#[derive(Clone, Copy, Subcommand)]
enum What {
    /// A lone host, 1 GiB from nginx to a file, against curl.
    Lone,
    /// Daemon to daemon, 1 GiB over TCP, against sendfile to a file.
    Pair,
    /// Cold tasks of 1 KiB and 10 MiB through a warm daemon with a peer that holds them, against curl.
    Small,
    /// Start of an empty daemon, and its idle memory.
    Start,
    /// Eight daemons, 1 GiB, cold at once: CPU per GiB delivered against one pair's.
    Eight,
    /// Touches memory; used by the others.
    #[command(hide = true)]
    Prefault {
        /// Bytes.
        bytes: u64,
    },
}

struct Bench {
    dir: PathBuf,
    programs: PathBuf,
    rounds: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&format!("figures: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn say(line: &str) {
    // Nobody to tell when the reader is gone.
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

async fn run(args: Args) -> Result<(), BenchError> {
    if let What::Prefault { bytes } = args.what {
        process::touch(bytes);
        return Ok(());
    }
    let beside = std::env::current_exe().map_err(io("find this program"))?;
    let programs = args.programs.unwrap_or_else(|| beside.parent().unwrap_or(Path::new(".")).to_owned());
    fs::create_dir_all(&args.dir).map_err(io("make the directory"))?;
    let dir = fs::canonicalize(&args.dir).map_err(io("find the directory"))?;
    let bench = Bench { dir, programs, rounds: args.rounds.max(1) };
    match args.what {
        What::Lone => bench.lone().await,
        What::Pair => bench.pair().await,
        What::Small => bench.small().await,
        What::Start => bench.start().await,
        What::Eight => bench.eight().await,
        What::Prefault { .. } => Ok(()),
    }
}

/// Random bytes, so that nothing compresses.
fn generate(path: &Path, length: u64) -> Result<(), BenchError> {
    if fs::metadata(path).is_ok_and(|found| found.len() == length) {
        return Ok(());
    }
    let mut random = fs::File::open("/dev/urandom").map_err(io("open /dev/urandom"))?;
    let mut file = fs::File::create(path).map_err(io("make a file"))?;
    std::io::copy(&mut std::io::Read::take(&mut random, length), &mut file).map_err(io("fill a file"))?;
    Ok(())
}

impl Bench {
    /// A fresh directory below the bench's.
    fn fresh(&self, name: &str) -> Result<PathBuf, BenchError> {
        let path = self.dir.join(name);
        if path.try_exists().map_err(io("look for an old directory"))? {
            fs::remove_dir_all(&path).map_err(io("remove an old directory"))?;
        }
        fs::create_dir_all(&path).map_err(io("make a directory"))?;
        Ok(path)
    }

    async fn origin(&self) -> Result<Origin, BenchError> {
        let files = self.dir.join("origin");
        fs::create_dir_all(&files).map_err(io("make the origin's directory"))?;
        generate(&files.join("1g"), GIB)?;
        let state = self.fresh("nginx")?;
        Origin::start(&files, &state).await
    }

    async fn lone(&self) -> Result<(), BenchError> {
        let origin = self.origin().await?;
        let (mut ours, mut curls, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let host = Host::start(&self.programs, &self.fresh("lone")?, None).await?;
            prefault(PREFAULT)?;
            let before = cpu(host.pid())?;
            let got = timed(&mut host.dfget(&origin.url("1g"), "out"))?;
            let daemon = cpu(host.pid())? - before;
            drop(host);
            fs::remove_dir_all(self.dir.join("lone")).map_err(io("clean up"))?;
            prefault(PREFAULT)?;
            let file = self.dir.join("curl-out");
            let curl = timed(Command::new("curl").args(["-sS", "-o"]).arg(&file).arg(origin.url("1g")))?;
            fs::remove_file(&file).map_err(io("clean up"))?;
            say(&format!(
                "round {round}: dfget {:.3} s (cpu {:.2} + daemon {daemon:.2}), curl {:.3} s (cpu {:.2})",
                got.wall, got.cpu, curl.wall, curl.cpu
            ));
            ours.push(got.wall);
            curls.push(curl.wall);
            ratios.push(curl.wall / got.wall);
        }
        say(&format!(
            "lone: dfget {:.3} s, curl {:.3} s, speed against curl {:.2} (goal: at least 0.95)",
            median(&ours),
            median(&curls),
            median(&ratios)
        ));
        Ok(())
    }

    async fn pair(&self) -> Result<(), BenchError> {
        let origin = self.origin().await?;
        let (mut cpus, mut walls) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let first = Host::start(&self.programs, &self.fresh("first")?, None).await?;
            timed(&mut first.dfget(&origin.url("1g"), "out"))?;
            let second = Host::start(&self.programs, &self.fresh("second")?, Some(first.scheduler)).await?;
            prefault(PREFAULT)?;
            let before = (cpu(first.pid())?, cpu(second.pid())?);
            let got = timed(&mut second.dfget(&origin.url("1g"), "out"))?;
            let (parent, child) = (cpu(first.pid())? - before.0, cpu(second.pid())? - before.1);
            drop((first, second));
            fs::remove_dir_all(self.dir.join("first")).map_err(io("clean up"))?;
            fs::remove_dir_all(self.dir.join("second")).map_err(io("clean up"))?;
            prefault(PREFAULT)?;
            let target = self.dir.join("floor-out");
            let floor = floor::sendfile_to_file(&self.dir.join("origin/1g"), &target)?;
            fs::remove_file(&target).map_err(io("clean up"))?;
            let ours = parent + child + got.cpu;
            say(&format!(
                "round {round}: wall {:.3} s, cpu {ours:.2} s (parent {parent:.2}, child {child:.2}, dfget {:.2}); \
                 floor wall {:.3} s, cpu {:.2} s",
                got.wall, got.cpu, floor.wall, floor.cpu
            ));
            cpus.push(ours / floor.cpu);
            walls.push(got.wall / floor.wall);
        }
        say(&format!(
            "pair: cpu {:.2} of the floor's (goal: at most 0.80), wall {:.2} of the floor's (goal: at most 1.0)",
            median(&cpus),
            median(&walls)
        ));
        Ok(())
    }

    async fn small(&self) -> Result<(), BenchError> {
        let origin = self.origin().await?;
        let first = Host::start(&self.programs, &self.fresh("first")?, None).await?;
        let second = Host::start(&self.programs, &self.fresh("second")?, Some(first.scheduler)).await?;
        for (name, length, count, goal) in [("1 KiB", 1 << 10, 100, 0.8), ("10 MiB", 10 << 20, 30, 1.0)] {
            let (mut ours, mut curls) = (Vec::new(), Vec::new());
            let mut versions = (Vec::new(), Vec::new());
            for number in 0..count {
                let file = format!("small-{length}-{number}");
                generate(&self.dir.join("origin").join(&file), length)?;
                timed(&mut first.dfget(&origin.url(&file), &file))?;
                ours.push(timed(&mut second.dfget(&origin.url(&file), &file))?.wall);
                let out = self.dir.join("curl-out");
                curls.push(
                    timed(Command::new("curl").args(["-sS", "-o"]).arg(&out).arg(origin.url(&file)))?.wall,
                );
                fs::remove_file(&out).map_err(io("clean up"))?;
                versions.0.push(timed(Command::new(self.programs.join("dfget")).arg("--version"))?.wall);
                versions.1.push(timed(Command::new("curl").arg("--version"))?.wall);
            }
            let dfget = median(&ours) - median(&versions.0);
            let curl = median(&curls) - median(&versions.1);
            say(&format!(
                "small {name}: dfget {:.2} ms (--version {:.2} ms), curl {:.2} ms (--version {:.2} ms), ratio {:.2} \
                 (goal: at most {goal})",
                median(&ours) * 1e3,
                median(&versions.0) * 1e3,
                median(&curls) * 1e3,
                median(&versions.1) * 1e3,
                dfget / curl
            ));
        }
        Ok(())
    }

    async fn start(&self) -> Result<(), BenchError> {
        let mut ready = Vec::new();
        for _ in 0..self.rounds {
            let host = Host::start(&self.programs, &self.fresh("start")?, None).await?;
            ready.push(host.ready_after.as_secs_f64());
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            say(&format!("idle memory {:.1} MiB", mebibytes(anonymous_memory(host.pid())?)));
        }
        say(&format!("start: ready after {:.0} ms (goal: within 200 ms)", median(&ready) * 1e3));
        Ok(())
    }

    async fn eight(&self) -> Result<(), BenchError> {
        let origin = self.origin().await?;
        let mut per_gib = Vec::new();
        for count in [2_u32, 8] {
            let mut hosts = vec![Host::start(&self.programs, &self.fresh("host0")?, None).await?];
            for number in 1..count {
                let home = self.fresh(&format!("host{number}"))?;
                hosts.push(Host::start(&self.programs, &home, Some(hosts[0].scheduler)).await?);
            }
            prefault(PREFAULT)?;
            let before: f64 = hosts.iter().map(|host| cpu(host.pid()).unwrap_or(0.0)).sum();
            let url = origin.url("1g");
            let all = hosts.iter().map(|host| {
                let mut command = host.dfget(&url, "out");
                tokio::task::spawn_blocking(move || timed(&mut command))
            });
            for got in futures_util::future::join_all(all).await {
                got.map_err(|why| BenchError::Failed(why.to_string()))??;
            }
            let after: f64 = hosts.iter().map(|host| cpu(host.pid()).unwrap_or(0.0)).sum();
            let each = (after - before) / f64::from(count);
            say(&format!("{count} daemons cold at once: {each:.2} CPU seconds per GiB delivered"));
            per_gib.push(each);
            drop(hosts);
            for number in 0..count {
                fs::remove_dir_all(self.dir.join(format!("host{number}"))).map_err(io("clean up"))?;
            }
        }
        say(&format!("eight: {:.2} of a pair's CPU per GiB (goal: at most 1.2)", per_gib[1] / per_gib[0]));
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
