//! Long links: a fresh daemon fetches from a peer that is far away.

use std::io::Read as _;
use std::process::{Command, Stdio};

use damselfly_benches::iperf;
use damselfly_benches::process::{prefault, timed};
use damselfly_benches::stats::median;
use damselfly_benches::{BenchError, io};
use tokio::time::Instant;

use super::bench::{Bench, Busy, say};
use super::swarm::CONGESTION;

const CONTENT: u64 = 100 << 20;

/// One link and how near to iperf3 we want to come on it.
struct Link {
    /// Round trip in seconds.
    rtt: f64,
    /// Percent of packets lost in each direction.
    loss: f64,
    /// Times iperf3's time, plus three round trips.
    goal: f64,
}

const LINKS: [Link; 3] = [
    Link { rtt: 0.020, loss: 0.0, goal: 1.1 },
    Link { rtt: 0.100, loss: 0.0, goal: 1.15 },
    Link { rtt: 0.020, loss: 1.0, goal: 1.25 },
];

impl Bench {
    pub(super) async fn far(&self) -> Result<(), BenchError> {
        for link in &LINKS {
            self.link(link).await?;
        }
        Ok(())
    }

    async fn link(&self, link: &Link) -> Result<(), BenchError> {
        let Link { rtt, loss, goal } = link;
        let settings = format!("delay={} rate=1000 loss={loss} cc={CONGESTION}", rtt * 1e3 / 2.0);
        let lab = self.lab(2, &settings)?;
        let origin = self.origin(&lab.host(0), "100m", CONTENT).await?;
        let url = origin.url("100m");
        let holder = self.host_at(&lab.host(0), "holder", None).await?;
        timed(&mut holder.dfget(&url, "out"))?;
        let sender = iperf::Sender::start(&lab.host(0)).await?;
        let (mut ours, mut theirs, mut within) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let child = self.host_at(&lab.host(1), "child", Some(holder.scheduler)).await?;
            prefault(6 * CONTENT)?;
            let busy = Busy::begin()?;
            let got = timed(&mut child.dfget(&url, "out"))?;
            let busy = busy.percent()?;
            child.leave()?;
            self.remove("child")?;
            prefault(6 * CONTENT)?;
            let iperf = sender.seconds(&lab.host(1), CONTENT, CONGESTION)?;
            say(&format!(
                "round {round}: dfget {:.3} s (machine busy {busy:.0} %), iperf3 {iperf:.3} s",
                got.wall
            ));
            ours.push(got.wall);
            theirs.push(iperf);
            within.push((got.wall - 3.0 * rtt) / iperf);
        }
        say(&format!(
            "far {:.0} ms, {loss} % loss: dfget {:.3} s, iperf3 -P 8 -C {CONGESTION} {:.3} s, \
             (dfget - 3 RTT) / iperf3 {:.2} (goal: at most {goal})",
            rtt * 1e3,
            median(&ours),
            median(&theirs),
            median(&within)
        ));
        Ok(())
    }

    pub(super) async fn first(&self) -> Result<(), BenchError> {
        for (name, length) in [("1 KiB", 1 << 10), ("10 MiB", 10 << 20)] {
            let near = self.first_byte(0.0, length).await?;
            let far = self.first_byte(0.100, length).await?;
            say(&format!(
                "first byte of {name}: {:.1} ms without delay, {:.1} ms at 100 ms RTT: {:.1} round trips \
                 (goal: at most 4)",
                near * 1e3,
                far * 1e3,
                (far - near) / 0.100
            ));
        }
        Ok(())
    }

    /// Seconds from the start of dfget to its first byte on a pipe. The fetching daemon is connected to the scheduler on
    /// the other host and has never spoken to the peer there.
    async fn first_byte(&self, rtt: f64, length: u64) -> Result<f64, BenchError> {
        let lab = self.lab(2, &format!("delay={} rate=1000 cc={CONGESTION}", rtt * 1e3 / 2.0))?;
        let origin = self.origin(&lab.host(0), "first", length).await?;
        let url = origin.url("first");
        let holder = self.host_at(&lab.host(0), "holder", None).await?;
        timed(&mut holder.dfget(&url, "out"))?;
        let mut all = Vec::new();
        for _ in 0..self.rounds {
            let child = self.host_at(&lab.host(1), "child", Some(holder.scheduler)).await?;
            all.push(until_first_byte(&mut child.dfget_to(&url, "-"))?);
            child.leave()?;
        }
        self.remove("child")?;
        Ok(median(&all))
    }
}

fn until_first_byte(dfget: &mut Command) -> Result<f64, BenchError> {
    let began = Instant::now();
    let dfget = dfget.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = dfget.spawn().map_err(io("start dfget"))?;
    let mut first = [0];
    let mut pipe = child.stdout.take().ok_or_else(|| BenchError::Failed("dfget has no stdout".to_owned()))?;
    let got = pipe.read_exact(&mut first);
    let seconds = began.elapsed().as_secs_f64();
    if got.is_ok() {
        std::io::copy(&mut pipe, &mut std::io::sink()).map_err(io("read from dfget"))?;
    }
    let output = child.wait_with_output().map_err(io("wait for dfget"))?;
    if got.is_err() || !output.status.success() {
        return Err(BenchError::Failed(format!("dfget: {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(seconds)
}
