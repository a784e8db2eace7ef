//! dfcache in every way of transfer, with real daemons: the same bytes, the same id.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom};
use std::path::Path;
use std::process::Stdio;

use damselfly_tests::Pattern;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::fake::Ended;
use crate::node::{Node, ended, names, run};

const PIECE: u64 = 4 << 20;
const LARGE: u64 = 200 << 20;

/// Two daemons of one cluster.
async fn pair(home: &Path) -> [Node; 2] {
    let first = Node::start(&home.join("a"), &[]).await;
    let scheduler = first.scheduler().await;
    let second = Node::start(&home.join("b"), &["--join", &scheduler]).await;
    [first, second]
}

fn put(path: &Path, content: Pattern) {
    fs::write(path, content.to_vec()).unwrap();
}

/// Imports, which must succeed; returns the receipt.
async fn import(node: &Node, path: &Path, flags: &[&str]) -> Value {
    let arguments = [&["import", path.to_str().unwrap(), "--json"], flags].concat();
    let ended = node.dfcache(&arguments).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{flags:?}: {ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Exports by `mode`, which must succeed, and compares what came.
async fn export(node: &Node, id: &str, content: Pattern, mode: &str) -> Value {
    let output = node.output("f");
    let arguments = ["export", id, "-O", output.to_str().unwrap(), "--json", "--transfer", mode];
    let ended = node.dfcache(&arguments).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{mode}: {ended:?}");
    content.check_file(&output).unwrap();
    assert_eq!(names(&node.output("")), ["f"], "{mode}");
    fs::remove_file(output).unwrap();
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Imports what a pipe brings.
async fn pipe(node: &Node, content: Pattern) -> String {
    let mut command = node.cache_command(&["import", "-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&content.to_vec()).await.unwrap();
    drop(stdin);
    let ended = ended(child).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_of_transfer_moves_the_same_bytes() {
    let home = tempfile::tempdir().unwrap();
    let [first, second] = pair(home.path()).await;
    let file = home.path().join("model");
    for (seed, length) in [0, 1, PIECE - 1, PIECE, PIECE + 1].into_iter().enumerate() {
        let content = Pattern::new(seed as u64, length);
        put(&file, content);
        let mut ids = Vec::new();
        for mode in ["auto", "fd", "path", "stream"] {
            let receipt = import(&first, &file, &["--transfer", mode]).await;
            assert_eq!(receipt["bytes"], length, "{receipt}");
            let taken = match mode {
                // What fits one message is sent in one.
                "auto" if length <= 1 << 20 => "stream",
                "auto" => "fd",
                mode => mode,
            };
            assert_eq!(receipt["transfer"], taken, "{receipt}");
            ids.push(receipt["task_id"].as_str().unwrap().to_owned());
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "{ids:?}");
        // A pipe's pieces are longer, and so its id is another.
        for id in [&ids[0], &pipe(&first, content).await] {
            for node in [&second, &first] {
                for mode in ["fd", "stream", "path", "auto"] {
                    let receipt = export(node, id, content, mode).await;
                    let taken = if mode == "auto" { "path" } else { mode };
                    assert_eq!(
                        (&receipt["transfer"], &receipt["bytes"]),
                        (&taken.into(), &length.into()),
                        "{receipt}"
                    );
                }
                let ended = node.dfcache_bytes(&["export", id, "-O", "-"]).await;
                content.check(0, &ended).unwrap();
                assert_eq!(ended.len() as u64, length);
            }
        }
    }
}

/// `import - < FILE`, of which `begun` bytes were read before.
async fn redirected(node: &Node, path: &Path, begun: u64, flags: &[&str]) -> Ended {
    let mut file = File::open(path).unwrap();
    file.seek(SeekFrom::Start(begun)).unwrap();
    let mut command = node.cache_command(&[&["import", "-", "--json"], flags].concat());
    run(command.stdin(file)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_as_stdin_is_a_file_unless_somebody_has_begun_to_read_it() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(home.path(), &[]).await;
    let (file, content) = (home.path().join("model"), Pattern::new(1, PIECE + 3));
    put(&file, content);
    let id = import(&node, &file, &[]).await["task_id"].clone();
    for (flags, taken) in [(&[][..], "fd"), (&["--stream-mode"], "stream")] {
        let ended = redirected(&node, &file, 0, flags).await;
        let receipt: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&receipt["task_id"], &receipt["transfer"]), (&id, &taken.into()), "{receipt}");
    }
    let ended = redirected(&node, &file, 5, &[]).await;
    let receipt: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (&receipt["bytes"], &receipt["transfer"]),
        (&(PIECE - 2).into(), &"stream".into()),
        "{receipt}"
    );
    let refused = redirected(&node, &file, 0, &["--transfer", "path"]).await;
    assert!(refused.stdout.contains("stdin is a file without a path"), "{refused:?}");
    let refused = redirected(&node, &file, 5, &["--transfer", "fd"]).await;
    assert!(refused.stdout.contains("stdin is a pipe"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_content_moves_in_every_way() {
    let home = tempfile::tempdir().unwrap();
    let [first, second] = pair(home.path()).await;
    let file = home.path().join("model");
    for (seed, mode) in ["fd", "path", "stream"].into_iter().enumerate() {
        let content = Pattern::new(seed as u64, LARGE + 7);
        put(&file, content);
        // Content that nobody has is imported in each way; what is left of it is in the way of the next.
        let receipt = import(&first, &file, &["--transfer", mode]).await;
        let id = receipt["task_id"].as_str().unwrap();
        export(&second, id, content, mode).await;
        export(&first, id, content, mode).await;
        let removed = first.dfcache(&["rm", id]).await;
        assert_eq!(removed.code, Some(0), "{removed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_output_is_replaced_by_descriptor_only_when_asked() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(home.path(), &[]).await;
    let content = Pattern::new(1, PIECE + 3);
    let (file, output) = (home.path().join("model"), node.output("f"));
    put(&file, content);
    let id = import(&node, &file, &[]).await["task_id"].as_str().unwrap().to_owned();
    fs::write(&output, "theirs").unwrap();
    let arguments = ["export", &id, "-O", output.to_str().unwrap(), "--transfer", "fd"];
    let refused = node.dfcache(&arguments).await;
    assert!(refused.code == Some(1) && refused.stdout.contains("already exist"), "{refused:?}");
    assert_eq!(fs::read(&output).unwrap(), b"theirs");
    let wrong = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let refused = node.dfcache(&[&arguments[..], &["--overwrite", "--digest", wrong]].concat()).await;
    assert_eq!(refused.code, Some(5), "{refused:?}");
    assert_eq!(fs::read(&output).unwrap(), b"theirs");
    let done = node.dfcache(&[&arguments[..], &["--overwrite"]].concat()).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    content.check_file(&output).unwrap();
    assert_eq!(node.outputs(), ["f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapped_path_is_what_the_daemon_calls_it() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(home.path(), &[]).await;
    let content = Pattern::new(1, PIECE + 3);
    // One directory under two names, as a volume of a container has: a link that is resolved would be its target.
    let (here, there) = (home.path().join("here"), home.path().join("there"));
    fs::create_dir_all(&here).unwrap();
    std::os::unix::fs::symlink(&here, &there).unwrap();
    put(&here.join("f"), content);
    let mapping = format!("{}:{}", here.display(), there.display());
    let receipt = import(&node, &here.join("f"), &["--path-mapping", &mapping]).await;
    assert_eq!(receipt["transfer"], "path", "{receipt}");
    let reason = receipt["transfer_reason"].as_str().unwrap();
    assert_eq!(reason, format!("mapped to {}/f", there.display()));
    let id = receipt["task_id"].as_str().unwrap();
    let output = here.join("out");
    let arguments =
        ["export", id, "-O", output.to_str().unwrap(), "--path-mapping", &mapping, "--transfer", "path"];
    let ended = node.dfcache(&arguments).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    content.check_file(&output).unwrap();

    // A mapping that leads to another file is noticed, and another way is taken where that was left open.
    let other = home.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("f"), "another file").unwrap();
    let wrong = format!("{}:{}", here.display(), other.display());
    let path = here.join("f");
    let arguments = ["import", path.to_str().unwrap(), "--path-mapping", &wrong];
    let detour = node.dfcache(&arguments).await;
    assert_eq!((detour.code, detour.stdout.trim()), (Some(0), id), "{detour:?}");
    let warnings: Vec<_> = detour.stderr.lines().filter(|line| line.starts_with("dfcache: ")).collect();
    assert_eq!(warnings.len(), 1, "{detour:?}");
    assert!(warnings[0].contains("sees another file at") && warnings[0].ends_with("(fd)"), "{detour:?}");
    let refused = node.dfcache(&[&arguments[..], &["--transfer", "path"]].concat()).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("sees another file at"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_once_are_all_right() {
    let home = tempfile::tempdir().unwrap();
    let [first, second] = &pair(home.path()).await;
    let modes = ["fd", "stream", "path", "auto"];
    let one = async |number: usize| {
        let content = Pattern::new(number as u64, PIECE / 2 + 7919 * number as u64);
        let file = home.path().join(format!("f{number}"));
        put(&file, content);
        let receipt = import(first, &file, &["--transfer", modes[number % 4]]).await;
        let id = receipt["task_id"].as_str().unwrap();
        let output = second.output(&number.to_string());
        let mode = modes[number / 4 % 4];
        let arguments = ["export", id, "-O", output.to_str().unwrap(), "--transfer", mode];
        let ended = second.dfcache(&arguments).await;
        assert_eq!(ended.code, Some(0), "{number}: {ended:?}");
        content.check_file(output).unwrap();
    };
    futures_util::future::join_all((0..50).map(one)).await;
    assert_eq!(second.outputs().len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_lists_what_any_host_imported() {
    let home = tempfile::tempdir().unwrap();
    let [first, second] = pair(home.path()).await;
    let file = home.path().join("model");
    let mut ids = Vec::new();
    for (seed, node, flags) in
        [(1, &first, &["--ack=2"][..]), (2, &second, &["--persistent-replica-count=1"])]
    {
        put(&file, Pattern::new(seed, PIECE));
        ids.push(import(node, &file, flags).await["task_id"].as_str().unwrap().to_owned());
    }
    for node in [&first, &second] {
        let listed = node.dfcache(&["ls", "--cluster", "--json"]).await;
        let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
        let tasks: Vec<_> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|task| {
                let there = task["current_persistent_replica_count"].as_u64().unwrap();
                (task["id"].as_str().unwrap(), there, task["health"].as_str().unwrap())
            })
            .collect();
        assert_eq!(tasks, [(&*ids[0], 2, "healthy"), (&*ids[1], 1, "healthy")]);
    }
    let listed = first.dfcache(&["ls", "--cluster"]).await.stdout;
    assert!(listed.contains("healthy 2 of 2") && listed.contains("healthy 1 of 1"), "{listed}");
    assert_eq!(first.dfcache(&["rm", &ids[0]]).await.code, Some(0));
    let left = second.dfcache(&["ls", "--cluster", "--json"]).await.stdout;
    assert!(!left.contains(&ids[0]) && left.contains(&ids[1]), "{left}");
}
