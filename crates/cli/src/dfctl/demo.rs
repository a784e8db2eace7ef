//! `dfctl demo`: a swarm on this machine, from an empty directory to checked copies and back to nothing.
//!
//! Everything is real but close together: the daemons, their scheduler and the origin share this process, each daemon
//! with a home of its own, and talk over loopback. The downloads are dfget's.

mod origin;
mod outcome;
mod show;
mod stage;

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use damselfly_api::common::v2 as common;
use damselfly_core::{Algorithm, Hasher, RangeSpec};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::origin::{Generated, Origin};
use self::outcome::{Copy, Outcome};
use self::show::Show;
use self::stage::Stage;
use super::args::Demo;
use crate::dfget;
use crate::dfget::plan::Plan;
use crate::endpoint::{self, Daemon};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{FileOutput, Output};
use crate::progress::Progress;
use crate::receipt::Delivery;
use crate::signals::Signals;

pub(super) const TITLE: &str = "Demo Failed!";
/// A download that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes read at a time to check a copy.
const READ: usize = 1 << 20;
/// What would send requests for the demonstration's own origin elsewhere.
const PROXIES: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];

/// Starts this program anew without proxies in its environment, if it has any: daemons reach origins through them.
pub fn without_proxies() {
    if PROXIES.iter().all(|name| std::env::var_os(name).is_none()) {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut again = std::process::Command::new(program);
    for name in PROXIES {
        again.env_remove(name);
    }
    // Comes back only when it fails; then the demonstration says what goes wrong.
    let _why = again.args(std::env::args_os().skip(1)).exec();
}

/// Runs the demonstration and returns its table, or its JSON.
///
/// # Errors
/// When something does not start, or a signal ends it. Nothing is left behind. A check that fails is an error too,
/// after the table was printed.
pub(super) async fn run(demo: &Demo) -> Result<String, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::new(TITLE, Exit::Failure, why);
    let mut signals = Signals::listen().map_err(|why| failed(&why))?;
    let mut stage = Stage::new(demo)?;
    let outcome = tokio::select! {
        outcome = perform(demo, &mut stage) => outcome,
        ending = signals.next() => {
            Err(Failure::new(TITLE, ending.exit(), format!("ended by {}", ending.name())))
        }
    };
    let left = stage.clear(demo.keep && outcome.is_ok()).await;
    let outcome = outcome?;
    let kept = left?;
    outcome.told(demo.shown.json, kept.as_deref())
}

async fn perform(demo: &Demo, stage: &mut Stage) -> Result<Outcome, Failure> {
    let content = Generated { length: demo.size.as_u64() };
    let origin = Origin::start(content).await.map_err(|why| cannot("start the origin", &why))?;
    stage.start(usize::from(demo.hosts)).await?;
    let expected = tokio::task::spawn_blocking(move || content.digest());

    let begun = Instant::now();
    let mut downloads = JoinSet::new();
    let mut counters = Vec::new();
    for index in 0..stage.hosts() {
        let plan = plan(&origin.url(), &stage.output(index))?;
        let daemon = endpoint::connect(Some(stage.socket(index))).await?;
        let done = Arc::new(AtomicU64::new(0));
        counters.push(done.clone());
        downloads.spawn(async move { (index, download(plan, daemon, done, begun).await) });
    }
    let mut show = Show::new(content.length, counters, origin.sent(), demo.shown.json);
    let mut copies = vec![Copy::default(); stage.hosts()];
    loop {
        let joined = tokio::select! {
            joined = downloads.join_next() => joined,
            () = show.tick() => continue,
        };
        match joined {
            None => break,
            Some(Err(why)) => return Err(cannot("download", &why)),
            Some(Ok((index, came))) => match came {
                Ok((delivery, elapsed)) => copies[index] = Copy::new(&delivery, elapsed),
                Err(failure) => copies[index].failure = Some(failure.message),
            },
        }
    }
    let elapsed = begun.elapsed();
    drop(show);
    let expected = expected.await.map_err(|why| cannot("generate the content", &why))?;
    for (index, copy) in copies.iter_mut().enumerate().filter(|(_, copy)| copy.failure.is_none()) {
        let found = tokio::task::block_in_place(|| digest(&stage.output(index)));
        match found {
            Ok(found) => copy.verified = found == expected,
            Err(why) => copy.failure = Some(format!("its copy cannot be read: {why}")),
        }
    }
    Ok(Outcome { length: content.length, digest: expected, origin: origin.total(), elapsed, copies })
}

async fn download(
    plan: Plan,
    daemon: Daemon,
    done: Arc<AtomicU64>,
    begun: Instant,
) -> Result<(Delivery, Duration), Failure> {
    let delivery = dfget::fetch(&plan, &daemon, Progress::elsewhere(done)).await?;
    Ok((delivery, begun.elapsed()))
}

fn plan(url: &str, output: &Path) -> Result<Plan, Failure> {
    let download = common::Download {
        url: url.to_owned(),
        r#type: common::TaskType::Standard.into(),
        timeout: prost_types::Duration::try_from(PATIENCE).ok(),
        ..common::Download::default()
    };
    Ok(Plan {
        task: damselfly_actors::request::task_id(&download).map_err(|why| cannot("name the task", &why))?,
        download,
        output: Output::File(FileOutput { path: output.to_owned(), overwrite: false, existed: false }),
        range: RangeSpec::Whole,
        digest: None,
        through_socket: false,
        timeout: PATIENCE,
        name: String::new(),
        url: url.to_owned(),
        join: Vec::new(),
    })
}

/// The digest of a copy on disk. Blocking.
fn digest(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Hasher::new(Algorithm::Blake3);
    let mut buffer = vec![0; READ];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish().to_string()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(why) if why.kind() == std::io::ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
    }
}

fn cannot(what: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(TITLE, Exit::Failure, format!("cannot {what}: {why}"))
}
