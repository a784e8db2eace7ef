//! Processes and what they cost.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::{BenchError, io};

/// The unit of /proc/PID/stat: USER_HZ, which Linux fixes at 100 towards programs.
const TICKS_PER_SECOND: f64 = 100.0;
/// The name of the file whose cache fills memory, see [`fill_cache`].
pub const HOLES: &str = "holes";

/// Fields of /proc/PID/stat from the process state on.
fn stat(pid: &str) -> Result<Vec<f64>, BenchError> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(io("read CPU time"))?;
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    Ok(rest.split(' ').map(|field| field.trim().parse().unwrap_or(0.0)).collect())
}

/// CPU seconds of a process, all threads.
///
/// # Errors
/// When it is gone.
pub fn cpu(pid: u32) -> Result<f64, BenchError> {
    let fields = stat(&pid.to_string())?;
    Ok((fields[11] + fields[12]) / TICKS_PER_SECOND)
}

/// CPU seconds of this process's children that were waited for.
fn cpu_of_children() -> Result<f64, BenchError> {
    let fields = stat("self")?;
    Ok((fields[13] + fields[14]) / TICKS_PER_SECOND)
}

/// Resident bytes of a process that are its own or shared memory (no page cache, no shared libraries); of one that has
/// ended and was not waited for, none.
///
/// # Errors
/// When it is gone.
pub fn memory(pid: u32) -> Result<u64, BenchError> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).map_err(io("read memory"))?;
    Ok(["RssAnon:", "RssShmem:"].iter().filter_map(|name| kibibytes(&text, name)).sum::<u64>() * 1024)
}

/// A number in a table of the kernel's whose lines are a name, a number and kB.
fn kibibytes(table: &str, name: &str) -> Option<u64> {
    table.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok())
}

/// Open descriptors of a process.
///
/// # Errors
/// When it is gone, or another user's.
pub fn descriptors(pid: u32) -> Result<usize, BenchError> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd")).map_err(io("count descriptors"))?.count())
}

/// Seconds that all cores together were busy, and could have been, since the machine's start.
///
/// # Errors
/// When the kernel does not tell.
pub fn machine() -> Result<(f64, f64), BenchError> {
    let text = fs::read_to_string("/proc/stat").map_err(io("read the machine's CPU time"))?;
    let first = text.lines().next().unwrap_or_default();
    let fields: Vec<f64> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; what guests use is in user already.
    let all: f64 = fields.iter().take(8).sum();
    let idle: f64 = fields.iter().skip(3).take(2).sum();
    Ok(((all - idle) / TICKS_PER_SECOND, all / TICKS_PER_SECOND))
}

/// How long a command took, and its CPU seconds.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Wall seconds.
    pub wall: f64,
    /// CPU seconds, user and system.
    pub cpu: f64,
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started or fails.
pub fn timed(command: &mut Command) -> Result<Cost, BenchError> {
    ran(command).map(|(cost, _)| cost)
}

/// Runs a command to its end; also what it printed, where the caller has not said where that goes.
///
/// # Errors
/// When it cannot be started or fails.
pub fn ran(command: &mut Command) -> Result<(Cost, Output), BenchError> {
    let what = format!("{command:?}");
    let before = cpu_of_children()?;
    let began = Instant::now();
    let output = command.stdin(Stdio::null()).output().map_err(io(&what))?;
    let wall = began.elapsed().as_secs_f64();
    let output = succeeded(&what, output)?;
    Ok((Cost { wall, cpu: cpu_of_children()? - before }, output))
}

/// What a command printed, or that it failed.
pub(crate) fn succeeded(what: &str, output: Output) -> Result<Output, BenchError> {
    if output.status.success() {
        return Ok(output);
    }
    let said = [output.stdout, output.stderr].concat();
    Err(BenchError::Failed(format!("{what}: {}: {}", output.status, String::from_utf8_lossy(&said))))
}

/// What `run` takes in this process, all its threads included.
///
/// # Errors
/// Those of `run`.
pub fn measured(run: impl FnOnce() -> Result<(), BenchError>) -> Result<Cost, BenchError> {
    let spent = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default();
    let (began, before) = (Instant::now(), spent());
    run()?;
    Ok(Cost { wall: began.elapsed().as_secs_f64(), cpu: (spent() - before).as_secs_f64() })
}

/// A process that runs until it is dropped.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts it, its output discarded.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self, BenchError> {
        let what = format!("{command:?}");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Self(child.map_err(io(what))?))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn end(mut self) -> Result<(), BenchError> {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, Signal::TERM).map_err(|why| io("end a process")(why.into()))?;
        self.0.wait().map_err(io("wait for a process")).map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Touches `bytes` of fresh memory in a process that then ends, so that the next to come finds it quickly.
///
/// # Errors
/// When this program cannot be started once more.
pub fn prefault(bytes: u64) -> Result<(), BenchError> {
    let me = std::env::current_exe().map_err(io("find this program"))?;
    timed(Command::new(me).arg("prefault").arg(bytes.to_string())).map(drop)
}

/// The body of the process that [`prefault`] starts.
pub fn touch(bytes: u64) {
    let mut memory = vec![0_u8; usize::try_from(bytes).unwrap_or(usize::MAX)];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
}

/// Fills the memory that is available with the cache of a file of holes in `dir`, and then reads whatever else lies there,
/// so that contents are in the cache, and what is written next takes the place of the holes' pages and not of fresh memory.
///
/// For what takes more memory than [`prefault`] is good for: a virtual machine may give back what is free within a second
/// or two, and eight files of a GiB are not written by then.
///
/// # Errors
/// When the file cannot be made or read, or the system does not say how much memory there is.
pub fn fill_cache(dir: &Path) -> Result<(), BenchError> {
    let meminfo = fs::read_to_string("/proc/meminfo").map_err(io("read /proc/meminfo"))?;
    let available = kibibytes(&meminfo, "MemAvailable:")
        .ok_or_else(|| BenchError::Failed("/proc/meminfo does not tell what is available".to_owned()))?;
    let path = dir.join(HOLES);
    let holes = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io("make a file of holes"))?;
    if holes.metadata().map_err(io("make a file of holes"))?.len() == 0 {
        holes.set_len(available * 1024).map_err(io("make a file of holes"))?;
    }
    read_through(holes)?;
    warm(dir)
}

/// Reads whatever lies in `dir`, so that it is in the page cache; not the file of [`fill_cache`].
///
/// # Errors
/// When something cannot be read.
pub fn warm(dir: &Path) -> Result<(), BenchError> {
    for entry in fs::read_dir(dir).map_err(io("list a directory"))? {
        let path = entry.map_err(io("list a directory"))?.path();
        let kind = fs::symlink_metadata(&path).map_err(io("look at a file"))?.file_type();
        if kind.is_dir() {
            warm(&path)?;
        } else if kind.is_file() && !path.ends_with(HOLES) {
            read_through(File::open(&path).map_err(io("read a file"))?)?;
        }
    }
    Ok(())
}

fn read_through(mut file: File) -> Result<(), BenchError> {
    let mut buffer = vec![0; 256 << 10];
    while file.read(&mut buffer).map_err(io("read a file"))? > 0 {}
    Ok(())
}

/// Waits until `ready` says so, looking every millisecond: what is measured here has no event to wait for.
///
/// # Errors
/// When it takes longer than `deadline`.
pub async fn until(deadline: Duration, mut ready: impl AsyncFnMut() -> bool) -> Result<Duration, BenchError> {
    let began = Instant::now();
    let mut looks = tokio::time::interval(Duration::from_millis(1));
    while !ready().await {
        if began.elapsed() > deadline {
            return Err(BenchError::Failed(format!("not ready within {deadline:?}")));
        }
        looks.tick().await;
    }
    Ok(began.elapsed())
}
