//! Who may have the daemon read and write what (promise I11): real programs as other users and in other namespaces
//! (`cargo xtask test-privileged`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![cfg(feature = "privileged")]

mod stage;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use damselfly_tests::Pattern;
use rustix::fs::{CWD, RenameFlags, XattrFlags};

use crate::stage::{GID, GROUP, MODES, Stage, UID, Who};

/// Imports in every mode and looks that nothing else came than the file.
fn imports_in_every_mode(stage: &Stage, who: &Who, path: &std::path::Path, content: Pattern) {
    let ids: Vec<_> = MODES
        .iter()
        .map(|mode| {
            let (id, taken) = stage.imported(who, path, &["--transfer", mode]);
            assert_eq!(taken, if *mode == "auto" { "fd" } else { mode });
            id
        })
        .collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
    holds(stage, &ids[0], content);
}

/// Exports as root, and compares.
fn holds(stage: &Stage, id: &str, content: Pattern) {
    let output = stage.path("check");
    let said = stage.export(&Who::root(), id, &output, &["--overwrite", "--transfer", "stream"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    content.check_file(&output).unwrap();
}

#[test]
fn a_user_imports_what_he_may_read_and_nothing_else() {
    let stage = Stage::start(&[]);
    let (own, content) = stage.file("own", 1, (UID, GID, 0o600));
    imports_in_every_mode(&stage, &Who::user(UID, &[]), &own, content);
    let (roots, _) = stage.file("roots", 2, (0, 0, 0o600));
    for mode in MODES {
        let said = stage.import(&Who::user(UID, &[]), &roots, &["--transfer", mode]);
        assert_eq!(said.code, Some(1), "{mode}: {said:?}");
        assert!(said.all().contains("ermission denied"), "{mode}: {said:?}");
    }
    let (group, content) = stage.file("group", 3, (0, GROUP, 0o640));
    imports_in_every_mode(&stage, &Who::user(UID, &[GROUP]), &group, content);
    assert_eq!(stage.import(&Who::user(UID, &[]), &group, &[]).code, Some(1));

    // A file whose access control list names this user alone.
    let (listed, content) = stage.file("listed", 4, (0, 0, 0o600));
    let entry = |tag: u16, rights: u16, id: u32| {
        [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let list = [
        2_u32.to_le_bytes().to_vec(),
        entry(0x01, 6, none),
        entry(0x02, 4, UID),
        entry(0x04, 0, none),
        entry(0x10, 4, none),
        entry(0x20, 0, none),
    ];
    rustix::fs::setxattr(&listed, "system.posix_acl_access", &list.concat(), XattrFlags::empty()).unwrap();
    imports_in_every_mode(&stage, &Who::user(UID, &[]), &listed, content);
    assert_eq!(stage.import(&Who::user(UID + 1, &[]), &listed, &[]).code, Some(1));
}

#[test]
fn a_user_exports_where_he_may_write_and_the_file_is_his() {
    let stage = Stage::start(&[]);
    let (source, content) = stage.file("source", 1, (0, 0, 0o600));
    let (id, _) = stage.imported(&Who::root(), &source, &[]);
    let home = stage.directory("his", UID, 0o755);
    let theirs = stage.directory("theirs", 0, 0o755);
    for mode in MODES {
        let output = home.join(mode);
        let said = stage.export(&Who::user(UID, &[]), &id, &output, &["--transfer", mode]);
        assert_eq!(said.code, Some(0), "{mode}: {said:?}");
        content.check_file(&output).unwrap();
        let found = output.metadata().unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777, found.nlink()), (UID, 0o644, 1), "{mode}");

        let said = stage.export(&Who::user(UID, &[]), &id, &theirs.join(mode), &["--transfer", mode]);
        assert_eq!(said.code, Some(1), "{mode}: {said:?}");
        assert!(said.all().contains("ermission denied"), "{mode}: {said:?}");
    }
    assert!(fs::read_dir(&theirs).unwrap().next().is_none());
    assert_eq!(fs::read_dir(&home).unwrap().count(), MODES.len());
}

#[test]
fn a_container_and_its_daemon_need_no_path_in_common() {
    let stage = Stage::start(&[]);
    let inside = stage.directory("inside", 0, 0o755);
    let (hosts, _) = stage.file("inside/file", 1, (0, 0, 0o600));
    let (wanted, content) = stage.file("source", 2, (0, 0, 0o600));
    // In the container another file system lies over the directory, with another file of the same name.
    let cover = format!("mount -t tmpfs tmpfs {0} && cp {1} {0}/file", inside.display(), wanted.display());
    let root = Who::root().after(&cover);
    let mut ids = Vec::new();
    for mode in ["fd", "stream", "auto"] {
        let (id, taken) = stage.imported(&root, &hosts, &["--transfer", mode]);
        assert_eq!(taken, if mode == "auto" { "fd" } else { mode });
        holds(&stage, &id, content);
        ids.push(id);
    }
    let refused = stage.import(&root, &hosts, &["--transfer", "path"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.all().contains("does not see") && refused.all().contains("--transfer fd"), "{refused:?}");

    // What is exported is seen inside, and only there.
    for mode in ["fd", "stream", "auto"] {
        let look = format!("cmp {}/out {}", inside.display(), wanted.display());
        let script = Who::root().between(&cover, &look);
        let said = stage.export(&script, &ids[0], &inside.join("out"), &["--transfer", mode]);
        assert_eq!(said.code, Some(0), "{mode}: {said:?}");
        if mode == "auto" {
            let warnings: Vec<_> = said.stderr.lines().filter(|line| line.starts_with("dfcache: ")).collect();
            assert!(warnings.len() == 1 && warnings[0].ends_with("(fd)"), "{said:?}");
        }
    }
    let refused = stage.export(&root, &ids[0], &inside.join("out"), &["--transfer", "path"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(fs::read_dir(&inside).unwrap().count(), 1);
}

#[test]
fn root_of_a_container_gets_nothing_of_the_hosts_by_its_path() {
    let stage = Stage::start(&["shared"]);
    let secrets = stage.directory("secrets", 0, 0o700);
    let (secret, _) = stage.file("secrets/key", 1, (0, 0, 0o600));
    let shared = stage.directory("shared", 0, 0o755);
    let (volume, content) = stage.file("shared/model", 2, (0, 0, 0o644));
    // Inside, the host's secrets are covered by the container's own file of that name, and the volume has another name.
    let own = stage.directory("volume", 0, 0o755);
    let cover = format!(
        "mount -t tmpfs tmpfs {0} && echo own >{0}/key && mount --bind {1} {2}",
        secrets.display(),
        shared.display(),
        own.display()
    );
    let root = Who::root().after(&cover);
    let refused = stage.import(&root, &secret, &["--transfer", "path"]);
    assert!(refused.code == Some(1) && refused.all().contains("pathRoots"), "{refused:?}");
    let said = stage.import(&root, &own.join("model"), &["--transfer", "path"]);
    assert!(said.code == Some(1) && said.all().contains("does not see"), "{said:?}");
    let mapping = format!("{}:{}", own.display(), shared.display());
    let mapped = ["--transfer", "path", "--path-mapping", &mapping];
    let (id, taken) = stage.imported(&root, &own.join("model"), &mapped);
    assert_eq!(taken, "path");
    holds(&stage, &id, content);
    let said = stage.export(&root, &id, &own.join("out"), &mapped);
    assert_eq!(said.code, Some(0), "{said:?}");
    content.check_file(shared.join("out")).unwrap();
    // No way out of the root by a link in it, nor by a mapping.
    symlink(&secret, shared.join("link")).unwrap();
    let mapping = format!("{}:{}", secrets.display(), shared.display());
    let cover = format!("mount -t tmpfs tmpfs {0} && cp {1} {0}/link", secrets.display(), volume.display());
    let said = stage.import(
        &Who::root().after(&cover),
        &secrets.join("link"),
        &["--transfer", "path", "--path-mapping", &mapping],
    );
    assert_eq!(said.code, Some(1), "{said:?}");
}

#[test]
fn a_user_namespace_gives_no_power_over_the_hosts_files() {
    let stage = Stage::start(&[]);
    let (own, content) = stage.file("own", 1, (UID, GID, 0o600));
    let (roots, _) = stage.file("roots", 2, (0, 0, 0o600));
    let who = Who::user(UID, &[]).with_users_of_his_own();
    imports_in_every_mode(&stage, &who, &own, content);
    for mode in MODES {
        let said = stage.import(&who, &roots, &["--transfer", mode]);
        assert!(said.code == Some(1) && said.all().contains("ermission denied"), "{mode}: {said:?}");
    }
}

#[test]
fn what_is_mounted_for_reading_only_is_read_only() {
    let stage = Stage::start(&[]);
    let mount = stage.directory("mount", UID, 0o755);
    let (file, content) = stage.file("mount/f", 1, (UID, GID, 0o644));
    let path = mount.display();
    let script = format!("mount --bind {path} {path} && mount -o remount,bind,ro {path}");
    let mounted = std::process::Command::new("sh").args(["-e", "-c", &script]).status().unwrap();
    assert!(mounted.success());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let who = Who::user(UID, &[]);
        imports_in_every_mode(&stage, &who, &file, content);
        let (id, _) = stage.imported(&who, &file, &[]);
        for mode in MODES {
            let said = stage.export(&who, &id, &mount.join("out"), &["--transfer", mode]);
            assert!(said.code == Some(1) && said.all().contains("Read-only file system"), "{mode}: {said:?}");
        }
    }));
    let unmounted = std::process::Command::new("umount").arg(&mount).status().unwrap();
    assert!(unmounted.success());
    if let Err(why) = outcome {
        std::panic::resume_unwind(why);
    }
}

#[test]
fn links_as_kubernetes_makes_them_are_followed() {
    let stage = Stage::start(&[]);
    stage.directory("volume", UID, 0o755);
    stage.directory("volume/..2026_11_28", UID, 0o755);
    let (_, content) = stage.file("volume/..2026_11_28/model", 1, (UID, GID, 0o600));
    symlink("..2026_11_28", stage.path("volume/..data")).unwrap();
    symlink("..data/model", stage.path("volume/model")).unwrap();
    imports_in_every_mode(&stage, &Who::user(UID, &[]), &stage.path("volume/model"), content);
}

#[test]
fn a_link_that_is_swapped_meanwhile_leads_to_one_of_both_or_nowhere() {
    let stage = Stage::start(&[]);
    let home = stage.directory("his", UID, 0o755);
    let who = Who::user(UID, &[]);
    let (own, _) = stage.file("his/own", 1, (UID, GID, 0o600));
    let (secret, _) = stage.file("secret", 2, (0, 0, 0o600));
    let (id, _) = stage.imported(&who, &own, &[]);
    for (name, target) in [("link", &own), ("other", &secret)] {
        symlink(target, home.join(name)).unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let [link, other] = ["link", "other"].map(|name| home.join(name));
            while !done.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, &link, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let mut succeeded = 0;
        for round in 0..40 {
            let said = stage.import(&who, &home.join("link"), &["--transfer", MODES[round % MODES.len()]]);
            match said.code {
                Some(0) => {
                    assert_eq!(said.stdout.trim(), id, "{said:?}");
                    succeeded += 1;
                }
                _ => assert!(!said.all().contains("bug"), "{said:?}"),
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(succeeded > 0, "the link is right half of the time");
    });
}

#[test]
fn an_inherited_home_of_somebody_else_is_passed_over() {
    let stage = Stage::start(&[]);
    let home = stage.directory("roots-home", 0, 0o700);
    let (own, _) = stage.file("own", 1, (UID, GID, 0o600));
    let said = stage.import(&Who::user(UID, &[]).with_home(&home), &own, &[]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stderr.contains("/.config/dragonfly/dfcache.yaml: passed over"), "{said:?}");
    // A file that is there and may not be read is not passed over: it may say what must not be ignored.
    let home = stage.directory("his-home", UID, 0o755);
    fs::create_dir_all(home.join(".config/dragonfly")).unwrap();
    stage.file("his-home/.config/dragonfly/dfcache.yaml", 2, (0, 0, 0o600));
    let said = stage.import(&Who::user(UID, &[]).with_home(&home), &own, &[]);
    assert!(said.code == Some(1) && said.all().contains("cannot read"), "{said:?}");
}

/// Root in a container often has no power over others' files, and gets none through a daemon that has.
#[test]
fn a_powerless_caller_with_the_daemons_uid_does_not_borrow_its_power() {
    let stage = Stage::start(&[]);
    let (source, content) = stage.file("source", 1, (0, 0, 0o644));
    let (id, _) = stage.imported(&Who::root(), &source, &[]);
    // In a sticky directory only its owner, a file's owner and the powerful may replace the file.
    let sticky = stage.directory("sticky", UID, 0o1777);
    let file = sticky.join("theirs");
    fs::write(&file, "theirs").unwrap();
    chown(&file, Some(UID), Some(GID)).unwrap();
    for mode in MODES {
        let said = stage.export(&Who::powerless(), &id, &file, &["--overwrite", "--transfer", mode]);
        assert_eq!(said.code, Some(1), "{mode}: {said:?}");
        assert!(said.all().contains("not permitted"), "{mode}: {said:?}");
        assert_eq!(fs::read(&file).unwrap(), b"theirs");
    }
    let (hidden, _) = stage.file("hidden", 2, (UID, GID, 0o600));
    for mode in MODES {
        assert_eq!(stage.import(&Who::powerless(), &hidden, &["--transfer", mode]).code, Some(1), "{mode}");
    }
    let said = stage.export(&Who::root(), &id, &file, &["--overwrite", "--transfer", "path"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    content.check_file(&file).unwrap();
}
