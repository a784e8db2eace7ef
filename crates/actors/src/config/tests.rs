use proptest::prelude::*;

use super::*;

mod places;

/// Every key of Dragonfly's file, most at their defaults.
const FULL: &str = include_str!("tests/full.yaml");

fn root() -> Directories {
    Directories::decide(0, |_| None, None).unwrap()
}

fn parse(source: &str) -> Result<Loaded, ConfigError> {
    Config::parse(source, Path::new("dfdaemon.yaml"), &Overrides::default(), root())
}

fn config(source: &str) -> Config {
    let loaded = parse(source).unwrap();
    assert_eq!(loaded.warnings, [], "{source}");
    loaded.config
}

/// The text of the refusal.
fn refused(source: &str) -> String {
    match parse(source) {
        Ok(loaded) => panic!("accepted {source:?}: {:?}", loaded.config),
        Err(error) => error.to_string(),
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn nothing_is_the_defaults() {
    for source in ["", "# only words\n", "{}", "---\n", "download:\nstorage: ~\ngc: {policy: }"] {
        let config = config(source);
        assert_eq!(config.download.socket, Path::new("/var/run/dragonfly/dfdaemon.sock"));
        assert_eq!(config.download.socket_mode, 0o666);
        assert_eq!(config.storage.dir, Path::new("/var/lib/dragonfly"));
        assert!(config.storage.keep && config.private_tasks);
        assert_eq!(config.upload.listen.port, Port { number: 4000, named: false });
        assert_eq!(config.metrics.port.number, 4002);
        assert_eq!(config.health.port.number, 4003);
        assert_eq!(config.stats.port.number, 4004);
        assert_eq!(config.storage.tcp.port.number, 4005);
        assert_eq!(config.storage.quic.port.number, 4006);
        assert_eq!(config.scheduler.listen.port.number, 8002);
        assert_eq!(config.download.bandwidth_limit, 50_000_000_000);
        assert_eq!(config.download.concurrent_piece_count, 8);
        assert_eq!(config.gc.task_ttl, secs(720 * 3600));
        assert_eq!(config.gc.disk_threshold, None);
        assert_eq!((config.gc.disk_high_percent, config.gc.disk_low_percent), (80, 60));
        assert_eq!(config.seed_peer, None);
        assert_eq!(config.scheduler.announce_interval, secs(300));
        assert_eq!(config.replica_repair_delay, secs(60));
        assert_eq!(config.dynconfig.path, Path::new("/etc/dragonfly/dynconfig.yaml"));
        assert_eq!(config.log_dir, Path::new("/var/log/dragonfly/dfdaemon"));
    }
}

#[test]
fn dragonflys_whole_file_is_known() {
    let loaded = parse(FULL).unwrap();
    let unknown: Vec<_> = loaded.warnings.iter().filter(|w| w.message.contains("unknown")).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
    let unbuilt: Vec<&str> = loaded.warnings.iter().map(|warning| warning.key.as_str()).collect();
    for key in [
        "proxy",
        "tracing",
        "backend.enableHickoryDNS",
        "server.adaptiveRateLimit",
        "gc.policy.persistentTaskTTL",
        "gc.policy.persistentCacheTaskTTL",
        "scheduler.scheduleTimeout",
        "storage.writePieceTimeout",
        "storage.writeBufferSize",
        "storage.readBufferSize",
        "storage.server.quicPort",
        "stats",
    ] {
        assert_eq!(unbuilt.iter().filter(|known| **known == key).count(), 1, "{key} in {unbuilt:?}");
    }
    let config = loaded.config;
    assert_eq!(config.host.hostname.as_deref(), Some("node-1"));
    assert_eq!(config.host.ip, Some("10.0.0.5".parse().unwrap()));
    assert_eq!(config.host.scheduler_cluster_id, Some(7));
    assert_eq!(config.seed_peer, Some(SeedType::Super));
    assert_eq!(config.upload.bandwidth_limit, 20_000_000_000);
    assert_eq!(config.backend.request_header["X-Team"], "ml");
    assert_eq!(config.backend.max_retries, Some(3));
    assert_eq!(config.gc.disk_threshold, Some(100 << 30));
    assert_eq!(config.manager.addr.as_deref(), Some("http://manager.example:65003"));
    assert!(config.upload.listen.port.named);
    let tls = config.scheduler.tls.unwrap();
    assert_eq!(tls.ca.as_deref(), Some(Path::new("/etc/ssl/ca.pem")));
    assert!(tls.identity.is_some());
}

#[test]
fn our_own_keys_are_read() {
    let config = config(
        "download:\n  server: {socketMode: 0660, pathRoots: [/data, /mnt/models]}\n  congestionControl: bbr\n\
         privateTasks: false\nreplicaRepairDelay: 5m\nscheduler: {server: {port: 9002, ip: 10.0.0.1}}\n",
    );
    assert_eq!(config.download.socket_mode, 0o660);
    assert_eq!(config.download.path_roots, [Path::new("/data"), Path::new("/mnt/models")]);
    assert_eq!(config.download.congestion_control, CongestionControl::Bbr);
    assert!(!config.private_tasks);
    assert_eq!(config.replica_repair_delay, secs(300));
    assert_eq!(config.scheduler.listen.port, Port { number: 9002, named: true });
}

#[test]
fn socket_modes_are_octal_however_spelt() {
    for text in ["0666", "666", "0o666", "'0666'", "\"666\""] {
        let config = config(&format!("download: {{server: {{socketMode: {text}}}}}"));
        assert_eq!(config.download.socket_mode, 0o666, "{text}");
    }
    for text in ["0888", "1777", "rw", "-1", "0x1b6", "[6]"] {
        assert!(
            refused(&format!("download: {{server: {{socketMode: {text}}}}}")).contains("octal"),
            "{text}"
        );
    }
}

#[test]
fn a_wrong_value_is_refused_with_key_value_expectation_and_place() {
    let text = refused("download:\n  # how long\n  pieceTimeout: soon\n");
    for part in [
        "dfdaemon.yaml:3:17",
        "download.pieceTimeout",
        "\"soon\"",
        "a duration above zero such as",
        "3 |   pieceTimeout: soon",
        "|                 ^^^^",
    ] {
        assert!(text.contains(part), "{text}\nlacks {part:?}");
    }
    for (source, parts) in [
        ("download: {concurrentPieceCount: 0}", &["download.concurrentPieceCount", "\"0\"", "from 1 to"][..]),
        ("upload: {server: {port: 70000}}", &["upload.server.port", "70000", "from 0 to 65535"]),
        ("upload: {bandwidthLimit: 5 parsecs}", &["upload.bandwidthLimit", "5 parsecs", "50GB"]),
        ("upload: {bandwidthLimit: 0}", &["above zero"]),
        ("gc: {policy: {diskHighThresholdPercent: 100}}", &["from 1 to 99"]),
        ("gc: {policy: {diskHighThresholdPercent: 50}}", &["diskHighThresholdPercent", "low threshold"]),
        ("gc: {policy: {distLowThresholdPercent: 90}}", &["distLowThresholdPercent", "80 per cent"]),
        ("host: {ip: here}", &["host.ip", "an IP address"]),
        ("host: {hostname: 'a b'}", &["host.hostname"]),
        ("storage: {keep: yes}", &["storage.keep", "\"yes\"", "true or false"]),
        ("storage: {dir: relative}", &["storage.dir", "an absolute path"]),
        ("storage: 7", &["storage is \"7\"", "a section"]),
        ("storage: [a]", &["storage is a list"]),
        ("- a\n", &["the document is a list"]),
        ("download: {server: {pathRoots: [/a, b]}}", &["pathRoots", "\"b\"", "an absolute path"]),
        ("manager: {addr: 'host:65003'}", &["manager.addr", "http://HOST:PORT"]),
        ("scheduler: {cert: /c.pem}", &["scheduler.cert", "a key beside it"]),
        ("proxy: {server: {port: x}}", &["proxy.server.port"]),
        ("download: {protocol: carrier-pigeon}", &["tcp or quic"]),
    ] {
        let text = refused(source);
        for part in parts {
            assert!(text.contains(part), "{text}\nlacks {part:?}");
        }
    }
}

#[test]
fn everything_wrong_is_named_at_once() {
    let Err(ConfigError::Values(wrong)) =
        parse("upload: {server: {port: x}}\nhost: {ip: y}\ngc: {interval: 0s}\n")
    else {
        panic!("accepted")
    };
    let keys: Vec<&str> = wrong.iter().map(|value| value.key.as_str()).collect();
    assert_eq!(keys.len(), 3);
    for key in ["upload.server.port", "host.ip", "gc.interval"] {
        assert!(keys.contains(&key));
    }
}

#[test]
fn what_would_be_dropped_silently_is_refused() {
    for (source, why) in [
        ("download: {protocol: quic}", "not built"),
        ("security: {enable: true}", "plaintext"),
        ("upload: {server: {cert: /c.pem, key: /k.pem}}", "plaintext"),
        ("upload: {client: {caCert: /c.pem}}", "plaintext"),
    ] {
        assert!(refused(source).contains(why), "{source}");
    }
    for source in ["download: {protocol: tcp}", "security: {enable: false}", "upload: {server: {cert: }}"] {
        config(source);
    }
}

#[test]
fn secrets_are_in_no_message() {
    let secret = "hunter2-hunter2-hunter2";
    for source in [
        format!("proxy: {{server: {{basicAuth: {{username: u, password: {secret}}}}}}}"),
        format!("backend: {{requestHeader: {{Authorization: [{secret}]}}}}"),
        format!("backend: {{requestHeader: {secret}}}"),
        format!("proxy: {{server: {{port: x, basicAuth: {{username: u, password: {}}}}}}}", &secret[..7]),
        format!("tracing: {{headers: [{secret}]}}"),
        format!("backend:\n  requestHeader:\n    Authorization: {secret}\n   x: [\n"),
    ] {
        let error = parse(&source).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[test]
fn unknown_keys_are_a_warning_with_a_guess() {
    let loaded = parse("download:\n  pieceTimout: 5s\n  zzz: 1\nuplaod: {}\n").unwrap();
    let texts: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(
        texts.contains(
            &"dfdaemon.yaml:2:3: download.pieceTimout: unknown key, ignored; did you mean pieceTimeout?"
                .to_owned()
        )
    );
    assert!(texts.contains(&"dfdaemon.yaml:3:3: download.zzz: unknown key, ignored".to_owned()));
    assert!(texts.iter().any(|text| text.contains("uplaod") && text.ends_with("did you mean upload?")));
}

#[test]
fn aliases_of_the_thresholds_count() {
    let config = config(
        "gc: {policy: {distThreshold: 1TiB, distHighThresholdPercent: 90, distLowThresholdPercent: 70}}",
    );
    assert_eq!(config.gc.disk_threshold, Some(1 << 40));
    assert_eq!((config.gc.disk_high_percent, config.gc.disk_low_percent), (90, 70));
}

#[test]
fn requests_are_limited_only_where_the_file_names_a_rate() {
    let unlimited = config("");
    assert_eq!((unlimited.download.requests, unlimited.upload.requests), (None, None));
    assert_eq!(unlimited.backend.max_retries, None);
    let limited = config(
        "upload: {server: {requestRateLimit: 7}}\n\
         download: {server: {requestRateLimit: 9, requestBufferSize: 3}}",
    );
    assert_eq!(limited.upload.requests, Some(RequestLimit { rate: 7, waiting: 50 }));
    assert_eq!(limited.download.requests, Some(RequestLimit { rate: 9, waiting: 3 }));
    let alone = parse("upload: {server: {requestBufferSize: 3}}").unwrap();
    assert_eq!(alone.config.upload.requests, None);
    assert_eq!(alone.warnings.len(), 1);
    assert_eq!(alone.warnings[0].key, "upload.server.requestBufferSize");
}

#[test]
fn seeds_are_super_unless_they_say_otherwise() {
    for (source, seed) in [
        ("seedPeer: {enable: true}", Some(SeedType::Super)),
        ("seedPeer: {enable: true, type: normal}", Some(SeedType::Normal)),
        ("seedPeer: {enable: false, type: super}", None),
        ("seedPeer: {}", None),
    ] {
        assert_eq!(config(source).seed_peer, seed, "{source}");
    }
}

#[test]
fn sizes_are_bytesizes() {
    for (text, bytes) in [
        ("50GB", 50_000_000_000),
        ("64MiB", 64 << 20),
        ("1KiB", 1024),
        ("1024", 1024),
        ("'1.5 GiB'", 3 << 29),
    ] {
        assert_eq!(
            config(&format!("upload: {{bandwidthLimit: {text}}}")).upload.bandwidth_limit,
            bytes,
            "{text}"
        );
    }
}

#[test]
fn anchors_and_merges_work() {
    let config = config("health: &h {server: {port: 5003}}\nmetrics: {<<: *h}\n");
    assert_eq!([config.health, config.metrics].map(|listen| listen.port.number), [5003; 2]);
}

#[test]
fn syntax_errors_name_their_place() {
    let error = parse("download:\n  a: [1\nb: 2\n").unwrap_err();
    assert!(matches!(error, ConfigError::Syntax { .. }), "{error:?}");
    assert!(error.to_string().starts_with("dfdaemon.yaml:"), "{error}");
    let twice = parse("download: {pieceTimeout: 1s, pieceTimeout: 2s}").unwrap_err();
    assert!(twice.to_string().contains("duplicate"), "{twice}");
}

#[test]
fn flags_come_before_the_file() {
    let overrides = Overrides {
        listen: Some("10.0.0.9".parse().unwrap()),
        join: vec!["a:1,b".to_owned(), "c".to_owned()],
        scheduler: true,
        hostname: Some("other".to_owned()),
        log_dir: Some("/logs".into()),
        dynconfig: Some("/d.yaml".into()),
        ports: PortOverrides { grpc: Some(5000), tcp: Some(5005), ..PortOverrides::default() },
        ..Overrides::default()
    };
    let source = "host: {hostname: mine}\nupload: {server: {port: 4444}}\nmetrics: {server: {port: 4445}}\n";
    let config = Config::parse(source, Path::new("f"), &overrides, root()).unwrap().config;
    assert_eq!(config.listen, overrides.listen);
    let joined: Vec<String> = config.join.iter().map(ToString::to_string).collect();
    assert_eq!(joined, ["a:1", "b:8002", "c:8002"]);
    assert!(config.scheduler.embedded && config.dynconfig.named);
    assert_eq!(config.host.hostname.as_deref(), Some("other"));
    assert_eq!(config.log_dir, Path::new("/logs"));
    assert_eq!(config.dynconfig.path, Path::new("/d.yaml"));
    assert_eq!(config.upload.listen.port, Port { number: 5000, named: true });
    assert_eq!(config.storage.tcp.port, Port { number: 5005, named: true });
    assert_eq!(config.metrics.port, Port { number: 4445, named: true });
    assert_eq!(config.health.port, Port { number: 4003, named: false });

    let wrong = Overrides { join: vec!["a b".to_owned()], ..Overrides::default() };
    let error = Config::parse("", Path::new("f"), &wrong, root()).unwrap_err().to_string();
    assert!(error.contains("--join") && error.contains("HOST[:PORT]"), "{error}");
}

#[test]
fn home_puts_everything_in_one_place() {
    let home = Path::new("/srv/second");
    let overrides = Overrides { home: Some(home.to_owned()), ..Overrides::default() };
    let directories = Directories::decide(0, |_| None, Some(home)).unwrap();
    let source = "storage: {dir: /var/lib/dragonfly}\n";
    let loaded = Config::parse(source, Path::new("f"), &overrides, directories).unwrap();
    let config = loaded.config;
    for path in [&config.storage.dir, &config.download.socket, &config.log_dir, &config.dynconfig.path] {
        assert!(path.starts_with(home), "{path:?}");
    }
    assert_eq!(loaded.warnings.len(), 1);
    assert_eq!(loaded.warnings[0].key, "storage.dir");

    let deep = PathBuf::from(format!("/{}", "d".repeat(120)));
    let overrides = Overrides { home: Some(deep.clone()), ..Overrides::default() };
    let directories = Directories::decide(0, |_| None, Some(&deep)).unwrap();
    let error = Config::parse("", Path::new("f"), &overrides, directories).unwrap_err().to_string();
    assert!(error.contains("shorter"), "{error}");
}

#[test]
fn load_takes_the_default_file_only_if_it_is_there() {
    let home = tempfile::tempdir().unwrap();
    let overrides = Overrides { home: Some(home.path().to_owned()), ..Overrides::default() };
    let load = |path: Option<&Path>| Config::load_for(path, &overrides, 1000, |_| None);
    let loaded = load(None).unwrap();
    assert_eq!(loaded.file, None);
    assert_eq!(loaded.config.upload.listen.port.number, 4000);

    let file = home.path().join("dfdaemon.yaml");
    std::fs::write(&file, "upload: {server: {port: 4100}}").unwrap();
    let loaded = load(None).unwrap();
    assert_eq!(loaded.file.as_deref(), Some(&*file));
    assert_eq!(loaded.config.upload.listen.port.number, 4100);

    let missing = home.path().join("none.yaml");
    let error = load(Some(&missing)).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
    assert!(error.to_string().contains("none.yaml"), "{error}");

    std::fs::write(&file, [0xff, 0xfe, b'a']).unwrap();
    assert!(matches!(load(None), Err(ConfigError::Read { .. })));
    assert!(Config::load(Some(&missing), &overrides).is_err());
}

fn yaml() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("~".to_owned()),
        Just("true".to_owned()),
        "-?[0-9]{1,25}",
        "[0-9]{1,4}(ms|s|h|d|y|GB|KiB|EiB|%)",
        "[0-9]{1,30}(year|EiB)",
        "\"[a-z0-9:/. é]{0,20}\"",
        "[.0-9]{1,8}",
        "0[xob][0-9a-f]{1,6}",
    ];
    let key = prop_oneof![
        proptest::sample::select(vec![
            "host",
            "ip",
            "hostname",
            "download",
            "server",
            "socketMode",
            "pathRoots",
            "pieceTimeout",
            "upload",
            "port",
            "bandwidthLimit",
            "gc",
            "policy",
            "taskTTL",
            "distThreshold",
            "diskLowThresholdPercent",
            "proxy",
            "rules",
            "basicAuth",
            "password",
            "backend",
            "requestHeader",
            "storage",
            "dir",
            "keep",
            "security",
            "enable",
            "<<",
        ])
        .prop_map(str::to_owned),
        "[a-zA-Z]{1,12}",
    ];
    leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(", "))),
            proptest::collection::vec((key.clone(), inner), 0..6).prop_map(|pairs| {
                let pairs: Vec<String> =
                    pairs.into_iter().map(|(key, value)| format!("{key}: {value}")).collect();
                format!("{{{}}}", pairs.join(", "))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _outcome = parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_document_makes_it_panic_and_every_refusal_names_a_place(source in yaml()) {
        match parse(&source) {
            Ok(loaded) => prop_assert!(loaded.warnings.iter().all(|warning| warning.place.is_some())),
            Err(error) => {
                let text = error.to_string();
                prop_assert!(text.starts_with("dfdaemon.yaml:"), "{}", text);
            }
        }
    }
}
