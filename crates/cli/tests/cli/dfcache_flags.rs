//! dfcache's command lines, environment and configuration file, without a daemon.

use std::collections::BTreeMap;
use std::fs;

use assert_cmd::Command;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const NOBODY: [&str; 2] = ["-e", "/nowhere/d.sock"];

fn run_with(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfcache"));
    command.args(arguments).env_clear().env("XDG_CONFIG_HOME", "/nowhere").envs(environment.iter().copied());
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    run_with(arguments, &[])
}

/// What `dfcache config` says of every option: value and origin.
fn config(arguments: &[&str], environment: &[(&str, &str)]) -> BTreeMap<String, (String, String)> {
    let (code, stdout, stderr) = run_with(&[&["config", "--json"], arguments].concat(), environment);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let lines: Vec<BTreeMap<String, String>> = serde_json::from_str(&stdout).unwrap();
    let key = |line: &BTreeMap<String, String>| format!("{} {}", line["command"], line["option"]);
    lines.iter().map(|line| (key(line), (line["value"].clone(), line["from"].clone()))).collect()
}

#[test]
fn every_spelling_of_dragonflys_dfcache_is_taken() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("f");
    fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    // Code 3: all of it was understood, and then there was no daemon.
    let lines: [&[&str]; 7] = [
        &["import", file, "--content-for-calculating-task-id", "x", "--persistent-replica-count=3"],
        &["import", "--piece-length=32mib", "--ttl=24h", "--timeout", "10m", file, "--no-progress"],
        &["import", file, "--application=a", "--tag", "t", "-l", "debug", "--console"],
        &["export", ID, "-O", "/tmp/absent", "--transfer-from-dfdaemon", "--timeout=1h"],
        &["export", ID, "--output", "/tmp/absent", "--overwrite", "--force-hard-link", "--no-progress"],
        &[
            "export",
            ID,
            "--output=/tmp/absent",
            "--application",
            "a",
            "--tag=t",
            "--digest",
            "crc32:1",
            "--console",
        ],
        &["stat", ID, "-l=warn", "--console"],
    ];
    for line in lines {
        let (code, stdout, stderr) = run(&[line, &["--endpoint", "/nowhere/d.sock"]].concat());
        assert_eq!(code, 3, "{line:?}: {stdout}{stderr}");
        let said = if line[0] == "import" { stderr } else { stdout };
        assert!(said.contains("Connect Dfdaemon Failed!"), "{line:?}: {said}");
    }
}

#[test]
fn environment_variables_of_dragonflys_dfcache_are_read() {
    let environment = [
        ("DFCACHE_IMPORT_CONTENT_FOR_CALCULATING_TASK_ID", "x"),
        ("DFCACHE_IMPORT_PERSISTENT_REPLICA_COUNT", "4"),
        ("DFCACHE_IMPORT_PIECE_LENGTH", "8MiB"),
        ("DFCACHE_IMPORT_APPLICATION", "a"),
        ("DFCACHE_IMPORT_TAG", "t"),
        ("DFCACHE_IMPORT_TTL", "2h"),
        ("DFCACHE_IMPORT_TIMEOUT", "3m"),
        ("DFCACHE_IMPORT_DFDAEMON_ENDPOINT", "/i.sock"),
        ("DFCACHE_IMPORT_NO_PROGRESS", "true"),
        ("DFCACHE_IMPORT_LOG_LEVEL", "warn"),
        ("DFCACHE_IMPORT_CONSOLE", "true"),
        ("DFCACHE_EXPORT_TRANSFER_FROM_DFDAEMON", "true"),
        ("DFCACHE_EXPORT_OVERWRITE", "true"),
        ("DFCACHE_EXPORT_FORCE_HARD_LINK", "false"),
        ("DFCACHE_EXPORT_APPLICATION", "b"),
        ("DFCACHE_EXPORT_TAG", "u"),
        ("DFCACHE_EXPORT_TIMEOUT", "4m"),
        ("DFDAEMON_ENDPOINT", "/e.sock"),
        ("DFCACHE_EXPORT_NO_PROGRESS", "1"),
        ("DFCACHE_EXPORT_LOG_LEVEL", "error"),
        ("DFCACHE_EXPORT_CONSOLE", "1"),
    ];
    let found = config(&[], &environment);
    for (name, value) in environment {
        let (command, option) = match name.split_once("_").unwrap() {
            ("DFDAEMON", _) => ("export", "endpoint".to_owned()),
            (_, rest) => {
                let (command, option) = rest.split_once('_').unwrap();
                let command = if command == "IMPORT" { "import" } else { "export" };
                (command, option.replace("DFDAEMON_ENDPOINT", "ENDPOINT").to_lowercase().replace('_', "-"))
            }
        };
        let found = &found[&format!("{command} --{option}")];
        assert_eq!((found.0.as_str(), found.1.as_str()), (value, &*format!("environment {name}")));
    }
    // The daemon's socket of stat is its own variable.
    let (code, stdout, _) = run_with(&["stat", ID], &[("DFCACHE_STAT_DFDAEMON_ENDPOINT", "/nowhere/s.sock")]);
    assert!(code == 3 && stdout.contains("/nowhere/s.sock"), "{stdout}");
}

#[test]
fn defaults_are_dragonflys() {
    let found = config(&[], &[]);
    for (option, value) in [
        ("import --persistent-replica-count", "2"),
        ("import --ttl", "1h"),
        ("import --timeout", "30m"),
        ("import --piece-length", "-"),
        ("import --transfer", "auto"),
        ("import --path-mapping", ""),
        ("import --content-id", "sha256"),
        ("import --ack", "1"),
        ("import --log-level", "info"),
        ("export --timeout", "2h"),
        ("export --overwrite", "false"),
        ("export --transfer", "auto"),
        (" client.streaming.bufferSize", "4.0 MiB"),
        (" client.streaming.idleTimeout", "5m"),
        (" client.streaming.maxConnections", "100"),
    ] {
        assert_eq!(found[option], (value.to_owned(), "default".to_owned()), "{option}");
    }
    let (sockets, origin) = &found["import --endpoint"];
    assert!(sockets.ends_with("/var/run/dragonfly/dfdaemon.sock") && origin == "default", "{sockets}");
    let (code, stdout, _) = run(&["config"]);
    assert!(code == 0 && stdout.starts_with(" COMMAND   OPTION "), "{stdout}");
}

#[test]
fn flags_come_before_the_environment_before_the_file() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("dragonfly/dfcache.yaml");
    fs::create_dir(file.parent().unwrap()).unwrap();
    let text = "client:\n  transfer: stream\n  content_id: blake3\n  uds: {socketPath: /nowhere/file.sock}\n  streaming:\n    \
                buffer_size: 8MiB\n    max_connections: 7\n";
    fs::write(&file, text).unwrap();
    let user = ("XDG_CONFIG_HOME", home.path().to_str().unwrap());
    let path = file.to_str().unwrap();

    let found = config(&[], &[user]);
    assert_eq!(found["import --transfer"], ("stream".to_owned(), format!("{path}:2:13")));
    assert_eq!(found["export --transfer"], ("stream".to_owned(), format!("{path}:2:13")));
    assert_eq!(found["import --content-id"], ("blake3".to_owned(), format!("{path}:3:15")));
    assert_eq!(found["import --endpoint"].0, "/nowhere/file.sock");
    assert_eq!(found[" client.streaming.bufferSize"].0, "8.0 MiB");
    assert_eq!(found[" client.streaming.maxConnections"], ("7".to_owned(), format!("{path}:7:22")));
    let found = config(&[], &[user, ("DFCACHE_IMPORT_TRANSFER", "path")]);
    assert_eq!(
        found["import --transfer"],
        ("path".to_owned(), "environment DFCACHE_IMPORT_TRANSFER".to_owned())
    );
    assert_eq!(found["export --transfer"].0, "stream");

    // The socket shows who won.
    let environment = [user, ("DFCACHE_STAT_DFDAEMON_ENDPOINT", "/nowhere/environment.sock")];
    assert!(run_with(&["stat", ID], &[user]).1.contains("/nowhere/file.sock"));
    assert!(run_with(&["stat", ID], &environment).1.contains("/nowhere/environment.sock"));
    let flag = ["stat", ID, "-e", "/nowhere/flag.sock"];
    assert!(run_with(&flag, &environment).1.contains("/nowhere/flag.sock"));
    // A file that is named is the only one.
    fs::write(home.path().join("other.yaml"), "").unwrap();
    let other = home.path().join("other.yaml");
    let found = config(&["--config", other.to_str().unwrap()], &[user]);
    assert_eq!(found["import --transfer"].1, "default");
}

#[test]
fn a_wrong_file_is_refused_and_an_unknown_key_is_not() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("c.yaml");
    let path = file.to_str().unwrap();
    fs::write(&file, "client:\n  transfer: pigeon\n").unwrap();
    let (code, stdout, _) = run(&["stat", ID, "--config", path]);
    assert_eq!(code, 1);
    let text = format!("{path}:2:13: client.transfer is \"pigeon\": expected auto, fd, path or stream");
    assert!(stdout.starts_with("Stating Failed!\n") && stdout.contains(&text), "{stdout}");
    fs::write(&file, "client:\n  colour: red\n").unwrap();
    let (code, _, stderr) = run(&["config", "--config", path]);
    assert_eq!(code, 0);
    assert_eq!(stderr, format!("dfcache: {path}:2:11: client.colour: unknown key; it has no effect\n"));
    let (code, stdout, _) = run(&["config", "--config", "/nowhere/c.yaml"]);
    assert!(code == 1 && stdout.contains("cannot read configuration /nowhere/c.yaml"), "{stdout}");
}

#[test]
fn what_contradicts_itself_is_named() {
    let refused = |arguments: &[&str], environment: &[(&str, &str)], parts: &[&str]| {
        let (code, stdout, stderr) = run_with(&[arguments, &NOBODY].concat(), environment);
        assert_eq!(code, 1, "{arguments:?}: {stdout}{stderr}");
        let said = format!("{stdout}{stderr}");
        assert!(said.contains("Validating Failed!"), "{arguments:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{arguments:?}: {said}");
        }
    };
    let both = ["--transfer path", "--stream-mode"];
    refused(&["import", "/etc/hostname", "--stream-mode", "--transfer", "path"], &[], &both);
    refused(&["export", ID, "-O", "/tmp/absent", "--stream-mode", "--transfer", "path"], &[], &both);
    let output = ["export", ID, "-O", "/tmp/absent"];
    refused(
        &[&output[..], &["--transfer=path", "--transfer-from-dfdaemon"]].concat(),
        &[],
        &["--transfer path", "--transfer-from-dfdaemon"],
    );
    refused(
        &[&output[..], &["--force-hard-link", "--stream-mode"]].concat(),
        &[],
        &["--force-hard-link", "--stream-mode"],
    );
    refused(&["export", ID, "-O", "-", "--transfer", "path"], &[], &["--transfer path", "-O -"]);
    refused(&["export", ID, "-O", "-", "--force-hard-link"], &[], &["--force-hard-link", "-O -"]);
    refused(&["import", "-", "--transfer", "path"], &[], &["--transfer path", "stdin"]);
    refused(&["import", "/dev/null", "--transfer", "path"], &[], &["--transfer path", "/dev/null is a pipe"]);
    let mapping = ["--path-mapping", "/data:/h"];
    let import = [&["import", "x"], &mapping[..]].concat();
    refused(&[&import[..], &["--transfer=fd"]].concat(), &[], &["--transfer fd", "--path-mapping"]);
    refused(&[&import[..], &["--stream-mode"]].concat(), &[], &["--stream-mode", "--path-mapping"]);
    refused(
        &import,
        &[("DFCACHE_IMPORT_TRANSFER", "stream")],
        &["DFCACHE_IMPORT_TRANSFER stream", "--path-mapping"],
    );
    refused(&[&["import", "-"], &mapping[..]].concat(), &[], &["--path-mapping", "stdin"]);
    refused(&[&["export", ID, "-O", "-"], &mapping[..]].concat(), &[], &["--path-mapping", "-O -"]);
    refused(&[&output[..], &mapping].concat(), &[], &["/tmp/absent", "--path-mapping /data:/h"]);
    refused(
        &["import", "/etc/hostname", "--path-mapping", "/data:/h"],
        &[],
        &["/etc/hostname", "--path-mapping /data:/h"],
    );
    refused(&["import", "-", "--transfer", "fd"], &[], &["--transfer fd", "stdin"]);
    refused(
        &[&output[..], &["--transfer=fd", "--force-hard-link"]].concat(),
        &[],
        &["--transfer fd", "--force-hard-link"],
    );
    refused(&["import", "x", "--transfer", "fd", "--stream-mode"], &[], &["--transfer fd", "--stream-mode"]);
    refused(&["import", "x", "--ack", "3"], &[], &["--ack 3", "--persistent-replica-count 2"]);
    refused(&["import", "x", "--ack", "2", "--transfer=path"], &[], &["--ack 2", "--transfer path"]);
    let two = [("DFCACHE_IMPORT_STREAM_MODE", "1"), ("DFCACHE_IMPORT_TRANSFER", "path")];
    refused(&["import", "x"], &two, &["DFCACHE_IMPORT_STREAM_MODE", "DFCACHE_IMPORT_TRANSFER path"]);
    for id in ["../../etc/passwd", "ABCDEF", "abc"] {
        refused(&["stat", id], &[], &["expected 5 to 128 lower-case hex digits"]);
        refused(&["export", id, "-O", "/tmp/absent"], &[], &[&format!("{id:?}")]);
    }
    refused(&["import", "x", "--ttl", "4m"], &[], &["--ttl is 4m", "5m to 7d"]);
    refused(&["import", "x", "--ttl=8d"], &[], &["--ttl is 8days"]);
    refused(&["import", "x", "--piece-length", "1MiB"], &[], &["piece length 1048576 bytes"]);
    refused(&[&output[..], &["--digest", "sha256:zz"]].concat(), &[], &["64 hex digits"]);

    // A flag overrules the environment: these two understand each other.
    let environment = [("DFCACHE_EXPORT_STREAM_MODE", "true")];
    let (code, ..) = run_with(&[&output[..], &["--transfer=path"], &NOBODY].concat(), &environment);
    assert_eq!(code, 3);
}

#[test]
fn wrong_usage_ends_with_2() {
    let (code, _, stderr) = run(&[]);
    assert!(code == 2 && stderr.contains("Usage: dfcache"), "{stderr}");
    for line in [
        &["import"][..],
        &["export", ID],
        &["export", "-O", "x"],
        &["import", "x", "--transfer", "pigeon"],
        &["import", "x", "--path-mapping", "/data"],
        &["import", "x", "--content-id", "md5"],
        &["import", "x", "--ack", "0"],
        &["import", "x", "--ttl", "soon"],
        &["import", "x", "--persistent-replica-count", "0"],
    ] {
        assert_eq!(run(line).0, 2, "{line:?}");
    }
    let (code, stdout, _) = run(&["-V"]);
    assert!(code == 0 && stdout.starts_with(&format!("dfcache {} (", env!("CARGO_PKG_VERSION"))), "{stdout}");
    let (code, stdout, _) = run(&["import", "--help"]);
    assert_eq!(code, 0);
    for part in ["--piece-length", "DFCACHE_IMPORT_TTL", "--stream-mode", "--config"] {
        assert!(stdout.contains(part), "{part} is not in:\n{stdout}");
    }
}

#[test]
fn no_file_and_no_daemon() {
    let (code, stdout, stderr) = run(&["import", "/nowhere/f", NOBODY[0], NOBODY[1]]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("Importing Failed!") && stderr.contains("cannot open /nowhere/f"), "{stderr}");
    let (code, stdout, _) = run(&["import", "/etc", NOBODY[0], NOBODY[1], "--json"]);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, json["exit_code"].clone()), (1, 1.into()));
    assert!(json["message"].as_str().unwrap().contains("/etc is a directory"), "{json}");
    for command in [&["ls"][..], &["rm", ID], &["stat", ID], &["export", ID, "-O", "-"]] {
        let (code, ..) = run(&[command, &NOBODY].concat());
        assert_eq!(code, 3, "{command:?}");
    }
}
