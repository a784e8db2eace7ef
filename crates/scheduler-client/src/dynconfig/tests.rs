use damselfly_core::Kind;

use super::*;

const FULL: &str = r#"
scheduler:
  addr: dragonfly-scheduler:8002
  addrs: ["10.0.0.1:8002", "10.0.0.2:9002"]
clientConfig:
  blockList:
    task:
      download:
        applications: [banned]
        urls: ['^https?://evil\.example/', 'secret']
        tags: [nightly]
        priorities: [1, 2]
    persistentTask: {download: {urls: [x]}, upload: {tags: [y]}}
    persistentCacheTask:
      download: {tags: [down]}
      upload: {applications: [up]}
seedClientConfig: {blockList: {task: {download: {tags: [for-seeds]}}}}
unknown: {is: ignored}
"#;

fn subject<'a>(application: &'a str, url: &'a str, tag: &'a str, priority: i32) -> Subject<'a> {
    Subject { application, url, tag, priority: Some(priority) }
}

#[test]
fn reads_the_whole_file_in_both_spellings() {
    let snake = FULL
        .replace("clientConfig", "client_config")
        .replace("seedClientConfig", "seed_client_config")
        .replace("blockList", "block_list")
        .replace("persistentTask", "persistent_task")
        .replace("persistentCacheTask", "persistent_cache_task");
    for text in [FULL, &snake] {
        let dynconfig = Dynconfig::parse(text, "file").unwrap();
        assert_eq!(dynconfig.addr.as_ref().unwrap().to_string(), "dragonfly-scheduler:8002");
        assert_eq!(dynconfig.addrs.len(), 2);
        let blocks = &dynconfig.blocks;
        for (blocked, subject) in [
            (Some("application"), subject("banned", "", "", 0)),
            (Some("url"), subject("", "https://evil.example/x", "", 0)),
            (Some("url"), subject("", "https://good.example/a-secret-file", "", 0)),
            (Some("tag"), subject("", "", "nightly", 0)),
            (Some("priority"), subject("", "", "", 2)),
            (None, subject("fine", "https://good.example/evil.example/", "daily", 3)),
            (None, subject("", "", "", 0)),
        ] {
            for kind in [Kind::Standard, Kind::Cache] {
                let result = blocks.check(kind, Action::Download, &subject);
                assert_eq!(result.err().map(|blocked| blocked.what), blocked, "{subject:?}");
            }
            assert!(blocks.check(Kind::Standard, Action::Upload, &subject).is_ok());
        }
        let cache = |action, subject| blocks.check(Kind::PersistentCache, action, &subject).is_err();
        assert!(cache(Action::Download, subject("", "", "down", 0)));
        assert!(!cache(Action::Upload, subject("", "", "down", 0)));
        assert!(cache(Action::Upload, subject("up", "", "", 0)));
        let seeds = &dynconfig.seed_blocks;
        assert!(seeds.check(Kind::Standard, Action::Download, &subject("", "", "for-seeds", 0)).is_err());
        assert!(blocks.check(Kind::Standard, Action::Download, &subject("", "", "for-seeds", 0)).is_ok());
    }
}

#[test]
fn little_is_enough() {
    for text in ["", "# nothing\n", "scheduler:\n", "scheduler: {addr: \"\"}", "clientConfig: null"] {
        let dynconfig = Dynconfig::parse(text, "file").unwrap();
        assert!(dynconfig.addr.is_none() && dynconfig.addrs.is_empty(), "{text:?}");
    }
    let target = Target::parse("fd00::1", 8002).unwrap();
    let dynconfig = Dynconfig::parse("scheduler: {addr: \"[fd00::1]:8002\"}", "file").unwrap();
    assert_eq!(dynconfig.addr, Some(target));
}

#[test]
fn errors_name_key_and_expectation() {
    for (text, parts) in [
        ("scheduler: {addrs: [here]}", &["scheduler.addrs", "10.0.0.1:8002", "here"][..]),
        ("scheduler: {addr: 'a b'}", &["scheduler.addr", "HOST[:PORT]", "a b"]),
        (
            "clientConfig: {blockList: {task: {download: {urls: ['(']}}}}",
            &["clientConfig", "task.download.urls", "regular expressions"],
        ),
        ("scheduler: [", &["file"]),
        ("scheduler:\n  addrs: 7", &["file", "2"]),
    ] {
        let message = Dynconfig::parse(text, "file").unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
}

#[tokio::test]
async fn literal_addresses_come_before_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dynconfig.yaml");
    std::fs::write(&file, FULL).unwrap();
    let found = Source::File(file.clone()).find(&Host::default(), true, "1").await.unwrap();
    let addresses: Vec<String> = found.schedulers.keys().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1:8002", "10.0.0.2:9002"]);
    let blocks = found.blocks.unwrap();
    assert!(blocks.check(Kind::Standard, Action::Download, &subject("", "", "for-seeds", 0)).is_err());

    std::fs::write(&file, "scheduler: {addr: 127.0.0.1}").unwrap();
    let found = Source::File(file).find(&Host::default(), false, "1").await.unwrap();
    assert_eq!(found.schedulers.keys().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1:8002"]);

    let missing = Source::File(dir.path().join("none")).find(&Host::default(), false, "1").await;
    assert!(matches!(missing, Err(DynconfigError::Read { .. })));
}

#[tokio::test]
async fn flags_name_schedulers_while_the_file_still_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dynconfig.yaml");
    let source =
        Source::JoinWithBlocks { targets: vec![Target::parse("10.9.9.9", 1).unwrap()], file: file.clone() };
    let find = async || source.find(&Host::default(), false, "1").await.unwrap();
    let nightly = subject("", "", "nightly", 0);

    let found = find().await;
    assert!(found.blocks.unwrap().check(Kind::Standard, Action::Download, &nightly).is_ok());

    std::fs::write(&file, FULL).unwrap();
    let found = find().await;
    assert_eq!(found.schedulers.keys().map(ToString::to_string).collect::<Vec<_>>(), ["10.9.9.9:1"]);
    assert!(found.blocks.unwrap().check(Kind::Standard, Action::Download, &nightly).is_err());

    std::fs::write(&file, "clientConfig: [").unwrap();
    let found = find().await;
    assert!(found.blocks.is_none() && found.warnings.len() == 1, "a broken file lifts no block");
    assert_eq!(found.schedulers.len(), 1);
}
