//! Very many small tasks from one client.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use damselfly_benches::calls::download_all;
use damselfly_benches::lab::Host;
use damselfly_benches::place::Place;
use damselfly_benches::process::timed;
use damselfly_benches::stats::median;
use damselfly_benches::{BenchError, io};
use tokio::time::Instant;

use super::bench::{Bench, say};

const TASKS: u32 = 1000;
const LENGTH: u64 = 64 << 10;
const IN_FLIGHT: usize = 16;

impl Bench {
    /// The tasks are cold for both daemons: the first takes them from the origin, as curl does, the second from the first.
    pub(super) async fn many(&self) -> Result<(), BenchError> {
        let names: Vec<String> = (0..TASKS).map(|number| format!("many-{number}")).collect();
        for name in &names {
            self.file(name, LENGTH)?;
        }
        let origin = self.origin(&Place::loopback(), &names[0], LENGTH).await?;
        let urls: Vec<String> = names.iter().map(|name| origin.url(name)).collect();
        let (mut from_origin, mut from_peer) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let first = self.host("first", None).await?;
            let second = self.host("second", Some(first.scheduler)).await?;
            let origin = self.calls(&first, &names, &urls).await?;
            let peer = self.calls(&second, &names, &urls).await?;
            let curl = self.curls(&urls)?;
            say(&format!(
                "round {round}: from the origin {origin:.3} s, from a peer {peer:.3} s, curls {curl:.3} s"
            ));
            from_origin.push(curl / origin);
            from_peer.push(curl / peer);
        }
        say(&format!(
            "many: {:.1} times curl's rate from the origin, {:.1} times from a peer (goal: at least 5)",
            median(&from_origin),
            median(&from_peer)
        ));
        Ok(())
    }

    /// Seconds of all downloads through one daemon.
    async fn calls(&self, host: &Host, names: &[String], urls: &[String]) -> Result<f64, BenchError> {
        let outputs: Vec<PathBuf> = names.iter().map(|name| host.path(name)).collect();
        let wanted = urls.iter().cloned().zip(outputs.iter().cloned()).collect();
        let seconds = download_all(&host.socket(), wanted, IN_FLIGHT).await?;
        for (name, output) in names.iter().zip(outputs) {
            let got = fs::read(output).map_err(io("read an output"))?;
            if got != fs::read(self.dir.join("origin").join(name)).map_err(io("read the origin's file"))? {
                return Err(BenchError::Failed(format!("{name} came out wrong")));
            }
        }
        Ok(seconds)
    }

    /// Seconds of one curl after the other.
    fn curls(&self, urls: &[String]) -> Result<f64, BenchError> {
        let out = self.fresh("curls")?;
        let began = Instant::now();
        for (number, url) in urls.iter().enumerate() {
            timed(Command::new("curl").args(["-sS", "-o"]).arg(out.join(number.to_string())).arg(url))?;
        }
        Ok(began.elapsed().as_secs_f64())
    }
}
