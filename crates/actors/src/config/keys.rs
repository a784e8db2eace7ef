//! Every key of `dfdaemon.yaml`, its default and what flags make of it.

use std::path::Path;
use std::time::Duration;

use damselfly_scheduler_client::{Target, TlsFiles};

use super::error::{ConfigError, Warning};
use super::section::Section;
use super::unbuilt;
use super::{
    Backend, Config, CongestionControl, Directories, Download, Dynconfig, Gc, Host, Listen, Manager,
    Overrides, Port, RequestLimit, Scheduler, SeedType, Storage, Upload,
};

/// 50·10⁹ bytes per second: in effect no limit.
const NO_LIMIT: u64 = 50_000_000_000;
const HOUR: Duration = Duration::from_secs(3600);
/// The longest path a unix socket's address holds, its closing zero byte excluded.
const SOCKET_PATH_MAX: usize = 107;

const NO_TLS_SERVER: &str =
    "no value: TLS on this listener is not built yet, and without the key it would silently be plaintext";

/// Reads the whole document.
pub(super) fn read(root: Section<'_>, directories: Directories) -> Config {
    let config = Config {
        host: host(root.section("host")),
        download: download(root.section("download"), &directories),
        upload: upload(root.section("upload")),
        manager: manager(root.section("manager")),
        scheduler: scheduler(root.section("scheduler")),
        seed_peer: seed_peer(&root),
        dynconfig: dynconfig(root.section("dynconfig"), &directories),
        storage: storage(root.section("storage"), &directories),
        backend: backend(root.section("backend")),
        gc: gc(root.section("gc")),
        ipv6: network(root.section("network")),
        health: server(root.section("health"), 4003),
        metrics: server(root.section("metrics"), 4002),
        stats: unbuilt::stats(&root),
        private_tasks: root.boolean("privateTasks", true),
        replica_repair_delay: root.duration("replicaRepairDelay", Duration::from_secs(60)),
        listen: None,
        join: Vec::new(),
        log_dir: directories.logs.clone(),
        directories,
    };
    unbuilt::read(&root);
    root.finish();
    config
}

fn host(s: Section<'_>) -> Host {
    let host = Host {
        idc: s.string("idc"),
        location: s.string("location"),
        hostname: s.parsed("hostname", "1 to 253 letters, digits, dots, hyphens or underscores", hostname),
        ip: s.ip("ip"),
        scheduler_cluster_id: s.parsed("schedulerClusterID", "a whole number", |text| text.parse().ok()),
    };
    s.finish();
    host
}

fn hostname(text: &str) -> Option<String> {
    let fine = (1..=253).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    fine.then(|| text.to_owned())
}

pub(super) fn listen(s: &Section<'_>, ip: &'static str, port: &'static str, default: u16) -> Listen {
    Listen { ip: s.ip(ip), port: Port { number: s.number(port, default, 0..=u16::MAX), named: s.has(port) } }
}

pub(super) fn server(s: Section<'_>, default: u16) -> Listen {
    let inner = s.section("server");
    let listener = listen(&inner, "ip", "port", default);
    inner.finish();
    s.finish();
    listener
}

/// A server's limit of requests: none unless the file names the rate.
fn requests(s: &Section<'_>) -> Option<RequestLimit> {
    let limit = RequestLimit {
        rate: s.number("requestRateLimit", 400, 1..=u64::MAX),
        waiting: s.number("requestBufferSize", 50, 1..=1_000_000),
    };
    let limited = s.has("requestRateLimit");
    if !limited {
        s.warn("requestBufferSize", "has no effect without requestRateLimit: requests are not limited");
    }
    limited.then_some(limit)
}

fn download(s: Section<'_>, directories: &Directories) -> Download {
    let inner = s.section("server");
    let quic = s.parsed("protocol", "tcp or quic", |text| match text {
        "tcp" => Some(false),
        "quic" => Some(true),
        _ => None,
    });
    if quic == Some(true) {
        s.refuse("protocol", "tcp: quic is not built yet, and pieces would silently travel over TCP");
    }
    let download = Download {
        socket: inner
            .parsed("socketPath", "an absolute path of at most 107 bytes", |text| {
                (Path::new(text).is_absolute() && text.len() <= SOCKET_PATH_MAX).then(|| text.into())
            })
            .unwrap_or_else(|| directories.socket.clone()),
        socket_mode: inner
            .parsed("socketMode", "permission bits in octal such as 0666 or 0660", |text| {
                let digits = text.strip_prefix("0o").unwrap_or(text);
                u32::from_str_radix(digits, 8).ok().filter(|&mode| mode <= 0o777 && !digits.starts_with('+'))
            })
            .unwrap_or(0o666),
        path_roots: inner.absolute_paths("pathRoots"),
        requests: requests(&inner),
        bandwidth_limit: s.positive_size("bandwidthLimit", NO_LIMIT),
        back_to_source_bandwidth_limit: s.positive_size("backToSourceBandwidthLimit", NO_LIMIT),
        piece_timeout: s.period("pieceTimeout", Duration::from_secs(360)),
        collected_piece_timeout: s.period("collectedPieceTimeout", Duration::from_secs(360)),
        concurrent_piece_count: s.number("concurrentPieceCount", 8, 1..=1024),
        congestion_control: s
            .parsed("congestionControl", "auto, bbr or cubic", |text| match text {
                "auto" => Some(CongestionControl::Auto),
                "bbr" => Some(CongestionControl::Bbr),
                "cubic" => Some(CongestionControl::Cubic),
                _ => None,
            })
            .unwrap_or(CongestionControl::Auto),
    };
    inner.finish();
    s.finish();
    download
}

fn upload(s: Section<'_>) -> Upload {
    let (inner, client) = (s.section("server"), s.section("client"));
    for tls in ["caCert", "cert", "key"] {
        inner.refuse(tls, NO_TLS_SERVER);
        client.refuse(
            tls,
            "no value: TLS between daemons is not built yet, and without the key it would silently be plaintext",
        );
    }
    let upload = Upload {
        listen: listen(&inner, "ip", "port", 4000),
        requests: requests(&inner),
        disable_shared: s.boolean("disableShared", false),
        bandwidth_limit: s.positive_size("bandwidthLimit", NO_LIMIT),
    };
    inner.finish();
    client.finish();
    s.finish();
    upload
}

fn tls(s: &Section<'_>) -> Option<TlsFiles> {
    let (ca, certificate, key) = (s.path("caCert"), s.path("cert"), s.path("key"));
    if certificate.is_some() && key.is_none() {
        s.refuse("cert", "a key beside it: a client certificate needs both");
    }
    if key.is_some() && certificate.is_none() {
        s.refuse("key", "a cert beside it: a client certificate needs both");
    }
    let any = ca.is_some() || certificate.is_some();
    any.then(|| TlsFiles { ca, identity: certificate.zip(key) })
}

fn manager(s: Section<'_>) -> Manager {
    let manager = Manager {
        addr: s.parsed("addr", "http://HOST:PORT or https://HOST:PORT", |text| {
            let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
            Target::parse(rest.trim_end_matches('/'), 65003).ok().map(|_| text.to_owned())
        }),
        tls: tls(&s),
    };
    s.finish();
    manager
}

fn scheduler(s: Section<'_>) -> Scheduler {
    let inner = s.section("server");
    let scheduler = Scheduler {
        announce_interval: s.period("announceInterval", Duration::from_secs(300)),
        max_schedule_count: s.number("maxScheduleCount", 5, 1..=u32::MAX),
        tls: tls(&s),
        embedded: false,
        listen: listen(&inner, "ip", "port", 8002),
    };
    unbuilt::scheduler(&s);
    inner.finish();
    s.finish();
    scheduler
}

fn seed_peer(root: &Section<'_>) -> Option<SeedType> {
    let s = root.section("seedPeer");
    let enabled = s.boolean("enable", false);
    let kind = s
        .parsed("type", "normal or super", |text| match text {
            "normal" => Some(SeedType::Normal),
            "super" => Some(SeedType::Super),
            _ => None,
        })
        .unwrap_or(SeedType::Super);
    s.finish();
    enabled.then_some(kind)
}

fn dynconfig(s: Section<'_>, directories: &Directories) -> Dynconfig {
    let dynconfig = Dynconfig {
        path: directories.config.join("dynconfig.yaml"),
        named: false,
        refresh_interval: s.period("refreshInterval", Duration::from_secs(60)),
    };
    s.finish();
    dynconfig
}

fn storage(s: Section<'_>, directories: &Directories) -> Storage {
    let inner = s.section("server");
    let storage = Storage {
        dir: s.absolute_path("dir").unwrap_or_else(|| directories.storage.clone()),
        keep: s.boolean("keep", true),
        tcp: listen(&inner, "ip", "tcpPort", 4005),
        quic: listen(&inner, "ip", "quicPort", 4006),
    };
    unbuilt::storage(&s, &inner);
    inner.finish();
    s.finish();
    storage
}

fn backend(s: Section<'_>) -> Backend {
    let backend = Backend {
        request_header: s.secret_map("requestHeader"),
        max_retries: Some(s.number("maxRetries", 1, 0..=1000)).filter(|_| s.has("maxRetries")),
    };
    unbuilt::backend(&s);
    s.finish();
    backend
}

fn gc(s: Section<'_>) -> Gc {
    let p = s.section("policy");
    let (threshold, high, low) = (
        p.alias("diskThreshold", "distThreshold"),
        p.alias("diskHighThresholdPercent", "distHighThresholdPercent"),
        p.alias("diskLowThresholdPercent", "distLowThresholdPercent"),
    );
    let gc = Gc {
        interval: s.period("interval", HOUR / 4),
        task_ttl: p.period("taskTTL", 720 * HOUR),
        disk_threshold: Some(p.size(threshold, 0)).filter(|&bytes| bytes > 0),
        disk_high_percent: p.number(high, 80, 1..=99),
        disk_low_percent: p.number(low, 60, 1..=99),
    };
    if gc.disk_low_percent > gc.disk_high_percent {
        if p.has(low) {
            p.refuse(low, &format!("at most the high threshold, {} per cent", gc.disk_high_percent));
        } else {
            p.refuse(high, &format!("at least the low threshold, {} per cent", gc.disk_low_percent));
        }
    }
    unbuilt::gc_policy(&p);
    p.finish();
    s.finish();
    gc
}

fn network(s: Section<'_>) -> bool {
    let ipv6 = s.boolean("enableIPv6", false);
    s.finish();
    ipv6
}

/// Lets flags overrule the file.
pub(super) fn apply(
    config: &mut Config,
    overrides: &Overrides,
    warnings: &mut Vec<Warning>,
) -> Result<(), ConfigError> {
    if overrides.home.is_some() {
        let places = [
            ("storage.dir", &mut config.storage.dir, &config.directories.storage),
            ("download.server.socketPath", &mut config.download.socket, &config.directories.socket),
        ];
        for (key, place, home) in places {
            if place != home {
                let message = format!("--home puts it at {} instead", home.display());
                warnings.push(Warning { key: key.to_owned(), message, place: None });
                place.clone_from(home);
            }
        }
    }
    let socket = config.download.socket.as_os_str();
    if socket.len() > SOCKET_PATH_MAX {
        return Err(ConfigError::Flag {
            flag: "--home",
            value: config.directories.config.display().to_string(),
            expected: format!(
                "a shorter path: the socket's would be {} bytes long, {SOCKET_PATH_MAX} are possible",
                socket.len()
            ),
        });
    }
    if let Some(path) = &overrides.dynconfig {
        config.dynconfig.path.clone_from(path);
        config.dynconfig.named = true;
    }
    if let Some(name) = &overrides.hostname {
        let name = hostname(name).ok_or_else(|| ConfigError::Flag {
            flag: "--hostname",
            value: name.clone(),
            expected: "1 to 253 letters, digits, dots, hyphens or underscores".to_owned(),
        })?;
        config.host.hostname = Some(name);
    }
    if let Some(logs) = &overrides.log_dir {
        config.log_dir.clone_from(logs);
    }
    config.listen = overrides.listen.or(config.listen);
    config.scheduler.embedded |= overrides.scheduler;
    config.join = Target::parse_list(&overrides.join, 8002).map_err(|error| ConfigError::Flag {
        flag: "--join",
        value: overrides.join.join(","),
        expected: error.to_string(),
    })?;
    let ports = &overrides.ports;
    for (port, number) in [
        (&mut config.upload.listen.port, ports.grpc),
        (&mut config.metrics.port, ports.metrics),
        (&mut config.health.port, ports.health),
        (&mut config.stats.port, ports.stats),
        (&mut config.storage.tcp.port, ports.tcp),
        (&mut config.storage.quic.port, ports.quic),
        (&mut config.scheduler.listen.port, ports.scheduler),
    ] {
        if let Some(number) = number {
            *port = Port { number, named: true };
        }
    }
    Ok(())
}
