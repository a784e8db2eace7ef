//! What somebody does who has just built the programs.

use damselfly_core::Algorithm;
use damselfly_tests::OriginServer;
use damselfly_tests::origin::{Behaviour, Gate};

use crate::node::{Node, run};

const LENGTH: u64 = (20 << 20) + 1;

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_with_default_ports_share_a_file() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.named_blob(LENGTH, 1, "model.bin");
    let homes = tempfile::tempdir().unwrap();
    let first = Node::start(&homes.path().join("first"), &[]).await;
    let json = first.got(&blob.url, "f").await;
    assert_eq!((json["ok"].clone(), json["exit_code"].clone()), (true.into(), 0.into()));
    assert_eq!((json["origin_bytes"].clone(), json["peer_bytes"].clone()), (LENGTH.into(), 0.into()));
    assert_eq!(
        (json["transfer"].clone(), json["transfer_reason"].clone()),
        ("path".into(), "hard link".into())
    );
    assert_eq!(json["daemon"], first.home.join("dfdaemon.sock").to_str().unwrap());
    blob.pattern.check_file(first.output("f")).unwrap();

    let scheduler = first.scheduler().await;
    let second = Node::start(&homes.path().join("second"), &["--join", &scheduler]).await;
    let ended = second.get(&blob.url, "f", &[]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{ended:?}");
    assert!(ended.stderr.contains("origin 0 B, peers 20.0 MiB (1 parent), local cache 0 B"), "{ended:?}");
    blob.pattern.check_file(second.output("f")).unwrap();
    assert_eq!(origin.counts(&blob).body_bytes, LENGTH, "every byte left the origin once");

    let [one, other] = [&first, &second].map(|node| node.told(&["status"]));
    let (one, other) = (one.await, other.await);
    assert_ne!(one["host"]["port"], other["host"]["port"]);
    assert_eq!(other["host"]["schedulers"][0]["healthy"], true);
    assert_eq!(one["tasks"][0]["id"], json["task_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tools_show_and_steer() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.named_blob(LENGTH, 2, "model.bin");
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(home.path(), &[]).await;
    let id = node.got(&blob.url, "f").await["task_id"].as_str().unwrap().to_owned();
    let short = &id[..12];

    let status = node.dfctl(&["status"]).await;
    for part in
        ["Scheduler runs in this daemon", short, "100% (6/6)", "/model.bin", "\ndaemon\n├─ ", "─ tasks"]
    {
        assert!(status.stdout.contains(part), "{part:?} is not in:\n{}", status.stdout);
    }
    let listed = node.told(&["task", "ls"]).await;
    assert_eq!(
        (listed[0]["id"].clone(), listed[0]["content_length"].clone()),
        (id.clone().into(), LENGTH.into())
    );
    let stat = node.told(&["task", "stat", short]).await;
    assert_eq!(stat["local"]["id"], id);
    assert_eq!(stat["swarm"]["state"], "Succeeded");

    assert_eq!(node.told(&["status"]).await["tasks"][0]["origin_bytes"], LENGTH, "told after its end too");
    let refused = node.dfctl(&["pause", short]).await;
    assert!(refused.code == Some(1) && refused.stdout.contains("is complete"), "{refused:?}");
    for (arguments, said) in [
        (&["resume", short][..], format!("resumed {id}\n")),
        (&["task", "rm", short], "Task Removed!\n".to_owned()),
    ] {
        let ended = node.dfctl(arguments).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), said.as_str()), "{arguments:?}: {ended:?}");
    }
    assert_eq!(node.told(&["task", "ls"]).await.as_array().map(Vec::len), Some(0));
    let idle = node.dfctl(&["limit", short, "1MiB/s"]).await;
    assert!(idle.stdout.contains("no task on this host"), "{idle:?}");
    // The copy is the user's, whatever the daemon forgets.
    blob.pattern.check_file(node.output("f")).unwrap();
    assert_eq!(node.got(&blob.url, "again").await["origin_bytes"], LENGTH);
}

#[tokio::test(flavor = "multi_thread")]
async fn ways_to_get_content() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(LENGTH, 3);
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(home.path(), &[]).await;
    let digest = blob.pattern.digest(Algorithm::Sha256);

    let streamed = node.get(&blob.url, "s", &["--transfer-from-dfdaemon", "--digest", &digest]).await;
    assert_eq!(streamed.code, Some(0), "{streamed:?}");
    assert!(streamed.stderr.contains("through the daemon's socket (stream): as asked"), "{streamed:?}");
    blob.pattern.check_file(node.output("s")).unwrap();

    let ranged = node.get(&blob.url, "r", &["-H", "Range: bytes=4194000-8388700"]).await;
    assert_eq!(ranged.code, Some(0), "{ranged:?}");
    let expected = blob.pattern.to_vec();
    assert!(std::fs::read(node.output("r")).unwrap() == expected[4_194_000..=8_388_700]);

    let socket = home.path().join("dfdaemon.sock");
    let arguments = [&blob.url, "-O", "-", "-e", socket.to_str().unwrap()];
    let mut command = crate::node::command(env!("CARGO_BIN_EXE_dfget"), &arguments, home.path());
    let printed = command.output().await.unwrap();
    assert_eq!(printed.status.code(), Some(0));
    blob.pattern.check_reader(&printed.stdout[..]).unwrap();
    assert_eq!(origin.counts(&blob).body_bytes, LENGTH);
    assert_eq!(node.outputs(), ["r", "s"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_their_codes_and_leave_nothing() {
    let origin = OriginServer::start().await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(home.path(), &[]).await;

    let missing = format!("http://{}/nothing", origin.addr());
    let ended = node.get(&missing, "f", &["--json"]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((json["exit_code"].clone(), json["origin"]["status"].clone()), (4.into(), 404.into()));

    let blob = origin.blob(1000, 4);
    let wrong = "sha256:".to_owned() + &"0".repeat(64);
    let ended = node.get(&blob.url, "f", &["--digest", &wrong]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");

    let held = origin.blob(1000, 5);
    origin.set(&held, Behaviour::held_by(&Gate::closed()));
    assert_eq!(node.get(&held.url, "f", &["--timeout", "1s"]).await.code, Some(7));
    assert!(node.outputs().is_empty(), "{:?}", node.outputs());

    std::fs::write(node.output("f"), "mine").unwrap();
    assert_eq!(node.get(&blob.url, "f", &[]).await.code, Some(1));
    assert_eq!(std::fs::read(node.output("f")).unwrap(), b"mine");
    assert_eq!(node.get(&blob.url, "f", &["--overwrite"]).await.code, Some(0));
    blob.pattern.check_file(node.output("f")).unwrap();

    let joined = run(node.getting(&blob.url, "j", &["--join", "127.0.0.1"])).await;
    assert_eq!(joined.code, Some(0), "{joined:?}");
    assert!(joined.stderr.contains("--join is ignored"), "{joined:?}");
    assert!(node.dfctl(&["pause", "0123"]).await.stdout.contains("no task on this host"));
}
