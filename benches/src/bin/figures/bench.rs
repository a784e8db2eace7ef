//! What every measurement starts from.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use damselfly_benches::lab::{Host, Origin};
use damselfly_benches::netlab::Netlab;
use damselfly_benches::place::Place;
use damselfly_benches::process::machine;
use damselfly_benches::{BenchError, io};

/// Where things are, and how often to measure.
#[derive(Debug)]
pub(crate) struct Bench {
    /// The directory of all files.
    pub(crate) dir: PathBuf,
    /// Where dfdaemon and dfget are.
    pub(crate) programs: PathBuf,
    /// The emulated network's script.
    pub(crate) netlab: PathBuf,
    /// Rounds.
    pub(crate) rounds: usize,
}

/// A line of the result.
pub(crate) fn say(line: &str) {
    // Nobody to tell when the reader is gone.
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

impl Bench {
    /// A fresh directory below the bench's.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf, BenchError> {
        self.remove(name)?;
        let path = self.dir.join(name);
        fs::create_dir_all(&path).map_err(io("make a directory"))?;
        Ok(path)
    }

    /// Removes a directory below the bench's, if it is there.
    pub(crate) fn remove(&self, name: &str) -> Result<(), BenchError> {
        let path = self.dir.join(name);
        if path.try_exists().map_err(io("look for an old directory"))? {
            fs::remove_dir_all(&path).map_err(io("remove an old directory"))?;
        }
        Ok(())
    }

    /// A file of random bytes at the origin, so that nothing compresses.
    pub(crate) fn file(&self, name: &str, length: u64) -> Result<(), BenchError> {
        let files = self.dir.join("origin");
        fs::create_dir_all(&files).map_err(io("make the origin's directory"))?;
        let path = files.join(name);
        if fs::metadata(&path).is_ok_and(|found| found.len() == length) {
            return Ok(());
        }
        random(&path, length)
    }

    /// An origin that has one file.
    pub(crate) async fn origin(&self, place: &Place, name: &str, length: u64) -> Result<Origin, BenchError> {
        self.file(name, length)?;
        Origin::start(place, &self.dir.join("origin"), &self.fresh("nginx")?).await
    }

    /// A daemon with an empty store on this machine's loopback.
    pub(crate) async fn host(&self, name: &str, join: Option<SocketAddr>) -> Result<Host, BenchError> {
        self.host_at(&Place::loopback(), name, join).await
    }

    /// A daemon with an empty store.
    pub(crate) async fn host_at(
        &self,
        place: &Place,
        name: &str,
        join: Option<SocketAddr>,
    ) -> Result<Host, BenchError> {
        Host::start(place, &self.programs, &self.fresh(name)?, join).await
    }

    /// An emulated network.
    pub(crate) fn lab(&self, hosts: u8, settings: &str) -> Result<Netlab, BenchError> {
        let settings: Vec<String> = settings.split(' ').map(str::to_owned).collect();
        Netlab::start(&self.netlab, hosts, &settings)
    }
}

/// Makes or replaces a file of random bytes.
pub(crate) fn random(path: &Path, length: u64) -> Result<(), BenchError> {
    let random = fs::File::open("/dev/urandom").map_err(io("open /dev/urandom"))?;
    let mut file = fs::File::create(path).map_err(io("make a file"))?;
    std::io::copy(&mut std::io::Read::take(random, length), &mut file).map_err(io("fill a file")).map(drop)
}

/// In people's unit.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// How busy the machine is, over a while.
#[derive(Debug)]
pub(crate) struct Busy(f64, f64);

impl Busy {
    /// The while begins.
    pub(crate) fn begin() -> Result<Self, BenchError> {
        machine().map(|(busy, all)| Self(busy, all))
    }

    /// It ends: percent of all cores.
    pub(crate) fn percent(&self) -> Result<f64, BenchError> {
        let (busy, all) = machine()?;
        Ok(100.0 * (busy - self.0) / (all - self.1).max(0.01))
    }
}
