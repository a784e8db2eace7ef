//! Command lines that never reach a daemon.

use assert_cmd::Command;

fn run(program: &str, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(program).args(arguments).env_clear().output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn dfget(arguments: &[&str]) -> (i32, String, String) {
    run(env!("CARGO_BIN_EXE_dfget"), arguments)
}

#[test]
fn wrong_usage_ends_with_2() {
    let (code, _, stderr) = dfget(&[]);
    assert_eq!(code, 2);
    assert!(stderr.contains("Usage: dfget"), "{stderr}");
    assert_eq!(dfget(&["http://h/f"]).0, 2, "an output is required");
    assert_eq!(dfget(&["no url", "-O", "x"]).0, 2);
    assert_eq!(dfget(&["http://h/f", "-O", "x", "--priority", "7"]).0, 2);
    assert_eq!(dfget(&["http://h/f", "-O", "x", "--timeout", "soon"]).0, 2);
    assert_eq!(run(env!("CARGO_BIN_EXE_dfctl"), &["task", "preheat"]).0, 2);
}

#[test]
fn help_names_what_there_is_and_hides_what_there_is_not() {
    let (code, stdout, _) = dfget(&["--help"]);
    assert_eq!(code, 0);
    for flag in
        ["-O, --output", "--transfer-from-dfdaemon", "--digest", "DFGET_TIMEOUT", "--json", "Exit codes"]
    {
        assert!(stdout.contains(flag), "{flag} is not in:\n{stdout}");
    }
    assert!(!stdout.contains("--hf-token"), "{stdout}");
}

#[test]
fn help_says_what_each_program_is_for() {
    for (program, text) in [
        (env!("CARGO_BIN_EXE_dfget"), "Downloads a file through the swarm"),
        (env!("CARGO_BIN_EXE_dfcache"), "Keeps files in the swarm's cache"),
        (env!("CARGO_BIN_EXE_dfctl"), "Looks at a daemon and steers its tasks"),
    ] {
        let (_, stdout, _) = run(program, &["--help"]);
        assert!(stdout.starts_with(text), "{stdout}");
    }
}

#[test]
fn versions() {
    let programs = [
        ("dfget", env!("CARGO_BIN_EXE_dfget")),
        ("dfcache", env!("CARGO_BIN_EXE_dfcache")),
        ("dfctl", env!("CARGO_BIN_EXE_dfctl")),
        ("dfdaemon", env!("CARGO_BIN_EXE_dfdaemon")),
        ("dfscheduler", env!("CARGO_BIN_EXE_dfscheduler")),
    ];
    for (name, program) in programs {
        let (code, stdout, _) = run(program, &["-V"]);
        assert_eq!(code, 0);
        let rest = stdout.strip_prefix(&format!("{name} {} (", env!("CARGO_PKG_VERSION")));
        assert!(rest.is_some_and(|rest| rest.contains(", ") && rest.ends_with(")\n")), "{stdout}");
    }
}

#[test]
fn a_report_frames_what_makes_no_sense() {
    let home = tempfile::tempdir().unwrap();
    let there = home.path().join("there");
    std::fs::write(&there, "mine").unwrap();
    let (code, stdout, stderr) = dfget(&["http://h/f", "-O", there.to_str().unwrap()]);
    assert_eq!(code, 1);
    let stars = "*".repeat(40);
    let message = format!("Message: output path {} is already exist", there.display());
    assert!(stdout.starts_with(&format!("Validating Failed!\n{stars}\n{message}")), "{stdout}");
    assert!(stdout.ends_with(&format!("\n{stars}\n")), "{stdout}");
    assert_eq!(stderr, "");
    assert_eq!(std::fs::read(&there).unwrap(), b"mine");
}

#[test]
fn sources_that_are_not_built_are_refused() {
    let (code, stdout, _) = dfget(&["http://h/f", "-O", "/tmp/absent", "--storage-region", "x"]);
    assert_eq!(code, 1);
    assert!(stdout.contains("--storage-region is not available"), "{stdout}");
    let (code, stdout, _) = dfget(&["hf://models/x", "-O", "/tmp/absent"]);
    assert_eq!(code, 1);
    assert!(stdout.contains("cannot download from hf"), "{stdout}");
}

#[test]
fn environment_variables_are_read() {
    let output = Command::new(env!("CARGO_BIN_EXE_dfget"))
        .args(["http://h/f", "-O", "/tmp/absent"])
        .env_clear()
        .env("DFGET_PIECE_LENGTH", "1MiB")
        .env("DFGET_OVERWRITE", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("piece length 1048576 bytes"), "{output:?}");
}

#[test]
fn no_daemon_ends_with_3() {
    let (code, stdout, _) = dfget(&["http://h/f", "-O", "/tmp/absent", "-e", "/nowhere/d.sock"]);
    assert_eq!(code, 3);
    assert!(stdout.starts_with("Connect Dfdaemon Failed!\n"), "{stdout}");
    assert!(stdout.contains("please check the unix socket /nowhere/d.sock"), "{stdout}");

    let (code, stdout, _) = dfget(&["http://h/f", "-O", "/tmp/absent", "-e", "/nowhere/d.sock", "--json"]);
    assert_eq!(code, 3);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["ok"], false);
    assert_eq!(json["exit_code"], 3);

    let (code, stdout, stderr) = dfget(&["http://h/f", "-O", "-", "-e", "/nowhere/d.sock"]);
    assert_eq!((code, stdout.as_str()), (3, ""), "content's place stays clean");
    assert!(stderr.starts_with("Connect Dfdaemon Failed!"), "{stderr}");

    assert_eq!(run(env!("CARGO_BIN_EXE_dfctl"), &["status", "-e", "/nowhere/d.sock"]).0, 3);
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().to_str().unwrap();
    let dfdaemon =
        |arguments: &[&str]| run(env!("CARGO_BIN_EXE_dfdaemon"), &[&["--home", home], arguments].concat());
    let (code, stdout, stderr) = dfdaemon(&["-c", "/nowhere/dfdaemon.yaml"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.starts_with("dfdaemon: ") && stderr.contains("/nowhere/dfdaemon.yaml"), "{stderr}");

    let file = format!("{home}/dfdaemon.yaml");
    std::fs::write(&file, "download:\n  concurrentPieceCount: 0\n").unwrap();
    let (code, _, stderr) = dfdaemon(&[]);
    assert_eq!(code, 1);
    assert!(stderr.contains("concurrentPieceCount") && stderr.contains(&file), "{stderr}");

    std::fs::remove_file(&file).unwrap();
    assert_eq!(dfdaemon(&["--listen", "nowhere"]).0, 2);
    assert_eq!(dfdaemon(&["--log-max-files", "0"]).0, 2);
    let (code, _, stderr) = dfdaemon(&["--join", "a:b:c"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("--join"), "{stderr}");
}
