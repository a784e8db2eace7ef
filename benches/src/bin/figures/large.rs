//! 1 GiB on loopback: a lone host, a pair, eight at once.

use std::fs;
use std::process::Command;

use damselfly_benches::lab::Host;
use damselfly_benches::place::Place;
use damselfly_benches::process::{HOLES, cpu, fill_cache, prefault, timed};
use damselfly_benches::stats::median;
use damselfly_benches::{BenchError, floor, io};

use super::bench::{Bench, say};
use super::swarm::all_at_once;

const GIB: u64 = 1 << 30;
/// Touched before a timed run.
const PREFAULT: u64 = 6 * GIB;

impl Bench {
    pub(super) async fn lone(&self) -> Result<(), BenchError> {
        let origin = self.origin(&Place::loopback(), "1g", GIB).await?;
        let (mut ours, mut curls, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let host = self.host("lone", None).await?;
            prefault(PREFAULT)?;
            let before = cpu(host.pid())?;
            let got = timed(&mut host.dfget(&origin.url("1g"), "out"))?;
            let daemon = cpu(host.pid())? - before;
            drop(host);
            self.remove("lone")?;
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

    pub(super) async fn pair(&self) -> Result<(), BenchError> {
        let origin = self.origin(&Place::loopback(), "1g", GIB).await?;
        let (mut cpus, mut walls) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let first = self.host("first", None).await?;
            timed(&mut first.dfget(&origin.url("1g"), "out"))?;
            let second = self.host("second", Some(first.scheduler)).await?;
            prefault(PREFAULT)?;
            let before = (cpu(first.pid())?, cpu(second.pid())?);
            let got = timed(&mut second.dfget(&origin.url("1g"), "out"))?;
            let (parent, child) = (cpu(first.pid())? - before.0, cpu(second.pid())? - before.1);
            drop((first, second));
            self.remove("first")?;
            self.remove("second")?;
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

    pub(super) async fn eight(&self) -> Result<(), BenchError> {
        for (name, length) in [("256m", GIB / 4), ("1g", GIB)] {
            let origin = self.origin(&Place::loopback(), name, length).await?;
            let (mut cold, mut warm) = (Vec::new(), Vec::new());
            for round in 0..self.rounds {
                let parent = self.one_parent(&origin.url(name), length).await?;
                let pair = self.cold_at_once(2, &origin.url(name), length).await?;
                let eight = self.cold_at_once(8, &origin.url(name), length).await?;
                say(&format!(
                    "{name}, round {round}: CPU seconds per GiB delivered: {eight:.2} with eight, {pair:.2} with two \
                     cold ones, {parent:.2} from one parent"
                ));
                cold.push(eight / pair);
                warm.push(eight / parent);
            }
            say(&format!(
                "eight, {name}: {:.2} of a cold pair's CPU per GiB, {:.2} of what a transfer from one parent takes \
                 (goal: at most 1.2)",
                median(&cold),
                median(&warm)
            ));
        }
        fs::remove_file(self.dir.join(HOLES)).map_err(io("clean up"))
    }

    /// What a daemon that takes everything from another, and that one, spend for each GiB, in CPU seconds.
    async fn one_parent(&self, url: &str, length: u64) -> Result<f64, BenchError> {
        let first = self.host("host0", None).await?;
        timed(&mut first.dfget(url, "out"))?;
        let second = self.host("host1", Some(first.scheduler)).await?;
        self.spent(vec![first, second], 1, length, async |hosts| all_at_once(&hosts[1..], url).await).await
    }

    /// What so many daemons that fetch the same together spend for each GiB delivered, in CPU seconds.
    async fn cold_at_once(&self, count: u32, url: &str, length: u64) -> Result<f64, BenchError> {
        let mut hosts = vec![self.host("host0", None).await?];
        for number in 1..count {
            hosts.push(self.host(&format!("host{number}"), Some(hosts[0].scheduler)).await?);
        }
        self.spent(hosts, count, length, async |hosts| all_at_once(hosts, url).await).await
    }

    /// CPU seconds that `hosts` spend for each GiB while `receivers` of them get content of `length`; ends the hosts.
    async fn spent(
        &self,
        hosts: Vec<Host>,
        receivers: u32,
        length: u64,
        run: impl AsyncFnOnce(&[Host]) -> Result<(), BenchError>,
    ) -> Result<f64, BenchError> {
        fill_cache(&self.dir)?;
        let delivered = u64::from(receivers) * length;
        let spent = || hosts.iter().map(|host| cpu(host.pid()).unwrap_or(0.0)).sum::<f64>();
        let before = spent();
        run(&hosts).await?;
        let each = (spent() - before) / (delivered as f64 / GIB as f64);
        let count = hosts.len();
        drop(hosts);
        for number in 0..count {
            self.remove(&format!("host{number}"))?;
        }
        Ok(each)
    }
}
