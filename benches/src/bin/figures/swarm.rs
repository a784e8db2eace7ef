//! Several hosts on limited links.

use damselfly_benches::iperf::Sender;
use damselfly_benches::lab::Host;
use damselfly_benches::netlab::Netlab;
use damselfly_benches::process::{prefault, timed};
use damselfly_benches::stats::median;
use damselfly_benches::{BenchError, io};
use tokio::time::Instant;

use super::bench::{Bench, Busy, say};

/// What our daemons ask the kernel for.
pub(super) const CONGESTION: &str = "bbr";

/// Four hosts that want the same.
const PEERS: u8 = 4;
const FOUR_CONTENT: u64 = 100 << 20;
/// Of every host's link, the origin's too, in Mbit/s.
const FOUR_RATE: u32 = 500;

const TWO_CONTENT: u64 = 256 << 20;
/// What the two parents may send, in Mbit/s.
const TWO_RATES: [u32; 2] = [500, 50];

impl Bench {
    /// The origin and the scheduler are on a fifth host whose link is like the others'.
    pub(super) async fn four(&self) -> Result<(), BenchError> {
        let lab = self.lab(PEERS + 1, &format!("delay=1 rate={FOUR_RATE} cc={CONGESTION}"))?;
        let origin = self.origin(&lab.host(PEERS), "100m", FOUR_CONTENT).await?;
        let ideal = seconds(FOUR_CONTENT, FOUR_RATE);
        let (mut spans, mut rings) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let hub = self.host_at(&lab.host(PEERS), "hub", None).await?;
            let mut hosts = Vec::new();
            for number in 0..PEERS {
                let name = format!("host{number}");
                hosts.push(self.host_at(&lab.host(number), &name, Some(hub.scheduler)).await?);
            }
            prefault(u64::from(PEERS) * 6 * FOUR_CONTENT)?;
            let (busy, began) = (Busy::begin()?, Instant::now());
            all_at_once(&hosts, &origin.url("100m")).await?;
            let span = began.elapsed().as_secs_f64();
            let busy = busy.percent()?;
            spans.push(span);
            for host in hosts {
                host.leave()?;
            }
            hub.leave()?;
            for number in 0..PEERS {
                self.remove(&format!("host{number}"))?;
            }
            let ring = ring(&lab).await?;
            rings.push(ring);
            say(&format!(
                "round {round}: makespan {span:.3} s (machine busy {busy:.0} %), iperf3 in a ring {ring:.3} s"
            ));
        }
        let span = median(&spans);
        say(&format!(
            "four: makespan {span:.3} s, bytes / rate {ideal:.3} s: {:.2} (goal: at most 1.3); \
             iperf3 in a ring {:.2}",
            span / ideal,
            median(&rings) / ideal
        ));
        Ok(())
    }

    /// The origin is gone by the time the third host asks; the scheduler's host is not limited.
    pub(super) async fn two(&self) -> Result<(), BenchError> {
        let lab = self.lab(4, &format!("delay=1 cc={CONGESTION}"))?;
        let origin = self.origin(&lab.host(3), "256m", TWO_CONTENT).await?;
        let url = origin.url("256m");
        let hub = self.host_at(&lab.host(3), "hub", None).await?;
        let mut parents = Vec::new();
        for (number, rate) in (0..).zip(TWO_RATES) {
            let parent =
                self.host_at(&lab.host(number), &format!("parent{number}"), Some(hub.scheduler)).await?;
            timed(&mut parent.dfget(&url, "out"))?;
            parents.push(parent);
            lab.set(number, &[&format!("uprate={rate}")])?;
        }
        drop(origin);
        let ideal = seconds(TWO_CONTENT, TWO_RATES.iter().sum());
        let mut spans = Vec::new();
        for round in 0..self.rounds {
            let child = self.host_at(&lab.host(2), "child", Some(hub.scheduler)).await?;
            prefault(6 * TWO_CONTENT)?;
            let busy = Busy::begin()?;
            let span = timed(child.dfget(&url, "out").arg("--disable-back-to-source"))?.wall;
            say(&format!("round {round}: makespan {span:.3} s (machine busy {:.0} %)", busy.percent()?));
            spans.push(span);
            child.leave()?;
            self.remove("child")?;
        }
        let span = median(&spans);
        say(&format!(
            "two: makespan {span:.3} s, bytes / sum of rates {ideal:.3} s: {:.2} (goal: at most 1.15)",
            span / ideal
        ));
        Ok(())
    }
}

/// What this machine's emulated network allows: every host receives as many bytes from its neighbour, all at once.
async fn ring(lab: &Netlab) -> Result<f64, BenchError> {
    let mut senders = Vec::new();
    for number in 0..PEERS {
        senders.push(Sender::start(&lab.host(number)).await?);
    }
    std::thread::scope(|scope| {
        let receive = |(number, sender): (u8, _)| {
            let receiver = lab.host((number + 1) % PEERS);
            scope.spawn(move || Sender::seconds(sender, &receiver, FOUR_CONTENT, CONGESTION))
        };
        let receivers: Vec<_> = (0..).zip(&senders).map(receive).collect();
        let mut longest = 0.0_f64;
        for receiver in receivers {
            let seconds =
                receiver.join().map_err(|_| BenchError::Failed("a thread panicked".to_owned()))??;
            longest = longest.max(seconds);
        }
        Ok(longest)
    })
}

/// Every host downloads at the same time.
pub(super) async fn all_at_once(hosts: &[Host], url: &str) -> Result<(), BenchError> {
    let all = hosts.iter().map(|host| {
        let mut command = host.dfget(url, "out");
        tokio::task::spawn_blocking(move || timed(&mut command))
    });
    for got in futures_util::future::join_all(all).await {
        got.map_err(|why| io("wait for dfget")(why.into()))??;
    }
    Ok(())
}

/// Seconds that `bytes` take at `rate` Mbit/s.
#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53 bytes")]
fn seconds(bytes: u64, rate: u32) -> f64 {
    bytes as f64 * 8.0 / (f64::from(rate) * 1e6)
}
