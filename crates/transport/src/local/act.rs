//! Acting with a caller's rights.

use std::io;
use std::thread;

use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use thiserror::Error;
use tokio::sync::oneshot;

use super::Caller;

/// Why nothing was done in a caller's name.
#[derive(Debug, Error)]
pub enum ActError {
    /// The daemon cannot become this caller.
    #[error(
        "the daemon runs as uid {own} and may not open files as uid {uid}: transfer by descriptor or stream instead \
         (--transfer fd, or --transfer-from-dfdaemon), or run the daemon as root"
    )]
    NotPermitted {
        /// The caller.
        uid: u32,
        /// The daemon.
        own: u32,
    },
    /// The kernel refused for another reason.
    #[error("cannot take on the rights of uid {uid}: {source}")]
    Credentials {
        /// The caller.
        uid: u32,
        /// The kernel's reason.
        source: io::Error,
    },
    /// No thread to do it on.
    #[error("cannot start a thread for the caller: {0}")]
    Thread(io::Error),
    /// The work itself panicked.
    #[error("acting as the caller failed unexpectedly; this is a bug")]
    Panicked,
}

/// Runs `act` on a thread of its own that has the caller's groups, gid and uid, and the caller's capabilities at most.
///
/// Only the effective ids change: real and saved ids stay the daemon's, so the caller can neither signal nor trace the
/// thread. The thread ends with `act`, so no credentials can leak into other work. `act` may block; the calling task
/// does not. What is not carried over: resource limits, security labels, Landlock and seccomp rules of the caller.
///
/// # Errors
/// When the thread cannot take on the caller's rights; `act` has not run then.
pub async fn as_caller<T, F>(caller: &Caller, act: F) -> Result<T, ActError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (report, result) = oneshot::channel();
    spawn(caller.clone(), move |ready| {
        // The receiver is gone when the asking task was cancelled; then nobody wants the result.
        drop(report.send(ready.map(|()| act())));
    })
    .map_err(ActError::Thread)?;
    result.await.map_err(|_| ActError::Panicked)?
}

/// As [`as_caller`], without waiting for it: for cleaning up.
pub(super) fn spawn<F>(caller: Caller, act: F) -> io::Result<()>
where
    F: FnOnce(Result<(), ActError>) + Send + 'static,
{
    let builder = thread::Builder::new().name(format!("as-uid-{}", caller.uid));
    builder.spawn(move || act(become_caller(&caller))).map(drop)
}

fn become_caller(caller: &Caller) -> Result<(), ActError> {
    let own = rustix::process::geteuid().as_raw();
    let failed = |errno: rustix::io::Errno| match errno {
        rustix::io::Errno::PERM => ActError::NotPermitted { uid: caller.uid, own },
        errno => ActError::Credentials { uid: caller.uid, source: errno.into() },
    };
    if caller.uid == u32::MAX || caller.gid == u32::MAX || caller.groups.contains(&u32::MAX) {
        return Err(failed(rustix::io::Errno::INVAL));
    }
    let groups: Vec<Gid> = caller.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        Ok(()) => {}
        // Without the capability a daemon serves its own uid, which could do with the daemon as it likes anyway.
        Err(rustix::io::Errno::PERM) if caller.uid == own => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    rustix::thread::set_thread_res_gid(None, Gid::from_raw(caller.gid), None).map_err(failed)?;
    rustix::thread::set_thread_res_uid(None, Uid::from_raw(caller.uid), None).map_err(failed)?;
    // Root's capabilities go with the uid, but those of a daemon that has them without being root would stay, and
    // a root caller may have given some of its own up.
    let sets = rustix::thread::capabilities(None).map_err(failed)?;
    let theirs = CapabilitySet::from_bits_retain(if caller.uid == 0 { caller.capabilities } else { 0 });
    let effective = sets.permitted & theirs;
    rustix::thread::set_capabilities(None, CapabilitySets { effective, ..sets }).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_can_always_act_as_oneself() {
        let own = Caller::this_process();
        let ids = as_caller(&own, || (rustix::process::geteuid(), rustix::process::getegid())).await;
        let (uid, gid) = ids.expect("own uid");
        assert_eq!((uid.as_raw(), gid.as_raw()), (own.uid, own.gid));
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let own = Caller::this_process();
        let result = as_caller(&own, || panic!("told to")).await;
        assert!(matches!(result, Err::<(), _>(ActError::Panicked)));
    }

    #[tokio::test]
    async fn no_uid_at_all_is_refused() {
        let nobody = Caller::foreign(u32::MAX, 0);
        assert!(matches!(as_caller(&nobody, || ()).await, Err(ActError::Credentials { .. })));
    }
}
