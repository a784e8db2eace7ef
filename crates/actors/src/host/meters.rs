//! What the kernel measures of this host: traffic, load, memory. Where it does not say, nothing is claimed.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use damselfly_api::common::v2 as common;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::percent;

/// Averages over less than this say little.
const SHORTEST: Duration = Duration::from_millis(500);

/// Bits per second through the announced address's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Received.
    rx: u64,
    /// Sent.
    tx: u64,
}

/// Bytes since boot.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    rx: u64,
    tx: u64,
}

/// The last sample, and the rates when it was taken.
#[derive(Debug, Default)]
struct Reading {
    last: Option<Sample>,
    rate: Option<Traffic>,
}

/// Processor time since boot, in the kernel's ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    all: u64,
    own: u64,
}

/// This host's meters. Averages run from one reading to the next.
#[derive(Debug)]
pub(crate) struct Meters {
    interface: Option<String>,
    traffic: Mutex<Reading>,
    load: Mutex<(Option<Ticks>, (f64, f64))>,
}

impl Meters {
    /// The meters of a host that is reached at `ip`.
    pub(crate) fn new(ip: IpAddr) -> Self {
        Self { interface: interface(ip), traffic: Mutex::default(), load: Mutex::default() }
    }

    /// Bits per second since the reading before; `None` at the first, and where the kernel does not count.
    pub(crate) fn traffic(&self) -> Option<Traffic> {
        let (rx, tx) = counted(self.interface.as_deref()?)?;
        let now = Sample { at: Instant::now(), rx, tx };
        let mut reading = self.traffic.lock();
        let Some(before) = reading.last else {
            reading.last = Some(now);
            return None;
        };
        let time = now.at.saturating_duration_since(before.at);
        if time >= SHORTEST {
            let rate = |after: u64, before: u64| per_second(after.saturating_sub(before), time);
            reading.rate = Some(Traffic { rx: rate(rx, before.rx), tx: rate(tx, before.tx) });
            reading.last = Some(now);
        }
        reading.rate
    }

    /// What schedulers and children weigh this host by. The most it can send is its link's speed or the configured
    /// limit, in bytes per second, whichever is less.
    pub(crate) fn network(&self, limit: u64, traffic: Option<Traffic>) -> common::Network {
        let limit = limit.saturating_mul(8);
        let most = self.interface.as_deref().and_then(speed).map_or(limit, |speed| speed.min(limit));
        common::Network {
            max_rx_bandwidth: most,
            max_tx_bandwidth: most,
            rx_bandwidth: traffic.map(|traffic| traffic.rx),
            tx_bandwidth: traffic.map(|traffic| traffic.tx),
            ..common::Network::default()
        }
    }

    /// Processors, and their load since the reading before; since boot at the first.
    pub(crate) fn cpu(&self) -> common::Cpu {
        let logical = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        let (last, load) = &mut *self.load.lock();
        let stat = fs::read_to_string("/proc/stat").ok();
        let own = fs::read_to_string("/proc/self/stat").ok();
        if let Some(now) = stat.and_then(|stat| ticks(&stat, &own.unwrap_or_default())) {
            let before = last.unwrap_or(Ticks { busy: 0, all: 0, own: 0 });
            let all = now.all.saturating_sub(before.all);
            // In percent of one processor, as every tool shows a process.
            let own = percent(now.own.saturating_sub(before.own), all) * f64::from(logical);
            if all > 0 {
                (*last, *load) = (Some(now), (percent(now.busy.saturating_sub(before.busy), all), own));
            }
        }
        common::Cpu {
            logical_count: logical,
            percent: load.0,
            process_percent: load.1,
            ..common::Cpu::default()
        }
    }

    /// Main memory.
    pub(crate) fn memory(&self) -> common::Memory {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let info = rustix::system::sysinfo();
        let unit = u64::from(info.mem_unit);
        let total = kibibytes(&text, "MemTotal:").unwrap_or(info.totalram.saturating_mul(unit));
        let free = kibibytes(&text, "MemFree:").unwrap_or(info.freeram.saturating_mul(unit));
        let available = kibibytes(&text, "MemAvailable:").unwrap_or(free);
        let used = total.saturating_sub(available);
        let own = fs::read_to_string("/proc/self/status").unwrap_or_default();
        common::Memory {
            total,
            available,
            used,
            used_percent: percent(used, total),
            process_used_percent: percent(kibibytes(&own, "VmRSS:").unwrap_or(0), total),
            free,
            ..common::Memory::default()
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "traffic is far below 2^53 bits and not negative"
)]
fn per_second(bytes: u64, time: Duration) -> u64 {
    (bytes as f64 * 8.0 / time.as_secs_f64()) as u64
}

/// A line such as `MemTotal:  1024 kB`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Reads `/proc/stat` and `/proc/self/stat`.
fn ticks(all: &str, own: &str) -> Option<Ticks> {
    let line = all.lines().next()?.strip_prefix("cpu ")?;
    // user nice system idle iowait irq softirq steal; guests are in user and nice already.
    let numbers: Vec<u64> = line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
    let idle: u64 = numbers.iter().skip(3).take(2).sum();
    let all: u64 = numbers.iter().sum();
    // The name, in brackets, may hold anything; utime and stime are the 14th and 15th fields.
    let after = own.rsplit_once(") ").map_or("", |(_, after)| after);
    let own = after.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    (numbers.len() > 4).then_some(Ticks { busy: all - idle, all, own })
}

/// Bytes received and sent since boot.
fn counted(interface: &str) -> Option<(u64, u64)> {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/sys/class/net/{interface}/statistics/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    Some((read("rx_bytes")?, read("tx_bytes")?))
}

/// A link's speed in bits per second; virtual ones and links that are down have none.
fn speed(interface: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/speed")).ok()?;
    // -1 for unknown.
    text.trim().parse::<u64>().ok().filter(|speed| *speed > 0)?.checked_mul(1_000_000)
}

/// The interface that has `ip`.
fn interface(ip: IpAddr) -> Option<String> {
    match ip {
        ip if ip.is_loopback() => Some("lo".to_owned()),
        IpAddr::V4(ip) => route_of(&fs::read_to_string("/proc/net/route").ok()?, ip),
        IpAddr::V6(ip) => holder_of(&fs::read_to_string("/proc/net/if_inet6").ok()?, ip),
    }
}

/// The interface of the longest route that an address of this host lies in: the one of its own network.
fn route_of(table: &str, ip: Ipv4Addr) -> Option<String> {
    let mut best: Option<(u32, &str)> = None;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(name), Some(network), Some(mask)) = (fields.first(), fields.get(1), fields.get(7)) else {
            continue;
        };
        // The kernel prints addresses as it holds them: the first byte is the lowest.
        let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::swap_bytes);
        let (Some(network), Some(mask)) = (number(network), number(mask)) else { continue };
        let (network, mask) = if cfg!(target_endian = "big") {
            (network.swap_bytes(), mask.swap_bytes())
        } else {
            (network, mask)
        };
        if u32::from(ip) & mask == network && best.is_none_or(|(longest, _)| mask > longest) {
            best = Some((mask, name));
        }
    }
    best.map(|(_, name)| name.to_owned())
}

/// Reads `/proc/net/if_inet6`.
fn holder_of(table: &str, ip: Ipv6Addr) -> Option<String> {
    let wanted = format!("{:032x}", u128::from(ip));
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        (fields.next()? == wanted).then(|| fields.last().map(str::to_owned))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_is_found_by_its_address() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth1\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        assert_eq!(route_of(table, Ipv4Addr::new(172, 17, 0, 2)).as_deref(), Some("eth1"));
        assert_eq!(route_of(table, Ipv4Addr::new(10, 0, 0, 2)).as_deref(), Some("eth0"));
        assert_eq!(route_of("", Ipv4Addr::new(10, 0, 0, 2)), None);
        let table = "fe800000000000000042acfffe110002 02 40 20 80 eth1\n";
        let ip = "fe80::42:acff:fe11:2".parse().unwrap();
        assert_eq!(holder_of(table, ip).as_deref(), Some("eth1"));
        assert_eq!(holder_of(table, Ipv6Addr::LOCALHOST), None);
        assert_eq!(interface(Ipv4Addr::LOCALHOST.into()).as_deref(), Some("lo"));
    }

    #[test]
    fn processor_time_is_read_as_the_kernel_writes_it() {
        let all = "cpu  10 1 20 60 9 0 0 0 5 5\ncpu0 1 2 3 4\n";
        let own = "42 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 700 30 0 0 20 0";
        assert_eq!(ticks(all, own), Some(Ticks { busy: 31, all: 100, own: 730 }));
        assert_eq!(ticks("", own), None);
        assert_eq!(ticks("cpu  nonsense", own), None);
        assert_eq!(kibibytes("MemTotal:   4 kB\n", "MemTotal:"), Some(4096));
        assert_eq!(kibibytes("MemTotal:   4 kB\n", "MemFree:"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn meters_show_this_machine() {
        let meters = Meters::new(Ipv4Addr::LOCALHOST.into());
        assert_eq!(meters.traffic(), None);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let network = meters.network(1000, meters.traffic());
        assert_eq!(network.max_tx_bandwidth, 8000);
        assert!(network.tx_bandwidth.is_some() && network.rx_bandwidth.is_some());
        let memory = meters.memory();
        assert!(memory.total > 0 && memory.available <= memory.total && memory.process_used_percent > 0.0);
        let cpu = meters.cpu();
        assert!(cpu.logical_count > 0 && (0.0..=100.0).contains(&cpu.percent));
        let nowhere = Meters::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
        assert_eq!(nowhere.traffic(), None);
        assert_eq!(nowhere.network(u64::MAX, None).tx_bandwidth, None);
    }
}
