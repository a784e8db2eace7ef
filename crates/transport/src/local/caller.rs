//! Who calls.
//!
//! `SO_PEERCRED` names the uid, gid and process that connected. Whether it lives where we live (same mount namespace,
//! same root) is read from `/proc`. The process's directory is opened once and everything is read relative to that
//! descriptor, which belongs to that very process: when it dies every further read fails, even if its number has been
//! given to another. What remains is that the number was given away between connect and accept. Then uid and gid must
//! still agree, and a whole cycle of process numbers must pass within those microseconds; `SO_PEERPIDFD` would rule
//! even that out, but no safe interface to it exists. Whatever cannot be read or does not agree makes the caller
//! foreign.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::thread::CapabilitySet;

/// Kernel ids that say "nobody you know".
const OVERFLOW: u32 = 65_534;

/// The process at the other end of a local connection, as it was when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// Effective uid.
    pub uid: u32,
    /// Effective gid.
    pub gid: u32,
    /// Process number; `None` when it lives where we cannot see it.
    pub pid: Option<i32>,
    /// Supplementary groups; empty when they could not be read.
    pub groups: Vec<u32>,
    /// Whether it sees the files we see: same mount namespace and same root.
    pub native: bool,
    /// Its umask, which files made in its name obey.
    pub umask: u32,
    /// What it may do beyond its uid, as a set of [`CapabilitySet`]; empty unless it lives in our user namespace.
    pub(super) capabilities: u64,
}

impl Caller {
    /// This process itself, as its own caller: for tests and for work done in its own name.
    #[must_use]
    pub fn this_process() -> Self {
        let groups = rustix::process::getgroups().unwrap_or_default();
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: Some(rustix::process::getpid().as_raw_nonzero().get()),
            groups: groups.iter().map(|gid| gid.as_raw()).collect(),
            native: true,
            umask: 0o022,
            capabilities: rustix::thread::capabilities(None).map_or(0, |sets| sets.effective.bits()),
        }
    }

    /// Somebody of whom only the uid and gid are known.
    #[must_use]
    pub fn foreign(uid: u32, gid: u32) -> Self {
        Self { uid, gid, pid: None, groups: Vec::new(), native: false, umask: 0o022, capabilities: 0 }
    }
}

/// Where this daemon lives, for comparison.
#[derive(Debug)]
pub(super) struct Judge {
    home: Option<Home>,
    overflow_uid: u32,
    overflow_gid: u32,
}

/// A place to live: what must agree for paths to mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Home {
    mount_namespace: (u32, u32, u64),
    root: (u32, u32, u64),
    root_mount: u64,
}

impl Judge {
    /// Looks at this process. Without a `/proc` of its own every caller will be foreign.
    pub(super) fn new() -> Arc<Self> {
        let kernel = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
            text.trim().parse().unwrap_or(OVERFLOW)
        };
        let own = rustix::process::getpid().as_raw_nonzero().get();
        // A /proc of another pid namespace would show us strangers under our callers' numbers.
        let is_ours =
            std::fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == own.to_string().as_str());
        let home = if is_ours { open_process(own).and_then(|process| home(&process)) } else { None };
        if home.is_none() {
            tracing::warn!("cannot read /proc/self: every local caller is treated as foreign");
        }
        Arc::new(Self { home, overflow_uid: kernel("overflowuid"), overflow_gid: kernel("overflowgid") })
    }

    /// Learns what there is to learn about the process that connected.
    pub(super) fn identify(&self, uid: u32, gid: u32, pid: Option<i32>) -> Caller {
        let mut caller = Caller::foreign(uid, gid);
        caller.pid = pid.filter(|pid| *pid > 0);
        let Some(process) = caller.pid.and_then(open_process) else {
            return caller;
        };
        let Some(status) = read(&process, "status").as_deref().and_then(Status::parse) else {
            return caller;
        };
        if (status.uid, status.gid) != (uid, gid) || uid == self.overflow_uid || gid == self.overflow_gid {
            return caller;
        }
        let Some(home) = home(&process).filter(|home| Some(*home) == self.home) else {
            return caller;
        };
        tracing::trace!(pid = caller.pid, ?home, "local caller shares our view of files");
        let same_users = namespace(&process, "ns/user").is_some_and(|theirs| {
            open_process_self().and_then(|own| namespace(&own, "ns/user")) == Some(theirs)
        });
        caller.native = true;
        caller.groups = status.groups;
        caller.umask = status.umask;
        caller.capabilities = if same_users { status.capabilities } else { 0 };
        caller
    }
}

fn open_process_self() -> Option<OwnedFd> {
    open_process(rustix::process::getpid().as_raw_nonzero().get())
}

fn open_process(pid: i32) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()).ok()
}

fn read(process: &OwnedFd, name: &str) -> Option<String> {
    use std::io::Read;
    let file = rustix::fs::openat(process, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = String::new();
    std::fs::File::from(file).take(1 << 20).read_to_string(&mut text).ok()?;
    Some(text)
}

fn namespace(process: &OwnedFd, name: &str) -> Option<(u32, u32, u64)> {
    let stat = rustix::fs::statx(process, name, AtFlags::empty(), StatxFlags::INO).ok()?;
    Some((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
}

fn home(process: &OwnedFd) -> Option<Home> {
    let mount_namespace = namespace(process, "ns/mnt")?;
    let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
    let root = rustix::fs::statx(process, "root", AtFlags::empty(), wanted).ok()?;
    // Kernels before 5.8 leave the mount id 0 for everybody; then the inode alone decides.
    Some(Home {
        mount_namespace,
        root: (root.stx_dev_major, root.stx_dev_minor, root.stx_ino),
        root_mount: root.stx_mnt_id,
    })
}

/// What is needed of `/proc/<pid>/status`.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    umask: u32,
    capabilities: u64,
}

impl Status {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        // Real, effective, saved, file system.
        let effective = |name| field(name)?.split_whitespace().nth(1)?.parse().ok();
        let groups = field("Groups")?.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let capabilities = u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?;
        // Kernels before 4.7 do not tell the umask.
        let umask = field("Umask").and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o022);
        let known = CapabilitySet::from_bits_retain(capabilities).bits();
        Some(Self {
            uid: effective("Uid")?,
            gid: effective("Gid")?,
            groups,
            umask: umask & 0o777,
            capabilities: known,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read_by_its_effective_ids() {
        let text = "Name:\tdfget (Uid:\t0)\nUmask:\t0027\nState:\tS\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n\
                    FDSize:\t64\nGroups:\t9 10 \nCapEff:\t00000000a80425fb\n";
        let status = Status::parse(text).expect("complete");
        let expected =
            Status { uid: 2, gid: 6, groups: vec![9, 10], umask: 0o027, capabilities: 0xa804_25fb };
        assert_eq!(status, expected);
        assert_eq!(Status::parse(&text.replace("Groups", "Grapes")), None);
        assert_eq!(Status::parse(&text.replace("9 10", "9 x")), None);
    }

    #[test]
    fn this_process_is_native_to_itself() {
        let own = Caller::this_process();
        let caller = Judge::new().identify(own.uid, own.gid, own.pid);
        assert!(caller.native);
        assert_eq!((caller.uid, caller.gid, caller.pid), (own.uid, own.gid, own.pid));
        let sorted = |mut groups: Vec<u32>| {
            groups.sort_unstable();
            groups
        };
        assert_eq!(sorted(caller.groups), sorted(own.groups));
        assert_eq!(caller.capabilities, own.capabilities);
    }

    #[test]
    fn what_does_not_agree_is_foreign() {
        let own = Caller::this_process();
        let judge = Judge::new();
        let strangers = [
            judge.identify(own.uid + 1, own.gid, own.pid),
            judge.identify(own.uid, own.gid + 1, own.pid),
            judge.identify(own.uid, own.gid, None),
            judge.identify(own.uid, own.gid, Some(0)),
            judge.identify(own.uid, own.gid, Some(i32::MAX)),
        ];
        for stranger in strangers {
            assert!(
                !stranger.native && stranger.groups.is_empty() && stranger.capabilities == 0,
                "{stranger:?}"
            );
        }
        // The overflow uid is nobody in particular, whoever's process it is.
        let nobody = Judge { overflow_uid: own.uid, overflow_gid: OVERFLOW, home: judge.home };
        assert!(!nobody.identify(own.uid, own.gid, own.pid).native);
        let homeless = Judge { overflow_uid: OVERFLOW, overflow_gid: OVERFLOW, home: None };
        assert!(!homeless.identify(own.uid, own.gid, own.pid).native);
    }

    #[test]
    fn a_dead_process_is_foreign() {
        let own = Caller::this_process();
        let mut child = std::process::Command::new("true").spawn().expect("there is a `true`");
        let pid = i32::try_from(child.id()).expect("small");
        child.wait().expect("ends");
        assert!(!Judge::new().identify(own.uid, own.gid, Some(pid)).native);
    }
}
