//! Measures the figures of docs/benchmarks.md. Build with --release and see --help.

mod bench;
mod cache;
mod far;
mod large;
mod many;
mod small;
mod swarm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bench::{Bench, say};
use clap::{Parser, Subcommand};
use damselfly_benches::{BenchError, dragonfly, io, process};

#[derive(Parser)]
#[command(
    about = "Measures Damselfly against what the machine allows; see docs/benchmarks.md for what it needs"
)]
struct Args {
    /// What to measure.
    #[command(subcommand)]
    what: What,
    /// Where files go: one file system for all of them.
    #[arg(long, global = true, default_value = "bench-data")]
    dir: PathBuf,
    /// Where dfdaemon, dfget and dfcache are; default: beside this program.
    #[arg(long, global = true)]
    programs: Option<PathBuf>,
    /// Rounds; medians are printed.
    #[arg(long, global = true, default_value_t = 5)]
    rounds: usize,
    /// The script of the emulated network, for what needs one.
    #[arg(long, global = true, default_value = "benches/netlab/netlab")]
    netlab: PathBuf,
}

#[derive(Clone, Subcommand)]
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
    /// 1,000 tasks of 64 KiB over one connection, 16 calls in flight, against 1,000 curls.
    Many,
    /// 100 MiB over long links, against iperf3 (root; emulated network).
    Far,
    /// Round trips until dfget prints its first byte (root; emulated network).
    First,
    /// Four hosts, 100 MiB, cold at once (root; emulated network).
    Four,
    /// Two parents with rates 10:1, 256 MiB (root; emulated network).
    Two,
    /// Imports and exports, 1 GiB, against their steps alone, Dragonfly's way, cp and hashing tools.
    Cache(cache::CacheArgs),
    /// Serves a file as Dragonfly's daemon would; used by `cache`.
    #[command(hide = true)]
    DragonflyServe {
        /// Its socket.
        socket: PathBuf,
        /// The file.
        file: PathBuf,
    },
    /// Takes it as Dragonfly's dfcache would; used by `cache`.
    #[command(hide = true)]
    DragonflyReceive {
        /// The socket.
        socket: PathBuf,
        /// Where to write it.
        output: PathBuf,
    },
    /// Touches memory; used by the others.
    #[command(hide = true)]
    Prefault {
        /// Bytes.
        bytes: u64,
    },
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

async fn run(args: Args) -> Result<(), BenchError> {
    match &args.what {
        What::Prefault { bytes } => {
            process::touch(*bytes);
            return Ok(());
        }
        What::DragonflyServe { socket, file } => return dragonfly::serve(socket, file).await,
        What::DragonflyReceive { socket, output } => return dragonfly::receive(socket, output).await,
        _ => {}
    }
    let beside = std::env::current_exe().map_err(io("find this program"))?;
    let programs = args.programs.unwrap_or_else(|| beside.parent().unwrap_or(Path::new(".")).to_owned());
    fs::create_dir_all(&args.dir).map_err(io("make the directory"))?;
    let dir = fs::canonicalize(&args.dir).map_err(io("find the directory"))?;
    let bench = Bench { dir, programs, netlab: args.netlab, rounds: args.rounds.max(1) };
    match args.what {
        What::Lone => bench.lone().await,
        What::Pair => bench.pair().await,
        What::Small => bench.small().await,
        What::Start => bench.start().await,
        What::Eight => bench.eight().await,
        What::Many => bench.many().await,
        What::Far => bench.far().await,
        What::First => bench.first().await,
        What::Four => bench.four().await,
        What::Two => bench.two().await,
        What::Cache(args) => bench.cache(&args).await,
        What::Prefault { .. } | What::DragonflyServe { .. } | What::DragonflyReceive { .. } => Ok(()),
    }
}
