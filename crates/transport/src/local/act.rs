//! Acting with a caller's rights.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::Caller;

/// Threads of this process that act for callers at once. Such a thread hangs as long as a caller's file system likes.
const THREADS: usize = 64;
/// How many of them one uid may have.
const SHARE: usize = 16;
/// How long a call waits for a thread while none of those that have one gets on.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why nothing was done in a caller's name.
#[derive(Debug, Error)]
pub enum ActError {
    /// The daemon cannot become this caller.
    #[error(
        "the daemon runs as uid {own} and may not open files as uid {uid}: hand them over (--transfer fd) \
         or stream them (--transfer-from-dfdaemon), or run the daemon as root"
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
    /// All threads are busy, and none got on for a while.
    #[error(
        "{limit} operations {whose} are under way and none of them got on for {} s: a file system does not answer; \
         look for one that hangs (a network or FUSE mount), then try again", .waited.as_secs()
    )]
    Busy {
        /// Whose operations these are.
        whose: String,
        /// How many there may be at once.
        limit: usize,
        /// How long nothing happened.
        waited: Duration,
    },
    /// The work itself panicked.
    #[error("acting as the caller failed unexpectedly; this is a bug")]
    Panicked,
}

/// A number of threads, and their signs of life.
#[derive(Debug)]
struct Pool {
    limit: usize,
    free: Arc<Semaphore>,
    /// How often a thread got on or came back.
    beats: AtomicU64,
}

impl Pool {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, free: Arc::new(Semaphore::new(limit)), beats: AtomicU64::new(0) })
    }

    fn try_place(self: &Arc<Self>) -> Option<Place> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(Place { pool: Arc::clone(self), _permit: permit })
    }

    /// Waits for its turn as long as those before it get on, else for [`PATIENCE`].
    async fn place(self: &Arc<Self>, whose: impl FnOnce() -> String) -> Result<Place, ActError> {
        let busy = |whose| ActError::Busy { whose, limit: self.limit, waited: PATIENCE };
        // Without waiting no timer is needed.
        if let Some(place) = self.try_place() {
            return Ok(place);
        }
        let mut turn = std::pin::pin!(Arc::clone(&self.free).acquire_owned());
        loop {
            let beats = self.beats.load(Ordering::Relaxed);
            match tokio::time::timeout(PATIENCE, &mut turn).await {
                Ok(Ok(permit)) => return Ok(Place { pool: Arc::clone(self), _permit: permit }),
                Err(_) if self.beats.load(Ordering::Relaxed) != beats => {}
                Ok(Err(_)) | Err(_) => return Err(busy(whose())),
            }
        }
    }
}

/// A place for one thread.
#[derive(Debug)]
struct Place {
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.beats.fetch_add(1, Ordering::Relaxed);
    }
}

/// How a long operation shows that it gets on.
#[derive(Clone, Debug)]
pub struct Life([Arc<Pool>; 2]);

impl Life {
    /// Something was done since the last time: those who wait for a thread may go on waiting.
    pub fn beat(&self) {
        self.0.iter().for_each(|pool| {
            pool.beats.fetch_add(1, Ordering::Relaxed);
        });
    }
}

type Places = [Place; 2];

/// Who may have how many threads: all callers together, and each uid, so that nobody takes all of them.
#[derive(Debug)]
struct Threads {
    all: Arc<Pool>,
    shares: Mutex<HashMap<u32, Weak<Pool>>>,
}

/// They are the process's, however many daemons it has.
static THREADS_OF_CALLERS: LazyLock<Threads> = LazyLock::new(Threads::new);

impl Threads {
    fn new() -> Self {
        Self { all: Pool::new(THREADS), shares: Mutex::default() }
    }

    fn share(&self, uid: u32) -> Arc<Pool> {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(&uid).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Pool::new(SHARE);
        shares.insert(uid, Arc::downgrade(&share));
        share
    }

    /// The share first: whoever waits for that takes nothing from others.
    async fn place(&self, uid: u32) -> Result<Places, ActError> {
        let own = self.share(uid).place(|| format!("in the name of uid {uid}")).await?;
        let any = self.all.place(|| "in callers' names".to_owned()).await?;
        Ok([own, any])
    }

    fn try_place(&self, uid: u32) -> Option<Places> {
        Some([self.share(uid).try_place()?, self.all.try_place()?])
    }
}

/// Runs `act` on a thread of its own that has the caller's groups, gid and uid, and the caller's capabilities at most.
///
/// Only the effective ids change: real and saved ids stay the daemon's, so the caller can neither signal nor trace the
/// thread. The thread ends with `act`, so no credentials can leak into other work. `act` may block; the calling task
/// does not. What is not carried over: resource limits, security labels, Landlock and seccomp rules of the caller.
///
/// At most 64 such threads run at once, 16 of one uid. Others wait for their turn, and give up when for a minute none
/// of those before them got on: when none came back and none of those of [`as_caller_for_long`] said so.
///
/// # Errors
/// When the thread cannot take on the caller's rights, or there is none to be had; `act` has not run then.
pub async fn as_caller<T, F>(caller: &Caller, act: F) -> Result<T, ActError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    as_caller_for_long(caller, |_| act()).await
}

/// As [`as_caller`], for what takes its time and says while it gets on.
///
/// # Errors
/// As [`as_caller`].
pub async fn as_caller_for_long<T, F>(caller: &Caller, act: F) -> Result<T, ActError>
where
    T: Send + 'static,
    F: FnOnce(&Life) -> T + Send + 'static,
{
    on_thread(caller, become_caller, act).await
}

/// `become_it` takes on the rights to act with.
async fn on_thread<T, F>(
    caller: &Caller,
    become_it: fn(&Caller) -> Result<(), ActError>,
    act: F,
) -> Result<T, ActError>
where
    T: Send + 'static,
    F: FnOnce(&Life) -> T + Send + 'static,
{
    let places = THREADS_OF_CALLERS.place(caller.uid).await?;
    let life = Life([&places[0], &places[1]].map(|place| Arc::clone(&place.pool)));
    let (report, result) = oneshot::channel();
    start(caller.clone(), Some(places), become_it, move |ready| {
        // The receiver is gone when the asking task was cancelled; then nobody wants the result.
        drop(report.send(ready.map(|()| act(&life))));
    })
    .map_err(ActError::Thread)?;
    result.await.map_err(|_| ActError::Panicked)?
}

/// As [`as_caller_for_long`], for work on a file that the caller opened and handed over. A daemon that cannot become the
/// caller works under its own uid then, without capabilities: whether the caller may was decided when it was opened.
///
/// # Errors
/// As [`as_caller`].
pub async fn with_handed_over<T, F>(caller: &Caller, act: F) -> Result<T, ActError>
where
    T: Send + 'static,
    F: FnOnce(&Life) -> T + Send + 'static,
{
    on_thread(caller, become_caller_or_less, act).await
}

/// As [`as_caller`], without waiting for it: for cleaning up. It is done on the spot if there is a thread to be had,
/// also where no runtime is left to wait for one.
pub(super) fn spawn<F>(caller: Caller, act: F) -> io::Result<()>
where
    F: FnOnce(Result<(), ActError>) + Send + 'static,
{
    let places = THREADS_OF_CALLERS.try_place(caller.uid);
    let (None, Ok(runtime)) = (&places, Handle::try_current()) else {
        return start(caller, places, become_caller, act);
    };
    runtime.spawn(async move {
        match THREADS_OF_CALLERS.place(caller.uid).await {
            Ok(places) => {
                if let Err(error) = start(caller, Some(places), become_caller, act) {
                    tracing::warn!(%error, "no thread to clean up with in a caller's name");
                }
            }
            Err(why) => act(Err(why)),
        }
    });
    Ok(())
}

fn start<F>(
    caller: Caller,
    places: Option<Places>,
    become_it: fn(&Caller) -> Result<(), ActError>,
    act: F,
) -> io::Result<()>
where
    F: FnOnce(Result<(), ActError>) + Send + 'static,
{
    let builder = thread::Builder::new().name(format!("as-uid-{}", caller.uid));
    let run = move || {
        act(become_it(&caller));
        drop(places);
    };
    builder.spawn(run).map(drop)
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

fn become_caller_or_less(caller: &Caller) -> Result<(), ActError> {
    match become_caller(caller) {
        Err(ActError::NotPermitted { .. }) => {
            let failed = |errno: rustix::io::Errno| ActError::Credentials {
                uid: rustix::process::geteuid().as_raw(),
                source: errno.into(),
            };
            // Without CAP_FSETID for one, which would keep the set-uid bit of what is written to.
            let sets = rustix::thread::capabilities(None).map_err(failed)?;
            let effective = CapabilitySet::empty();
            rustix::thread::set_capabilities(None, CapabilitySets { effective, ..sets }).map_err(failed)
        }
        became => became,
    }
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

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_thread_for_ever_and_one_uid_does_not_take_all() {
        let threads = Arc::new(Threads::new());
        let mut places = Vec::new();
        for uid in [1, 2, 3] {
            for _ in 0..SHARE {
                places.push(threads.place(uid).await.expect("free"));
            }
        }
        let began = tokio::time::Instant::now();
        let why = threads.place(1).await.expect_err("its share is taken");
        assert_eq!(began.elapsed(), PATIENCE);
        assert!(why.to_string().contains("16 operations in the name of uid 1"), "{why}");
        assert_eq!(threads.share(1).free.available_permits(), 0);
        for _ in 0..SHARE {
            places.push(threads.place(4).await.expect("others have theirs"));
        }
        let why = threads.place(5).await.expect_err("all are taken");
        assert!(why.to_string().contains("64 operations in callers' names"), "{why}");
        places.pop();
        threads.place(5).await.expect("one came back");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_what_gets_on_has_its_turn() {
        let threads = Arc::new(Threads::new());
        let mut places = Vec::new();
        for _ in 0..SHARE {
            places.push(threads.place(1).await.expect("free"));
        }
        let life = Life([threads.share(1), Arc::clone(&threads.all)]);
        let waiting = tokio::spawn({
            let threads = Arc::clone(&threads);
            async move { threads.place(1).await.map(drop) }
        });
        for _ in 0..5 {
            tokio::time::sleep(PATIENCE - Duration::from_secs(1)).await;
            life.beat();
        }
        assert!(!waiting.is_finished());
        places.pop();
        waiting.await.expect("no panic").expect("its turn came");
        drop((places, life));
        assert!(
            threads.try_place(2).is_some() && threads.shares.lock().len() == 1,
            "shares go with their uids"
        );
    }

    #[tokio::test]
    async fn a_call_has_a_place_until_its_thread_ends() {
        let own = Caller::this_process();
        let (gate, wait) = std::sync::mpsc::channel::<()>();
        let (entered, inside) = oneshot::channel();
        let act = async {
            let acted = as_caller(&own, move || {
                let _: Result<(), ()> = entered.send(());
                let _: Result<(), _> = wait.recv();
            });
            acted.await
        };
        let look = async {
            inside.await.expect("it runs");
            let free = THREADS_OF_CALLERS.share(own.uid).free.available_permits();
            drop(gate);
            free
        };
        let (acted, free) = tokio::join!(act, look);
        acted.expect("own uid");
        assert!(free < SHARE);
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
