//! The units: what systemd says of them, what our programs say, and that the daemon can still open paths.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use damselfly_actors::config::client_sockets;
use damselfly_actors::daemon::LONGEST_END;
use damselfly_deploy_check::deploy;
use damselfly_deploy_check::program::Program;
use damselfly_deploy_check::unit::Unit;

const UNITS: [&str; 2] = ["dfdaemon.service", "dfscheduler.service"];

fn text(name: &str) -> String {
    fs::read_to_string(deploy().join("systemd").join(name)).unwrap()
}

fn only<'a>(unit: &'a Unit, name: &'a str) -> &'a str {
    let values: Vec<_> = unit.service(name).collect();
    let [value] = values[..] else { panic!("{name} is {values:?}") };
    value
}

/// What `systemd-analyze verify` has to say of a unit with this text, on a host that has our programs.
fn verdict(name: &str, text: &str) -> Result<(), String> {
    let root = tempfile::tempdir().unwrap();
    let (units, programs) = (root.path().join("etc/systemd/system"), root.path().join("usr/local/bin"));
    for directory in [&units, &programs] {
        fs::create_dir_all(directory).unwrap();
    }
    for unit in UNITS {
        let program = programs.join(unit.trim_end_matches(".service"));
        fs::write(&program, "").unwrap();
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for target in ["network-online", "multi-user", "sysinit", "basic", "shutdown"] {
        fs::write(units.join(format!("{target}.target")), "[Unit]\nDescription=x\n").unwrap();
    }
    fs::write(units.join(name), text).unwrap();
    let mut systemd = Command::new("systemd-analyze");
    systemd.args(["verify", "--man=no", "--root"]).arg(root.path()).arg(name);
    let output = systemd.output().expect("systemd-analyze is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && said.is_empty() { Ok(()) } else { Err(said) }
}

#[test]
fn systemd_takes_the_units() {
    for name in UNITS {
        verdict(name, &text(name)).unwrap_or_else(|why| panic!("{name}: {why}"));
        let misspelt = text(name).replacen("LockPersonality=", "LockPersonalty=", 1);
        let why = verdict(name, &misspelt).expect_err("misspelt");
        assert!(why.contains("LockPersonalty"), "{why}");
    }
}

#[test]
fn programs_take_their_commands() {
    for name in UNITS {
        let unit = Unit::read(&text(name));
        let line: Vec<_> = only(&unit, "ExecStart").split_whitespace().map(str::to_owned).collect();
        let program = Program::read(&line, &[]).unwrap_or_else(|why| panic!("{name}: {why}"));
        // Without files to write there is nothing else that a service manager could show.
        let (console, own) = match program {
            Program::Daemon(args) => (args.console, "dfdaemon.service"),
            Program::Scheduler(args) => (args.console, "dfscheduler.service"),
            Program::Cache(_) => panic!("{name} runs dfcache"),
        };
        assert_eq!((console, own), (true, name));
    }
    let wrong = ["dfdaemon".to_owned(), "--consol".to_owned()];
    assert!(Program::read(&wrong, &[]).is_err());
}

#[test]
fn programs_take_the_variables_of_the_readme() {
    let readme = fs::read_to_string(deploy().join("README.md")).unwrap();
    for (program, prefix) in [("dfdaemon", "DFDAEMON_"), ("dfscheduler", "DFSCHEDULER_")] {
        let lines = readme.lines().filter(|line| line.starts_with(prefix));
        let variables: Vec<_> = lines.filter_map(|line| line.split_once('=')).collect();
        assert!(!variables.is_empty(), "{prefix}");
        let variables: Vec<_> =
            variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Program::read(&[program.to_owned()], &variables).unwrap_or_else(|why| panic!("{program}: {why}"));
    }
}

#[test]
fn the_daemon_can_open_paths() {
    let daemon = text("dfdaemon.service");
    assert_eq!(Unit::read(&daemon).against_paths(), [""; 0]);
    for hindrance in ["PrivateTmp=yes", "ProtectSystem=strict", "ReadOnlyPaths=/usr", "RestrictSUIDSGID=yes"]
    {
        let hindered = daemon.replacen("[Service]\n", &format!("[Service]\n{hindrance}\n"), 1);
        assert_eq!(Unit::read(&hindered).against_paths().len(), 1, "{hindrance}");
    }
    let unit = Unit::read(&daemon);
    assert_eq!(unit.service("User").count(), 0);
    let capabilities: Vec<_> =
        unit.service("CapabilityBoundingSet").flat_map(str::split_whitespace).collect();
    for needed in ["CAP_SETUID", "CAP_SETGID", "CAP_SYS_PTRACE"] {
        assert!(capabilities.contains(&needed), "{capabilities:?}");
    }
}

#[test]
fn the_daemons_places_are_made() {
    let unit = Unit::read(&text("dfdaemon.service"));
    let directory = Path::new("/var/run").join(only(&unit, "RuntimeDirectory"));
    assert!(client_sockets(0, |_| None).contains(&directory.join("dfdaemon.sock")));
}

#[test]
fn the_daemon_has_time_to_end() {
    let unit = Unit::read(&text("dfdaemon.service"));
    let seconds = only(&unit, "TimeoutStopSec").trim_end_matches('s').parse().unwrap();
    assert!(Duration::from_secs(seconds) > LONGEST_END);
    // A second signal would end it at once.
    assert_eq!(only(&unit, "KillMode"), "mixed");
}
